//! `cargo xtask image`: what does it say without Docker, or with one that it cannot use? (`--check` checks what it builds.)

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::support::processes::Descendants;
use crate::support::{self, Output, SmallDisk, xtask};

crate::tests! {
    Nothing:
        without_docker_it_says_what_to_install,
        a_client_without_buildkit_is_refused,
        a_daemon_that_does_not_answer_is_reported,
        a_daemon_that_is_too_old_is_refused,
        packages_need_what_makes_them;
    SourceAndMount:
        a_docker_without_room_is_refused;
    Source:
        a_build_that_fails_shows_the_end_of_its_log,
        what_a_build_misses_is_reported_with_advice;
    Minutes:
        a_daemon_of_its_own_leaves_nothing_when_interrupted;
}

/// A directory with a docker in it that answers `version` for the client, and for the server, `info` and `build` by what these
/// scripts do. It has no plugin.
fn docker(client: &str, server: &str, info: &str, build: &str) -> Result<TempDir> {
    let dir = TempDir::new()?;
    let script = format!(
        "#!/bin/sh\ncase $* in\n*Client*) {client};;\n*Server*) {server};;\ninfo*) {info};;\nbuild\\ *) {build};;\n*) exit 9\nesac\n"
    );
    let path = dir.path().join("docker");
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

fn image(path: &Path) -> support::Xtask {
    // These runs end before anything is built.
    xtask(["image", "--offline"]).env("PATH", path)
}

fn without_docker_it_says_what_to_install() -> Result<()> {
    let empty = TempDir::new()?;
    image(empty.path()).run()?.expect(3, &["docker is missing", "apt-get install docker.io"])
}

fn a_client_without_buildkit_is_refused() -> Result<()> {
    let dir = docker("echo 28.2.2", "echo 28.2.2", "echo /", "exit 9")?;
    image(dir.path()).run()?.expect(3, &["docker 28.2.2 comes without BuildKit", "docker-buildx"])
}

fn a_daemon_that_does_not_answer_is_reported() -> Result<()> {
    let server = "echo 'Cannot connect to the daemon.' >&2; exit 1";
    let dir = docker("echo 20.10.24; exit 1", server, "exit 9", "exit 9")?;
    let words =
        ["no Docker daemon answers: Cannot connect to the daemon.", "systemctl start docker", "--own-daemon"];
    image(dir.path()).run()?.expect(3, &words)
}

fn a_daemon_that_is_too_old_is_refused() -> Result<()> {
    let dir = docker("echo 20.10.24", "echo 18.06.3-ce", "echo /", "exit 9")?;
    image(dir.path()).run()?.expect(3, &["the Docker daemon is 18.06.3-ce", "18.09"])
}

fn a_docker_without_room_is_refused() -> Result<()> {
    let disk = SmallDisk::mount()?;
    let info = format!("echo {}", disk.path().display());
    let dir = docker("echo 20.10.24", "echo 20.10.24", &info, "exit 9")?;
    image(dir.path()).run()?.expect(3, &["MB are free in", "docker system prune"])
}

/// Checks that a run of `image` gives the image and its build the name of a release.
pub fn is_built_as(image: support::Xtask, release: &str) -> Result<()> {
    let dir = docker("echo 20.10.24", "echo 20.10.24", "echo /nowhere", "echo \"$*\"; exit 100")?;
    let path = std::env::join_paths([dir.path(), Path::new("/usr/bin"), Path::new("/bin")])?;
    let words = [format!("--tag=guacd-uncapped:{release} "), format!("--build-arg=RELEASE={release} ")];
    image.env("PATH", path).run()?.expect(1, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A run whose `docker build` says these words, and fails.
fn failing(words: &str) -> Result<Output> {
    let build = format!("echo '{words}'; exit 100");
    let dir = docker("echo 20.10.24", "echo 20.10.24", "echo /nowhere", &build)?;
    let path = std::env::join_paths([dir.path(), Path::new("/usr/bin"), Path::new("/bin")])?;
    let target = TempDir::new()?;
    xtask(["image", "--offline"]).env("PATH", path).env("CARGO_TARGET_DIR", target.path()).run()
}

fn a_build_that_fails_shows_the_end_of_its_log() -> Result<()> {
    let words = "E: Unable to locate package cargo";
    failing(words)?.expect(1, &["docker build failed", words, "the whole log: "])
}

fn what_a_build_misses_is_reported_with_advice() -> Result<()> {
    for (words, advice) in [
        ("failed to do request: Head: dial tcp: lookup registry.example.org: no such host", "--base"),
        ("Temporary failure resolving the mirror", "--network host"),
        ("write /usr/lib/x: no space left on device", "docker system prune"),
    ] {
        failing(words)?.expect(3, &["docker build failed", words, advice])?;
    }
    Ok(())
}

fn a_daemon_of_its_own_leaves_nothing_when_interrupted() -> Result<()> {
    let target = TempDir::new()?;
    for moment in ["mmdebstrap", "docker build"] {
        let started = Descendants::since_now()?;
        let run = xtask(["image", "--offline", "--own-daemon"]).env("CARGO_TARGET_DIR", target.path());
        let mut run = run.start()?;
        let log = target.path().join("guacd/image/build.log");
        match moment {
            "mmdebstrap" => {
                run.wait_until(moment, || started.called(Some("dpkg")).is_ok_and(|found| !found.is_empty()))?
            }
            // Within the first command of the build.
            _ => run.wait_until(moment, || {
                fs::read_to_string(&log).is_ok_and(|log| log.contains("Setting up gcc"))
            })?,
        }
        run.interrupt()?.expect(130, &[])?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mounts = mounts.lines().filter(|line| line.contains(&*target.path().to_string_lossy()));
        ensure!(mounts.count() == 0, "{moment}: file systems are still mounted");
        started.ensure_gone().context(moment)?;
        for entry in fs::read_dir(target.path().join("guacd/image"))? {
            let path = entry?.path();
            ensure!(!path.is_dir(), "{moment}: {} is left", path.display());
        }
    }
    Ok(())
}

fn packages_need_what_makes_them() -> Result<()> {
    let empty = TempDir::new()?;
    let check = xtask(["package", "--suite", "trixie"]).env("PATH", empty.path());
    check.run()?.expect(3, &["missing here: mmdebstrap", "apt-get install mmdebstrap"])
}
