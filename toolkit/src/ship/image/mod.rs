//! How is the container image built with Docker? With checks that it does what it says.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use duct::Expression;
use guac_probe::{Answer, probe};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tempfile::TempDir;

use crate::build::prefix as install;
use crate::failure::Failure;
use crate::host::run::{self, WhenInterrupted};
use crate::host::{debian, layout};
use crate::ship::compare;
use crate::source::fetch::{self, Access};
use crate::source::release::Release;
use crate::{stress, ui};

/// What a build takes at most, with room to spare: 2.3 GB were measured.
const BYTES_NEEDED: u64 = 4 << 30;

/// What the official image answers for, and so must ours.
const PROTOCOLS: [&str; 5] = ["ssh", "vnc", "telnet", "rdp", "kubernetes"];

/// What the container gets besides a read-only root: guacd writes nowhere else.
const READ_ONLY: [&str; 6] = [
    "--read-only",
    "--tmpfs=/tmp",
    "--tmpfs=/home/guacd:uid=1000,gid=1000",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--pids-limit=-1",
];

/// What a build says when something is missing that it cannot do without, and what to do about it.
const ADVICE: [(&str, &str); 5] = [
    ("failed to resolve", NO_BASE),
    ("failed to do request", NO_BASE),
    (debian::NO_NAME, NO_NETWORK),
    ("Could not resolve host", NO_NETWORK),
    // apt-get's words, and Docker's.
    ("o space left on device", "make room where Docker keeps its images: docker system prune"),
];
const NO_BASE: &str =
    "the base image comes from a registry: connect the daemon to it, or name one that it has with --base";
const NO_NETWORK: &str = "Debian's packages and the crates come from the network: if this machine has one and containers have \
                          not, --network host";

/// Longer than `docker stop` may take, and shorter than it would take to kill guacd.
const STOP: Duration = Duration::from_secs(5);

/// How many sessions are open when the container is stopped.
const SESSIONS_AT_STOP: u32 = 100;

/// What to build, and how to check it.
#[derive(Debug, Default)]
pub struct Options {
    /// The image's name, if not `guacd-uncapped:RELEASE`.
    pub tag: Option<String>,
    /// An image to build on in place of the Dockerfile's.
    pub base: Option<String>,
    /// The network of the build, as for `docker build --network`.
    pub network: Option<String>,
    /// Whether to check the image.
    pub check: bool,
    /// How many sessions to hold through a container of it.
    pub stress: Option<u32>,
    /// How many pthread keys each process of that container gets.
    pub key_limit: Option<u32>,
    /// Whether to build it a second time, and compare the two.
    pub rebuild: bool,
    /// Whether to start a daemon for this run alone, and to make the base image.
    pub own_daemon: bool,
}

/// An image that was built, and the checks that it passed.
#[derive(Serialize)]
pub struct Image {
    schema_version: u32,
    /// Its name.
    pub tag: String,
    id: String,
    /// Its size, in bytes.
    size: u64,
    release: String,
    base: Option<String>,
    /// The versions of the client and the server.
    docker: String,
    checks: Vec<Check>,
}

/// A check that passed. One that fails ends the run.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    seconds: f64,
    remark: String,
}

