//! Which tools and libraries does this machine have, and which packages provide the missing ones?

use std::thread;

use anyhow::{Result, bail, ensure};
use fs_err as fs;
use serde::Serialize;

use crate::failure::Failure;
use crate::host::distribution::Distribution;
use crate::host::run::{self, WhenInterrupted};
use crate::host::{files, layout};
use crate::ui;

/// What a tool or a library is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// Every build of guacd.
    Build,
    /// guacd's support for SSH, which `stress` uses by default.
    Ssh,
    /// Another protocol or feature of guacd. A build without the tool or library has no such protocol or feature.
    Optional,
    /// The SSH server behind `stress --target openssh`.
    OpenSsh,
    /// The project's tests.
    Tests,
    /// The tests of `tls-rs` on other platforms, which are skipped otherwise.
    Platforms,
    /// The tests with desktops of real RDP servers, and with a printer, which are skipped otherwise.
    Desktops,
    /// `cargo xtask test --musl`.
    Musl,
    /// A source from a git repository, or in an unpacked tree.
    Git,
    /// `cargo xtask fetch --keyring`.
    Signature,
    /// `cargo xtask package`.
    Package,
    /// `cargo xtask nix`.
    Nix,
    /// `cargo xtask reproduce`: more differences in the conditions of its two builds, and explanations of files that differ.
    Reproduce,
}

/// What guacd needs, with all its protocols and features.
pub const OF_A_BUILD: [Need; 3] = [Need::Build, Need::Ssh, Need::Optional];

enum Probe {
    /// A program, and the argument that makes it print its version.
    Program(&'static str, &'static str),
    /// A library under one of these names in pkg-config.
    Library(&'static [&'static str]),
}

struct Item {
    name: &'static str,
    probe: Probe,
    need: Need,
    /// What can be done with it.
    unlocks: &'static str,
    /// The packages of Debian and Ubuntu that provide it. All are needed; only FreeRDP's are alternatives.
    packages: &'static [&'static str],
}

const fn program(
    name: &'static str,
    version: &'static str,
    need: Need,
    unlocks: &'static str,
    packages: &'static [&'static str],
) -> Item {
    Item { name, probe: Probe::Program(name, version), need, unlocks, packages }
}

const fn library(
    name: &'static str,
    modules: &'static [&'static str],
    need: Need,
    unlocks: &'static str,
    packages: &'static [&'static str],
) -> Item {
    Item { name, probe: Probe::Library(modules), need, unlocks, packages }
}

