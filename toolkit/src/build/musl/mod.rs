//! How many sessions does guacd carry where libc is musl, as in the official image?
//!
//! Debian has musl and a compiler for it, but none of the libraries that guacd needs. [`libraries`] builds those that guacd
//! needs for SSH from Debian's source packages, once. [`check`] builds guacd with them, and counts sessions.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use fs_err as fs;
use serde_json::Value;
use tempfile::TempDir;

use crate::build::guacd::{self, Options, Setup, Variant};
use crate::build::preload;
use crate::failure::Failure;
use crate::host::digest::Hasher;
use crate::host::install;
use crate::host::run::{self, WhenInterrupted};
use crate::host::tools::Need;
use crate::host::{files, layout};
use crate::source::release::Release;
use crate::{stress, ui};

/// The source packages. `libraries.sh` says in which order they are built.
const SOURCES: [&str; 17] = [
    "cairo",
    "expat",
    "fontconfig",
    "freetype",
    "fribidi",
    "glib2.0",
    "harfbuzz",
    "libffi",
    "libjpeg-turbo",
    "libpng1.6",
    "libssh2",
    "openssl",
    "pango1.0",
    "pcre2",
    "pixman",
    "util-linux",
    "zlib",
];

/// The script that builds the libraries.
const RECIPE: &str = include_str!("libraries.sh");

/// A run of guac-stress, and how many sessions have to prove themselves in it.
struct Case {
    title: &'static str,
    variant: Variant,
    preload: bool,
    /// Arguments of guac-stress.
    load: &'static [&'static str],
    proven: RangeInclusive<u64>,
}

/// A process has 128 keys with musl. guacd's parent takes two for each session, and a session's process 11 more.
const CASES: [Case; 3] = [
    Case { title: "stock", variant: Variant::Stock, preload: false, load: &["--count=80"], proven: 56..=60 },
    Case {
        title: "stock with the preload library",
        variant: Variant::Stock,
        preload: true,
        load: &["--count=80"],
        proven: 80..=80,
    },
    Case {
        title: "patched, in a burst",
        variant: Variant::Patched,
        preload: false,
        load: &["burst", "--count=300"],
        proven: 300..=300,
    },
];

/// Builds a stock and a patched guacd for musl, and holds SSH sessions through each.
///
/// # Errors
///
/// When something is missing or does not build, or when fewer or more sessions prove themselves than must.
pub fn check(release: &Release, setup: &Setup) -> Result<()> {
    install::preflight(&[Need::Build, Need::Tests, Need::Musl], &[], setup.install)?;
    let configure_args = configure_args(&libraries(setup.source.offline)?);
    let options = Options { configure_args: &configure_args, ..Options::default() };
    let library = preload::build(None, setup.source.offline)?;
    let report = layout::target_dir().join("guacd/musl-report.json");
    for case in &CASES {
        let prefix = guacd::build(release, case.variant, setup, &options)?;
        let mut arguments: Vec<String> = case.load.iter().map(|argument| (*argument).to_owned()).collect();
        arguments.push(format!("--prefix={}={}", case.variant.name(), prefix.display()));
        arguments.push(format!("--json={}", report.display()));
        if case.preload {
            arguments.push(format!("--preload={}", library.display()));
        }
        ui::heading(format!("musl: {}", case.title));
        match stress::run(&arguments, setup.source.offline) {
            // 5: a threshold was missed. Some of stock's sessions must fail, and the report has their number.
            Err(error) if !matches!(error.downcast_ref(), Some(Failure::Stress(5))) => return Err(error),
            _ => {}
        }
        let (proven, requested) = sessions(&report)?;
        ensure!(
            case.proven.contains(&proven),
            "musl, {}: {proven} of {requested} sessions proved themselves, and not {} to {}",
            case.title,
            case.proven.start(),
            case.proven.end()
        );
        ui::note(format!("  musl, {}: {proven} of {requested} sessions", case.title));
    }
    Ok(())
}

/// How many sessions of a report's only run proved themselves, and how many were asked for.
fn sessions(report: &Path) -> Result<(u64, u64)> {
    let report: Value = serde_json::from_slice(&fs::read(report)?)?;
    let run = &report["runs"][0];
    match (run["proven"].as_u64(), run["requested"].as_u64()) {
        (Some(proven), Some(requested)) => Ok((proven, requested)),
        _ => bail!("the report of guac-stress names no sessions: {run}"),
    }
}