/// Builds the image, and checks it as the options say.
///
/// # Errors
///
/// [`Failure::Preflight`] where Docker or something that it needs is missing; any other where the build or a check fails.
pub fn build(release: &Release, access: &Access, options: &Options) -> Result<Image> {
    let _lock = layout::lock("image")?;
    let work = layout::target_dir().join("guacd/image");
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let daemon = options.own_daemon.then(|| Daemon::start(&work)).transpose()?;
    let docker = Docker::find(daemon.as_ref())?;
    let base = match &daemon {
        Some(_) => Some(docker.make_base(&work)?),
        None => options.base.clone(),
    };
    let tag = options.tag.clone().unwrap_or_else(|| format!("guacd-uncapped:{}", release.version));

    fetch::stage(release, access)?;
    let id = docker.build(release, &tag, base.as_deref(), options.network.as_deref(), &work)?;
    let size = docker.read(&["image", "inspect", "--format={{.Size}}", &id])?;
    let mut image = Image {
        schema_version: 1,
        size: size.parse().with_context(|| format!("docker gives {size:?} for a size"))?,
        tag,
        id,
        release: release.version.clone(),
        base: base.clone(),
        docker: docker.versions.clone(),
        checks: Vec::new(),
    };
    ui::note(format!("  {}, {} MB", image.id, image.size / 1_000_000));
    if options.rebuild {
        let since = Instant::now();
        let first = docker.contents(&image.id, &work)?;
        // Without what the first has left: compilers' output, too, is kept from one build to the next.
        docker.read(&["builder", "prune", "--all", "--force"])?;
        let id = docker.build(release, &image.tag, base.as_deref(), None, &work)?;
        let remark = same(&first, &docker.contents(&id, &work)?)?;
        ui::note(format!("  {remark}"));
        image.checks.push(Check { name: "rebuild", seconds: since.elapsed().as_secs_f64(), remark });
    }
    if options.check {
        check(&docker, &mut image, &work, access.offline)?;
    }
    if let Some(count) = options.stress {
        let check = under_load(&docker, &image.id, count, options.key_limit, &work, access.offline)?;
        image.checks.push(check);
    }
    Ok(image)
}

/// A Docker client with a daemon behind it that answers.
struct Docker {
    program: PathBuf,
    host: Option<String>,
    versions: String,
}

impl Docker {
    /// Finds a client that has BuildKit, and makes sure that a daemon answers it which has room.
    fn find(daemon: Option<&Daemon>) -> Result<Docker> {
        let host = daemon.map(|daemon| format!("unix://{}", daemon.socket.display()));
        let mut without_buildkit = None;
        // Not only the first of that name: a newer client without its plugin may stand before Debian's, which needs none.
        let path = std::env::var_os("PATH").unwrap_or_default();
        for program in std::env::split_paths(&path).map(|dir| dir.join("docker")) {
            let client = duct::cmd!(&program, "version", "--format={{.Client.Version}}");
            let client = match &host {
                Some(host) => client.env("DOCKER_HOST", host),
                None => client,
            };
            let Ok(client) = client.stderr_null().stdout_capture().unchecked().run() else { continue };
            let client = String::from_utf8_lossy(&client.stdout).trim().to_owned();
            let buildx = duct::cmd!(&program, "buildx", "version").stdout_null().stderr_null().run();
            if !has_buildkit(&client, buildx.is_ok()) {
                without_buildkit.get_or_insert(client);
                continue;
            }
            let mut docker = Docker { program, host, versions: String::new() };
            docker.versions = docker.preflight(&client)?;
            return Ok(docker);
        }
        let what = match without_buildkit {
            Some(version) => format!(
                "docker {version} comes without BuildKit, which the Dockerfile needs: install its buildx plugin (on Debian: \
                 apt-get install docker-buildx; from Docker's own packages: docker-buildx-plugin)"
            ),
            None => "docker is missing: install it (on Debian: apt-get install docker.io); or build with something else that \
                     understands the Dockerfile, as `buildah build --format docker .`, without this command's checks"
                .to_owned(),
        };
        bail!(Failure::Preflight(what))
    }

