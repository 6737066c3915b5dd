//! A guacd of the test's own, which ends with it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use super::processes::{children, kill};
use super::user::User;
use super::{SOON, built};

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
        Guacd::start_under(variant, shell, "", options)
    }

    /// Starts it by another program, which becomes guacd.
    pub fn start_under(variant: &str, shell: &str, program: &str, options: &str) -> Result<Guacd> {
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
            // The tests look into its processes, which root alone may do otherwise.
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

    /// A user who has selected a protocol or a connection, and got its arguments.
    pub fn user(&self, selected: &str) -> Result<User> {
        User::select(self.port, selected)
    }

    /// All processes that it started, and those that they started.
    pub fn processes(&self) -> Vec<i32> {
        let mut all = children(self.pid());
        for i in 0.. {
            let Some(&pid) = all.get(i) else { break };
            all.extend(children(pid));
        }
        all
    }

    /// The processes of connections.
    pub fn connections(&self) -> Vec<i32> {
        let has_plugin = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains("libguac-client-"))
        };
        self.processes().into_iter().filter(has_plugin).collect()
    }

    /// The number of the socket at guacd's end of a user's connection.
    pub fn inode(&self, user: &User) -> Result<String> {
        let (ours, theirs) =
            (format!(":{:04X}", self.port), format!(":{:04X}", user.stream.local_addr()?.port()));
        for line in fs::read_to_string("/proc/net/tcp")?.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.len() > 9 && fields[1].ends_with(&ours) && fields[2].ends_with(&theirs) {
                return Ok(fields[9].to_owned());
            }
        }
        bail!("no such connection")
    }

    pub fn wait(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "guacd does not end");
            sleep(Duration::from_millis(10));
        }
        Ok(())
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

/// A guacd that went to the background. What is left of it ends with this.
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
    let deadline = Instant::now() + SOON;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(Instant::now() < deadline, "guacd does not listen");
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The living processes of the guacd that was told to listen on a port: all of them have its command line.
pub fn processes_on(port: u16) -> Vec<i32> {
    let words = format!("\0-l\0{port}\0");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|line| line.contains(&words))
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Those of them that do not end in time, with those that are only forked meanwhile.
pub fn left_on(port: u16, timeout: Duration) -> Vec<i32> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = processes_on(port);
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        sleep(Duration::from_millis(20));
    }
}
