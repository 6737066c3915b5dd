//! The TCP connections of this machine, as the kernel lists them.

use std::fs;

use anyhow::{Context, Result};

/// A connection, as one of its ends sees it.
pub struct Connection {
    /// The port of this end.
    pub local: u16,
    /// The port of the other end.
    pub remote: u16,
    /// How many bytes this end has sent that the other end has not acknowledged.
    pub unsent: usize,
    /// How many bytes have arrived that the program has not read.
    pub unread: usize,
    /// Whether the kernel asks the other end now and then whether the connection still exists.
    pub is_kept_alive: bool,
    /// The number of the socket.
    pub inode: String,
}

/// Both ends of all connections over IPv4.
pub fn connections() -> Result<Vec<Connection>> {
    const ESTABLISHED: &str = "01";
    let table = fs::read_to_string("/proc/net/tcp")?;
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // The first line has the names of the columns.
    lines.filter(|fields| fields.len() > 9 && fields[3] == ESTABLISHED).map(|fields| parse(&fields)).collect()
}

fn parse(fields: &[&str]) -> Result<Connection> {
    let port = |address: &str| -> Result<u16> {
        Ok(u16::from_str_radix(address.rsplit(':').next().unwrap_or_default(), 16)?)
    };
    let (unsent, unread) = fields[4].split_once(':').context("no queues")?;
    Ok(Connection {
        local: port(fields[1])?,
        remote: port(fields[2])?,
        unsent: usize::from_str_radix(unsent, 16)?,
        unread: usize::from_str_radix(unread, 16)?,
        is_kept_alive: fields[5].starts_with("02:"),
        inode: fields[9].to_owned(),
    })
}