    fn preflight(&self, client: &str) -> Result<String> {
        let version = ["version", "--format={{.Server.Version}}"];
        let answer = self.command(&version).stdout_capture().stderr_capture().unchecked().run()?;
        let server = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        if !answer.status.success() || server.is_empty() {
            bail!(Failure::Preflight(format!(
                "no Docker daemon answers: {}\nstart it (systemctl start docker), or point DOCKER_HOST to one; as root, \
                 --own-daemon starts one for this run alone",
                String::from_utf8_lossy(&answer.stderr).trim()
            )));
        }
        ensure!(
            has_buildkit(&server, true),
            Failure::Preflight(format!(
                "the Docker daemon is {server}, and BuildKit begins with 18.09: update it"
            ))
        );
        let root = self.read(&["info", "--format={{.DockerRootDir}}"])?;
        // It may be on another machine, or not for us to see.
        if let Ok(stat) = rustix::fs::statvfs(root.as_str()) {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            ensure!(
                free >= BYTES_NEEDED,
                Failure::Preflight(format!(
                    "only {} MB are free in {root}, where Docker keeps its images, and a build takes up to {}: make room \
                     (docker system prune), or give Docker another disk (data-root in /etc/docker/daemon.json)",
                    free >> 20,
                    BYTES_NEEDED >> 20
                ))
            );
        }
        Ok(format!("client {client}, server {server}"))
    }

    fn command(&self, arguments: &[&str]) -> Expression {
        let mut command = duct::cmd(&self.program, arguments).env("DOCKER_BUILDKIT", "1").stdin_null();
        if let Some(host) = &self.host {
            command = command.env("DOCKER_HOST", host);
        }
        command
    }

    /// Runs docker, and returns what it prints.
    fn read(&self, arguments: &[&str]) -> Result<String> {
        run::check_interrupted()?;
        let output = self.command(arguments).stdout_capture().stderr_capture().unchecked().run()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`docker {}` failed: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Builds the image, and returns its id.
    fn build(
        &self,
        release: &Release,
        tag: &str,
        base: Option<&str>,
        network: Option<&str>,
        work: &Path,
    ) -> Result<String> {
        let id_file = work.join("id");
        let mut arguments = vec![
            "build".to_owned(),
            "--progress=plain".to_owned(),
            format!("--tag={tag}"),
            format!("--iidfile={}", id_file.display()),
            format!("--build-arg=RELEASE={}", release.version),
            format!("--build-arg=SOURCE_DATE_EPOCH={}", release.epoch),
        ];
        arguments.extend(base.map(|base| format!("--build-arg=BASE={base}")));
        // A daemon of our own has no bridge.
        let network = network.or_else(|| self.host.as_ref().map(|_| "host"));
        arguments.extend(network.map(|network| format!("--network={network}")));
        let revision = duct::cmd!("git", "rev-parse", "HEAD").dir(layout::root()).stderr_null().read();
        arguments.extend(revision.map(|id| format!("--label=org.opencontainers.image.revision={id}")));
        arguments.push(layout::root().display().to_string());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        ui::heading(format!("image {tag}"));
        let log = work.join("build.log");
        fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
        let step = ui::Step::start("docker build");
        let ran = run::logged(&step, "docker build", self.command(&arguments), &log, WhenInterrupted::End);
        run::advise(ran, &log, &ADVICE)?;
        step.done(log.display());
        let id =
            fs::read_to_string(&id_file).with_context(|| format!("cannot read {}", id_file.display()))?;
        Ok(id.trim().to_owned())
    }

    /// Makes the base image out of Debian's packages, for a daemon that has no registry, and returns its name.
    fn make_base(&self, work: &Path) -> Result<String> {
        const NAME: &str = "debian:trixie-slim";
        let tar = work.join("trixie.tar");
        if !tar.is_file() {
            let step = ui::Step::start("mmdebstrap");
            let scratch = TempDir::with_prefix_in("base-", work)?;
            let partial = scratch.path().join("trixie.tar");
            // What makes the slim image slim.
            let slim = [
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                "--dpkgopt=path-exclude=/usr/share/man/*",
            ];
            let arguments = [&slim[..], &debian::CERTIFICATES].concat();
            debian::mmdebstrap(&step, &arguments, "trixie", &partial, &work.join("mmdebstrap.log"))?;
            fs::rename(&partial, &tar).with_context(|| format!("cannot create {}", tar.display()))?;
            step.done(tar.display());
        }
        self.read(&["import", &tar.to_string_lossy(), NAME])?;
        Ok(NAME.to_owned())
    }

    /// Unpacks what is in an image.
    fn contents(&self, image: &str, work: &Path) -> Result<Contents> {
        let root = TempDir::with_prefix_in("contents-", work)?;
        let container = Container { docker: self, id: self.read(&["create", image])? };
        let unpack = duct::cmd!("tar", "--extract", "--directory", root.path());
        let export =
            self.command(&["export", &container.id]).pipe(unpack).stderr_capture().unchecked().run()?;
        let said = String::from_utf8_lossy(&export.stderr);
        ensure!(export.status.success(), "cannot unpack {image}: {}", said.trim());
        Ok(Contents { root, config: self.read(&["image", "inspect", "--format={{json .Config}}", image])? })
    }

    /// Starts a container of `image`, which is removed when the result is dropped.
    fn container(&self, options: &[&str], image: &str, arguments: &[&str]) -> Result<Container<'_>> {
        let create = [&["create"], &READ_ONLY[..], options, &[image], arguments].concat();
        let container = Container { docker: self, id: self.read(&create)? };
        // Not in one, as one that could not be started has to be removed, too.
        self.read(&["start", &container.id])?;
        Ok(container)
    }
}

