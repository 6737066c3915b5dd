//! How is a Docker daemon started for one run alone?

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use fs_err as fs;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::build::prefix;
use crate::failure::Failure;
use crate::host::run;
use crate::ship::image::docker::BYTES_NEEDED;
use crate::ui;

/// A Docker daemon, which ends when this is dropped or xtask ends.
pub struct Daemon {
    process: Child,
    socket: PathBuf,
    // Last, so that it is removed after the daemon has ended.
    _dir: TempDir,
}

impl Daemon {
    /// Starts the daemon. Its data, its socket and its log are below `work`.
    ///
    /// # Errors
    ///
    /// [`Failure::Preflight`] without root, without a program that it needs, or without room; any other when the daemon does
    /// not start.
    pub fn start(work: &Path) -> Result<Daemon> {
        ensure!(
            rustix::process::geteuid().is_root(),
            Failure::Preflight(
                "--own-daemon needs root: run as root, or use a Docker daemon that is running".into()
            )
        );
        for (program, package) in [("dockerd", "docker.io"), ("mmdebstrap", "mmdebstrap")] {
            ensure!(
                run::version_line(program, "--version").is_some(),
                Failure::Preflight(format!("--own-daemon needs {program}: apt-get install {package}"))
            );
        }
        prefix::check_space(work, BYTES_NEEDED)?;
        let dir = TempDir::with_prefix_in("dockerd-", work)?;
        // The path of a socket has at most 107 bytes (unix(7)).
        let socket = dir.path().join("s");
        ensure!(socket.as_os_str().len() < 90, "the path {} is too long for a socket", socket.display());
        let log = fs::File::create(work.join("dockerd.log"))?;
        // In its own mount namespace: dockerd leaves the network namespaces of containers mounted.
        let mut command = Command::new("unshare");
        command.args(["--mount", "dockerd"]);
        for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(format!("{flag}={}", dir.path().join(name).display()));
        }
        command
            .arg(format!("--host=unix://{}", socket.display()))
            // So that it does not change the machine's network.
            .args(["--storage-driver=overlay2", "--iptables=false", "--ip6tables=false", "--bridge=none"])
            .stdin(Stdio::null())
            .stderr(log.into_parts().0)
            .stdout(Stdio::null());
        shared::parent_death::die_with_parent(&mut command);
        command.process_group(0);
        let step = ui::Step::start("dockerd");
        let process = command.spawn().context("cannot start dockerd")?;
        let mut daemon = Daemon { process, socket, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(&daemon.socket).is_err() {
            run::check_interrupted()?;
            if daemon.process.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(anyhow!("its log: {}", work.join("dockerd.log").display())
                    .context("dockerd did not start"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        step.done("");
        Ok(daemon)
    }

    /// The path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // On SIGTERM it ends its containers and its containerd.
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let _ = self.process.wait();
    }
}
