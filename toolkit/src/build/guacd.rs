//! Which steps turn a source into a prefix? A step is skipped while its inputs stay the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use duct::Expression;
use fs_err as fs;
use rustix::fs::Mode;

use crate::build::manifest::{self, Manifest, SCHEMA_VERSION};
use crate::build::steps::{Done, Steps};
use crate::build::{prefix, sbom, tls_rs};
use crate::failure::Failure;
use crate::host::digest::Hasher;
use crate::host::features::{FEATURES, Feature};
use crate::host::install::Missing;
use crate::host::lock::{self, Lock};
use crate::host::tools::{self, Finding, Need};
use crate::host::{digest, features, install, layout};
use crate::source::fetch::{self, Access};
use crate::source::release::Release;
use crate::source::series::{self, Patch};
use crate::ui;

/// Variables that configure gets. The user's flags come after these, and so take precedence.
const FLAGS: [(&str, &str); 4] = [
    // Newer OpenSSL, FreeRDP and FFmpeg deprecate functions that upstream calls, and upstream compiles with -Werror. FORTIFY is
    // undefined first, as some distributions' compilers define another level of it. A C library that has no level 3 warns
    // (cpp) and takes 2. The prefix map keeps the work directory out of debug information; make fills it in, not configure.
    (
        "CPPFLAGS",
        "-Wno-error=deprecated-declarations -Wno-error=cpp -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 \
         -ffile-prefix-map=$(abs_top_builddir:build=)=",
    ),
    // No -pie: position-independent executables are every distribution's default, and the flag breaks the linking of
    // libraries.
    ("CFLAGS", "-g -O2 -fstack-protector-strong -fstack-clash-protection"),
    ("LDFLAGS", "-Wl,-z,relro,-z,now,-z,noexecstack"),
    // Static libraries without times and users: not every distribution's binutils leave them out by default.
    ("AR_FLAGS", "crD"),
];

/// Arguments of configure for a build with AddressSanitizer and UndefinedBehaviorSanitizer. There is no FORTIFY, as its checks
/// would come before the sanitizers'. Shifts are not checked: upstream shifts into the sign bit, which gcc allows.
pub const SANITIZERS: [&str; 3] = [
    "CPPFLAGS=-Wno-error=deprecated-declarations -Wno-error=cpp -U_FORTIFY_SOURCE",
    "CFLAGS=-g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=shift -fno-sanitize-recover=all",
    "LDFLAGS=-fsanitize=address,undefined",
];

/// The group of patches that the variant `keys` has.
pub const KEYS: &str = "keys";

/// The needs that are not required for a build. `--install` installs what they lack, too: users expect a guacd with RDP.
pub const OPTIONAL_NEEDS: &[Need] = &[Need::Ssh, Need::Optional];

/// Environment variables that configure and the compilers use.
const ENVIRONMENT: [&str; 15] = [
    "AR",
    "AR_FLAGS",
    "CC",
    "CFLAGS",
    "CONFIG_SITE",
    "CPATH",
    "CPPFLAGS",
    "LD",
    "LDFLAGS",
    "LIBRARY_PATH",
    "LIBS",
    "PKG_CONFIG",
    "PKG_CONFIG_LIBDIR",
    "PKG_CONFIG_PATH",
    "SOURCE_DATE_EPOCH",
];

/// A guacd as upstream made it, or with our patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// With all patches.
    Patched,
    /// With the patches of the group `keys` alone.
    Keys,
    /// As upstream made it.
    Stock,
}

impl Variant {
    /// Its name on the command line and in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Patched => "patched",
            Variant::Keys => "keys",
            Variant::Stock => "stock",
        }
    }
}

/// What a build may do to get its source and tools.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// From where the source may be taken.
    pub source: Access,
    /// Whether missing tools and libraries may be installed.
    pub install: bool,
}

/// The options of a build, besides its release and its variant.
#[derive(Default)]
pub struct Options<'a> {
    /// The prefix, if it is not to be in the work directory.
    pub prefix: Option<&'a Path>,
    /// How many compilers run at once. `None` means one for each core.
    pub jobs: Option<usize>,
    /// Further arguments of upstream's configure.
    pub configure_args: &'a [String],
    /// What the build has to have. Configure leaves out what it has no library for.
    pub require: &'a [&'static Feature],
}

impl Options<'_> {
    /// How make is told how many compilers run at once.
    pub(super) fn jobs_flag(&self) -> String {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        format!("-j{}", self.jobs.unwrap_or_else(cores))
    }
}