/// Whether a client or a daemon of this version has BuildKit. From 23 on, the client leaves it to its plugin.
fn has_buildkit(version: &str, has_buildx: bool) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(18), Some(minor)) => minor >= 9,
        (Some(major), _) => has_buildx && major > 18 || (19..23).contains(&major),
        // Not a release; its build will say.
        _ => true,
    }
}

/// A running container.
struct Container<'a> {
    docker: &'a Docker,
    id: String,
}

impl Container<'_> {
    fn inspect(&self, what: &str) -> Result<String> {
        self.docker.read(&["inspect", &format!("--format={what}"), &self.id])
    }

    /// Waits until what `inspect` says is `wanted`, and returns how long that took.
    fn wait_for(&self, what: &str, wanted: &str, within: Duration) -> Result<Duration> {
        let since = Instant::now();
        loop {
            let is = self.inspect(what)?;
            if is == wanted {
                return Ok(since.elapsed());
            }
            if since.elapsed() > within {
                bail!(
                    "{what} is {is:?} and not {wanted:?} after {within:?}; its log ends in:\n{}",
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn log(&self) -> String {
        let log = self.docker.command(&["logs", "--tail=10", &self.id]).stderr_to_stdout();
        log.unchecked().read().unwrap_or_default()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let remove = self.docker.command(&["rm", "--force", "--volumes", &self.id]);
        let _ = remove.stdout_null().stderr_null().unchecked().run();
    }
}

/// What is in an image: its files, and what a container of it is started with.
struct Contents {
    root: TempDir,
    config: String,
}

/// An error that says what differs, if anything does but the times of files.
fn same(first: &Contents, second: &Contents) -> Result<String> {
    let (files, differences) = compare::compare(first.root.path(), second.root.path())?;
    let mut differences: Vec<String> = differences.iter().map(|one| format!("    {one}")).collect();
    if first.config != second.config {
        differences.push(format!("    {}\n    became {}", first.config, second.config));
    }
    ensure!(
        differences.is_empty(),
        Failure::Difference(format!("the image was built twice, and differs:\n{}", differences.join("\n")))
    );
    Ok(format!("built again from nothing: {files} files, and none differs"))
}

/// Checks what a drop-in has to hold.
fn check(docker: &Docker, report: &mut Image, work: &Path, offline: bool) -> Result<()> {
    let guac_stress = stress::compile(work, offline)?;
    let image = report.id.clone();
    let mut passed = |name: &'static str, run: &dyn Fn() -> Result<String>| -> Result<()> {
        let since = Instant::now();
        let step = ui::Step::start(name);
        let remark = run().with_context(|| format!("the image fails the check `{name}`"))?;
        step.done(&remark);
        report.checks.push(Check { name, seconds: since.elapsed().as_secs_f64(), remark });
        Ok(())
    };
    passed("contents", &|| contents(docker, &image))?;
    passed("protocols", &|| protocols(docker, &image))?;
    passed("health", &|| health(docker, &image))?;
    passed("stop", &|| stop(docker, &image, &guac_stress))
}

/// It runs as nobody special, and has neither compilers nor files that do not belong there, but has what it should.
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

/// Every protocol answers, as read from within.
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

/// The health check notices that guacd hangs, though its port stays open, and that it goes on.
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

/// A container on the host's network, at a free port of the loopback device.
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

/// It stops in time while sessions are open.
fn stop(docker: &Docker, image: &str, guac_stress: &Path) -> Result<String> {
    let (container, address) = on_loopback(docker, image, &[])?;
    let mut command = Command::new(guac_stress);
    command.args([
        format!("--count={SESSIONS_AT_STOP}"),
        format!("--guacd={address}"),
        "--hold=5m".to_owned(),
    ]);
    run::die_with_parent(&mut command);
    let load = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut load = Ended(load.context("cannot start guac-stress")?);
    // Besides guacd itself and the process that forks, each session has a process of its own.
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut open = 0;
    while open < SESSIONS_AT_STOP as usize {
        ensure!(
            Instant::now() < deadline && load.0.try_wait()?.is_none(),
            "only {open} sessions came up; guacd's log ends in:\n{}",
            container.log()
        );
        std::thread::sleep(Duration::from_millis(500));
        let processes = docker.read(&["top", &container.id, "-o", "pid,comm"])?;
        open = processes.lines().filter(|line| line.ends_with(" guacd")).count().saturating_sub(2);
    }
    // The last of them has only just been forked.
    std::thread::sleep(Duration::from_secs(2));
    let since = Instant::now();
    docker.read(&["stop", "--time=30", &container.id])?;
    let took = since.elapsed();
    let code = container.inspect("{{.State.ExitCode}}")?;
    ensure!(code != "137", "guacd had to be killed");
    ensure!(
        took <= STOP,
        "it took {:.1} s with {open} sessions open, and may take {STOP:?}",
        took.as_secs_f64()
    );
    Ok(format!("{:.1} s with {open} sessions open, exit code {code}", took.as_secs_f64()))
}

/// A process that is ended when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
            let _ = self.0.wait();
        }
    }
}

