//! How is an output of the flake built with Nix? With nixpkgs, or with this machine's own compilers and libraries.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use duct::Expression;
use fs_err as fs;
use serde::Deserialize;
use tempfile::TempDir;

use crate::build::guacd::Setup;
use crate::build::prefix;
use crate::failure::Failure;
use crate::host::install;
use crate::host::run::WhenInterrupted;
use crate::host::tools::Need;
use crate::host::{files, layout, lock, run};
use crate::source::fetch::{self, Access};
use crate::source::release::Release;
use crate::ui;

/// The disk space that the store for --stand-in and a build in it need, in bytes.
const BYTES_NEEDED: u64 = 3 << 30;

/// The oldest version of Nix that understands the flake.
const OLDEST: (u32, u32) = (2, 4);

/// What Nix prints when it lacks something, and what to do about it.
const ADVICE: [(&str, &str); 7] = [
    (
        "is not in the store:",
        "the store lacks a source: Cargo.lock or upstream.toml has changed since the run began; run it again",
    ),
    (
        "unable to download",
        "nixpkgs and its binary cache come from the network: connect this machine, or use --stand-in",
    ),
    ("cannot connect to", "the Nix daemon is not running: sudo systemctl start nix-daemon"),
    (
        "changing ownership of path '/nix",
        "there is no Nix store yet: finish Nix's installation, or use --stand-in",
    ),
    ("creating directory '/nix", "there is no Nix store yet: finish Nix's installation, or use --stand-in"),
    (
        "unable to start build process",
        "Nix's sandbox needs Linux namespaces, which this system or its container forbids: allow them",
    ),
    ("No space left on device", "make room, or set CARGO_TARGET_DIR to another disk"),
];

/// What to build, and how to check it.
#[derive(Debug, Default)]
pub struct Options {
    /// The output of the flake.
    pub output: String,
    /// Whether to run the flake's checks, and to build the output a second time and compare.
    pub check: bool,
    /// Whether to use this machine's own compilers and libraries instead of nixpkgs.
    pub stand_in: bool,
}

/// Builds an output of the flake, and returns its store path.
///
/// # Errors
///
/// [`Failure::Preflight`] when Nix or something that it needs is missing; any other when the build or a check fails.
pub fn build(options: &Options, setup: &Setup) -> Result<PathBuf> {
    let mut needs = vec![Need::Nix, Need::Git];
    if options.stand_in {
        needs.extend([Need::Build, Need::Ssh, Need::Optional, Need::Tests]);
    }
    install::preflight(&needs, &[], setup.install)?;
    check_version()?;
    let _lock = lock::command("nix")?;
    ensure!(
        layout::root().join(".git").exists(),
        Failure::Preflight(
            "this is no git checkout: Nix takes the files that git knows, so clone the repository".into()
        )
    );
    let nix = match options.stand_in {
        true => Nix::stand_in(&setup.source)?,
        false => Nix::new(layout::target_dir().join("guacd/nix"), setup.source.offline)?,
    };
    if options.check {
        nix.run("nix check", &["flake", "check", ".", "--print-build-logs"])?;
    }
    let output = format!(".#{}", options.output);
    let link = nix.dir.join(format!("result-{}", options.output));
    let out_link = link.to_string_lossy();
    nix.run("nix build", &["build", &output, "--print-build-logs", "--out-link", &out_link])?;
    if options.check {
        // It fails unless the second build gives the same bytes.
        nix.run("nix rebuild", &["build", &output, "--rebuild", "--print-build-logs", "--no-link"])?;
    }
    let built = fs::read_link(&link).with_context(|| format!("nix left no {}", link.display()))?;
    Ok(built)
}

fn check_version() -> Result<()> {
    let version = run::version_line("nix", "--version").unwrap_or_default();
    let mut numbers = version.rsplit(' ').next().unwrap_or_default().split(['.', '-']).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        bail!("cannot understand the version of Nix: {version:?}");
    };
    ensure!(
        (major, minor) >= OLDEST,
        Failure::Preflight(format!(
            "{version} has no flakes: install Nix {}.{} or newer",
            OLDEST.0, OLDEST.1
        ))
    );
    Ok(())
}

/// Nix, with the arguments and variables for this checkout's flake.
struct Nix {
    /// Where logs and results are.
    dir: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, OsString)>,
}

impl Nix {
    /// Nix with the user's store and settings.
    fn new(dir: PathBuf, offline: bool) -> Result<Nix> {
        fs::create_dir_all(&dir)?;
        let dir = dir.canonicalize()?;
        let mut arguments =
            ["--extra-experimental-features", "nix-command flakes"].map(str::to_owned).to_vec();
        if offline {
            arguments.push("--offline".to_owned());
        }
        Ok(Nix { dir, arguments, environment: Vec::new() })
    }

