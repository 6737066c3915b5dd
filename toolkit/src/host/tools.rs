//! Which tools and libraries does this machine have? `distributions.toml` has the packages that provide them.

use std::thread;

use fs_err as fs;
use serde::Serialize;

use crate::host::run;

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
    /// The tests with desktops of real RDP servers, which are skipped otherwise.
    Desktops,
    /// Printing over RDP, at run time: guacd runs it. The test that prints is skipped otherwise.
    Print,
    /// The encoder of recordings, `guacenc`. `--install` leaves it out, unless it is required.
    Video,
    /// The tests of `packaging/arch`, which are skipped otherwise.
    Arch,
    /// `cargo xtask test --musl`.
    Musl,
    /// A source from a git repository, or in an unpacked tree.
    Git,
    /// `cargo xtask fetch --keyring`.
    Signature,
    /// `cargo xtask package`, in each of its forms.
    Package,
    /// The Debian package and the tarball of `cargo xtask package`.
    Deb,
    /// `cargo xtask nix`.
    Nix,
    /// `cargo xtask reproduce`: more differences in the conditions of its two builds, and explanations of files that differ.
    Reproduce,
}

/// What guacd needs, with all its protocols and features.
pub const OF_A_BUILD: [Need; 3] = [Need::Build, Need::Ssh, Need::Optional];

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A program in PATH.
    Program,
    /// A library that pkg-config knows.
    Library,
}

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
}

impl Item {
    fn kind(&self) -> Kind {
        match self.probe {
            Probe::Program(..) => Kind::Program,
            Probe::Library(_) => Kind::Library,
        }
    }
}

const fn program(name: &'static str, version: &'static str, need: Need, unlocks: &'static str) -> Item {
    Item { name, probe: Probe::Program(name, version), need, unlocks }
}

const fn library(
    name: &'static str,
    modules: &'static [&'static str],
    need: Need,
    unlocks: &'static str,
) -> Item {
    Item { name, probe: Probe::Library(modules), need, unlocks }
}

