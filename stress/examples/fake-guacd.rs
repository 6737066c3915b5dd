//! What does `guac-stress` itself cost? This program plays a guacd in front of a terminal, for as many sessions as there are
//! descriptors, at almost no cost. Load it with `guac-stress --guacd` to measure what the generator itself takes.
//!
//!     cargo run --release --package guac-stress --example fake-guacd -- 127.0.0.1:4900
#![allow(clippy::print_stderr)]

use std::{env, time::Duration};

use tokio::net::TcpSocket;

#[path = "../tests/it/fake.rs"]
#[allow(dead_code)]
mod fake;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = env::args().nth(1).ok_or("give the address to listen on, such as 127.0.0.1:4900")?;
    guac_stress::guacd::processes::raise_descriptor_limit()?;
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address.parse()?)?;
    let fake = fake::Fake::on(socket.listen(4096)?, &[]);
    eprintln!("listening on {}; Ctrl-C ends it", fake.address);
    loop {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}