/// Every tool and library. Upstream's configure looks for the same libraries.
const ITEMS: &[Item] = &[
    program("cc", "--version", Need::Build, "compiling C", &["gcc", "libc6-dev"]),
    program("make", "--version", Need::Build, "upstream's build", &["make"]),
    program("autoreconf", "--version", Need::Build, "upstream's build", &["autoconf"]),
    program("automake", "--version", Need::Build, "upstream's build", &["automake"]),
    program("libtoolize", "--version", Need::Build, "upstream's build", &["libtool"]),
    program("pkg-config", "--version", Need::Build, "finding libraries", &["pkg-config"]),
    program("patch", "--version", Need::Build, "applying the series", &["patch"]),
    library("cairo", &["cairo"], Need::Build, "drawing", &["libcairo2-dev"]),
    library("libjpeg", &["libjpeg"], Need::Build, "JPEG images", &["libjpeg-dev"]),
    library("libpng", &["libpng"], Need::Build, "PNG images", &["libpng-dev"]),
    library("zlib", &["zlib"], Need::Build, "packing idle terminals", &["zlib1g-dev"]),
    library("uuid", &["uuid", "ossp-uuid"], Need::Build, "connection ids", &["uuid-dev"]),
    library("libssh2", &["libssh2"], Need::Ssh, "SSH, SFTP", &["libssh2-1-dev"]),
    library("openssl", &["openssl"], Need::Ssh, "SSH, TLS, Kubernetes", &["libssl-dev"]),
    library("pango", &["pangocairo"], Need::Ssh, "SSH, telnet, Kubernetes", &["libpango1.0-dev"]),
    library("freerdp", &["freerdp2", "freerdp3"], Need::Optional, "RDP", &["freerdp2-dev", "freerdp3-dev"]),
    library("libvncclient", &["libvncclient"], Need::Optional, "VNC", &["libvncserver-dev"]),
    library("libtelnet", &["libtelnet"], Need::Optional, "telnet", &["libtelnet-dev"]),
    library("libwebsockets", &["libwebsockets"], Need::Optional, "Kubernetes", &["libwebsockets-dev"]),
    library("libwebp", &["libwebp"], Need::Optional, "WebP images", &["libwebp-dev"]),
    library("libpulse", &["libpulse"], Need::Optional, "sound over VNC", &["libpulse-dev"]),
    library("vorbis", &["vorbisenc"], Need::Optional, "Ogg Vorbis in guacd's sound", &["libvorbis-dev"]),
    program("git", "--version", Need::Git, "`fetch --from` a clone or a tree", &["git"]),
    program("gpgv", "--version", Need::Signature, "`fetch --keyring`", &["gpgv"]),
    library("cunit", &["cunit"], Need::Tests, "upstream's `make check`", &["libcunit1-dev"]),
    program("g++", "--version", Need::Tests, "the header's test in C++", &["g++"]),
    program("gpg", "--version", Need::Tests, "signatures of tarballs", &["gpg", "gpg-agent", "gpgv"]),
    program("openssl", "version", Need::Tests, "guacd over TLS", &["openssl"]),
    program("valgrind", "--version", Need::Tests, "the C tests under memcheck", &["valgrind"]),
    program("musl-gcc", "--version", Need::Tests, "the tests with musl", &["musl-tools"]),
    program(
        "aarch64-linux-gnu-gcc",
        "--version",
        Need::Platforms,
        "the C tests on aarch64",
        &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
    ),
    program("qemu-aarch64", "--version", Need::Platforms, "the C tests on aarch64", &["qemu-user"]),
    // Not gcc-multilib, which conflicts with other cross-compilers on Debian.
    program(
        "i686-linux-gnu-gcc",
        "--version",
        Need::Platforms,
        "the C tests on a 32-bit architecture",
        &["gcc-i686-linux-gnu", "libc6-dev-i386-cross"],
    ),
    // xrdp is not here: its package starts a service that listens on all interfaces.
    program(
        "freerdp-shadow-cli",
        "/version",
        Need::Desktops,
        "the tests with FreeRDP's server",
        &["freerdp2-shadow-x11", "freerdp3-shadow-x11"],
    ),
    program("Xvfb", "-help", Need::Desktops, "the tests with FreeRDP's server", &["xvfb"]),
    program("xterm", "-version", Need::Desktops, "the tests with desktops", &["xterm"]),
    program("gs", "--version", Need::Desktops, "the test that prints over RDP", &["ghostscript"]),
    program("cmake", "--version", Need::Musl, "`test --musl`", &["cmake"]),
    program("meson", "--version", Need::Musl, "`test --musl`", &["meson"]),
    program("ninja", "--version", Need::Musl, "`test --musl`", &["ninja-build"]),
    program("gperf", "--version", Need::Musl, "`test --musl`", &["gperf"]),
    program("dpkg-shlibdeps", "--version", Need::Package, "`cargo xtask package`", &["dpkg-dev"]),
    program("patchelf", "--version", Need::Package, "`cargo xtask package`", &["patchelf"]),
    program("strip", "--version", Need::Package, "`cargo xtask package`", &["binutils"]),
    program("nix", "--version", Need::Nix, "`cargo xtask nix`", &["nix-bin"]),
    program(
        "diffoscope",
        "--version",
        Need::Reproduce,
        "explaining what `reproduce` finds",
        &["diffoscope-minimal"],
    ),
    program(
        "disorderfs",
        "--version",
        Need::Reproduce,
        "`reproduce` in another order of files",
        &["disorderfs"],
    ),
    program("faketime", "--version", Need::Reproduce, "`reproduce` at another time", &["faketime"]),
    program("sshd", "-V", Need::OpenSsh, "`stress --target openssh`", &["openssh-server"]),
];