/// Holds `count` sessions through the container, under a limit of pthread keys if one is asked for.
fn under_load(
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
    let held = stress::load(&address, count, offline);
    let keys = limit.map(|limit| limit.result(&container)).transpose()?;
    if let Some(keys) = &keys {
        ui::note(format!("  {keys}"));
    }
    held?;
    let remark = format!("{count} of {count} sessions gave back what was typed into them");
    Ok(Check {
        name: "stress",
        seconds: since.elapsed().as_secs_f64(),
        remark: keys.map_or_else(|| remark.clone(), |keys| format!("{remark}; {keys}")),
    })
}

/// The preload library that limits a container's pthread keys, and the file that it counts them in.
struct KeyLimit {
    limit: u32,
    dir: TempDir,
}

impl KeyLimit {
    const LIBRARY: &str = "libkey_limit.so";
    const COUNTERS: &str = "keys";

    fn new(limit: u32, guac_stress: &Path, work: &Path) -> Result<KeyLimit> {
        let dir = TempDir::with_prefix_in("key-limit-", work)?;
        let built = guac_stress.with_file_name(Self::LIBRARY);
        let library = dir.path().join(Self::LIBRARY);
        fs::copy(&built, &library).with_context(|| format!("cannot copy {}", built.display()))?;
        let counters = dir.path().join(Self::COUNTERS);
        fs::write(&counters, [0; 12]).with_context(|| format!("cannot write {}", counters.display()))?;
        // The container's user is another one.
        fs::set_permissions(&library, Permissions::from_mode(0o755))?;
        fs::set_permissions(&counters, Permissions::from_mode(0o666))?;
        Ok(KeyLimit { limit, dir })
    }

