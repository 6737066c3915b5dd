//! How is a prefix packed into a tarball that runs from any directory, and into a Debian package?

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::{Compression, GzBuilder};
use fs_err::{self as fs, File};
use serde::Serialize;
use tempfile::TempDir;

use crate::build::guacd::{self, Setup, Variant};
use crate::host::debian::{self, quoted};
use crate::host::distribution::Distribution;
use crate::host::files::NewFile;
use crate::host::install;
use crate::host::tools::Need;
use crate::host::{checkout, digest, files, layout, lock};
use crate::ship::tree::{HOME, add_system_files, make_relocatable, stage_prefix};
use crate::source::fetch::{self, Access};
use crate::source::release::Release;
use crate::ui;

/// The name of the package.
const NAME: &str = "guacd-uncapped";

/// The Debian packages that guacd needs for certificates, for the fonts of terminals, and to print to PDF.
const RECOMMENDS: &str = "ca-certificates, fonts-dejavu-core | fonts-liberation, ghostscript";

/// What to make, and where.
#[derive(Debug, Default)]
pub struct Options {
    /// The directory to put the packages into, if not target/guacd/packages.
    pub output: Option<PathBuf>,
    /// The release of Debian that the packages are for, if not this machine's distribution. They are built in a root of it.
    pub suite: Option<String>,
    /// Whether to install, run and remove the packages in a new root directory.
    pub check: bool,
}

/// The packages that were made. `--json` prints this.
#[derive(Serialize)]
pub struct Packages {
    schema_version: u32,
    release: String,
    /// The codename of the distribution that they are for.
    distribution: String,
    /// The tarball and the Debian package.
    pub packages: Vec<Package>,
    /// Whether they were installed, run and removed.
    checked: bool,
}

/// The file of a package.
#[derive(Serialize)]
pub struct Package {
    /// Its path.
    pub path: PathBuf,
    sha256: String,
    /// Its size, in bytes.
    size: u64,
}

/// Makes the packages, and checks them if the options say so.
///
/// # Errors
///
/// [`crate::failure::Failure::Preflight`] when a tool or root is missing; any other when the build or the check fails.
pub fn build(release: &Release, setup: &Setup, options: &Options) -> Result<Packages> {
    let _lock = lock::command("package")?;
    let out = options.output.clone().unwrap_or_else(|| layout::target_dir().join("guacd/packages"));
    fs::create_dir_all(&out)?;
    let out = out.canonicalize()?;
    let system = match &options.suite {
        Some(suite) => suite.clone(),
        None => System::this()?.distribution.codename,
    };
    let work = layout::target_dir().join("guacd/package");
    fs::create_dir_all(&work)?;
    if options.check || options.suite.is_some() {
        debian::preflight("--suite and --check")?;
    }
    let packages = match &options.suite {
        Some(suite) => in_suite(release, &setup.source, suite, &out, &work)?,
        None => here(release, setup, &out, &work)?,
    };
    if options.check {
        check(&packages, &system, &work)?;
    }
    let describe = |path: &PathBuf| -> Result<Package> {
        Ok(Package { path: path.clone(), sha256: digest::file(path)?, size: fs::metadata(path)?.len() })
    };
    Ok(Packages {
        schema_version: 1,
        release: release.version.clone(),
        distribution: system,
        packages: packages.iter().map(describe).collect::<Result<_>>()?,
        checked: options.check,
    })
}

/// The distribution that packages are for, and its architecture.
struct System {
    distribution: Distribution,
    /// dpkg's name of the architecture, such as `amd64`.
    arch: String,
}

impl System {
    /// The distribution and architecture of this machine.
    fn this() -> Result<System> {
        let distribution = Distribution::this();
        let arch = duct::cmd!("dpkg", "--print-architecture").stderr_null().read();
        let is_known = ![&distribution.id, &distribution.version, &distribution.codename]
            .iter()
            .any(|field| field.is_empty());
        match arch {
            Ok(arch) if is_known => Ok(System { distribution, arch }),
            _ => bail!(
                "packages are for Debian and Ubuntu, and this is neither: --suite makes them in a root of Debian"
            ),
        }
    }
}

