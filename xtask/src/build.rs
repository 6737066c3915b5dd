//! `cargo xtask build`: from a source to a prefix, in steps that are skipped while their inputs stay the same.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use duct::Expression;
use rustix::fs::FlockOperation;

use crate::digest::Hasher;
use crate::doctor::{self, Need};
use crate::flags::{self, Variant};
use crate::manifest::{self, Manifest, SCHEMA_VERSION};
use crate::patch::{self, Patch};
use crate::steps::{Done, Steps};
use crate::upstream::Release;
use crate::{digest, fetch, install, layout, run, tls_rs, ui};

/// Newer OpenSSL, FreeRDP and FFmpeg deprecate what 1.6.0 calls, and upstream compiles with -Werror.
const CPPFLAGS: &str = "-Wno-error=deprecated-declarations";

/// Variables that configure and the compilers heed.
const ENVIRONMENT: [&str; 8] =
    ["CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LIBS", "PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR"];

/// Builds one variant of a release.
pub fn build(flags: &flags::Build) -> Result<()> {
    let release = Release::load(&flags.release.release)?;
    let prefix = build_variant(&release, flags.variant, &flags.setup, &Options::from(flags))?;
    ui::result(prefix.display());
    Ok(())
}

/// What may differ between two builds of the same variant.
#[derive(Default)]
pub struct Options<'a> {
    prefix: Option<&'a Path>,
    jobs: Option<usize>,
    configure_args: &'a [String],
}

impl<'a> From<&'a flags::Build> for Options<'a> {
    fn from(flags: &'a flags::Build) -> Self {
        Options {
            prefix: flags.prefix.as_deref(),
            jobs: flags.jobs.map(|jobs| jobs.get()),
            configure_args: &flags.configure_args,
        }
    }
}

/// Builds what is not built yet of `variant`, and returns its prefix.
pub fn build_variant(
    release: &Release,
    variant: Variant,
    setup: &flags::Setup,
    options: &Options<'_>,
) -> Result<PathBuf> {
    let versions = doctor::preflight(&[Need::Build], setup)?;
    let build = Build::new(release, variant, options)?;
    install::check(&build.prefix)?;
    let _lock = build.lock()?;
    ui::heading(format!("guacd {} {} -> {}", release.version, variant.name(), build.prefix.display()));
    if build.run(setup, options, &versions)? {
        let protocols = manifest::protocols(&build.prefix)?;
        if !protocols.iter().any(|protocol| protocol == "ssh") {
            ui::warning("it was built without SSH: `cargo xtask doctor` says what that needs");
        }
        ui::note(format!("  protocols: {}", protocols.join(", ")));
    } else {
        ui::note("  nothing has changed: the prefix is up to date");
    }
    Ok(build.prefix)
}

/// The paths and the patches of one build.
struct Build<'a> {
    release: &'a Release,
    variant: Variant,
    prefix: PathBuf,
    /// Where everything else of the build lies: sources, objects, logs.
    work: PathBuf,
    patches: Vec<Patch>,
}

