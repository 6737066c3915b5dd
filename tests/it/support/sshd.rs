//! A real sshd, with SFTP, of the test's own.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::SOON;
use super::guacd::free_port;

/// An sshd that runs, and ends with this. Only who runs the test may log in.
pub struct Sshd {
    child: Child,
    pub port: u16,
    pub user: String,
    /// The private key that the user logs in with.
    pub key: String,
    /// Its configuration and keys.
    _dir: TempDir,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sshd {
    pub fn start() -> Result<Sshd> {
        let dir = TempDir::new()?;
        for name in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.path().join(name));
            ensure!(keygen.status()?.success(), "ssh-keygen failed");
        }
        let (path, port) = (dir.path().display(), free_port()?);
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {path}/host\nPidFile none\n\
             AuthorizedKeysFile {path}/user.pub\nAuthenticationMethods publickey\nStrictModes no\nUsePAM no\n\
             Subsystem sftp internal-sftp\n"
        );
        fs::write(dir.path().join("config"), config)?;
        fs::set_permissions(dir.path().join("user.pub"), fs::Permissions::from_mode(0o600))?;
        if rustix::process::geteuid().is_root() {
            // For its processes without privileges. On Debian, its service creates it.
            fs::create_dir_all("/run/sshd")?;
        }
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(dir.path().join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start sshd (apt-get install openssh-server)")?;
        let name = Command::new("id").arg("-un").output()?;
        let user = String::from_utf8(name.stdout)?.trim().to_owned();
        let key = fs::read_to_string(dir.path().join("user"))?;
        let sshd = Sshd { child, port, user, key, _dir: dir };
        let deadline = Instant::now() + SOON;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            ensure!(Instant::now() < deadline, "sshd does not listen");
            sleep(Duration::from_millis(20));
        }
        Ok(sshd)
    }
}
