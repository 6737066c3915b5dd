//! How are images built and containers run? By Docker's client.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use duct::Expression;
use fs_err as fs;
use tempfile::TempDir;

use crate::failure::Failure;
use crate::host::run::{self, WhenInterrupted};
use crate::host::{debian, files, layout};
use crate::source::release::Release;
use crate::ui;

/// The disk space that a build needs, in bytes. 2.3 GB were measured.
pub const BYTES_NEEDED: u64 = 4 << 30;

/// Options of every container. It has no privileges, and its root is read-only, except the directories that guacd writes to.
pub const READ_ONLY: [&str; 6] = [
    "--read-only",
    "--tmpfs=/tmp",
    "--tmpfs=/home/guacd:uid=1000,gid=1000",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--pids-limit=-1",
];

/// What a build prints when it lacks something, and what to do about it.
const ADVICE: [(&str, &str); 5] = [
    ("failed to resolve", NO_BASE),
    ("failed to do request", NO_BASE),
    (debian::UNRESOLVED, NO_NETWORK),
    ("Could not resolve host", NO_NETWORK),
    // apt-get's words, and Docker's.
    ("o space left on device", "make room where Docker keeps its images: docker system prune"),
];
const NO_BASE: &str =
    "the base image comes from a registry: connect the daemon to it, or name a local image with --base";
const NO_NETWORK: &str = "Debian's packages and the crates come from the network: connect this machine, or use --network host \
                          if only containers are not connected";

/// A Docker client whose daemon answers.
pub struct Docker {
    /// The client's path.
    program: PathBuf,
    /// The value of DOCKER_HOST for the client, if it is not the user's.
    host: Option<String>,
    /// The versions of the client and the daemon, as `client VERSION, server VERSION`.
    pub versions: String,
}

impl Docker {
    /// Finds a client that has BuildKit, and checks that a daemon answers it and has room for a build. `socket` is the daemon's
    /// socket, if it is not the usual one.
    ///
    /// # Errors
    ///
    /// [`Failure::Preflight`] when there is no such client, no daemon or no room.
    pub fn find(socket: Option<&Path>) -> Result<Docker> {
        let host = socket.map(|socket| format!("unix://{}", socket.display()));
        let mut without_buildkit = None;
        // Each client in PATH: a new one that lacks the plugin may come before Debian's, which needs no plugin.
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
            None => "docker is missing: install it (on Debian: apt-get install docker.io); or build with another tool that \
                     understands the Dockerfile, such as `buildah build --format docker .`, without this command's checks"
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
                "no Docker daemon answers: {}\nstart it (systemctl start docker), or set DOCKER_HOST; as root, --own-daemon \
                 starts one for this run alone",
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
        // The daemon may be on another machine, or the directory may not be readable.
        if let Ok(stat) = rustix::fs::statvfs(root.as_str()) {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            ensure!(
                free >= BYTES_NEEDED,
                Failure::Preflight(format!(
                    "only {} MB are free in {root}, where Docker keeps its images, and a build takes up to {} MB: make room \
                     (docker system prune), or give Docker another disk (data-root in /etc/docker/daemon.json)",
                    free >> 20,
                    BYTES_NEEDED >> 20
                ))
            );
        }
        Ok(format!("client {client}, server {server}"))
    }

    /// Prepares a run of docker.
    pub fn command(&self, arguments: &[&str]) -> Expression {
        let mut command = duct::cmd(&self.program, arguments).env("DOCKER_BUILDKIT", "1").stdin_null();
        if let Some(host) = &self.host {
            command = command.env("DOCKER_HOST", host);
        }
        command
    }

    /// Runs docker, and returns what it prints.
    pub fn read(&self, arguments: &[&str]) -> Result<String> {
        run::check_interrupted()?;
        run::read(&format!("`docker {}`", arguments.join(" ")), self.command(arguments))
    }

    /// Builds the image of `release`, on the image `base`, with the network `network`, as the flags of the same names say.
    /// Returns its ID.
    pub fn build(
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
        // A daemon for one run has no bridge.
        let network = network.or_else(|| self.host.as_ref().map(|_| "host"));
        arguments.extend(network.map(|network| format!("--network={network}")));
        let revision = duct::cmd!("git", "rev-parse", "HEAD").dir(layout::root()).stderr_null().read();
        arguments.push(format!("--label=org.opencontainers.image.version={}", release.version));
        arguments.extend(revision.map(|id| format!("--label=org.opencontainers.image.revision={id}")));
        arguments.push(layout::root().display().to_string());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        ui::heading(format!("image {tag}"));
        let log = work.join("build.log");
        files::begin_log(&log)?;
        let step = ui::Step::start("docker build");
        let ran = run::logged(&step, "docker build", self.command(&arguments), &log, WhenInterrupted::End);
        run::advise(ran, &log, &ADVICE)?;
        step.done(log.display());
        Ok(fs::read_to_string(&id_file)?.trim().to_owned())
    }

