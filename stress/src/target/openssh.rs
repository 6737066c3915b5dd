//! A real sshd on the loopback interface, with temporary keys. It touches no account, no configuration and no known hosts.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write,
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use russh::keys::{Algorithm, PrivateKey, key::safe_rng, ssh_key::LineEnding};
use rustix::process::{Pid, geteuid};

use crate::{
    guacd::{processes, start::free_port},
    preflight::Preflight,
};

/// An sshd that runs. It and its sessions end when this is dropped.
pub struct Sshd {
    child: Child,
    port: u16,
    user: String,
    private_key: String,
}

impl Sshd {
    /// Starts sshd, and waits until it listens. Its files go to a directory that only this user may read, because this sshd does
    /// not check their permissions. Call it from the main thread: sshd dies with the thread that started it.
    ///
    /// # Errors
    ///
    /// When there is no sshd, or it does not start.
    pub fn start(scratch: &Path) -> Result<Self> {
        let program = find_sshd().ok_or_else(|| {
            Preflight("there is no sshd: install it with `apt-get install openssh-server`, or use --target embedded".into())
        })?;
        if !geteuid().is_root() && !terminals_are_given_to_their_group() {
            bail!(Preflight(
                "sshd cannot give terminals to users here, as devpts is mounted without gid=5: run as root, or use \
                 --target embedded"
                    .into()
            ));
        }
        if geteuid().is_root() {
            // sshd insists on this directory for its processes without privileges; on Debian its service creates it.
            fs_err::create_dir_all("/run/sshd")
                .context("sshd needs this directory when it is run as root")?;
        }
        let dir = scratch.join("sshd");
        DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("create {}", dir.display()))?;
        let user = user_name()?;
        let host_key = new_key()?;
        let user_key = new_key()?;
        write_private(&dir.join("host_key"), &host_key.to_openssh(LineEnding::LF)?)?;
        let authorized = user_key.public_key().to_openssh()?;
        write_private(&dir.join("authorized_keys"), &authorized)?;
        let port = free_port()?;
        let config = dir.join("sshd_config");
        write_private(&config, &(configuration(&dir, port, &user) + WITHOUT_PENALTIES))?;
        if !accepts(&program, &config)? {
            write_private(&config, &configuration(&dir, port, &user))?;
        }

        let log = dir.join("log");
        let mut command = Command::new(&program);
        command.args(["-D", "-e", "-f"]).arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
        let child =
            processes::spawn_tied(&mut command).with_context(|| format!("start {}", program.display()))?;
        let private_key = user_key.to_openssh(LineEnding::LF)?.to_string();
        let mut sshd = Self { child, port, user, private_key };
        sshd.wait_until_it_listens(&log)?;
        Ok(sshd)
    }

    fn wait_until_it_listens(&mut self, log: &Path) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let output = fs::read_to_string(log).unwrap_or_default();
            if let Some(status) = self.child.try_wait()? {
                bail!("sshd did not start ({status}): {}", output.trim());
            }
            if output.contains("Server listening")
                && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("sshd does not listen on 127.0.0.1:{}: {}", self.port, output.trim());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Where it listens, on the loopback interface.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The only user who may log in: the one who runs this program.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The key that they log in with.
    pub fn private_key(&self) -> &str {
        &self.private_key
    }

    /// Its listening process.
    pub fn pid(&self) -> Pid {
        processes::pid_of(&self.child)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        processes::terminate(&mut self.child, Duration::from_secs(2));
        // Its sessions' processes have become our children.
        processes::kill_children(&[]);
    }
}

/// Since 9.8, OpenSSH refuses an address whose connections end before they have logged in, and all of ours come from one
/// address. Older releases do not know the option.
const WITHOUT_PENALTIES: &str = "PerSourcePenalties no\n";

/// Whether sshd understands a configuration.
fn accepts(sshd: &Path, config: &Path) -> Result<bool> {
    let mut command = Command::new(sshd);
    command.args(["-t", "-f"]).arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = processes::spawn_tied(&mut command).and_then(|mut child| child.wait());
    Ok(status.with_context(|| format!("start {}", sshd.display()))?.success())
}

fn configuration(dir: &Path, port: u16, user: &str) -> String {
    let dir = dir.display().to_string();
    // sshd_config(5): %-tokens are expanded in this one.
    let authorized = dir.replace('%', "%%");
    format!(
        r#"ListenAddress 127.0.0.1
Port {port}
HostKey "{dir}/host_key"
PidFile none
AllowUsers {user}
AuthorizedKeysFile "{authorized}/authorized_keys"
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PermitUserRC no
# Only this user may read the directory, which is in one that everybody may write to.
StrictModes no
# PAM would refuse an account that is locked, as root's is in containers.
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
X11Forwarding no
AllowTcpForwarding no
LogLevel INFO
LoginGraceTime 120
# All sessions may log in at once.
MaxStartups 30000
# The shells run no start-up files of the user, and write no history.
SetEnv HOME="{dir}"
"#
    )
}

/// Whether a new terminal belongs to the group `tty` from the start. sshd sees to that otherwise, which only root can.
fn terminals_are_given_to_their_group() -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut options = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let devpts = options.rfind(|fields| fields.get(1..3) == Some(&["/dev/pts", "devpts"]));
    devpts.is_none_or(|fields| fields[3].split(',').any(|option| option.starts_with("gid=")))
}

fn find_sshd() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // sshd wants its full path, and is in a directory that is not on every user's search path.
    let dirs =
        std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    dirs.filter(|dir| dir.is_absolute()).map(|dir| dir.join("sshd")).find(|sshd| sshd.is_file())
}

fn user_name() -> Result<String> {
    let uid = geteuid().as_raw().to_string();
    let passwd = fs_err::read_to_string("/etc/passwd")?;
    let local = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&&*uid));
    match (local, std::env::var("USER")) {
        (Some(fields), _) => Ok(fields[0].to_owned()),
        (None, Ok(user)) => Ok(user),
        (None, Err(_)) => bail!("user {uid} has no name to log in with: set USER"),
    }
}

fn new_key() -> Result<PrivateKey> {
    PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).context("make an SSH key")
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}