    /// What a container is created with to be under the limit.
    fn options(&self) -> Vec<String> {
        let mount = |name: &str, more: &str| {
            format!("--mount=type=bind,source={},target=/{name}{more}", self.dir.path().join(name).display())
        };
        vec![
            mount(Self::LIBRARY, ",readonly"),
            mount(Self::COUNTERS, ""),
            format!("--env=LD_PRELOAD=/{}", Self::LIBRARY),
            format!("--env=KEY_LIMIT={}", self.limit),
            format!("--env=KEY_LIMIT_STATS=/{}", Self::COUNTERS),
        ]
    }

    /// What was counted: the most keys of any process, and refusals. An error if nothing was limited.
    fn result(&self, container: &Container) -> Result<String> {
        let bytes = fs::read(self.dir.path().join(Self::COUNTERS))?;
        let word =
            |index: usize| bytes.get(4 * index..4 * index + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let (Some(most), Some(refused), Some(loaded)) = (word(0), word(1), word(2)) else {
            bail!("the container has cut the file of counters short");
        };
        // The loader only warns of a library that it cannot load, as of one for a newer libc, and goes on without it.
        ensure!(
            loaded == 1 && most > 0,
            "the limit of keys was not in force in the container; its log ends in:\n{}",
            container.log()
        );
        Ok(format!("{most} of {} keys in the process that had most, {refused} refused", self.limit))
    }
}

/// A Docker daemon that is ours alone, and ends with us.
struct Daemon {
    process: Child,
    socket: PathBuf,
    // Last, so that it is removed after the daemon has ended.
    _dir: TempDir,
}

impl Daemon {
    fn start(work: &Path) -> Result<Daemon> {
        ensure!(
            rustix::process::geteuid().is_root(),
            Failure::Preflight(
                "--own-daemon needs root: run as root, or use a Docker daemon that runs already".into()
            )
        );
        for (program, package) in [("dockerd", "docker.io"), ("mmdebstrap", "mmdebstrap")] {
            ensure!(
                run::version_line(program, "--version").is_some(),
                Failure::Preflight(format!("--own-daemon needs {program}: apt-get install {package}"))
            );
        }
        install::check_space(work, BYTES_NEEDED)?;
        let dir = TempDir::with_prefix_in("dockerd-", work)?;
        // Sockets have short names only.
        let socket = dir.path().join("s");
        ensure!(socket.as_os_str().len() < 90, "the path {} is too long for a socket", socket.display());
        let log = fs::File::create(work.join("dockerd.log"))?;
        // In a namespace of its own: it leaves the network namespaces of its containers mounted.
        let mut command = Command::new("unshare");
        command.args(["--mount", "dockerd"]);
        for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(format!("{flag}={}", dir.path().join(name).display()));
        }
        command
            .arg(format!("--host=unix://{}", socket.display()))
            // It touches nobody's network.
            .args(["--storage-driver=overlay2", "--iptables=false", "--ip6tables=false", "--bridge=none"])
            .stdin(Stdio::null())
            .stderr(log)
            .stdout(Stdio::null());
        run::die_with_parent(&mut command);
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
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It ends its containers and its containerd before itself.
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buildkit_is_in_old_clients_and_behind_a_plugin_in_new_ones() {
        assert!(!has_buildkit("18.06.3-ce", false));
        assert!(has_buildkit("18.09.1", false));
        assert!(has_buildkit("20.10.24+dfsg1", false));
        assert!(!has_buildkit("28.2.2", false));
        assert!(has_buildkit("28.2.2", true));
        assert!(!has_buildkit("17.12.0-ce", true));
    }
}
