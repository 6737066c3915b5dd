//! Real RDP servers, with a terminal as their desktop.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use super::guacd::{free_port, wait_until_it_listens};
use super::processes::{SERVER_VARIABLE, kill};
use super::{SOON, can_mount, root, wait_until};

/// The names of FreeRDP's server: FreeRDP 2's and FreeRDP 3's.
const SHADOW: [&str; 2] = ["freerdp-shadow-cli", "freerdp-shadow-cli3"];

/// Who may log in.
pub const USER: &str = "user";
pub const PASSWORD: &str = "secret";

/// Their entry for FreeRDP's server: MD4 of the password in UTF-16, which winpr-hash computes.
const ENTRY: &str = "user:::878d8014606cda29677a44efa1353fc7:::\n";

/// What executes each line that is typed.
const SHELL: &str = "stty -echo; while read -r line; do eval \"$line\"; done";

/// Where a program is, if it is installed.
fn program(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/lib/xorg/modules"].map(PathBuf::from);
    std::env::split_paths(&paths).chain(system).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn shadow() -> Option<PathBuf> {
    SHADOW.into_iter().find_map(program)
}

/// Whether there is FreeRDP's server, with all that a desktop needs.
pub fn has_shadow() -> bool {
    shadow().is_some() && has_all(&["Xvfb", "xterm"])
}

/// Whether there is xrdp, with all that a desktop needs, and permission to start it.
pub fn has_xrdp() -> bool {
    let is_there = has_all(&["xrdp", "xrdp-sesman", "libxorgxrdp.so", "xterm", "xclip"]);
    is_there && Path::new("/dev/fuse").exists() && can_mount()
}

/// Whether there is what makes PDF of what is printed.
pub fn has_ghostscript() -> bool {
    has_all(&["gs"])
}

fn has_all(programs: &[&str]) -> bool {
    programs.iter().all(|name| program(name).is_some())
}

/// A program that ends when this process ends, at the latest.
fn server(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(program.as_ref());
    command.env(SERVER_VARIABLE, "1").env_remove("LD_LIBRARY_PATH").stdin(Stdio::null());
    command
}

/// A server that runs, and ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        kill(self.0.id() as i32, Signal::TERM);
        if wait_until("it ends", SOON, || matches!(self.0.try_wait(), Ok(Some(_)))).is_err() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// FreeRDP's server, which shows a screen that it has for itself. A terminal there executes each line that is typed.
pub struct Shadow {
    server: Server,
    pub port: String,
    _terminal: Server,
    _screen: Server,
    dir: TempDir,
}

impl Shadow {
    /// Starts it with these options.
    pub fn start(options: &[&str]) -> Result<Shadow> {
        let dir = TempDir::new()?;
        let path = |name: &str| dir.path().join(name);
        // It says which display it has found free.
        let mut screen = server("Xvfb");
        screen.args("-displayfd 1 -screen 0 800x600x24 -nolisten tcp".split(' '));
        screen.stdout(File::create(path("display"))?).stderr(File::create(path("Xvfb.log"))?);
        let screen = Server(screen.spawn().context("start Xvfb")?);
        let mut display = String::new();
        wait_until("there is a display", 2 * SOON, || {
            display = fs::read_to_string(path("display")).unwrap_or_default();
            display.ends_with('\n')
        })?;
        let display = format!(":{}", display.trim());

        // It covers the whole screen, since keys go to the window under the pointer.
        let mut terminal = server("xterm");
        terminal.args(["-geometry", "200x80+0+0", "-e", "sh", "-c", SHELL]).env("DISPLAY", &display);
        terminal.stdout(Stdio::null()).stderr(File::create(path("xterm.log"))?);
        let terminal = Server(terminal.spawn().context("start xterm")?);

        fs::write(path("sam"), ENTRY)?;
        let port = free_port()?;
        let mut command = server(shadow().context("no freerdp-shadow-cli")?);
        command
            .args([&format!("/port:{port}"), "/bind-address:127.0.0.1"])
            .arg(format!("/sam-file:{}", path("sam").display()))
            .args(options)
            .env("DISPLAY", &display)
            // It makes a certificate there.
            .env("HOME", dir.path())
            .env_remove("XDG_CONFIG_HOME")
            .stdout(File::create(path("log"))?)
            .stderr(File::create(path("errors"))?);
        let server = Server(command.spawn().context("start FreeRDP's server")?);
        let shadow = Shadow { server, port: port.to_string(), _terminal: terminal, _screen: screen, dir };
        wait_until_it_listens(port).with_context(|| shadow.log())?;
        Ok(shadow)
    }

    pub fn kill(&mut self) {
        kill(self.server.0.id() as i32, Signal::KILL);
    }

    pub fn log(&self) -> String {
        ["log", "errors"]
            .map(|name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default())
            .concat()
    }
}

/// xrdp. Each connection that logs in has its own desktop, where a terminal puts onto the clipboard what a command makes of each
/// line that is typed.
pub struct Xrdp {
    _server: Server,
    pub port: String,
    /// Who may log in.
    pub user: String,
    dir: TempDir,
}

impl Xrdp {
    /// Starts it with this command: `sh` executes each line, and `cat` repeats it.
    pub fn start(command: &str) -> Result<Xrdp> {
        let dir = TempDir::new()?;
        let port = free_port()?;
        let mut script = server(root().join("stress/examples/rdp-desktop.sh"));
        script
            .args([&port.to_string(), command])
            .env("XRDP_SESMAN_PORT", free_port()?.to_string())
            .env("XRDP_PASSWORD", PASSWORD)
            .env("TMPDIR", dir.path())
            .stdout(File::create(dir.path().join("log"))?)
            .stderr(File::create(dir.path().join("errors"))?);
        let server = Server(script.spawn().context("start xrdp")?);
        let name = Command::new("id").arg("-un").output()?;
        let user = String::from_utf8(name.stdout)?.trim().to_owned();
        let xrdp = Xrdp { _server: server, port: port.to_string(), user, dir };
        wait_until_it_listens(port).with_context(|| xrdp.log())?;
        Ok(xrdp)
    }

    /// What it and its parts have written into their logs.
    pub fn log(&self) -> String {
        let dirs = fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        let logs = dirs
            .flat_map(|dir| ["", "run/xrdp.log", "run/xrdp-sesman.log"].map(|name| dir.path().join(name)));
        logs.filter_map(|log| fs::read_to_string(log).ok()).collect()
    }
}

/// How long a desktop may take to appear.
pub const DESKTOP: Duration = Duration::from_secs(20);