/// Every tool and library. Upstream's configure looks for the same libraries.
const ITEMS: &[Item] = &[
    program("cc", "--version", Need::Build, "compiling C"),
    program("make", "--version", Need::Build, "upstream's build"),
    program("autoreconf", "--version", Need::Build, "upstream's build"),
    program("automake", "--version", Need::Build, "upstream's build"),
    program("libtoolize", "--version", Need::Build, "upstream's build"),
    program("pkg-config", "--version", Need::Build, "finding libraries"),
    program("patch", "--version", Need::Build, "applying the series"),
    library("cairo", &["cairo"], Need::Build, "drawing"),
    library("libjpeg", &["libjpeg"], Need::Build, "JPEG images"),
    library("libpng", &["libpng"], Need::Build, "PNG images"),
    library("zlib", &["zlib"], Need::Build, "packing idle terminals"),
    library("uuid", &["uuid", "ossp-uuid"], Need::Build, "connection ids"),
    library("libssh2", &["libssh2"], Need::Ssh, "SSH, SFTP"),
    library("openssl", &["openssl"], Need::Ssh, "SSH, TLS, Kubernetes"),
    library("pango", &["pangocairo"], Need::Ssh, "SSH, telnet, Kubernetes"),
    library("freerdp", &["freerdp2", "freerdp3"], Need::Optional, "RDP"),
    library("libvncclient", &["libvncclient"], Need::Optional, "VNC"),
    library("libtelnet", &["libtelnet"], Need::Optional, "telnet"),
    library("libwebsockets", &["libwebsockets"], Need::Optional, "Kubernetes"),
    library("libwebp", &["libwebp"], Need::Optional, "WebP images"),
    library("libpulse", &["libpulse"], Need::Optional, "sound over VNC"),
    library("vorbis", &["vorbisenc"], Need::Optional, "Ogg Vorbis in guacd's sound"),
    library("libavcodec", &["libavcodec"], Need::Video, "guacenc: videos of recordings"),
    library("libavformat", &["libavformat"], Need::Video, "guacenc: videos of recordings"),
    library("libavutil", &["libavutil"], Need::Video, "guacenc: videos of recordings"),
    library("libswscale", &["libswscale"], Need::Video, "guacenc: videos of recordings"),
    program("gs", "--version", Need::Print, "printing over RDP, which guacd runs it for"),
    program("git", "--version", Need::Git, "`fetch --from` a clone or a tree"),
    program("gpgv", "--version", Need::Signature, "`fetch --keyring`"),
    library("cunit", &["cunit"], Need::Tests, "upstream's `make check`"),
    program("g++", "--version", Need::Tests, "the header's test in C++"),
    program("gpg", "--version", Need::Tests, "signatures of tarballs"),
    program("openssl", "version", Need::Tests, "guacd over TLS"),
    program("valgrind", "--version", Need::Tests, "the C tests under memcheck"),
    program("musl-gcc", "--version", Need::Tests, "the tests with musl"),
    program("aarch64-linux-gnu-gcc", "--version", Need::Platforms, "the C tests on aarch64"),
    program("qemu-aarch64", "--version", Need::Platforms, "the C tests on aarch64"),
    program("i686-linux-gnu-gcc", "--version", Need::Platforms, "the C tests on a 32-bit architecture"),
    // xrdp is not here: its package starts a service that listens on all interfaces.
    program("freerdp-shadow-cli", "/version", Need::Desktops, "the tests with FreeRDP's server"),
    program("Xvfb", "-help", Need::Desktops, "the tests with FreeRDP's server"),
    program("xterm", "-version", Need::Desktops, "the tests with desktops"),
    program("cmake", "--version", Need::Musl, "`test --musl`"),
    program("meson", "--version", Need::Musl, "`test --musl`"),
    program("ninja", "--version", Need::Musl, "`test --musl`"),
    program("gperf", "--version", Need::Musl, "`test --musl`"),
    program("makepkg", "--version", Need::Arch, "the tests of the package for Arch Linux"),
    program("dpkg-shlibdeps", "--version", Need::Deb, "`cargo xtask package`"),
    program("patchelf", "--version", Need::Package, "`cargo xtask package`"),
    program("strip", "--version", Need::Package, "`cargo xtask package`"),
    program("nix", "--version", Need::Nix, "`cargo xtask nix`"),
    program("diffoscope", "--version", Need::Reproduce, "explaining what `reproduce` finds"),
    program("disorderfs", "--version", Need::Reproduce, "`reproduce` in another order of files"),
    program("faketime", "--version", Need::Reproduce, "`reproduce` at another time"),
    program("sshd", "-V", Need::OpenSsh, "`stress --target openssh`"),
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
    /// What it is.
    pub kind: Kind,
    /// What can be done with it.
    pub unlocks: &'static str,
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
    probe_for(|_| true)
}

/// Looks for the tools and libraries for the needs that are `wanted`.
pub fn probe_for(wanted: impl Fn(Need) -> bool) -> Vec<Finding> {
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
    let items: Vec<&Item> = ITEMS.iter().filter(|item| wanted(item.need)).collect();
    // In parallel, as each one waits for a program.
    let versions: Vec<Option<String>> = thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| version(item))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let finding = |(item, version): (&&Item, _)| Finding {
        name: item.name,
        version,
        need: item.need,
        kind: item.kind(),
        unlocks: item.unlocks,
    };
    items.iter().zip(versions).map(finding).collect()
}

/// The versions of the tools and libraries that affect a build of guacd, as `NAME=VERSION`, for its digest.
pub fn versions_of_a_build(findings: &[Finding]) -> Vec<String> {
    // configure looks for cunit and for the libraries of guacenc, too.
    let affects_a_build = |finding: &&Finding| {
        OF_A_BUILD.contains(&finding.need) || finding.need == Need::Video || finding.name == "cunit"
    };
    let version =
        |finding: &Finding| format!("{}={}", finding.name, finding.version.as_deref().unwrap_or_default());
    findings.iter().filter(affects_a_build).map(version).collect()
}

/// The tools and libraries for `needs` that are missing.
pub fn unmet<'a>(findings: &'a [Finding], needs: &'a [Need]) -> impl Iterator<Item = &'a Finding> {
    findings.iter().filter(|finding| finding.version.is_none() && needs.contains(&finding.need))
}

/// Every tool and library: what it is, its name, and what it is needed for.
pub fn items() -> impl Iterator<Item = (Kind, &'static str, Need)> {
    ITEMS.iter().map(|item| (item.kind(), item.name, item.need))
}
