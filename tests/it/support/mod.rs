//! What the tests share: running xtask and guacd, looking at processes, servers for guacd, and a checkout to spoil.

pub mod c;
pub mod checkout;
pub mod desktop;
pub mod differences;
pub mod guacd;
pub mod processes;
pub mod rdp;
pub mod sanitized;
pub mod sshd;
pub mod target;
pub mod tcp;
pub mod tls;
pub mod user;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use toolkit::host::layout;
use toolkit::source::release::Release;
use toolkit::source::series::{self, Patch};

/// How long it may take until something happens that has to.
pub const SOON: Duration = Duration::from_secs(5);

/// Waits until something is true.
pub fn wait_until(what: &str, timeout: Duration, mut is_true: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !is_true() {
        ensure!(Instant::now() < deadline, "{what}: not within {timeout:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The variable that names the release that all runs of xtask are for, as `--release` does.
pub const RELEASE_VARIABLE: &str = "GUACD_RELEASE";

/// The release that is tested: the one that the environment names, or xtask's default.
pub fn release() -> &'static Release {
    static RELEASE: OnceLock<Release> = OnceLock::new();
    RELEASE.get_or_init(|| {
        let named = std::env::var(RELEASE_VARIABLE).ok();
        Release::load(named.as_deref()).unwrap_or_else(|error| panic!("{error:#}"))
    })
}

/// What makes upstream's configure leave out most of guacd, for when it is built over and over.
pub const SMALL: &[&str] =
    &["--without-rdp", "--without-vnc", "--without-telnet", "--disable-kubernetes", "--disable-guacenc"];

/// The root of the checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The patches of the release, in the order of their series.
pub fn series() -> Result<Vec<Patch>> {
    series::series(&release().patches_dir())
}

/// Cargo's output directory: the one that this test lies in.
pub fn target_dir() -> PathBuf {
    // target/debug/deps/it-…
    let test = std::env::current_exe().unwrap_or_default();
    test.ancestors().nth(3).map_or_else(|| root().join("target"), Path::to_owned)
}

/// The installation prefix of a variant.
pub fn prefix(variant: &str) -> PathBuf {
    target_dir().join("guacd").join(&release().version).join(variant).join("prefix")
}

/// The installation prefix of a variant, once it is up to date.
pub fn built(variant: &str) -> Result<PathBuf> {
    static STOCK: OnceLock<bool> = OnceLock::new();
    static PATCHED: OnceLock<bool> = OnceLock::new();
    let once = match variant {
        "stock" => &STOCK,
        "patched" => &PATCHED,
        _ => bail!("no test needs {variant} yet"),
    };
    let build = || xtask(["build", "--variant", variant]).run().is_ok_and(|output| output.code == 0);
    ensure!(
        *once.get_or_init(build),
        "{variant} does not build: `cargo xtask build --variant {variant}` says why"
    );
    Ok(prefix(variant))
}

/// Removes what cargo has set for this test from the environment of a program.
fn remove_variables_of_cargo(command: &mut Command) {
    command.env_remove("LD_LIBRARY_PATH");
    for name in layout::variables_of_a_package() {
        command.env_remove(name);
    }
}

/// Compiles the xtask that the tests drive.
pub fn compile_xtask() -> Result<()> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--locked", "--package=xtask", "--target-dir"])
        .arg(target_dir())
        .current_dir(root());
    remove_variables_of_cargo(&mut cargo);
    let status = cargo.status()?;
    ensure!(status.success(), "xtask does not compile");
    Ok(())
}

/// Whether upstream's source is in the user's cache.
pub fn has_source() -> bool {
    xtask(["fetch", "--offline"]).run().is_ok_and(|output| output.code == 0)
}

/// The archive of upstream's source in the user's cache.
pub fn source() -> Result<PathBuf> {
    let output = xtask(["fetch", "--offline"]).run()?;
    ensure!(output.code == 0, "{}", output.stderr);
    Ok(output.stdout.trim().into())
}

/// Whether this process may mount a file system.
pub fn can_mount() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| SmallDisk::mount().is_ok())
}

/// A file system with room for one megabyte.
pub struct SmallDisk(TempDir);

impl SmallDisk {
    pub fn mount() -> Result<SmallDisk> {
        let dir = TempDir::new()?;
        let options = c"size=1m";
        rustix::mount::mount("none", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), options)?;
        Ok(SmallDisk(dir))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Output {
    /// Its exit code, or 128 and the signal that ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Output {
    /// Checks the exit code, and that standard error says all of `words`.
    pub fn expect(&self, code: i32, words: &[&str]) -> Result<()> {
        ensure!(self.code == code, "exit code {} instead of {code}\n{}", self.code, self.stderr);
        for word in words {
            ensure!(self.stderr.contains(word), "{word:?} is not said in:\n{}", self.stderr);
        }
        Ok(())
    }
}

/// A run of xtask that is being prepared.
pub struct Xtask(Command);

/// Prepares a run of xtask.
pub fn xtask<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Xtask {
    let mut command = Command::new(target_dir().join("debug/xtask"));
    remove_variables_of_cargo(&mut command);
    command
        .args(arguments)
        .env("CARGO_MANIFEST_DIR", root().join("xtask"))
        .env("CARGO_TARGET_DIR", target_dir())
        .stdin(Stdio::null());
    Xtask(command)
}

/// Prepares a run of shell commands in the checkout, which ends with the first that fails.
pub fn shell(commands: &str) -> Xtask {
    let mut command = Command::new("sh");
    remove_variables_of_cargo(&mut command);
    command
        .args(["-euc", commands])
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target_dir())
        .stdin(Stdio::null());
    Xtask(command)
}

impl Xtask {
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Xtask {
        self.0.env(name, value);
        self
    }

    pub fn without(mut self, name: &str) -> Xtask {
        self.0.env_remove(name);
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Result<Output> {
        self.start()?.wait()
    }

    /// Starts it, with its output in files, so that it can be looked at while it grows.
    pub fn start(mut self) -> Result<Running> {
        let dir = TempDir::new()?;
        let stdout = fs::File::create(dir.path().join("stdout"))?;
        let stderr = fs::File::create(dir.path().join("stderr"))?;
        let child = self.0.stdout(stdout).stderr(stderr).spawn().context("xtask does not start")?;
        Ok(Running { child, dir, since: Instant::now() })
    }
}

/// A run of xtask that is under way, and is killed when dropped.
pub struct Running {
    child: Child,
    dir: TempDir,
    since: Instant,
}

impl Running {
    /// Waits until `ready` has come true.
    pub fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(300);
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}) before {what}\n{}", self.stderr());
            }
            ensure!(Instant::now() < deadline, "{what} never came\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until standard error has these words.
    pub fn wait_for_words(&mut self, words: &str) -> Result<()> {
        let stderr = self.dir.path().join("stderr");
        self.wait_until(words, || fs::read_to_string(&stderr).is_ok_and(|text| text.contains(words)))
    }

    /// Presses Ctrl-C, as it were, and waits for the end.
    pub fn interrupt(self) -> Result<Output> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        self.wait()
    }

    /// Ends it so that it can clean nothing up.
    pub fn kill(self) -> Result<Output> {
        kill_process(Pid::from_child(&self.child), Signal::KILL)?;
        self.wait()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default()
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Result<Output> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait()?;
        Ok(Output {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
            stdout: fs::read_to_string(self.dir.path().join("stdout"))?,
            stderr: self.stderr(),
            took: self.since.elapsed(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.child.wait();
        }
    }
}
