//! Do downloads go through the proxy that the environment names?

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use anyhow::{Result, ensure};

use crate::fetch::{Answer, Cache, made_up, pinned, respond, serve};
use crate::support::{Output, SOON};

crate::tests! {
    Nothing:
        downloads_go_through_the_proxy_of_their_scheme,
        a_proxy_that_refuses_or_that_is_none_is_named;
}

/// The variables that name proxies, in upper case.
const VARIABLES: [&str; 4] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"];

/// A proxy on loopback. It connects each client to the same server, or refuses to, and says what it was asked for.
fn proxy(to: Option<SocketAddr>) -> Result<(String, Receiver<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    let (asked, requests) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client may leave in the middle.
            let _ = tunnel(stream, to, &asked);
        }
    });
    Ok((url, requests))
}

fn tunnel(mut client: TcpStream, to: Option<SocketAddr>, asked: &mpsc::Sender<String>) -> io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && client.read(&mut byte)? == 1 {
        request.push(byte[0]);
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let _ = asked.send(request.lines().next().unwrap_or_default().to_owned());
    let Some(to) = to else {
        return client.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    };
    let mut server = TcpStream::connect(to)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || io::copy(&mut from_client, &mut to_server));
    io::copy(&mut server, &mut client)?;
    client.shutdown(std::net::Shutdown::Both)
}

/// Fetches a made-up release from `url`, with these variables and no others of their kind.
fn fetch(url: &str, file: &[u8], variables: &[(&str, &str)]) -> Result<(Output, Cache)> {
    let checkout = pinned(url, file)?;
    let cache = Cache::new()?;
    let mut fetch = checkout.xtask(["fetch", "--release", "9.9.9"]).env("XDG_CACHE_HOME", cache.path());
    for name in VARIABLES {
        fetch = fetch.without(name).without(&name.to_lowercase());
    }
    for (name, value) in variables {
        fetch = fetch.env(name, value);
    }
    Ok((fetch.run()?, cache))
}

fn downloads_go_through_the_proxy_of_their_scheme() -> Result<()> {
    let file = made_up(|_| ())?;
    let served = file.clone();
    let answer: Answer = Box::new(move |stream, _, _| {
        respond(stream, &format!("200 OK\r\nContent-Length: {}", served.len()), &served)
    });
    let direct = serve(answer)?;
    let address = direct.trim_start_matches("http://").split('/').next().unwrap_or_default().parse()?;
    let (url, requests) = proxy(Some(address))?;

    // Only the proxy knows this host.
    let elsewhere = "http://origin.invalid/guacamole-server.tar.gz";
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let (output, cache) = fetch(elsewhere, &file, &[(name, &url), ("NO_PROXY", "127.0.0.1")])?;
        output.expect(0, &[])?;
        ensure!(std::fs::read(cache.archive()?)? == file, "{name}: it is not what was served");
        let asked = requests.recv_timeout(SOON)?;
        ensure!(asked.starts_with("CONNECT origin.invalid:80 "), "{name}: the proxy was asked for {asked:?}");
    }
    // The proxy is not asked for a host in NO_PROXY, or with another scheme's variable.
    for variables in
        [&[("HTTP_PROXY", &*url), ("NO_PROXY", "example.org, 127.0.0.1")][..], &[("HTTPS_PROXY", &url)]]
    {
        let (output, _cache) = fetch(&direct, &file, variables)?;
        output.expect(0, &[])?;
        ensure!(requests.try_recv().is_err(), "{variables:?}: the proxy was asked");
    }
    Ok(())
}

fn a_proxy_that_refuses_or_that_is_none_is_named() -> Result<()> {
    let (url, requests) = proxy(None)?;
    let (output, cache) =
        fetch("https://origin.invalid/guacamole-server.tar.gz", b"", &[("HTTPS_PROXY", &url)])?;
    output.expect(3, &["https://origin.invalid/guacamole-server.tar.gz", "403"])?;
    let asked = requests.recv_timeout(SOON)?;
    ensure!(asked.starts_with("CONNECT origin.invalid:443 "), "the proxy was asked for {asked:?}");
    ensure!(cache.files()?.is_empty(), "left behind: {:?}", cache.files()?);

    let variables = [("HTTPS_PROXY", "socks5://name:secret@127.0.0.1:1080")];
    let (output, _cache) = fetch("https://origin.invalid/guacamole-server.tar.gz", b"", &variables)?;
    output.expect(3, &["HTTPS_PROXY names no proxy that can be used", "http://HOST:PORT", "SOCKS"])?;
    ensure!(!output.stderr.contains("secret"), "the password is shown: {}", output.stderr);
    Ok(())
}