/// Makes the packages on this machine, for its own distribution.
fn here(release: &Release, setup: &Setup, out: &Path, work: &Path) -> Result<Vec<PathBuf>> {
    let system = System::this()?;
    install::preflight(&[Need::Package, Need::Deb], &[], setup.install)?;
    let prefix = guacd::build(release, Variant::Patched, setup, &guacd::Options::default())?;
    let step = ui::Step::start("package");
    let stage = TempDir::with_prefix_in("stage-", work)?;
    let home = stage_prefix(&prefix, &stage.path().join("root"))?;
    make_relocatable(&home)?;
    let depends = dependencies(stage.path(), &home)?;
    let packages = pack(stage.path(), release, &system, &depends, out)?;
    step.done(format!("for {} {}", system.distribution.id, system.distribution.version));
    Ok(packages)
}

/// Packs the prefix that is in `stage`. The bytes of the packages do not depend on the times of its files, or on the form in
/// which the source came.
fn pack(stage: &Path, release: &Release, system: &System, depends: &str, out: &Path) -> Result<Vec<PathBuf>> {
    let System { distribution: Distribution { id, version: number, .. }, arch } = system;
    let (time, own, name) = (build_time(release)?, env!("CARGO_PKG_VERSION"), &release.version);
    let full = format!("{NAME}_{name}+{own}_{id}{number}_{arch}");
    let tarball = out.join(format!("{full}.tar.gz"));
    write_tarball(&stage.join("root").join(HOME), &full, time, &tarball)?;

    // A tilde makes Debian order versions as we do: one with a suffix comes before the same version without.
    let version = format!("{}+{own}-1~{id}{number}", name.replace('-', "~"));
    let deb = out.join(format!("{NAME}_{version}_{arch}.deb"));
    write_deb(stage, &version, arch, depends, time, &deb)?;
    Ok(vec![tarball, deb])
}

/// The time of all files in the packages: SOURCE_DATE_EPOCH, or else the time of the release's commit.
fn build_time(release: &Release) -> Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(epoch) if !epoch.is_empty() => {
            epoch.parse().with_context(|| format!("SOURCE_DATE_EPOCH={epoch} is not a number of seconds"))
        }
        _ => Ok(release.epoch),
    }
}

/// Writes the tree `home` as a tarball, in which its name is `name` and all files have the time `time`, in seconds since 1970.
/// Its bytes depend on nothing else.
fn write_tarball(home: &Path, name: &str, time: u64, tarball: &Path) -> Result<()> {
    let writing = || format!("cannot write {}", tarball.display());
    let gzip = GzBuilder::new().mtime(0).write(NewFile::begin(tarball)?, Compression::best());
    let mut tar = tar::Builder::new(gzip);
    for path in files::tree(home)? {
        let metadata = fs::symlink_metadata(&path)?;
        let mut header = tar::Header::new_gnu();
        header.set_metadata_in_mode(&metadata, tar::HeaderMode::Deterministic);
        header.set_mtime(time);
        let inside = Path::new(name).join(path.strip_prefix(home)?);
        if metadata.is_symlink() {
            header.set_size(0);
            tar.append_link(&mut header, inside, fs::read_link(&path)?).with_context(writing)?;
        } else if metadata.is_dir() {
            tar.append_data(&mut header, inside, std::io::empty()).with_context(writing)?;
        } else {
            tar.append_data(&mut header, inside, File::open(&path)?).with_context(writing)?;
        }
    }
    let file = tar.into_inner().and_then(|gzip| gzip.finish()).with_context(writing)?;
    file.publish(0o644)
}

/// Writes the Debian package of the prefix that is in `stage`. All files in it have the time `time`, in seconds since 1970.
fn write_deb(stage: &Path, version: &str, arch: &str, depends: &str, time: u64, deb: &Path) -> Result<()> {
    let (root, files) = (stage.join("root"), layout::root().join("packaging"));
    let copy = |from: &Path, to: &str, mode: u32| -> Result<()> {
        let to = root.join(to);
        files::create_parent(&to)?;
        files::copy(from, &to, mode)
    };
    add_system_files(&root, "usr/sbin")?;
    copy(&files.join("debian/copyright"), &format!("usr/share/doc/{NAME}/copyright"), 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        copy(&files.join("debian").join(script), &format!("DEBIAN/{script}"), 0o755)?;
    }
    let control = format!(
        "Package: {NAME}\nVersion: {version}\nArchitecture: {arch}\nMaintainer: The guacd-uncapped authors <nobody@localhost>\n\
         Section: net\nPriority: optional\nInstalled-Size: {}\nDepends: {depends}, init-system-helpers, passwd\n\
         Recommends: {RECOMMENDS}\nConflicts: guacd, libguac-client-rdp0\nReplaces: guacd, libguac-client-rdp0\n\
         Provides: guacd (= {version})\n\
         Description: Apache Guacamole's proxy daemon, without a limit on its sessions\n \
         guacd connects Guacamole's web application to hosts by RDP, SSH, VNC, telnet and\n \
         Kubernetes. This one has as many sessions as the machine allows, as it does not\n \
         spend libc's pthread keys on them.\n",
        installed_size(&root)?,
    );
    fs::write(root.join("DEBIAN/control"), control)?;
    // dpkg-deb would change only times that are later than SOURCE_DATE_EPOCH.
    let date = format!("--date=@{time}");
    duct::cmd!("find", &root, "-exec", "touch", "--no-dereference", date, "{}", "+")
        .run()
        .context("cannot set the times of the package's files")?;
    let partial = NewFile::begin(deb)?;
    duct::cmd!("dpkg-deb", "--root-owner-group", "-Zxz", "--build", &root, partial.temporary_path())
        .env("SOURCE_DATE_EPOCH", time.to_string())
        .stdout_null()
        .run()
        .context("dpkg-deb cannot build the package")?;
    partial.publish(0o644)
}

