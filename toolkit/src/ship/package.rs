//! How is a prefix packed into a tarball that runs from any directory, and into a Debian package?

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde::Serialize;
use tempfile::TempDir;

use crate::build::guacd::{self, Setup, Variant};
use crate::failure::Failure;
use crate::host::debian::{self, quoted};
use crate::host::tools::{self, Need};
use crate::host::{digest, layout, run};
use crate::source::fetch::{self, Access};
use crate::source::release::Release;
use crate::ui;

/// The name of the package.
const NAME: &str = "guacd-uncapped";

/// Where the Debian package keeps its prefix.
const HOME: &str = "usr/lib/guacd-uncapped";

/// Debian's packages that guacd does without, but not for everything: PDFs of what is printed, and a terminal's letters.
const RECOMMENDS: &str = "ca-certificates, fonts-dejavu-core | fonts-liberation, ghostscript";

/// What to make, and where.
#[derive(Debug, Default)]
pub struct Options {
    /// The directory to put them into, if not the usual one.
    pub output: Option<PathBuf>,
    /// The release of Debian to make them in and for, if not the one that this runs on.
    pub suite: Option<String>,
    /// Whether to install, run and remove them in a root of their own.
    pub check: bool,
}

/// The packages that were made.
#[derive(Serialize)]
pub struct Packages {
    schema_version: u32,
    release: String,
    /// The distribution that they are for.
    distribution: String,
    /// The files, with what tells them apart.
    pub packages: Vec<Package>,
    /// Whether they were installed, run and removed.
    checked: bool,
}

/// A package's file.
#[derive(Serialize)]
pub struct Package {
    /// Where it is.
    pub path: PathBuf,
    sha256: String,
    /// Its size, in bytes.
    size: u64,
}

/// Makes the packages, and checks them if the options say so.
///
/// # Errors
///
/// [`Failure::Preflight`] where a tool is missing; any other where the build or the check fails.
pub fn build(release: &Release, setup: &Setup, options: &Options) -> Result<Packages> {
    let _lock = layout::lock("package")?;
    let out = options.output.clone().unwrap_or_else(|| layout::target_dir().join("guacd/packages"));
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let out = out.canonicalize()?;
    let system = match &options.suite {
        Some(suite) => suite.clone(),
        None => System::this().map(|system| system.codename)?,
    };
    let work = layout::target_dir().join("guacd/package");
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    if options.check || options.suite.is_some() {
        ensure!(
            run::version_line("mmdebstrap", "--version").is_some(),
            Failure::Preflight("missing here: mmdebstrap\ninstall with: apt-get install mmdebstrap".into())
        );
        ensure!(
            rustix::process::geteuid().is_root(),
            Failure::Preflight(
                "--suite and --check make roots of Debian's packages, for which one has to be root".into()
            )
        );
    }
    let packages = match &options.suite {
        Some(suite) => elsewhere(release, &setup.source, suite, &out, &work)?,
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

/// The distribution that this runs on, which the packages are for.
struct System {
    /// `debian`.
    id: String,
    /// `12`.
    number: String,
    /// `bookworm`.
    codename: String,
    /// `amd64`.
    arch: String,
}

impl System {
    fn this() -> Result<System> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let field = |name: &str| {
            let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.map(|value| value.trim_matches('"').to_owned())
        };
        let arch = duct::cmd!("dpkg", "--print-architecture").stderr_null().read();
        let system = |arch| {
            Some(System {
                id: field("ID")?,
                number: field("VERSION_ID")?,
                codename: field("VERSION_CODENAME")?,
                arch,
            })
        };
        let known = arch.ok().and_then(system);
        known.context("this is no release of Debian's or Ubuntu's, which the packages are for: --suite makes a root of one")
    }
}

/// Makes the packages on this machine, for its own distribution.
fn here(release: &Release, setup: &Setup, out: &Path, work: &Path) -> Result<Vec<PathBuf>> {
    let system = System::this()?;
    tools::preflight(&[Need::Package], &[], setup.install)?;
    let prefix = guacd::build(release, Variant::Patched, setup, &guacd::Options::default())?;
    let time = build_time(&prefix)?;
    let step = ui::Step::start("package");
    let stage = TempDir::with_prefix_in("stage-", work)?;
    let home = stage.path().join("root").join(HOME);
    fs::create_dir_all(home.parent().unwrap_or(&home))?;
    duct::cmd!("cp", "-a", &prefix, &home).run().context("cannot copy the prefix")?;
    make_relocatable(&home)?;

    let full = format!("{}+{}", release.version, env!("CARGO_PKG_VERSION"));
    let name = format!("{NAME}_{full}_{}{}_{}", system.id, system.number, system.arch);
    let tarball = out.join(format!("{name}.tar.gz"));
    write_tarball(&home, &name, time, &tarball)?;

    let version = format!("{full}-1~{}{}", system.id, system.number);
    let deb = out.join(format!("{NAME}_{version}_{}.deb", system.arch));
    write_deb(stage.path(), &version, &system.arch, time, &deb)?;
    step.done(format!("for {} {}", system.id, system.number));
    Ok(vec![tarball, deb])
}

/// The time that all files get: SOURCE_DATE_EPOCH, or that of the source.
fn build_time(prefix: &Path) -> Result<u64> {
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        return epoch.parse().with_context(|| format!("SOURCE_DATE_EPOCH={epoch} is no number of seconds"));
    }
    let source = prefix.with_file_name("pristine").join("configure.ac");
    let time = fs::metadata(&source).and_then(|metadata| metadata.modified());
    let time = time.with_context(|| format!("cannot examine {}", source.display()))?;
    Ok(time.duration_since(std::time::UNIX_EPOCH)?.as_secs())
}

