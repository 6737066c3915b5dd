//! A guacd that a test starts, and that ends with the test.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getpgid};
use tempfile::TempDir;

use super::processes::{children, descendants_of, is_alive, kill};
use super::tcp::connections;
use super::user::User;
use super::{SOON, built, wait_until};

/// A guacd that runs, and ends with this.
pub struct Guacd {
    pub child: Child,
    pub port: u16,
    dir: TempDir,
}

impl Guacd {
    pub fn start(variant: &str) -> Result<Guacd> {
        Guacd::start_with(variant, ":", "")
    }

    /// Starts it after a shell command, such as one that sets limits, and with more options.
    pub fn start_with(variant: &str, shell: &str, options: &str) -> Result<Guacd> {
        Guacd::start_by(variant, shell, "", options)
    }

    /// Starts it by another program, which executes guacd.
    pub fn start_by(variant: &str, shell: &str, program: &str, options: &str) -> Result<Guacd> {
        let prefix = built(variant)?;
        let dir = TempDir::new()?;
        let port = free_port()?;
        let log = File::create(dir.path().join("log"))?;
        let child = Command::new("sh")
            .args([
                "-c",
                &format!("{shell} && exec {program} \"$0\" -f -L info -b 127.0.0.1 -l {port} {options}"),
            ])
            .arg(prefix.join("sbin/guacd"))
            .env("LD_LIBRARY_PATH", prefix.join("lib"))
            // The tests look into its processes, which only root may do otherwise.
            .env("GUACD_DUMPABLE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let guacd = Guacd { child, port, dir };
        wait_until_it_listens(port).with_context(|| guacd.log().unwrap_or_default())?;
        Ok(guacd)
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.path().join("log"))?)
    }

    /// Waits until these words are in the log.
    pub fn expect_in_log(&self, words: &str) -> Result<()> {
        let is_logged = || self.log().is_ok_and(|log| log.contains(words));
        wait_until("it is logged", SOON, is_logged)
            .with_context(|| format!("{words:?} is not in {}", self.log().unwrap_or_default()))
    }

    /// A user who has selected a protocol or a connection, and got its arguments.
    pub fn user(&self, selected: &str) -> Result<User> {
        User::select(self.port, selected)
    }

    /// A user with a session over telnet to a target on this port, and the ID of the connection.
    pub fn telnet(&self, port: &str) -> Result<(User, String)> {
        let mut user = self.user("telnet")?;
        user.handshake(&["127.0.0.1", port])?;
        let id = user.expect_id()?;
        Ok((user, id))
    }

    /// All processes that it started, and those that they started.
    pub fn processes(&self) -> Vec<i32> {
        descendants_of(self.pid())
    }

    /// The processes of connections. Each leads its own process group, and has a plugin. The fork server has plugins, too.
    pub fn connections(&self) -> Vec<i32> {
        let leads = |pid: &i32| Pid::from_raw(*pid).is_some_and(|pid| getpgid(Some(pid)) == Ok(pid));
        self.processes().into_iter().filter(|pid| leads(pid) && !plugins(*pid).is_empty()).collect()
    }

    /// Waits until no process of a connection is left.
    pub fn wait_for_the_end_of_connections(&self, timeout: Duration) -> Result<()> {
        wait_until("all connections end", timeout, || self.connections().is_empty())
            .with_context(|| self.log().unwrap_or_default())
    }

    /// Waits until crashes of processes that have ended are logged. The fork server reaps them together, a moment later.
    pub fn wait_until_all_are_reaped(&self) -> Result<()> {
        wait_until("processes that have ended are reaped", SOON, || {
            self.processes().into_iter().all(is_alive)
        })
    }

    /// The process that forks the connection processes.
    pub fn fork_server(&self) -> Option<i32> {
        // A connection process whose parent has ended is a child of guacd, too.
        let connections = self.connections();
        children(self.pid()).into_iter().find(|pid| is_alive(*pid) && !connections.contains(pid))
    }

    /// The number of the socket at guacd's end of a user's connection.
    pub fn inode(&self, user: &User) -> Result<String> {
        let theirs = user.stream.local_addr()?.port();
        let ours = connections()?.into_iter().find(|end| end.local == self.port && end.remote == theirs);
        Ok(ours.context("no such connection")?.inode)
    }

    /// Waits until none of its processes lives. Returns those that are left when the time is up. All write to its log, and no
    /// other process does.
    pub fn left(&self, timeout: Duration) -> Vec<i32> {
        let log = self.dir.path().join("log");
        let mut left = Vec::new();
        let _ = wait_until("all processes end", timeout, || {
            left = all_processes();
            left.retain(|pid| fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|file| file == log));
            left.is_empty()
        });
        left
    }

    pub fn wait(&mut self, timeout: Duration) -> Result<()> {
        wait_until("guacd ends", timeout, || matches!(self.child.try_wait(), Ok(Some(_))))
    }
}

impl Drop for Guacd {
    fn drop(&mut self) {
        let processes = self.processes();
        kill(self.pid(), Signal::TERM);
        if self.wait(SOON).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        for pid in processes {
            kill(pid, Signal::KILL);
        }
    }
}

/// Whether guacd was built with FreeRDP 3, and not with FreeRDP 2.
pub fn has_freerdp3() -> Result<bool> {
    let plugin = fs::read(built("stock")?.join("lib/libguac-client-rdp.so"))?;
    let name = b"libfreerdp3.so";
    Ok(plugin.windows(name.len()).any(|window| window == name))
}

/// The names of the plugins that a process has loaded.
pub fn plugins(pid: i32) -> BTreeSet<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let name = |line: &str| Some(line.split_once("/libguac-client-")?.1.split_once(".so")?.0.to_owned());
    maps.lines().filter_map(name).collect()
}

/// A guacd that went to the background. What is left of it ends with this, as connections end with guacd.
pub struct Daemon {
    pub port: u16,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for pid in processes_on(self.port) {
            kill(pid, Signal::KILL);
        }
    }
}

pub fn wait_until_it_listens(port: u16) -> Result<()> {
    wait_until("guacd listens", SOON, || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
}

/// A port that nobody uses. It is none of those that the kernel gives to other tests' servers and clients meanwhile.
pub fn free_port() -> Result<u16> {
    const PORTS: Range<u32> = 10_000..32_000;
    static COUNT: AtomicU32 = AtomicU32::new(0);
    for _ in PORTS {
        // Another run of the tests begins elsewhere.
        let number = std::process::id().wrapping_mul(101).wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(PORTS.start + number % (PORTS.end - PORTS.start))?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port from {PORTS:?} is free")
}

/// The living processes of the guacd that listens on a port, except for those that have given themselves another command line.
fn processes_on(port: u16) -> Vec<i32> {
    let words = format!("\0-l\0{port}\0");
    let is_its = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&words))
    };
    all_processes().into_iter().filter(is_its).collect()
}

fn all_processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