/// Whether this machine has a tool or a library.
#[derive(Serialize)]
pub struct Finding {
    /// Its name.
    pub name: &'static str,
    /// Its version, or `None` if it is missing.
    pub version: Option<String>,
    /// What it is needed for.
    pub need: Need,
    /// What can be done with it.
    pub unlocks: &'static str,
    #[serde(skip)]
    packages: &'static [&'static str],
}

/// Checks that this machine has all tools and libraries for `needs`. With `may_install`, those that are missing for `needs` and
/// for `optional` are installed first.
///
/// Returns the versions of the tools and libraries that affect a build of guacd, as `NAME=VERSION`, for its digest.
///
/// # Errors
///
/// [`Failure::Preflight`] when something for `needs` is missing.
pub fn preflight(needs: &[Need], optional: &[Need], may_install: bool) -> Result<Vec<String>> {
    let mut findings = probe();
    if may_install && install(&findings, |need| needs.contains(&need) || optional.contains(&need))? {
        findings = probe();
    }
    let unmet: Vec<&str> = unmet(&findings, needs).map(|finding| finding.name).collect();
    if !unmet.is_empty() {
        let packages = missing_packages(&findings, |need| needs.contains(&need));
        let advice = match install_command(&packages) {
            Some(command) => {
                format!("install with: {command}\n          or: add --install to this command")
            }
            None => format!(
                "install them with your distribution's package manager (on Debian: {})",
                packages.join(" ")
            ),
        };
        bail!(Failure::Preflight(format!("missing here: {}\n{advice}", unmet.join(", "))));
    }
    // configure looks for cunit, too.
    let affects_a_build = |finding: &Finding| OF_A_BUILD.contains(&finding.need) || finding.name == "cunit";
    let version = |finding: Finding| format!("{}={}", finding.name, finding.version.unwrap_or_default());
    Ok(findings.into_iter().filter(affects_a_build).map(version).collect())
}

/// The C compiler, which may have arguments: `CC`, as for configure, or `cc`.
pub fn c_compiler() -> String {
    std::env::var("CC").unwrap_or_else(|_| "cc".to_owned())
}

/// The first line of the C compiler's `--version`, or nothing if there is no C compiler.
pub fn c_compiler_version() -> String {
    run::version_line(&c_compiler(), "--version").unwrap_or_default()
}

/// The first line of the Rust compiler's `--version`, or nothing if there is no Rust compiler.
pub fn rustc_version() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    run::version_line(&rustc, "--version").unwrap_or_default()
}