/// The size of all files in KiB, each rounded up, as Debian's policy defines it.
fn installed_size(root: &Path) -> Result<u64> {
    let size = |path: &PathBuf| -> Result<u64> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(if metadata.is_file() { metadata.len().div_ceil(1024) } else { 1 })
    };
    files::tree(root)?.iter().map(size).sum()
}

/// The packages of guacd's libraries, with their lowest versions, as `dpkg-shlibdeps` lists them for `Depends`.
fn dependencies(stage: &Path, home: &Path) -> Result<String> {
    // dpkg-shlibdeps runs in a source package only.
    let dir = stage.join("shlibdeps");
    fs::create_dir_all(dir.join("debian"))?;
    fs::write(dir.join("debian/control"), format!("Source: {NAME}\n\nPackage: {NAME}\nArchitecture: any\n"))?;
    let lib = home.join("lib");
    let mut arguments =
        vec!["-O".to_owned(), "--ignore-missing-info".to_owned(), format!("-l{}", lib.display())];
    arguments.push(home.join("sbin/guacd").display().to_string());
    for entry in fs::read_dir(&lib)? {
        let path = entry?.path();
        if !path.is_symlink() {
            arguments.push(path.display().to_string());
        }
    }
    let output = duct::cmd("dpkg-shlibdeps", arguments)
        .dir(&dir)
        .stderr_capture()
        .stdout_capture()
        .unchecked()
        .run()?;
    let (text, message) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let depends = text.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    ensure!(output.status.success(), "dpkg-shlibdeps failed: {}", message.trim());
    Ok(depends.with_context(|| format!("dpkg-shlibdeps found nothing: {}", message.trim()))?.to_owned())
}

/// Makes the packages in a root of the Debian release `suite`, with its compilers.
fn in_suite(
    release: &Release,
    access: &Access,
    suite: &str,
    out: &Path,
    work: &Path,
) -> Result<Vec<PathBuf>> {
    let source = fetch::stage(release, access)?;
    let dir = TempDir::with_prefix_in("checkout-", work)?;
    checkout::copy(dir.path())?;
    let made = TempDir::with_prefix_in("made-", work)?;
    let script = format!(
        "cd /build && export HOME=/root LC_ALL=C.UTF-8 && cargo xtask package --install --release {} \
         --from {} --output /packages",
        release.version,
        source.path.display()
    );
    let log = work.join(format!("{suite}.log"));
    let step = ui::Step::start(suite);
    let hooks = [
        "--customize-hook=mkdir \"$1\"/build \"$1\"/packages".to_owned(),
        format!("--customize-hook=cp -r {}/. \"$1\"/build", quoted(dir.path())),
        format!("--customize-hook=chroot \"$1\" sh -c '{script}'"),
        format!("--customize-hook=cp -r \"$1\"/packages/. {}", quoted(made.path())),
    ];
    let include = ["--include=cargo,dpkg-dev,gcc,git,libc6-dev,patchelf"];
    let hooks = hooks.iter().map(String::as_str);
    let arguments: Vec<&str> = include.into_iter().chain(debian::CERTIFICATES).chain(hooks).collect();
    debian::mmdebstrap(&step, &arguments, suite, Path::new("/dev/null"), &log)?;
    let mut packages = Vec::new();
    for entry in fs::read_dir(made.path())? {
        let path = entry?.path();
        let to = out.join(path.file_name().unwrap_or_default());
        files::copy(&path, &to, 0o644)?;
        packages.push(to);
    }
    packages.sort();
    step.done(log.display());
    Ok(packages)
}

