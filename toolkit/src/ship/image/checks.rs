//! Can the image take the place of the official one? Checks run it in containers.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guac_probe::{Answer, probe};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::ship::image::docker::{Container, Docker, READ_ONLY};
use crate::ship::image::key_limit::KeyLimit;
use crate::{stress, ui};

/// The protocols of the official image.
const PROTOCOLS: [&str; 5] = ["ssh", "vnc", "telnet", "rdp", "kubernetes"];

/// The longest time that `docker stop` may take.
const STOP: Duration = Duration::from_secs(5);

/// How many sessions are open when the container is stopped.
const SESSIONS_AT_STOP: u32 = 100;

/// A check that passed. A check that fails ends the run.
#[derive(Serialize)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What was found.
    pub remark: String,
}

/// Runs all checks but the one under load. `image` is the image's ID. Logs are written below `work`.
pub fn run(docker: &Docker, image: &str, work: &Path, offline: bool) -> Result<Vec<Check>> {
    let guac_stress = stress::compile(work, offline)?;
    let mut checks = Vec::new();
    let mut passed = |name: &'static str, run: &dyn Fn() -> Result<String>| -> Result<()> {
        let since = Instant::now();
        let step = ui::Step::start(name);
        let remark = run().with_context(|| format!("the image fails the check `{name}`"))?;
        step.done(&remark);
        checks.push(Check { name, seconds: since.elapsed().as_secs_f64(), remark });
        Ok(())
    };
    passed("contents", &|| contents(docker, image))?;
    passed("protocols", &|| protocols(docker, image))?;
    passed("health", &|| health(docker, image))?;
    passed("stop", &|| stop(docker, image, &guac_stress))?;
    Ok(checks)
}