/// Builds the libraries, unless they are in the user's cache. Returns their prefix.
///
/// # Errors
///
/// [`Failure::Preflight`] when they are not in the cache and `offline` is true; any other when a source cannot be downloaded,
/// or a library does not build.
pub fn libraries(offline: bool) -> Result<PathBuf> {
    let mut hasher = Hasher::default();
    hasher.add(RECIPE);
    for input in ["/etc/os-release", "/usr/bin/musl-gcc"] {
        hasher.add(fs::read(input)?);
    }
    let cache = layout::cache_dir()?.join("musl");
    let prefix = cache.join(&hasher.finish()[..16]);
    if prefix.exists() {
        ui::unchanged("libraries for musl");
        return Ok(prefix);
    }
    ensure!(
        !offline,
        Failure::Preflight(format!(
            "{} does not exist, and its sources come from the network: leave out --offline",
            prefix.display()
        ))
    );
    fs::create_dir_all(&cache)?;
    let scratch = TempDir::with_prefix_in("build-", &cache)?;
    let log = layout::target_dir().join("guacd/musl-libraries.log");
    files::begin_log(&log)?;

    let progress = ui::Step::start("sources for musl");
    let tarballs = scratch.path().join("sources");
    download(&progress, &tarballs, &log)?;
    progress.done(format!("{} packages", SOURCES.len()));

    let progress = ui::Step::start("libraries for musl");
    let (build, built) = (scratch.path().join("build"), scratch.path().join("prefix"));
    fs::create_dir(&build)?;
    let script = scratch.path().join("libraries.sh");
    fs::write(&script, RECIPE)?;
    let command = duct::cmd!("sh", &script, &tarballs, &built).dir(&build);
    run::logged(&progress, "building libraries for musl", command, &log, WhenInterrupted::End)?;
    fs::rename(&built, &prefix)?;
    progress.done(prefix.display());
    Ok(prefix)
}

/// Downloads the tarballs of the source packages, whose digests apt checks. The system's own apt stays unchanged: this uses
/// copies of its lists of sources, with `deb-src` added.
fn download(progress: &ui::Step, tarballs: &Path, log: &Path) -> Result<()> {
    let etc = tarballs.join("etc");
    for dir in ["etc", "state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(tarballs.join(dir))?;
    }
    let mut lists = vec![PathBuf::from("/etc/apt/sources.list")];
    for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten() {
        lists.push(entry?.path());
    }
    for file in lists {
        let (Ok(text), Some(name)) = (fs::read_to_string(&file), file.file_name()) else { continue };
        fs::write(etc.join(name), with_sources(&text))?;
    }
    let config = tarballs.join("apt.conf");
    fs::write(
        &config,
        format!(
            "Dir::State \"{0}/state\";\nDir::Cache \"{0}/cache\";\nDir::State::status \"/var/lib/dpkg/status\";\n\
             Dir::Etc::sourcelist \"-\";\nDir::Etc::sourceparts \"{0}/etc\";\n",
            tarballs.display()
        ),
    )?;
    let apt = |arguments: &[&str]| duct::cmd("apt-get", arguments).dir(tarballs).env("APT_CONFIG", &config);
    run::logged(progress, "apt-get update", apt(&["-q", "update"]), log, WhenInterrupted::End)?;
    // Upstream's tarballs are enough: Debian's patches are for glibc.
    let arguments = [&["-q", "source", "--download-only", "--tar-only"], &SOURCES[..]].concat();
    run::logged(progress, "apt-get source", apt(&arguments), log, WhenInterrupted::End)
}

/// Adds source packages to one of apt's lists of sources, in either format.
fn with_sources(list: &str) -> String {
    let lines = list.lines().map(|line| match line.strip_prefix("deb ") {
        Some(rest) => format!("{line}\ndeb-src {rest}\n"),
        None if line.starts_with("Types:") && !line.contains("deb-src") => format!("{line} deb-src\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// The arguments of upstream's configure for a build with musl and these libraries.
fn configure_args(libraries: &Path) -> Vec<String> {
    let libraries = libraries.display();
    [
        "--without-rdp".to_owned(),
        "--without-vnc".to_owned(),
        "--without-telnet".to_owned(),
        "--disable-kubernetes".to_owned(),
        "--disable-guacenc".to_owned(),
        "CC=musl-gcc".to_owned(),
        "PKG_CONFIG=pkg-config --define-prefix".to_owned(),
        format!("PKG_CONFIG_LIBDIR={libraries}/lib/pkgconfig"),
        // Deprecated functions of OpenSSL, and headers that musl has under another name.
        format!("CPPFLAGS=-Wno-error=deprecated-declarations -Wno-error=cpp -I{libraries}/include"),
        "CFLAGS=-g -O1".to_owned(),
        format!("LDFLAGS=-L{libraries}/lib -Wl,-rpath,{libraries}/lib"),
    ]
    .into()
}

#[cfg(test)]
mod tests {
    use super::with_sources;

    #[test]
    fn sources_are_added_to_lists_of_both_formats() {
        let list = "# comment\ndeb [signed-by=/key] http://host/debian suite main\ndeb-src http://host/debian suite main\n";
        assert_eq!(
            with_sources(list),
            "# comment\ndeb [signed-by=/key] http://host/debian suite main\n\
             deb-src [signed-by=/key] http://host/debian suite main\ndeb-src http://host/debian suite main\n"
        );
        assert_eq!(
            with_sources("Types: deb\nURIs: http://host/debian\n"),
            "Types: deb deb-src\nURIs: http://host/debian\n"
        );
        assert_eq!(with_sources("Types: deb deb-src\n"), "Types: deb deb-src\n");
    }
}
