//! Does guacd work with FreeRDP 3, and with the RDP servers of its time?
//!
//! Debian 12 has FreeRDP 2 only. [`check`] runs the tests of RDP in a root directory of Debian 13, which [`root`] makes once.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use fs_err as fs;
use tempfile::TempDir;

use crate::failure::Failure;
use crate::host::digest::Hasher;
use crate::host::{debian, files, layout, lock, run};
use crate::source::fetch::{self, Access};
use crate::source::release::Release;
use crate::ui;

/// The release of Debian.
const SUITE: &str = "trixie";

/// What its root has: what a build of guacd and the tests need, the RDP servers, and a Rust compiler.
const PACKAGES: [&str; 36] = [
    "autoconf",
    "automake",
    "cargo",
    "freerdp3-dev",
    "freerdp3-shadow-x11",
    "gcc",
    "ghostscript",
    "git",
    "libc6-dev",
    "libcairo2-dev",
    "libcunit1-dev",
    "libjpeg-dev",
    "libpango1.0-dev",
    "libpng-dev",
    "libpulse-dev",
    "libssh2-1-dev",
    "libssl-dev",
    "libtelnet-dev",
    "libtool",
    "libvncserver-dev",
    "libvorbis-dev",
    "libwebp-dev",
    "libwebsockets-dev",
    "make",
    "openssh-server",
    "openssl",
    "patch",
    "pkg-config",
    "procps",
    "util-linux",
    "uuid-dev",
    "xclip",
    "xorgxrdp",
    "xrdp",
    "xterm",
    "xvfb",
];

/// A part of the names of the tests that are run.
const TESTS: &str = "rdp";

/// What runs in its own namespaces. Their mounts and processes end with the first process, this shell, which would ignore signals
/// without a trap. The root has this machine's devices, the checkout, and a directory for what cargo makes and downloads.
const ENTER: &str = r#"
    trap 'exit 130' INT TERM
    mount --bind "$root" "$root"
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/run"
    mkdir -p "$root/checkout" "$root/made"
    mount --bind "$checkout" "$root/checkout"
    mount --bind "$made" "$root/made"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    setsid chroot "$root" env -i HOME=/made LC_ALL=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        CARGO_HOME=/made/cargo CARGO_TARGET_DIR=/made/target CARGO_NET_OFFLINE="$offline" \
        ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
        GUACD_RELEASE="$release" source="$source" tests="$tests" sh -euc "$0" &
    wait $!
"#;

/// What runs in the root.
const SCRIPT: &str = r#"
    cd /checkout
    cargo run --quiet --locked --package xtask -- fetch --release "$GUACD_RELEASE" --from "$source"
    cargo test --locked --package tests -- "$tests"
"#;

/// Builds guacd with FreeRDP 3, and runs the tests of RDP with it.
///
/// # Errors
///
/// When something is missing, or a test fails.
pub fn check(release: &Release, access: &Access) -> Result<()> {
    debian::preflight("the tests with FreeRDP 3")?;
    let _lock = lock::command("freerdp3")?;
    let source = fetch::stage(release, access)?;
    let root = root(access.offline)?;
    let made = layout::target_dir().join("guacd/freerdp3");
    fs::create_dir_all(&made)?;
    ui::heading(format!("FreeRDP 3: tests of RDP, release {}, on Debian's {SUITE}", release.version));
    let namespaces = ["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", ENTER, SCRIPT];
    let command = duct::cmd("unshare", namespaces)
        .env("root", root)
        .env("checkout", layout::root())
        .env("made", &made)
        .env("source", &source.path)
        .env("release", &release.version)
        .env("tests", TESTS)
        .env("offline", access.offline.to_string());
    if !run::shown(command)? {
        bail!("the tests with FreeRDP 3 failed; to repeat them: cargo xtask test --freerdp3");
    }
    Ok(())
}

/// Makes the root, unless it is in the user's cache. Returns its path.
fn root(offline: bool) -> Result<PathBuf> {
    let mut hasher = Hasher::default();
    hasher.add(SUITE).add(PACKAGES.join(","));
    let cache = layout::cache_dir()?.join("freerdp3");
    let root = cache.join(&hasher.finish()[..16]);
    if root.exists() {
        ui::unchanged("root with FreeRDP 3");
        return Ok(root);
    }
    ensure!(
        !offline,
        Failure::Preflight(format!(
            "{} does not exist, and its packages come from the network: leave out --offline",
            root.display()
        ))
    );
    fs::create_dir_all(&cache)?;
    let scratch = TempDir::with_prefix_in("root-", &cache)?;
    let log = layout::target_dir().join("guacd/freerdp3-root.log");
    files::create_parent(&log)?;
    let step = ui::Step::start("root with FreeRDP 3");
    let include = format!("--include={}", PACKAGES.join(","));
    let arguments: Vec<&str> = [include.as_str()].into_iter().chain(debian::CERTIFICATES).collect();
    let made = scratch.path().join("root");
    debian::mmdebstrap(&step, &arguments, SUITE, &made, &log)?;
    fs::rename(&made, &root)?;
    step.done(root.display());
    Ok(root)
}