impl<'a> Build<'a> {
    fn new(release: &'a Release, variant: Variant, options: &Options<'_>) -> Result<Build<'a>> {
        let patches = match variant {
            Variant::Patched => patch::series(&release.patches_dir())?,
            Variant::Stock => Vec::new(),
        };
        let release_dir = layout::target_dir().join("guacd").join(&release.version);
        let (work, prefix) = match (options.prefix, options.configure_args) {
            (None, []) => {
                let work = release_dir.join(variant.name());
                let prefix = work.join("prefix");
                (work, prefix)
            }
            // A build with options of its own does not disturb the usual one.
            (prefix, configure_args) => {
                let prefix =
                    prefix.map(std::path::absolute).transpose().context("cannot resolve the prefix")?;
                let mut hasher = Hasher::default();
                hasher
                    .add(prefix.as_deref().map_or(&b""[..], |prefix| prefix.as_os_str().as_encoded_bytes()));
                for argument in configure_args {
                    hasher.add(argument);
                }
                let work = release_dir.join(format!("{}-{}", variant.name(), &hasher.finish()[..8]));
                let prefix = prefix.unwrap_or_else(|| work.join("prefix"));
                (work, prefix)
            }
        };
        fs::create_dir_all(&work).with_context(|| {
            format!("cannot create {}: set CARGO_TARGET_DIR to where you may write", work.display())
        })?;
        Ok(Build { release, variant, prefix, work, patches })
    }

    /// Keeps a second build out of the work directory for as long as the result lives.
    fn lock(&self) -> Result<File> {
        let path = self.work.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another build is at work in {}: wait for it to end, and try again", self.work.display());
        }
        Ok(file)
    }

    /// Runs the steps, and returns whether any had to run.
    fn run(&self, setup: &flags::Setup, options: &Options<'_>, versions: &[String]) -> Result<bool> {
        let mut steps = Steps::open(&self.work)?;
        let source = self.source(&mut steps, setup)?;
        let tls_rs = match self.variant {
            Variant::Patched => Some(self.tls_rs(&mut steps)?),
            Variant::Stock => None,
        };
        let made = self.make(&mut steps, &source, tls_rs.as_ref(), options, versions)?;
        self.install(&mut steps, &made, options)?;
        Ok(steps.ran)
    }

    /// The patched source tree, ready for configure.
    fn source(&self, steps: &mut Steps, setup: &flags::Setup) -> Result<Done> {
        let Build { release, patches, .. } = self;
        let (pristine, source) = (self.work.join("pristine"), self.work.join("source"));
        if setup.source.from.is_some() {
            // Even if it is not needed: whoever names a source wants it checked.
            fetch::source(release, &setup.source)?;
        }
        let unpacked = steps.step("unpack", &[], &[&release.commit], &[&pristine], |_, _| {
            install::check_space(&self.work)?;
            let cached = fetch::source(release, &flags::Source { from: None, ..setup.source })?;
            fetch::unpack(&cached, &pristine)?;
            fs::write(self.work.join("source.pin"), &cached.pin)?;
            Ok(cached.pin)
        })?;
        let inputs: Vec<&str> = patches.iter().flat_map(|patch| [&*patch.name, &*patch.sha256]).collect();
        let patched = steps.step("patch", &[&unpacked], &inputs, &[&source], |progress, log| {
            copy_tree(progress, log, &pristine, &source)?;
            patch::apply(&release.patches_dir(), patches, &source)?;
            Ok(match patches.len() {
                0 => "stock: nothing to apply".to_owned(),
                count => format!("{count} patches, no fuzz, no offset"),
            })
        })?;
        let configure = source.join("configure");
        steps.step("autoreconf", &[&patched], &[], &[&configure], |progress, log| {
            run::logged(progress, "autoreconf", duct::cmd!("autoreconf", "-fi").dir(&source), log)?;
            Ok(String::new())
        })
    }

    fn tls_rs(&self, steps: &mut Steps) -> Result<Done> {
        let dir = self.work.join("tls-rs");
        let archive = dir.join("lib/libtls_rs.a");
        let rustc = rustc_version();
        steps.step("tls-rs", &[], &[&rustc, &tls_rs::digest_of_inputs()?], &[&archive], |progress, log| {
            tls_rs::build(progress, log, &dir)?;
            Ok(rustc.clone())
        })
    }

    fn make(
        &self,
        steps: &mut Steps,
        source: &Done,
        tls_rs: Option<&Done>,
        options: &Options<'_>,
        versions: &[String],
    ) -> Result<Done> {
        let build = self.work.join("build");
        let arguments = self.configure_arguments(options);
        let environment: Vec<String> = ENVIRONMENT
            .iter()
            .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)))
            .collect();
        let inputs: Vec<&str> =
            [&arguments, &environment, versions].into_iter().flatten().map(String::as_str).collect();
        let makefile = build.join("Makefile");
        let configured = steps.step("configure", &[source], &inputs, &[&makefile], |progress, log| {
            // Afresh, as objects that were compiled with other flags must not survive; and in a copy, as upstream's
            // tests do not compile outside of the source tree.
            copy_tree(progress, log, &self.work.join("source"), &build)?;
            let command = duct::cmd("sh", [&["./configure".to_owned()], &*arguments].concat()).dir(&build);
            run::logged(progress, "configure", command, log)?;
            Ok(String::new())
        })?;
        let after: Vec<&Done> = [&configured].into_iter().chain(tls_rs).collect();
        steps.step("make", &after, &[], &[&build.join("src/guacd/guacd")], |progress, log| {
            run::logged(progress, "make", self.make_command(options, &[]), log)?;
            Ok(format!("log: {}", log.display()))
        })
    }

    fn install(&self, steps: &mut Steps, made: &Done, options: &Options<'_>) -> Result<()> {
        let outputs = [self.prefix.join("sbin/guacd"), manifest::path(&self.prefix)];
        let outputs: Vec<&Path> = outputs.iter().map(PathBuf::as_path).collect();
        steps.step("install", &[made], &[], &outputs, |progress, log| {
            let stage = tempfile::TempDir::with_prefix_in("stage-", &self.work)?;
            let destdir = format!("DESTDIR={}", stage.path().display());
            run::logged(progress, "make install", self.make_command(options, &["install", &destdir]), log)?;
            install::install(progress, log, stage.path(), &self.prefix)?;
            self.manifest(options)?.save()?;
            Ok(self.prefix.display().to_string())
        })?;
        Ok(())
    }

    fn make_command(&self, options: &Options<'_>, arguments: &[&str]) -> Expression {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let jobs = format!("-j{}", options.jobs.unwrap_or_else(cores));
        let arguments = [&[jobs.as_str()], arguments].concat();
        duct::cmd("make", arguments)
            .dir(self.work.join("build"))
            // A make above us speaks of its own job server.
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
    }

    fn configure_arguments(&self, options: &Options<'_>) -> Vec<String> {
        let prefix = self.prefix.display();
        let user_flags = std::env::var("CPPFLAGS").unwrap_or_default();
        let mut arguments = vec![
            format!("--prefix={prefix}"),
            // Left alone it would install into the system's directory of FreeRDP.
            format!("--with-freerdp-plugin-dir={prefix}/lib"),
            format!("CPPFLAGS={}", format!("{CPPFLAGS} {user_flags}").trim_end()),
        ];
        if self.variant == Variant::Patched {
            arguments.push(format!("--with-tls-rs={}", self.work.join("tls-rs").display()));
        }
        arguments.extend_from_slice(options.configure_args);
        arguments
    }

    fn manifest(&self, options: &Options<'_>) -> Result<Manifest> {
        let archive = self.work.join("tls-rs/lib/libtls_rs.a");
        Ok(Manifest {
            schema_version: SCHEMA_VERSION,
            release: self.release.version.clone(),
            commit: self.release.commit.clone(),
            source: fs::read_to_string(self.work.join("source.pin"))?,
            variant: self.variant.name().to_owned(),
            prefix: self.prefix.clone(),
            patches: self.patches.clone(),
            tls_rs: (self.variant == Variant::Patched).then(|| digest::file(&archive)).transpose()?,
            compiler: run::version_line(&doctor::c_compiler(), "--version").unwrap_or_default(),
            rustc: rustc_version(),
            configure: self.configure_arguments(options),
            protocols: manifest::protocols(&self.prefix)?,
        })
    }
}

/// Makes `to` a copy of the tree `from`, with its times, which make goes by.
fn copy_tree(progress: &ui::Step, log: &Path, from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    run::logged(progress, "copying the source", duct::cmd!("cp", "-a", from, to), log)
}

fn rustc_version() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    run::version_line(&rustc, "--version").unwrap_or_default()
}
