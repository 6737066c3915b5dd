//! A real sshd, with SFTP, and with keys that the test makes.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::SOON;
use super::guacd::free_port;
use super::processes::descendants_of;
use super::user::User;

/// The program, which wants to be started by its full path.
const SSHD: &str = "/usr/sbin/sshd";

/// The options with which ssh-keygen makes a key as it does by default.
pub const ED25519: &[&str] = &["-t", "ed25519"];

/// Whether there is an sshd.
pub fn is_installed() -> bool {
    Path::new(SSHD).exists()
}

/// An sshd that runs, and ends with this. Only the user who runs the test may log in.
pub struct Sshd {
    child: Child,
    pub port: u16,
    pub user: String,
    /// Its configuration, log and keys.
    dir: TempDir,
}

impl Sshd {
    /// Starts an sshd where these keys log in. Each is a name, and the options with which ssh-keygen makes it.
    pub fn start(keys: &[(&str, &[&str])]) -> Result<Sshd> {
        let dir = TempDir::new()?;
        make_key(dir.path(), "host", ED25519)?;
        let mut authorized = String::new();
        for (name, options) in keys {
            make_key(dir.path(), name, options)?;
            authorized += &fs::read_to_string(dir.path().join(name).with_extension("pub"))?;
        }
        fs::write(dir.path().join("authorized"), authorized)?;
        let (path, port) = (dir.path().display(), free_port()?);
        // No shell runs the start-up files of the user: what those do may take long, or must not be cut off.
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {path}/host\nPidFile none\n\
             AuthorizedKeysFile {path}/authorized\nAuthenticationMethods publickey\n\
             PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nUseDNS no\n\
             Subsystem sftp internal-sftp\nSetEnv HOME={path}\n"
        );
        fs::write(dir.path().join("config"), config)?;
        if rustix::process::geteuid().is_root() {
            // For its processes without privileges. On Debian, its service creates it.
            fs::create_dir_all("/run/sshd")?;
        }
        let child = Command::new(SSHD)
            .args(["-D", "-e", "-f"])
            .arg(dir.path().join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log"))?)
            .spawn()
            .context("start sshd (apt-get install openssh-server)")?;
        let name = Command::new("id").arg("-un").output()?;
        let user = String::from_utf8(name.stdout)?.trim().to_owned();
        let mut sshd = Sshd { child, port, user, dir };
        let deadline = Instant::now() + SOON;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let log = fs::read_to_string(sshd.dir.path().join("log"))?;
            ensure!(sshd.child.try_wait()?.is_none() && Instant::now() < deadline, "sshd: {log}");
            sleep(Duration::from_millis(20));
        }
        Ok(sshd)
    }

    /// A private key by its name.
    pub fn key(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(self.dir.path().join(name))?)
    }

    /// Finishes a user's handshake, such that they log in with a private key. The session has more arguments.
    pub fn log_in(&self, user: &mut User, key: &str, more: &[(&str, &str)]) -> Result<()> {
        let port = self.port.to_string();
        let arguments =
            [("hostname", "127.0.0.1"), ("port", &port), ("username", &self.user), ("private-key", key)];
        user.handshake_with(&[&arguments[..], more].concat())
    }

    /// The processes that serve its connections.
    pub fn processes(&self) -> Vec<i32> {
        descendants_of(self.child.id() as i32)
    }

    /// Those of them that serve SFTP.
    pub fn sftp_servers(&self) -> Vec<i32> {
        let title = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        self.processes().into_iter().filter(|pid| title(pid).contains("internal-sftp")).collect()
    }

    /// Makes a key that does not log in.
    pub fn make_unknown_key(&self, name: &str) -> Result<String> {
        make_key(self.dir.path(), name, ED25519)?;
        self.key(name)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn make_key(dir: &Path, name: &str, options: &[&str]) -> Result<()> {
    let made =
        Command::new("ssh-keygen").args(options).args(["-q", "-N", "", "-f"]).arg(dir.join(name)).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}