/// Looks for every tool and library.
pub fn probe() -> Vec<Finding> {
    let pkg_config = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
    let version = |item: &Item| match item.probe {
        Probe::Program("cc", argument) => run::version_line(&c_compiler(), argument),
        Probe::Program("pkg-config", argument) => run::version_line(&pkg_config, argument),
        // sshd has -V since OpenSSH 9.3, and is outside of most users' PATH.
        Probe::Program("sshd", argument) => run::version_line("sshd", argument)
            .or_else(|| fs::exists("/usr/sbin/sshd").unwrap_or(false).then(|| "/usr/sbin/sshd".to_owned())),
        // FreeRDP 3's has another name. Both write their version into a line of a log.
        Probe::Program("freerdp-shadow-cli", argument) => ["freerdp-shadow-cli", "freerdp-shadow-cli3"]
            .iter()
            .find_map(|program| run::version_line(program, argument))
            .map(|line| line.rsplit(" - ").next().unwrap_or_default().to_owned()),
        Probe::Program(program, argument) => run::version_line(program, argument),
        Probe::Library(modules) => modules
            .iter()
            .find_map(|module| duct::cmd!(&pkg_config, "--modversion", module).stderr_null().read().ok()),
    };
    // In parallel, as each one waits for a program.
    let versions: Vec<Option<String>> = thread::scope(|scope| {
        let threads: Vec<_> = ITEMS.iter().map(|item| scope.spawn(|| version(item))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
    });
    ITEMS
        .iter()
        .zip(versions)
        .map(|(item, version)| Finding {
            name: item.name,
            version,
            need: item.need,
            unlocks: item.unlocks,
            packages: item.packages,
        })
        .collect()
}

/// The tools and libraries for `needs` that are missing.
pub fn unmet<'a>(findings: &'a [Finding], needs: &'a [Need]) -> impl Iterator<Item = &'a Finding> {
    findings.iter().filter(|finding| finding.version.is_none() && needs.contains(&finding.need))
}

/// The packages that provide what is missing for the needs that are `wanted`.
pub fn missing_packages(findings: &[Finding], wanted: impl Fn(Need) -> bool) -> Vec<String> {
    let mut packages = Vec::new();
    for finding in findings.iter().filter(|finding| finding.version.is_none() && wanted(finding.need)) {
        // FreeRDP's packages have other names in each release of Debian.
        let is_freerdp = finding.name.starts_with("freerdp");
        let names = if is_freerdp { available(finding.packages) } else { finding.packages };
        packages.extend(names.iter().map(|name| (*name).to_owned()));
    }
    packages
}

/// The first of the packages `alternatives` that apt knows.
fn available(alternatives: &'static [&'static str]) -> &'static [&'static str] {
    let known = |name: &&'static str| {
        duct::cmd!("apt-cache", "show", "--no-all-versions", *name).stderr_null().stdout_null().run().is_ok()
    };
    let index = alternatives.iter().position(known).unwrap_or(0);
    &alternatives[index..=index]
}

/// The shell command that installs `packages`, on Debian, Ubuntu and distributions like them. `None` on others.
pub fn install_command(packages: &[String]) -> Option<String> {
    let sudo = if rustix::process::geteuid().is_root() { "" } else { "sudo " };
    Distribution::this().is_like_debian().then(|| {
        format!(
            "{sudo}apt-get update && {sudo}apt-get install -y --no-install-recommends {}",
            packages.join(" ")
        )
    })
}

/// Installs the packages that are missing for the needs that are `wanted`. Returns whether there were any.
///
/// # Errors
///
/// [`Failure::Preflight`] on a distribution without apt-get, or without root and sudo; any other when apt-get fails.
pub fn install(findings: &[Finding], wanted: impl Fn(Need) -> bool) -> Result<bool> {
    if missing_packages(findings, &wanted).is_empty() {
        return Ok(false);
    }
    ensure!(
        install_command(&[]).is_some(),
        Failure::Preflight(
            "--install works on Debian and Ubuntu only: `cargo xtask doctor` lists what to install".into()
        )
    );
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        // In the foreground, as sudo may ask for the password.
        let sudo = |arguments: &[&str]| {
            duct::cmd("sudo", arguments).unchecked().run().is_ok_and(|output| output.status.success())
        };
        let allowed = sudo(&["-n", "true"]) || sudo(&["-v"]);
        ensure!(
            allowed,
            Failure::Preflight("--install needs root or sudo: run as root, or install by hand".into())
        );
    }
    let log = layout::target_dir().join("guacd/install.log");
    files::begin_log(&log)?;
    let apt = |arguments: &[&str]| {
        let (program, first): (&str, &[&str]) = if is_root { ("env", &[]) } else { ("sudo", &["-n", "env"]) };
        duct::cmd(
            program,
            first.iter().chain(&["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]).chain(arguments),
        )
    };
    let progress = ui::Step::start("apt-get");
    progress.busy_with("update");
    run::logged(&progress, "apt-get update", apt(&["update"]), &log, WhenInterrupted::Finish)?;
    // apt knows the names of FreeRDP's packages only after the update.
    let packages = missing_packages(findings, &wanted);
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages.iter().map(String::as_str));
    run::logged(&progress, "apt-get install", apt(&arguments), &log, WhenInterrupted::Finish)?;
    progress.done(format!("{} packages: {}", packages.len(), packages.join(" ")));
    Ok(true)
}
