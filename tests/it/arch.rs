//! `packaging/arch`: does makepkg accept it, and does it pack the guacd of this checkout?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use toolkit::host::packaging::Packaging;
use toolkit::host::tools::{self, Kind, Need};
use toolkit::source::release::Release;

use crate::support::{Output, prefix, root, shell, target_dir};

crate::tests! {
    Nothing:
        the_pkgbuild_is_of_the_default_release_and_names_its_libraries;
    Makepkg:
        makepkg_accepts_the_pkgbuild_and_refuses_a_broken_one;
    Minutes:
        makepkg_packs_what_the_debian_package_has;
}

/// The members of Arch's base-devel, which a PKGBUILD does not name, that the toolkit looks for.
const BASE_DEVEL: [&str; 8] =
    ["autoconf", "automake", "binutils", "gcc", "libtool", "make", "patch", "pkgconf"];

fn pkgbuild() -> PathBuf {
    root().join("packaging/arch/PKGBUILD")
}

/// The words of an array or a variable of a PKGBUILD.
fn words(text: &str, name: &str) -> Result<Vec<String>> {
    let dir = TempDir::new()?;
    let path = dir.path().join("PKGBUILD");
    fs::write(&path, text)?;
    let script = format!("source \"$0\" && printf '%s\\n' \"${{{name}[@]}}\"");
    let output = Command::new("bash").args(["-euc", &script]).arg(&path).output()?;
    ensure!(output.status.success(), "bash: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// What is wrong with the text of a PKGBUILD.
fn problems(text: &str) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let expected = format!("{}+{}", Release::load(None)?.version, env!("CARGO_PKG_VERSION"));
    let version = words(text, "pkgver")?.concat();
    if version != expected {
        problems.push(format!("pkgver is {version}, and should be {expected}"));
    }
    let arch = &Packaging::all()?["arch"];
    let (depends, makedepends) = (words(text, "depends")?, words(text, "makedepends")?);
    for (kind, item, need) in tools::items() {
        let is_needed = match kind {
            Kind::Library => tools::OF_A_BUILD.contains(&need),
            Kind::Program => [Need::Build, Need::Package].contains(&need),
        };
        // What Arch has no package for cannot be a dependency.
        let Some(packages) = arch.packages_for(kind, item, |_, _| false).filter(|_| is_needed) else {
            continue;
        };
        for package in packages {
            let is_named = match kind {
                Kind::Library => depends.contains(&package),
                Kind::Program => BASE_DEVEL.contains(&&*package) || makedepends.contains(&package),
            };
            if !is_named {
                problems.push(format!("{package} is not named, for {item}"));
            }
        }
    }
    Ok(problems)
}

fn the_pkgbuild_is_of_the_default_release_and_names_its_libraries() -> Result<()> {
    let text = fs::read_to_string(pkgbuild())?;
    let found = problems(&text)?;
    ensure!(found.is_empty(), "{found:#?}");
    for (from, to, problem) in [
        ("freerdp ", "", "freerdp is not named, for freerdp"),
        ("patchelf", "", "patchelf is not named, for patchelf"),
        ("\npkgver=", "\npkgver=0.", "pkgver is 0."),
    ] {
        let found = problems(&text.replacen(from, to, 1))?;
        ensure!(found.len() == 1 && found[0].starts_with(problem), "{from}: {found:?}");
    }
    // It repeats nothing of what the toolkit knows.
    let upstream = fs::read_to_string(root().join("upstream.toml"))?;
    for elsewhere in
        upstream.split('"').filter(|text| text.len() >= 40).chain(["configure", ".patch", "-D_FORTIFY"])
    {
        ensure!(!text.contains(elsewhere), "it repeats {elsewhere:?}");
    }
    let user = fs::read_to_string(root().join("packaging/arch/guacd-uncapped.sysusers"))?;
    ensure!(
        user.lines().any(|line| line.starts_with("u guacd - ") && line.ends_with(" /var/lib/guacd")),
        "{user}"
    );
    Ok(())
}

/// Whether makepkg is here, and can be run as somebody who is not root.
pub fn has_makepkg() -> bool {
    let command =
        "command -v pacman bsdtar zstd && unshare --user --map-user=1000 --map-group=1000 makepkg --version";
    shell(command).run().is_ok_and(|output| output.code == 0)
}

/// Runs makepkg as a user who is not root, on the PKGBUILD in a directory. It writes below `into` only.
fn makepkg(dir: &Path, into: &Path, arguments: &str) -> Result<Output> {
    shell(&format!(
        "cd '{}' && exec unshare --user --map-user=1000 --map-group=1000 nice -n 15 makepkg {arguments}",
        dir.display()
    ))
    .env("BUILDDIR", into.join("build"))
    .env("PKGDEST", into)
    .env("SRCDEST", into)
    .env("LOGDEST", into)
    .env("PKGEXT", ".pkg.tar.zst")
    .run()
}

fn makepkg_accepts_the_pkgbuild_and_refuses_a_broken_one() -> Result<()> {
    let into = TempDir::new()?;
    let dir = pkgbuild().parent().context("it has a directory")?.to_owned();
    let output = makepkg(&dir, into.path(), "--printsrcinfo")?;
    output.expect(0, &[])?;
    for line in ["pkgbase = guacd-uncapped", "\tdepends = freerdp", "\tconflicts = guacamole-server"] {
        ensure!(output.stdout.lines().any(|found| found == line), "{line:?} is not in:\n{}", output.stdout);
    }
    let broken = TempDir::new()?;
    let text = fs::read_to_string(pkgbuild())?;
    fs::write(broken.path().join("PKGBUILD"), text.replacen("pkgver=", "pkgver=1-", 1))?;
    let output = makepkg(broken.path(), into.path(), "--printsrcinfo")?;
    ensure!(output.code != 0 && output.stderr.contains("pkgver"), "{}: {}", output.code, output.stderr);
    Ok(())
}

fn makepkg_packs_what_the_debian_package_has() -> Result<()> {
    let into = TempDir::new()?;
    let dir = pkgbuild().parent().context("it has a directory")?.to_owned();
    // The crates are in the cache, and the build has what the tests have built.
    let output = makepkg(&dir, into.path(), "--nodeps --noconfirm --force --nocheck")?;
    output.expect(0, &[])?;
    ensure!(output.stdout.contains("Finished making: guacd-uncapped"), "{}", output.stdout);
    let version = words(&fs::read_to_string(pkgbuild())?, "pkgver")?.concat();
    let package =
        into.path().join(format!("guacd-uncapped-{version}-1-{}.pkg.tar.zst", std::env::consts::ARCH));
    let tree = into.path().join("tree");
    fs::create_dir(&tree)?;
    let unpack = Command::new("bsdtar").arg("-xf").arg(&package).arg("-C").arg(&tree).status()?;
    ensure!(unpack.success(), "{} does not unpack", package.display());

    let read = |path: &str| fs::read_to_string(tree.join(path)).with_context(|| path.to_owned());
    let info = read(".PKGINFO")?;
    for line in [
        &*format!("pkgver = {version}-1"),
        "license = Apache-2.0",
        "depend = freerdp",
        "conflict = guacamole-server",
    ] {
        ensure!(info.lines().any(|found| found == line), "{line:?} is not in:\n{info}");
    }
    let home = tree.join("usr/lib/guacd-uncapped");
    ensure!(
        tree.join("usr/bin/guacd").canonicalize()? == home.join("sbin/guacd"),
        "usr/bin/guacd leads elsewhere"
    );
    ensure!(
        read("usr/lib/systemd/system/guacd.service")?
            == fs::read_to_string(root().join("packaging/guacd.service"))?,
        "it is another unit"
    );
    ensure!(read("usr/lib/sysusers.d/guacd-uncapped.conf")?.contains("u guacd "), "it makes no user");
    for file in [
        "usr/share/man/man8/guacd.8.gz",
        "usr/share/man/man5/guacd.conf.5.gz",
        "usr/share/licenses/guacd-uncapped/guacamole-server/LICENSE",
        "usr/share/licenses/guacd-uncapped/guacd-uncapped/NOTICE",
        "usr/lib/guacd-uncapped/share/guacd-uncapped/sbom.cdx.json",
    ] {
        ensure!(tree.join(file).is_file(), "{file} is missing");
    }
    for protocol in toolkit::build::manifest::protocols(&prefix("patched"))? {
        ensure!(home.join(format!("lib/libguac-client-{protocol}.so")).exists(), "it has no {protocol}");
    }
    let listed = Command::new("bsdtar").arg("-tvf").arg(&package).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    ensure!(listed.lines().all(|line| line.contains(" root ")), "not all of it belongs to root:\n{listed}");
    ensure!(
        !listed.contains("/include/") && !listed.contains(".la\n") && !listed.contains(".a\n"),
        "{listed}"
    );
    let trace = target_dir().to_string_lossy().into_owned();
    let grep = Command::new("grep").args(["-rlF", &trace]).arg(tree.join("usr")).output()?;
    let traces = String::from_utf8(grep.stdout)?;
    // The manifest of a prefix says where the prefix was.
    let others = traces.lines().filter(|file| !file.ends_with("/manifest.json") && !file.ends_with("/guacd"));
    let others: Vec<&str> = others.collect();
    ensure!(others.is_empty(), "these name the directory of the build: {others:?}");

    // It runs from where it was unpacked.
    toolkit::stress::hold("arch", &home, 5, false)
}