/// Builds `variant`, unless it is up to date, and returns its prefix.
///
/// # Errors
///
/// [`Failure::Preflight`] when a tool, a library or the source is missing; any other when a step fails.
pub fn build(release: &Release, variant: Variant, setup: &Setup, options: &Options<'_>) -> Result<PathBuf> {
    let optional = [OPTIONAL_NEEDS, &features::needs(options.require)].concat();
    let findings = install::preflight(&[Need::Build], &optional, setup.install)?;
    check_features(&findings, options, setup.install)?;
    let versions = tools::versions_of_a_build(&findings);
    // Everybody may read the prefix, and its permissions do not depend on who builds it.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let build = Build::new(release, variant, options)?;
    let _lock = build.lock()?;
    ui::heading(format!("guacd {} {} -> {}", release.version, variant.name(), build.prefix.display()));
    if build.run(setup, options, &versions)? {
        let protocols = manifest::protocols(&build.prefix)?;
        ui::note(format!("  protocols: {}", protocols.join(", ")));
        // A patched guacd finds its plugins by itself.
        let needs_links = variant != Variant::Patched && protocols.iter().any(|protocol| protocol == "rdp");
        if let Some(dir) = freerdp_plugin_dir().filter(|_| needs_links) {
            ui::note(format!(
                "  for sound, drives and printing over RDP, FreeRDP has to find guacd's plugins. Once, as root:\n    \
                 mkdir -p {dir} && ln -sf {}/lib/libguac*-client.so {dir}/",
                build.prefix.display()
            ));
        }
    } else {
        ui::note("  nothing has changed: the prefix is up to date");
    }
    let absent = options.require.iter().filter(|feature| !feature.is_in(&build.prefix));
    ensure_none("guacd was built without", &absent.copied().collect::<Vec<_>>(), &build.work)?;
    Ok(build.prefix)
}

/// Warns of the protocols that this machine lacks a library for. Fails if it lacks anything for a feature that is required.
fn check_features(findings: &[Finding], options: &Options<'_>, may_install: bool) -> Result<()> {
    let mut lacking = Vec::new();
    for &feature in options.require {
        let lacks = feature.lacks(findings);
        if !lacks.is_empty() {
            lacking.push(format!("{} takes {}", feature.title, lacks.join(", ")));
        }
    }
    if !lacking.is_empty() {
        let wanted = |finding: &Finding| options.require.iter().any(|feature| feature.takes(finding));
        bail!(Failure::Preflight(format!(
            "required, but missing here: {}\n{}",
            lacking.join("; "),
            Missing::of(findings, wanted).advice(!may_install)
        )));
    }
    let is_left_out = |feature: &Feature| {
        let flags = [format!("--without-{}", feature.name), format!("--disable-{}", feature.name)];
        options.configure_args.iter().any(|argument| flags.contains(argument))
    };
    for feature in FEATURES.iter().filter(|feature| feature.is_protocol() && !is_left_out(feature)) {
        let lacks = feature.lacks(findings);
        if !lacks.is_empty() {
            ui::warning(format!(
                "this guacd will have no {}, as {} is missing: `cargo xtask doctor` says how to install it, and \
                 `--require {}` makes this an error",
                feature.title,
                lacks.join(", "),
                feature.name
            ));
        }
    }
    Ok(())
}

/// Fails if there are such features. `what` begins the error, and `work` is the work directory.
fn ensure_none(what: &str, features: &[&Feature], work: &Path) -> Result<()> {
    let titles: Vec<&str> = features.iter().map(|feature| feature.title).collect();
    ensure!(
        titles.is_empty(),
        Failure::Preflight(format!(
            "{what} {}, which is required: look at the arguments for configure, and for the cause in {}",
            titles.join(", "),
            work.join("build/config.log").display()
        ))
    );
    Ok(())
}

/// A build of upstream's source that was not installed.
pub struct Tree {
    /// Upstream's source, after autoreconf.
    pub source: PathBuf,
    /// The source with everything that make has made.
    pub build: PathBuf,
    /// Where logs go.
    pub logs: PathBuf,
    _lock: Lock,
}

