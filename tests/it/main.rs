//! The integration tests: they drive the real `xtask`, the real compilers and real daemons.
//!
//! The tests that need upstream's source are ignored where it cannot be had, which is known only at run time. Rust's own test
//! harness cannot do that. This one has the same command line and output.

#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr)]

mod abi;
mod answers;
mod arch;
mod bench;
mod build;
mod cache;
mod cost;
mod daemon;
mod display;
mod distributions;
mod docs;
mod drawing;
mod ends;
mod fetch;
mod files;
mod guacd;
mod hardening;
mod image;
mod input;
mod musl;
mod nix;
mod patch;
mod plugins;
mod preload;
mod project;
mod proxy;
mod rdp;
mod real_rdp;
mod releases;
mod reproduce;
mod signature;
mod stress;
mod support;
mod terminal;
mod unread;
mod upstream;
mod vnc;

use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};

/// A test, with what it needs besides the tools that `cargo xtask test` checks for.
#[derive(Clone, Copy)]
struct Test {
    name: &'static str,
    needs: Needs,
    /// The numbers of the patches without which there is nothing to test. It is ignored for a release whose series says that it
    /// has nothing that one of them could change.
    of: &'static [&'static str],
    run: fn() -> Result<()>,
}

#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    /// Debian's lists of packages.
    AptLists,
    /// makepkg, and namespaces of users.
    Makepkg,
    /// Permission to mount.
    Mount,
    Source,
    /// The source of the commit that the patches for upstream are for, whatever release is tested.
    SourceForUpstream,
    /// The source as a tarball that is pinned.
    Tarball,
    /// The source, and permission to mount a small file system that is filled up.
    SourceAndMount,
    /// The source, and real servers for telnet and VNC.
    SourceAndServers,
    /// The source, and OpenSSH's server.
    SourceAndSshd,
    /// The source, and FreeRDP's own RDP server.
    SourceAndShadow,
    /// The source, xrdp, and permission to mount: xrdp sees directories of its own.
    SourceAndXrdp,
    /// The source, and Ghostscript.
    SourceAndGhostscript,
    /// The source, and minutes: it runs with `--ignored` only.
    Minutes,
}

/// These run one at a time: they share the build and load the machine, or look at all processes that this one has started.
const ALONE: &[&[Test]] = &[
    project::TESTS,
    releases::TESTS,
    docs::TESTS,
    fetch::TESTS,
    cache::TESTS,
    signature::TESTS,
    proxy::TESTS,
    distributions::TESTS,
    arch::TESTS,
    build::TESTS,
    abi::TESTS,
    musl::TESTS,
    bench::TESTS,
    image::TESTS,
    preload::TESTS,
    hardening::TESTS,
    nix::TESTS,
    reproduce::TESTS,
    stress::TESTS,
];

/// Each of these has its own guacd, and waits for it most of the time. Those that wait longest come first.
const TOGETHER: &[&[Test]] = &[
    ends::TESTS,
    cost::TESTS,
    terminal::TESTS,
    guacd::TESTS,
    files::TESTS,
    daemon::TESTS,
    answers::TESTS,
    input::TESTS,
    plugins::TESTS,
    unread::TESTS,
    vnc::TESTS,
    display::TESTS,
    drawing::TESTS,
    rdp::TESTS,
    patch::TESTS,
    upstream::TESTS,
    real_rdp::TESTS,
];