/// Installs the packages into a minimal root of the release `suite`, runs guacd there, and removes the packages.
fn check(packages: &[PathBuf], suite: &str, work: &Path) -> Result<()> {
    let find = |ending: &str| {
        let found = packages.iter().find(|path| path.to_string_lossy().ends_with(ending));
        found.with_context(|| format!("no {ending} was made"))
    };
    let (deb, tarball) = (find(".deb")?, find(".tar.gz")?);
    let log = work.join("check.log");
    let step = ui::Step::start("check");
    let script = layout::root().join("packaging/debian/check");
    let copy = format!(
        "--customize-hook=cp {} \"$1\"/tmp/check/check && cp {} \"$1\"/tmp/check/x.deb && cp {} \"$1\"/tmp/check/x.tar.gz",
        quoted(&script),
        quoted(deb),
        quoted(tarball)
    );
    let hooks = [
        "--customize-hook=mkdir \"$1\"/tmp/check",
        &copy,
        "--customize-hook=chroot \"$1\" /tmp/check/check /tmp/check/x.deb /tmp/check/x.tar.gz",
    ];
    debian::mmdebstrap(&step, &hooks, suite, Path::new("/dev/null"), &log)
        .context("the packages fail their check")?;
    step.done(format!("installed, run, moved and removed: {}", log.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use fs_err::os::unix::fs::symlink;

    use super::*;
    use crate::host::run;

    /// Packs a made-up prefix whose files have the time `time`, as does the source that it came from. Returns the bytes of the
    /// packages.
    fn packages(time: &str) -> Vec<Vec<u8>> {
        let dir = TempDir::new().unwrap();
        let prefix = dir.path().join("prefix");
        for file in ["sbin/guacd", "lib/libguac.so", "share/man/man5/guacd.conf.5", "share/man/man8/guacd.8"]
        {
            files::create_parent(&prefix.join(file)).unwrap();
            fs::write(prefix.join(file), file).unwrap();
        }
        symlink("libguac.so", prefix.join("lib/libguac.so.1")).unwrap();
        fs::create_dir(dir.path().join("pristine")).unwrap();
        fs::write(dir.path().join("pristine/configure.ac"), "").unwrap();
        let date = format!("--date={time}");
        duct::cmd!("find", dir.path(), "-exec", "touch", "--no-dereference", date, "{}", "+").run().unwrap();
        let system = System {
            distribution: Distribution {
                id: "debian".into(),
                version: "13".into(),
                ..Distribution::default()
            },
            arch: "amd64".into(),
        };
        stage_prefix(&prefix, &dir.path().join("root")).unwrap();
        let release = Release::load(None).unwrap();
        let made = pack(dir.path(), &release, &system, "libc6", dir.path()).unwrap();
        made.iter().map(|package| fs::read(package).unwrap()).collect()
    }

    #[test]
    fn a_source_with_other_times_gives_the_same_packages() {
        if run::version_line("dpkg-deb", "--version").is_none() {
            return; // This is not Debian.
        }
        // The files of a tarball have the time of the release, and those of a tree the time when it was copied.
        assert!(packages("2025-06-19 19:32:22 UTC") == packages("2031-01-02 03:04:05 UTC"));
        assert!(packages("2025-06-19 19:32:22 UTC") == packages("2001-01-02 03:04:05 UTC"));
    }

    #[test]
    fn the_bytes_of_a_tarball_depend_on_its_contents_alone() {
        let dir = TempDir::new().unwrap();
        let tarball = |number: &str, names: [&str; 2], mode: u32, text: &str| {
            let (home, out) =
                (dir.path().join(number).join("home"), dir.path().join(number).join("x.tar.gz"));
            fs::create_dir_all(home.join("lib")).unwrap();
            for name in names {
                let path = home.join("lib").join(name);
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            }
            symlink("b", home.join("lib/link")).unwrap();
            write_tarball(&home, "guacd", 1_750_361_542, &out).unwrap();
            fs::read(out).unwrap()
        };
        let first = tarball("1", ["a", "b"], 0o644, "text");
        assert_eq!(first, tarball("2", ["b", "a"], 0o600, "text"));
        assert_ne!(first, tarball("3", ["a", "b"], 0o644, "another"));
        assert_ne!(first, tarball("4", ["a", "b"], 0o755, "text"));
    }
}