/// Builds upstream's source for its own tests, in the work directory `name` of the release, unless that is up to date.
///
/// # Errors
///
/// [`Failure::Preflight`] when a tool, a library or the source is missing; any other when a step fails.
pub fn tree(release: &Release, name: &str, setup: &Setup, options: &Options<'_>) -> Result<Tree> {
    let optional = [OPTIONAL_NEEDS, &[Need::Tests]].concat();
    let findings = install::preflight(&[Need::Build], &optional, setup.install)?;
    // Without it, configure leaves upstream's tests out.
    let is_cunit = |finding: &Finding| finding.name == "cunit";
    ensure!(
        findings.iter().any(|finding| is_cunit(finding) && finding.version.is_some()),
        Failure::Preflight(format!(
            "missing here: cunit\n{}",
            Missing::of(&findings, is_cunit).advice(!setup.install)
        ))
    );
    let versions = tools::versions_of_a_build(&findings);
    let mut build = Build::new(release, Variant::Stock, options)?;
    build.work.set_file_name(name);
    build.prefix = build.work.join("prefix");
    fs::create_dir_all(&build.work)?;
    let lock = build.lock()?;
    ui::heading(format!("guacd {} for its own tests -> {}", release.version, build.work.display()));
    let mut steps = Steps::open(&build.work)?;
    let source = build.source(&mut steps, setup, &versions)?;
    build.compile(&mut steps, &source, None, options, &versions)?;
    let path = |name: &str| build.work.join(name);
    Ok(Tree { source: path("source"), build: path("build"), logs: path("logs"), _lock: lock })
}

/// The paths and the patches of one build.
struct Build<'a> {
    release: &'a Release,
    variant: Variant,
    prefix: PathBuf,
    /// Where everything else of the build is: sources, objects, logs.
    work: PathBuf,
    patches: Vec<Patch>,
}