/// How many of [`TOGETHER`] run at once.
const TOGETHER_THREADS: usize = 6;

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    support::processes::adopt_orphans()?;
    support::compile_xtask()?;
    let has_source = support::has_source();
    if !has_source {
        eprintln!(
            "NO SOURCE OF GUACAMOLE-SERVER: THE TESTS THAT NEED IT ARE IGNORED (cargo xtask fetch --help)"
        );
    }
    let has_source_for_upstream = upstream::has_source();
    if !has_source_for_upstream {
        eprintln!(
            "NO SOURCE OF THE COMMIT THAT patches/upstream IS FOR: THE TESTS OF THESE PATCHES ARE IGNORED \
             (cargo xtask fetch --help)"
        );
    }
    let has_tarball = has_source && fetch::has_tarball();
    if has_source && !has_tarball {
        eprintln!("THE SOURCE COMES FROM AN UNPACKED TREE: THE TESTS THAT NEED A TARBALL ARE IGNORED");
    }
    let can_mount = support::can_mount();
    if !can_mount {
        eprintln!("NO FILE SYSTEM CAN BE MOUNTED HERE: THE TESTS THAT DO ARE IGNORED");
    }
    let has_apt_lists = distributions::has_apt_lists();
    if !has_apt_lists {
        eprintln!("NO LISTS OF DEBIAN'S PACKAGES: THE TEST OF THEIR NAMES IS IGNORED (apt-get update)");
    }
    let has_makepkg = arch::has_makepkg();
    if !has_makepkg {
        eprintln!(
            "NO MAKEPKG: THE TEST WITH IT IS IGNORED (apt-get install makepkg pacman-package-manager libarchive-tools zstd)"
        );
    }
    let has_servers = stress::has_servers();
    if !has_servers {
        eprintln!(
            "NO REAL SERVERS FOR TELNET AND VNC: THE TESTS WITH THEM ARE IGNORED \
             (apt-get install inetutils-telnetd tigervnc-standalone-server xterm)"
        );
    }
    let has_sshd = support::sshd::is_installed();
    if !has_sshd {
        eprintln!("NO SSHD: THE TESTS WITH IT ARE IGNORED (apt-get install openssh-server)");
    }
    let has_shadow = support::desktop::has_shadow();
    if !has_shadow {
        eprintln!(
            "NO RDP SERVER OF FREERDP: THE TESTS WITH IT ARE IGNORED \
             (apt-get install freerdp2-shadow-x11 xvfb xterm)"
        );
    }
    let has_xrdp = support::desktop::has_xrdp();
    if !has_xrdp {
        eprintln!(
            "NO XRDP, NO ROOT OR NO /dev/fuse: THE TESTS WITH XRDP ARE IGNORED \
             (apt-get install xrdp xorgxrdp xterm xclip, which starts xrdp as a service; or cargo xtask test --freerdp3)"
        );
    }
    let has_ghostscript = support::desktop::has_ghostscript();
    if !has_ghostscript {
        eprintln!("NO GHOSTSCRIPT: THE TEST THAT PRINTS IS IGNORED (apt-get install ghostscript)");
    }
    let without = support::differences::tests_without_patches(&[ALONE, TOGETHER].concat().concat())?;
    if !without.is_empty() {
        eprintln!(
            "{} HAS NOTHING THAT {} TESTS COULD TEST: THEY ARE IGNORED (`# without:` in its series says why)",
            support::release().version,
            without.len()
        );
    }
    let trials = |tests: &[&[Test]]| -> Vec<Trial> {
        let trial = |test: Test| {
            let ignored = match test.needs {
                Needs::Nothing => false,
                Needs::AptLists => !has_apt_lists,
                Needs::Makepkg => !has_makepkg,
                Needs::Mount => !can_mount,
                Needs::Source => !has_source,
                Needs::SourceForUpstream => !has_source_for_upstream,
                Needs::Tarball => !has_tarball,
                Needs::SourceAndMount => !has_source || !can_mount,
                Needs::SourceAndServers => !has_source || !has_servers,
                Needs::SourceAndSshd => !has_source || !has_sshd,
                Needs::SourceAndShadow => !has_source || !has_shadow,
                Needs::SourceAndXrdp => !has_source || !has_xrdp,
                Needs::SourceAndGhostscript => !has_source || !has_ghostscript,
                Needs::Minutes => true,
            } || without.contains(test.name);
            Trial::test(test.name, move || (test.run)().map_err(|error| format!("{error:#}").into()))
                .with_ignored_flag(ignored)
        };
        tests.concat().into_iter().map(trial).collect()
    };
    let mut failed = false;
    for (threads, tests) in [(1, ALONE), (TOGETHER_THREADS, TOGETHER)] {
        arguments.test_threads = Some(threads);
        failed |= libtest_mimic::run(&arguments, trials(tests)).has_failed();
    }
    Ok(if failed { ExitCode::from(101) } else { ExitCode::SUCCESS })
}

/// The names and functions of a module's tests, so that each is written down once. After a name, `of "0042"` is the number of a
/// patch without which there is nothing to test.
macro_rules! tests {
    ($($needs:ident: $($name:ident $(of $($patch:literal)+)?),+ $(,)?;)+) => {
        pub const TESTS: &[crate::Test] = &[$($(crate::Test {
            name: concat!(module_path!(), "::", stringify!($name)),
            needs: crate::Needs::$needs,
            of: &[$($($patch),+)?],
            run: $name,
        }),+),+];
    };
}
use tests;