    /// Makes the base image from Debian's packages, for a daemon that has no registry. Returns its name.
    pub fn make_base(&self, work: &Path) -> Result<String> {
        const NAME: &str = "debian:trixie-slim";
        let tar = work.join("trixie.tar");
        if !tar.is_file() {
            let step = ui::Step::start("mmdebstrap");
            let scratch = TempDir::with_prefix_in("base-", work)?;
            let partial = scratch.path().join("trixie.tar");
            // What Debian leaves out of its slim images.
            let slim = [
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                "--dpkgopt=path-exclude=/usr/share/man/*",
            ];
            let arguments = [&slim[..], &debian::CERTIFICATES].concat();
            debian::mmdebstrap(&step, &arguments, "trixie", &partial, &work.join("mmdebstrap.log"))?;
            fs::rename(&partial, &tar)?;
            step.done(tar.display());
        }
        self.read(&["import", &tar.to_string_lossy(), NAME])?;
        Ok(NAME.to_owned())
    }

    /// Unpacks the files of an image below `work`.
    pub fn contents(&self, image: &str, work: &Path) -> Result<Contents> {
        let root = TempDir::with_prefix_in("contents-", work)?;
        let container = Container { docker: self, id: self.read(&["create", image])? };
        let unpack = duct::cmd!("tar", "--extract", "--directory", root.path());
        let export =
            self.command(&["export", &container.id]).pipe(unpack).stderr_capture().unchecked().run()?;
        let message = String::from_utf8_lossy(&export.stderr);
        ensure!(export.status.success(), "cannot unpack {image}: {}", message.trim());
        Ok(Contents { root, config: self.read(&["image", "inspect", "--format={{json .Config}}", image])? })
    }

    /// Starts a container of `image`, with `options` of `docker create`, and with `arguments` of its entrypoint. It is removed
    /// when the result is dropped.
    pub fn container(&self, options: &[&str], image: &str, arguments: &[&str]) -> Result<Container<'_>> {
        let create = [&["create"], &READ_ONLY[..], options, &[image], arguments].concat();
        let container = Container { docker: self, id: self.read(&create)? };
        // Not `docker run`: a container that cannot be started has to be removed as well.
        self.read(&["start", &container.id])?;
        Ok(container)
    }
}

/// Whether a client or a daemon of this version has BuildKit. From version 23 on, clients have it in the plugin buildx.
fn has_buildkit(version: &str, has_buildx: bool) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(18), Some(minor)) => minor >= 9,
        (Some(major), _) => has_buildx && major > 18 || (19..23).contains(&major),
        // This is no release. If there is no BuildKit, the build will fail.
        _ => true,
    }
}

/// A container, which is removed when this is dropped.
pub struct Container<'a> {
    docker: &'a Docker,
    /// Its ID.
    pub id: String,
}

impl Container<'_> {
    /// A property of the container, by a format of `docker inspect`.
    pub fn inspect(&self, property: &str) -> Result<String> {
        self.docker.read(&["inspect", &format!("--format={property}"), &self.id])
    }

    /// Waits until a property, by a format of `docker inspect`, is `wanted`. Returns how long that took.
    ///
    /// # Errors
    ///
    /// When it takes longer than `within`.
    pub fn wait_for(&self, property: &str, wanted: &str, within: Duration) -> Result<Duration> {
        let since = Instant::now();
        loop {
            let value = self.inspect(property)?;
            if value == wanted {
                return Ok(since.elapsed());
            }
            if since.elapsed() > within {
                bail!(
                    "{property} is {value:?} and not {wanted:?} after {within:?}; its log ends in:\n{}",
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The last ten lines of its log.
    pub fn log(&self) -> String {
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

/// The files and the configuration of an image.
pub struct Contents {
    /// The directory with its files.
    pub root: TempDir,
    /// The configuration of its containers, as JSON.
    pub config: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buildkit_is_in_old_clients_and_in_the_plugin_of_new_ones() {
        assert!(!has_buildkit("18.06.3-ce", false));
        assert!(has_buildkit("18.09.1", false));
        assert!(has_buildkit("20.10.24+dfsg1", false));
        assert!(!has_buildkit("28.2.2", false));
        assert!(has_buildkit("28.2.2", true));
        assert!(!has_buildkit("17.12.0-ce", true));
    }
}