impl<'a> Build<'a> {
    fn new(release: &'a Release, variant: Variant, options: &Options<'_>) -> Result<Build<'a>> {
        let mut patches = match variant {
            Variant::Patched | Variant::Keys => series::series(&release.patches_dir())?,
            Variant::Stock => Vec::new(),
        };
        if variant == Variant::Keys {
            patches.retain(|patch| patch.group == KEYS);
        }
        let release_dir = layout::target_dir().join("guacd").join(&release.version);
        let prefix = options.prefix.map(prefix::resolve).transpose()?;
        let work = match (&prefix, options.configure_args) {
            (None, []) => release_dir.join(variant.name()),
            // A build with other options has its own work directory.
            (prefix, configure_args) => {
                let mut hasher = Hasher::default();
                hasher.add(prefix.as_deref().unwrap_or(Path::new("")).as_os_str().as_encoded_bytes());
                for argument in configure_args {
                    hasher.add(argument);
                }
                release_dir.join(format!("{}-{}", variant.name(), &hasher.finish()[..8]))
            }
        };
        prefix::check_characters(&work, "move the checkout, or set CARGO_TARGET_DIR")?;
        if let Some(prefix) = &prefix {
            prefix::check_characters(prefix, "choose another prefix")?;
            prefix::check(prefix)?;
        }
        fs::create_dir_all(&work).with_context(|| {
            format!("cannot create {}: set CARGO_TARGET_DIR to where you may write", work.display())
        })?;
        let prefix = prefix.unwrap_or_else(|| work.join("prefix"));
        Ok(Build { release, variant, prefix, work, patches })
    }

    /// Keeps another build out of the work directory.
    fn lock(&self) -> Result<Lock> {
        lock::try_lock(&self.work.join("lock"), "build")
    }

    /// Runs the steps, and returns whether any had to run.
    fn run(&self, setup: &Setup, options: &Options<'_>, versions: &[String]) -> Result<bool> {
        let mut steps = Steps::open(&self.work)?;
        let source = self.source(&mut steps, setup, versions)?;
        let tls_rs = match self.variant {
            Variant::Patched | Variant::Keys => Some(self.tls_rs(&mut steps, setup.source.offline)?),
            Variant::Stock => None,
        };
        let compiled = self.compile(&mut steps, &source, tls_rs.as_ref(), options, versions)?;
        self.install(&mut steps, &compiled, options, setup.source.offline)?;
        Ok(steps.ran)
    }

    /// Makes the patched source tree, ready for configure.
    fn source(&self, steps: &mut Steps, setup: &Setup, versions: &[String]) -> Result<Done> {
        let Build { release, patches, .. } = self;
        let (pristine, source) = (self.work.join("pristine"), self.work.join("source"));
        // A source that the user names is always checked, even if no step needs it.
        let named = match setup.source.from {
            Some(_) => Some(fetch::source(release, &setup.source)?),
            None => None,
        };
        let unpacked = steps.step(
            "unpack",
            &[],
            &[&release.commit],
            |_| pristine.exists(),
            |_| {
                prefix::check_space(&self.work, prefix::BYTES_NEEDED)?;
                let archive = named.map_or_else(|| fetch::source(release, &setup.source), Ok)?;
                fetch::unpack(&archive, &pristine)?;
                Ok(archive.pin)
            },
        )?;
        let inputs: Vec<&str> = patches.iter().flat_map(|patch| [&*patch.name, &*patch.sha256]).collect();
        let patched = steps.step(
            "patch",
            &[&unpacked],
            &inputs,
            |_| source.exists(),
            |step| {
                step.copy_tree(&pristine, &source)?;
                series::apply(&release.patches_dir(), patches, &source)?;
                Ok(match patches.len() {
                    0 => "stock: nothing to apply".to_owned(),
                    count => format!("{count} patches, no fuzz, no offset"),
                })
            },
        )?;
        // Not `configure`, which Apache's tarball has already.
        let stamp = source.join(".autoreconf");
        let inputs: Vec<&str> = versions.iter().map(String::as_str).collect();
        steps.step(
            "autoreconf",
            &[&patched],
            &inputs,
            |_| stamp.exists(),
            |step| {
                step.run("autoreconf", duct::cmd!("autoreconf", "-fi").dir(&source))?;
                fs::write(&stamp, "")?;
                Ok(String::new())
            },
        )
    }

    fn tls_rs(&self, steps: &mut Steps, offline: bool) -> Result<Done> {
        let dir = self.work.join("tls-rs");
        let archive = dir.join("lib/libtls_rs.a");
        let rustc = tools::rustc_version();
        let inputs = [rustc.as_str(), &tls_rs::digest_of_inputs()?];
        steps.step(
            "tls-rs",
            &[],
            &inputs,
            |_| archive.exists(),
            |step| {
                tls_rs::build(step, &dir, offline)?;
                Ok(rustc.clone())
            },
        )
    }

    fn compile(
        &self,
        steps: &mut Steps,
        source: &Done,
        tls_rs: Option<&Done>,
        options: &Options<'_>,
        versions: &[String],
    ) -> Result<Done> {
        let build = self.work.join("build");
        let (arguments, environment) = (self.configure_arguments(options), environment());
        let epoch = self.release.epoch.to_string();
        let mut inputs = vec![epoch.as_str()];
        inputs.extend([&arguments, &environment, versions].into_iter().flatten().map(String::as_str));
        // If the work directory was moved, configure has to run again: the Makefiles contain its path.
        let here = format!("\nabs_top_builddir = {}\n", build.display());
        let is_there =
            |_: &str| fs::read_to_string(build.join("Makefile")).is_ok_and(|text| text.contains(&here));
        let configured = steps.step("configure", &[source], &inputs, is_there, |step| {
            // In a new copy of the source: no object that was compiled with other flags may stay, and upstream's tests do not
            // compile outside of the source tree.
            step.copy_tree(&self.work.join("source"), &build)?;
            let command = [&["./configure".to_owned()], &*arguments].concat();
            step.run("configure", self.at_epoch(duct::cmd("sh", command).dir(&build)))?;
            Ok(String::new())
        })?;
        // Before make: it takes minutes.
        let log = fs::read_to_string(build.join("config.log")).unwrap_or_default();
        let absent = options.require.iter().filter(|feature| !feature.is_configured(&log));
        ensure_none("configure leaves out", &absent.copied().collect::<Vec<_>>(), &self.work)?;
        let after: Vec<&Done> = [&configured].into_iter().chain(tls_rs).collect();
        steps.step(
            "make",
            &after,
            &[],
            |_| build.join("src/guacd/guacd").exists(),
            |step| {
                step.run("make", self.make_command(options, &[]))?;
                Ok(String::new())
            },
        )
    }

    fn install(
        &self,
        steps: &mut Steps,
        compiled: &Done,
        options: &Options<'_>,
        offline: bool,
    ) -> Result<()> {
        let prefix = &self.prefix;
        // Meanwhile another variant may have been installed there.
        let is_there =
            |digest: &str| Manifest::load(prefix).is_some_and(|manifest| manifest.digest == digest);
        // The manifest and the list of components say how the release is pinned.
        let inputs = [&*format!("manifest v{SCHEMA_VERSION}"), &format!("{:?}", self.release)];
        steps.step("install", &[compiled], &inputs, is_there, |step| {
            let stage = tempfile::TempDir::with_prefix_in("stage-", &self.work)?;
            let destdir = format!("DESTDIR={}", stage.path().display());
            step.run("make install", self.make_command(options, &["install", &destdir]))?;
            let staged = prefix::staged(stage.path(), prefix)?;
            let manifest = self.manifest(options, &staged, step.digest)?;
            manifest.save(&staged)?;
            let crates = if manifest.tls_rs.is_some() { tls_rs::crates(offline)? } else { BTreeSet::new() };
            sbom::save(&manifest, self.release, &crates, &staged)?;
            sbom::save_licenses(&self.work.join("source"), &staged)?;
            prefix::install(step, &staged, prefix)?;
            Ok(prefix.display().to_string())
        })?;
        manifest::make_link(prefix)
    }

    fn make_command(&self, options: &Options<'_>, arguments: &[&str]) -> Expression {
        let jobs = options.jobs_flag();
        let arguments = [&[jobs.as_str()], arguments].concat();
        self.at_epoch(duct::cmd("make", arguments))
            .dir(self.work.join("build"))
            // If make runs xtask, these describe that make's job server.
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
    }

    /// Sets SOURCE_DATE_EPOCH to the time of the release's commit, unless the user has set it.
    fn at_epoch(&self, command: Expression) -> Expression {
        match std::env::var_os("SOURCE_DATE_EPOCH") {
            Some(epoch) if !epoch.is_empty() => command,
            _ => command.env("SOURCE_DATE_EPOCH", self.release.epoch.to_string()),
        }
    }

    fn configure_arguments(&self, options: &Options<'_>) -> Vec<String> {
        let prefix = self.prefix.display();
        let mut arguments = vec![
            format!("--prefix={prefix}"),
            // The default is FreeRDP's own directory in the system.
            format!("--with-freerdp-plugin-dir={prefix}/lib"),
        ];
        for (name, ours) in FLAGS {
            let users = std::env::var(name).unwrap_or_default();
            arguments.push(format!("{name}={}", format!("{ours} {users}").trim_end()));
        }
        if self.variant != Variant::Stock {
            // Relative to the build directory, so that the manifest does not contain its path.
            arguments.push("--with-tls-rs=../tls-rs".to_owned());
        }
        if self.variant != Variant::Patched {
            arguments.extend_from_slice(&self.release.configure_unpatched);
        }
        arguments.extend_from_slice(options.configure_args);
        arguments
    }

    fn manifest(&self, options: &Options<'_>, staged: &Path, digest: &str) -> Result<Manifest> {
        let archive = self.work.join("tls-rs/lib/libtls_rs.a");
        Ok(Manifest {
            schema_version: SCHEMA_VERSION,
            release: self.release.version.clone(),
            commit: self.release.commit.clone(),
            epoch: self.release.epoch,
            variant: self.variant.name().to_owned(),
            prefix: self.prefix.clone(),
            patches: self.patches.clone(),
            tls_rs: (self.variant != Variant::Stock).then(|| digest::file(&archive)).transpose()?,
            compiler: tools::c_compiler_version(),
            rustc: tools::rustc_version(),
            configure: self.configure_arguments(options),
            environment: environment(),
            protocols: manifest::protocols(staged)?,
            digest: digest.to_owned(),
        })
    }
}