/// Leaves what guacd takes to run, and has it look for its libraries relative to where it is.
fn make_relocatable(home: &Path) -> Result<()> {
    fs::remove_dir_all(home.join("include")).context("cannot remove the headers")?;
    for (dir, library_path) in [("sbin", "$ORIGIN/../lib"), ("bin", "$ORIGIN/../lib"), ("lib", "$ORIGIN")] {
        for entry in
            fs::read_dir(home.join(dir)).with_context(|| format!("cannot list {dir} of the prefix"))?
        {
            let path = entry?.path();
            if path.is_symlink() {
                continue;
            }
            if path.extension().is_some_and(|extension| extension == "a" || extension == "la") {
                fs::remove_file(&path)?;
                continue;
            }
            for command in [
                duct::cmd!("strip", "--strip-unneeded", &path),
                duct::cmd!("patchelf", "--set-rpath", library_path, &path),
            ] {
                command.run().with_context(|| format!("cannot make {} relocatable", path.display()))?;
            }
        }
    }
    Ok(())
}

/// Writes the tree `home` as a tarball whose bytes depend on its contents alone.
fn write_tarball(home: &Path, name: &str, time: u64, tarball: &Path) -> Result<()> {
    let writing = || format!("cannot write {}", tarball.display());
    let partial = tempfile::NamedTempFile::new_in(tarball.parent().unwrap_or(home)).with_context(writing)?;
    let gzip = GzBuilder::new().mtime(0).write(partial, Compression::best());
    let mut tar = tar::Builder::new(gzip);
    let mut paths = Vec::new();
    collect(home, &mut paths)?;
    paths.sort();
    for path in paths {
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
    publish(file, tarball)
}

/// Everything below `dir`, and `dir` itself.
fn collect(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    paths.push(dir.to_owned());
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            collect(&path, paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

/// Has a file that is whole appear under its name, for all to read.
fn publish(file: tempfile::NamedTempFile, path: &Path) -> Result<()> {
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.persist(path).map(drop).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the Debian package around the prefix that is staged in `stage`.
fn write_deb(stage: &Path, version: &str, arch: &str, time: u64, deb: &Path) -> Result<()> {
    let (root, home, files) =
        (stage.join("root"), stage.join("root").join(HOME), layout::root().join("packaging"));
    let copy = |from: &Path, to: &str, mode: u32| -> Result<()> {
        let to = root.join(to);
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(fs::set_permissions(&to, fs::Permissions::from_mode(mode))?)
    };
    let link = |to: &str, at: &Path| -> Result<()> {
        at.parent().map_or(Ok(()), fs::create_dir_all)?;
        symlink(to, at).with_context(|| format!("cannot create {}", at.display()))
    };
    copy(&files.join("guacd.service"), "usr/lib/systemd/system/guacd.service", 0o644)?;
    copy(&files.join("debian/copyright"), &format!("usr/share/doc/{NAME}/copyright"), 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        copy(&files.join("debian").join(script), &format!("DEBIAN/{script}"), 0o755)?;
    }
    link("../lib/guacd-uncapped/sbin/guacd", &root.join("usr/sbin/guacd"))?;
    for page in ["man5/guacd.conf.5", "man8/guacd.8"] {
        let text =
            fs::read(home.join("share/man").join(page)).with_context(|| format!("no manual page {page}"))?;
        let path = root.join(format!("usr/share/man/{page}.gz"));
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let mut gzip = GzBuilder::new().mtime(0).write(File::create(&path)?, Compression::best());
        gzip.write_all(&text)?;
        gzip.finish()?;
    }
    // FreeRDP looks for plugins in a directory of its own, and nowhere else.
    if let Some(dir) = guacd::freerdp_plugin_dir() {
        for plugin in ["libguac-common-svc-client.so", "libguacai-client.so"] {
            link(&format!("/{HOME}/lib/{plugin}"), &root.join(dir.trim_start_matches('/')).join(plugin))?;
        }
    }
    let control = format!(
        "Package: {NAME}\nVersion: {version}\nArchitecture: {arch}\nMaintainer: The guacd-uncapped authors <nobody@localhost>\n\
         Section: net\nPriority: optional\nInstalled-Size: {}\nDepends: {}, init-system-helpers, passwd\n\
         Recommends: {RECOMMENDS}\nConflicts: guacd, libguac-client-rdp0\nReplaces: guacd, libguac-client-rdp0\n\
         Provides: guacd (= {version})\n\
         Description: Apache Guacamole's proxy daemon, without a limit on its sessions\n \
         guacd connects Guacamole's web application to hosts by RDP, SSH, VNC, telnet and\n \
         Kubernetes. This one has as many sessions as the machine allows, as it does not\n \
         spend libc's pthread keys on them.\n",
        installed_size(&root)?,
        dependencies(stage, &home)?,
    );
    fs::write(root.join("DEBIAN/control"), control)?;
    let dir = deb.parent().unwrap_or(stage);
    let partial =
        tempfile::NamedTempFile::new_in(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    duct::cmd!("dpkg-deb", "--root-owner-group", "-Zxz", "--build", &root, partial.path())
        .env("SOURCE_DATE_EPOCH", time.to_string())
        .stdout_null()
        .run()
        .context("dpkg-deb cannot build the package")?;
    publish(partial, deb)
}

/// In kibibytes, each file rounded up, as Debian's policy has it.
fn installed_size(root: &Path) -> Result<u64> {
    let mut paths = Vec::new();
    collect(root, &mut paths)?;
    let size = |path: &PathBuf| -> Result<u64> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(if metadata.is_file() { metadata.len().div_ceil(1024) } else { 1 })
    };
    paths.iter().map(size).sum()
}

/// The packages that the libraries come from, and from which versions on, as `dpkg-shlibdeps` finds out.
fn dependencies(stage: &Path, home: &Path) -> Result<String> {
    // It wants to be in a source package.
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
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let depends = text.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    ensure!(output.status.success(), "dpkg-shlibdeps failed: {}", said.trim());
    Ok(depends.with_context(|| format!("dpkg-shlibdeps found nothing: {}", said.trim()))?.to_owned())
}

/// Makes the packages in a root of another release of Debian's, with that one's own compilers.
fn elsewhere(
    release: &Release,
    access: &Access,
    suite: &str,
    out: &Path,
    work: &Path,
) -> Result<Vec<PathBuf>> {
    fetch::stage(release, access)?;
    let checkout = work.join("checkout.tar");
    let tar = duct::cmd!(
        "tar",
        "--exclude=./target",
        "--exclude=./.git",
        "-cf",
        &checkout,
        "-C",
        layout::root(),
        "."
    );
    tar.run().context("cannot pack the checkout")?;
    let made = TempDir::with_prefix_in("made-", work)?;
    let script = format!(
        "cd /build && export HOME=/root LC_ALL=C.UTF-8 && cargo xtask package --install --release {0} \
         --from source/{1}* --output /packages",
        release.version,
        release.source_name()
    );
    let log = work.join(format!("{suite}.log"));
    let step = ui::Step::start(suite);
    let hooks = [
        "--customize-hook=mkdir \"$1\"/build \"$1\"/packages".to_owned(),
        format!("--customize-hook=tar -xf {} -C \"$1\"/build", quoted(&checkout)),
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
        let partial = tempfile::NamedTempFile::new_in(out)?;
        fs::copy(&path, partial.path()).with_context(|| format!("cannot write {}", to.display()))?;
        publish(partial, &to)?;
        packages.push(to);
    }
    packages.sort();
    step.done(log.display());
    Ok(packages)
}

/// Installs the packages into a root with nothing else in it, runs them there, and removes them.
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
    step.done(format!("installs, runs, moves and goes: {}", log.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_tarball_depend_on_what_is_in_it_alone() {
        let dir = TempDir::new().unwrap();
        let tarball = |number: &str, names: [&str; 2], mode: u32, text: &str| {
            let (home, out) =
                (dir.path().join(number).join("home"), dir.path().join(number).join("x.tar.gz"));
            fs::create_dir_all(home.join("lib")).unwrap();
            for name in names {
                let path = home.join("lib").join(name);
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
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