    /// Nix with a separate store, which has the sources, and with this machine's compilers and libraries instead of nixpkgs.
    fn stand_in(access: &Access) -> Result<Nix> {
        let mut nix = Nix::new(layout::target_dir().join("guacd/nix-stand-in"), true)?;
        prefix::check_space(&nix.dir, BYTES_NEEDED)?;
        let flake = layout::root().join("nix/stand-in");
        nix.arguments.extend(["--override-input".to_owned(), "nixpkgs".to_owned()]);
        nix.arguments.extend([format!("path:{}", flake.display()), "--no-write-lock-file".to_owned()]);
        // With all of these set, Nix does not use the machine's own store.
        for (name, dir) in [
            ("NIX_STORE_DIR", "store"),
            ("NIX_STATE_DIR", "state"),
            ("NIX_LOG_DIR", "log"),
            ("NIX_CONF_DIR", "conf"),
            ("NIX_LOCALSTATE_DIR", "state"),
            ("HOME", "home"),
        ] {
            let dir = nix.dir.join(dir);
            fs::create_dir_all(&dir)?;
            nix.environment.push((name, dir.into()));
        }
        fs::write(nix.dir.join("conf/nix.conf"), configuration()?)?;
        nix.seed(access)?;
        Ok(nix)
    }

    /// Puts what the flake would fetch into the store: upstream's sources, and every crate in Cargo.lock.
    fn seed(&self, access: &Access) -> Result<()> {
        let progress = ui::Step::start("nix seed");
        for release in Release::all()?.into_values() {
            let unpacked = TempDir::new_in(&self.dir)?;
            let tree = unpacked.path().join("source");
            fetch::unpack(&fetch::git_tree(&release, access)?, &tree)?;
            let hash = self.store(&["nix", "hash", "path"], &[&tree])?;
            ensure!(
                hash == release.nar,
                "the source of {} has the NAR hash {hash}, and upstream.toml pins {}: correct `nar`",
                release.version,
                release.nar
            );
            self.store(&["nix-store", "--add-fixed", "--recursive", "sha256"], &[&tree])?;
        }
        progress.busy_with("crates");
        let log = self.dir.join("seed.log");
        files::begin_log(&log)?;
        let fetch = layout::cargo(&["fetch", "--locked"], access.offline);
        run::logged(&progress, "cargo fetch", fetch, &log, WhenInterrupted::End)?;
        let crates = crates()?;
        self.store(&["nix-store", "--add-fixed", "sha256"], &crates.iter().collect::<Vec<_>>())?;
        progress.done(format!("{} crates", crates.len()));
        Ok(())
    }

    /// Runs a command of Nix that takes no time, such as `nix hash path`, on `paths`. Returns what it prints.
    fn store(&self, command: &[&str], paths: &[&PathBuf]) -> Result<String> {
        let arguments = command[1..].iter().map(OsString::from).chain(paths.iter().map(OsString::from));
        let mut expression = duct::cmd(command[0], arguments);
        if command[0] == "nix" {
            // nix-store does not know the feature.
            expression = expression.env("NIX_CONFIG", "extra-experimental-features = nix-command");
        }
        run::read(&format!("`{}`", command.join(" ")), self.with_environment(expression))
    }

    /// Runs `nix` on the flake, as a step with a log.
    fn run(&self, title: &str, arguments: &[&str]) -> Result<()> {
        let progress = ui::Step::start(title);
        let log = self.dir.join(format!("{}.log", title.replace(' ', "-")));
        files::begin_log(&log)?;
        let arguments = arguments.iter().copied().chain(self.arguments.iter().map(String::as_str));
        let command = self.with_environment(duct::cmd("nix", arguments).dir(layout::root()));
        let ran = run::logged(&progress, title, command, &log, WhenInterrupted::End);
        run::advise(ran, &log, &ADVICE)?;
        progress.done("");
        Ok(())
    }

    fn with_environment(&self, mut command: Expression) -> Expression {
        for (name, value) in &self.environment {
            command = command.env(name, value);
        }
        command
    }
}

/// The nix.conf of the separate store. Builds always run in a sandbox, which has this machine's compilers and libraries.
fn configuration() -> Result<String> {
    let sysroot =
        duct::cmd!("rustc", "--print", "sysroot").dir(layout::root()).read().context("cannot run rustc")?;
    let mut lines = vec![
        "build-users-group =".to_owned(),
        "experimental-features = nix-command flakes".to_owned(),
        "sandbox = true".to_owned(),
        "sandbox-fallback = false".to_owned(),
        "substitute = false".to_owned(),
    ];
    let host = ["/bin", "/etc/alternatives", "/lib", "/lib64", "/usr"];
    let host = host.into_iter().filter(|path| Path::new(path).exists()).collect::<Vec<_>>().join(" ");
    lines.push(format!("sandbox-paths = {host} /rust={sysroot}\n"));
    Ok(lines.join("\n"))
}

/// The paths, in cargo's cache, of the crates that Cargo.lock pins.
fn crates() -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        checksum: Option<String>,
    }
    let path = layout::root().join("Cargo.lock");
    let text = fs::read_to_string(&path)?;
    let lock: Lock =
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
        .context("no cargo home: set CARGO_HOME")?;
    let cache = home.join("registry/cache");
    let registries: Vec<PathBuf> =
        fs::read_dir(&cache)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let pinned = lock.package.into_iter().filter(|package| package.checksum.is_some());
    pinned
        .map(|Package { name, version, .. }| {
            let file = format!("{name}-{version}.crate");
            let mut places = registries.iter().map(|registry| registry.join(&file));
            places
                .find(|place| place.is_file())
                .with_context(|| format!("{file} is not below {}", cache.display()))
        })
        .collect()
}