/// Checks that the image runs as an ordinary user, has every file that it should have, and has no compilers.
fn contents(docker: &Docker, image: &str) -> Result<String> {
    let script = "set -eu
        test \"$(id -u):$(id -g)\" = 1000:1000 || { echo 'it does not run as 1000:1000'; exit 1; }
        for tool in cc gcc ld cargo rustc make git; do
            ! command -v $tool || { echo \"it has $tool\"; exit 1; }
        done
        for file in sbom.cdx.json manifest.json licenses/guacd-uncapped/NOTICE licenses/guacamole-server/NOTICE; do
            test -s /opt/guacamole/share/guacd-uncapped/$file || { echo \"it lacks $file\"; exit 1; }
        done
        for plugin in /usr/lib/*/freerdp3/libguac*-client.so; do
            test -e \"$plugin\" || { echo \"it lacks $plugin\"; exit 1; }
        done
        command -v gs >/dev/null || { echo 'it lacks Ghostscript'; exit 1; }
        ! touch /opt/guacamole/x 2>/dev/null || { echo 'its root can be written'; exit 1; }
        /opt/guacamole/sbin/guacd -v";
    let run =
        [&["run", "--rm", "--network=none"], &READ_ONLY[..], &["--entrypoint=/bin/sh", image, "-c", script]];
    let output = docker.command(&run.concat()).stderr_to_stdout().stdout_capture().unchecked().run()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success(), "{text}");
    Ok(text)
}

/// Checks that guacd answers for every protocol, from within the container.
fn protocols(docker: &Docker, image: &str) -> Result<String> {
    let container = docker.container(&["--network=none"], image, &[])?;
    for protocol in PROTOCOLS {
        let probe = ["exec", &container.id, "/opt/guacamole/guac-probe", "localhost:4822", protocol];
        // guacd takes a moment to listen.
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = docker.read(&probe) {
            ensure!(Instant::now() < deadline, "{error}; guacd's log ends in:\n{}", container.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(PROTOCOLS.join(", "))
}

/// Checks that the health check notices when guacd hangs while its port stays open, and when it continues.
fn health(docker: &Docker, image: &str) -> Result<String> {
    const STATUS: &str = "{{.State.Health.Status}}";
    let often = ["--network=none", "--health-interval=1s", "--health-retries=2"];
    let container = docker.container(&often, image, &[])?;
    let within = Duration::from_secs(60);
    let up = container.wait_for(STATUS, "healthy", within)?;
    docker.read(&["kill", "--signal=STOP", &container.id])?;
    let hung = container.wait_for(STATUS, "unhealthy", within)?;
    docker.read(&["kill", "--signal=CONT", &container.id])?;
    let again = container.wait_for(STATUS, "healthy", within)?;
    Ok(format!(
        "healthy after {:.1} s; checked every second, unhealthy {:.1} s after a SIGSTOP, and healthy {:.1} s after a SIGCONT",
        up.as_secs_f64(),
        hung.as_secs_f64(),
        again.as_secs_f64()
    ))
}

/// Starts a container on the host's network. Returns it, and the address of its guacd, on a free loopback port.
fn on_loopback<'a>(docker: &'a Docker, image: &str, options: &[&str]) -> Result<(Container<'a>, String)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let options = [&["--network=host", "--no-healthcheck"], options].concat();
    let container = docker.container(&options, image, &["-b", "127.0.0.1", "-l", &port])?;
    let address = format!("127.0.0.1:{port}");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match probe(&address, "ssh", Duration::from_secs(2)) {
            Ok(Answer::Args) => return Ok((container, address)),
            answer if Instant::now() > deadline => bail!(
                "no guacd answers at {address} ({answer:?}): is Docker on another machine? guacd's log ends in:\n{}",
                container.log()
            ),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Checks that the container stops in time while sessions are open.
fn stop(docker: &Docker, image: &str, guac_stress: &Path) -> Result<String> {
    let (container, address) = on_loopback(docker, image, &[])?;
    let mut command = Command::new(guac_stress);
    command.args([
        format!("--count={SESSIONS_AT_STOP}"),
        format!("--guacd={address}"),
        "--hold=5m".to_owned(),
    ]);
    shared::parent_death::die_with_parent(&mut command);
    let load = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut load = EndOnDrop(load.context("cannot start guac-stress")?);
    // There are guacd itself, its fork server, and a process for each session.
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut open = 0;
    while open < SESSIONS_AT_STOP as usize {
        ensure!(
            Instant::now() < deadline && load.0.try_wait()?.is_none(),
            "only {open} sessions started; guacd's log ends in:\n{}",
            container.log()
        );
        std::thread::sleep(Duration::from_millis(500));
        let processes = docker.read(&["top", &container.id, "-o", "pid,comm"])?;
        open = processes.lines().filter(|line| line.ends_with(" guacd")).count().saturating_sub(2);
    }
    // The last process has just been forked.
    std::thread::sleep(Duration::from_secs(2));
    let since = Instant::now();
    // After 30 s, Docker kills guacd.
    docker.read(&["stop", "--time=30", &container.id])?;
    let took = since.elapsed();
    let code = container.inspect("{{.State.ExitCode}}")?;
    ensure!(code != "137", "guacd did not stop, and was killed");
    ensure!(
        took <= STOP,
        "it took {:.1} s with {open} sessions open, and the limit is {STOP:?}",
        took.as_secs_f64()
    );
    Ok(format!("{:.1} s with {open} sessions open, exit code {code}", took.as_secs_f64()))
}

/// A process that gets SIGINT when this is dropped.
struct EndOnDrop(Child);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
            let _ = self.0.wait();
        }
    }
}

/// Holds `count` sessions through a container. With `key_limit`, each of its processes has at most so many pthread keys.
pub fn under_load(
    docker: &Docker,
    image: &str,
    count: u32,
    key_limit: Option<u32>,
    work: &Path,
    offline: bool,
) -> Result<Check> {
    let since = Instant::now();
    let guac_stress = stress::compile(work, offline)?;
    let limit = key_limit.map(|limit| KeyLimit::new(limit, &guac_stress, work)).transpose()?;
    let options = limit.as_ref().map_or_else(Vec::new, KeyLimit::options);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let (container, address) = on_loopback(docker, image, &options)?;
    let held = stress::load(&guac_stress, &address, count);
    let keys = limit.map(|limit| limit.result(&container)).transpose()?;
    if let Some(keys) = &keys {
        ui::note(format!("  {keys}"));
    }
    held?;
    let remark = format!("{count} of {count} sessions proved themselves");
    Ok(Check {
        name: "stress",
        seconds: since.elapsed().as_secs_f64(),
        remark: keys.map_or_else(|| remark.clone(), |keys| format!("{remark}; {keys}")),
    })
}