/// The variables of [`ENVIRONMENT`] that are set, as `NAME=VALUE`.
fn environment() -> Vec<String> {
    ENVIRONMENT.iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?))).collect()
}

/// The one directory in which FreeRDP looks for plugins.
pub fn freerdp_plugin_dir() -> Option<String> {
    ["freerdp2", "freerdp3"].into_iter().find_map(|module| {
        let libdir = duct::cmd!("pkg-config", "--variable=libdir", module).stderr_null().read().ok()?;
        Some(format!("{libdir}/{module}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_may_need_arguments_of_configure_without_its_patches() {
        let mut release = Release::load(None).unwrap();
        release.configure_unpatched = vec!["--with-something=else".into()];
        let own = ["--with-something=mine".to_owned()];
        let options = Options { configure_args: &own, ..Options::default() };
        let given = |variant| {
            let (prefix, work) = (PathBuf::from("/prefix"), PathBuf::from("/work"));
            let build = Build { release: &release, variant, prefix, work, patches: Vec::new() };
            let mut arguments = build.configure_arguments(&options);
            arguments.retain(|argument| argument.starts_with("--with-something"));
            arguments
        };
        assert_eq!(given(Variant::Patched), own);
        for variant in [Variant::Stock, Variant::Keys] {
            // configure takes the last one.
            assert_eq!(given(variant), ["--with-something=else", "--with-something=mine"], "{variant:?}");
        }
    }
}
