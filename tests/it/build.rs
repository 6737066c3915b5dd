//! `cargo xtask build`: what it refuses, what it skips, and what an interruption leaves.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use toolkit::build::guacd::KEYS;
use toolkit::source::series::Patch;

use crate::support::checkout::Checkout;
use crate::support::processes::Descendants;
use crate::support::{self, SMALL, SmallDisk, release, wait_until, xtask};

crate::tests! {
    Nothing:
        without_a_c_compiler_it_says_what_to_install,
        without_a_library_it_says_what_to_install,
        a_target_directory_that_cannot_be_written_is_refused,
        a_prefix_of_somebody_else_is_refused;
    SourceAndMount:
        a_disk_without_room_is_refused;
    Source:
        a_patch_that_needs_an_offset_is_refused,
        a_patch_that_needs_fuzz_is_refused,
        a_patch_that_is_not_listed_is_refused,
        a_step_that_fails_shows_the_end_of_its_log,
        stock_builds,
        patched_builds,
        keys_builds,
        nothing_to_do_is_said_in_under_a_second,
        an_interruption_leaves_nothing_and_the_next_run_continues;
}

fn without_a_c_compiler_it_says_what_to_install() -> Result<()> {
    let target = TempDir::new()?;
    let build = xtask(["build"]).env("CC", "/nowhere/cc").env("CARGO_TARGET_DIR", target.path());
    build.run()?.expect(3, &["missing here: cc", "gcc"])?;
    ensure!(is_empty(target.path())?, "something was built");
    Ok(())
}

fn without_a_library_it_says_what_to_install() -> Result<()> {
    let target = TempDir::new()?;
    let build = xtask(["build"])
        .env("PKG_CONFIG_LIBDIR", "/nowhere")
        .env("PKG_CONFIG_PATH", "")
        .env("CARGO_TARGET_DIR", target.path());
    build.run()?.expect(3, &["missing here: cairo, libjpeg, libpng, zlib, uuid", "libcairo2-dev"])?;
    ensure!(is_empty(target.path())?, "something was built");
    let doctor = xtask(["doctor"]).env("PKG_CONFIG_LIBDIR", "/nowhere").env("PKG_CONFIG_PATH", "");
    doctor.run()?.expect(3, &["guacd cannot be built here without cairo"])
}

fn a_target_directory_that_cannot_be_written_is_refused() -> Result<()> {
    // Not even root can create a directory there.
    let build = xtask(["build"]).env("CARGO_TARGET_DIR", "/proc/target");
    build.run()?.expect(1, &["cannot create /proc/target", "set CARGO_TARGET_DIR to where you may write"])?;
    xtask(["build", "--prefix", "/proc/guacd"])
        .run()?
        .expect(1, &["/proc", "choose a prefix that you may write"])
}

fn a_disk_without_room_is_refused() -> Result<()> {
    let disk = SmallDisk::mount()?;
    let build = xtask(["build"]).env("CARGO_TARGET_DIR", disk.path());
    build.run()?.expect(3, &["MB are free in", "make room"])?;
    ensure!(
        !disk.path().join(format!("guacd/{}/patched/prefix", release().version)).exists(),
        "there is a prefix"
    );
    Ok(())
}

fn a_prefix_of_somebody_else_is_refused() -> Result<()> {
    let dir = TempDir::new()?;
    fs::write(dir.path().join("precious"), "data")?;
    let output = xtask(["build", "--prefix", &dir.path().to_string_lossy()]).run()?;
    output.expect(1, &["is not empty, and was not made by this toolkit", "choose a directory of its own"])?;
    ensure!(fs::read_to_string(dir.path().join("precious"))? == "data", "it was changed");
    xtask(["build", "--prefix", "/tmp/two words"]).run()?.expect(1, &["cannot cope with"])
}

fn a_patch_that_needs_an_offset_is_refused() -> Result<()> {
    refuses_the_patch(|text| {
        // `@@ -317,3 +317,3 @@`, of a hunk that does not begin at the first line.
        let header = |line: &&str| {
            line.starts_with("@@ -") && !line.starts_with("@@ -0,") && !line.starts_with("@@ -1,")
        };
        let header = text.lines().find(header)?;
        let (before, rest) = header.strip_prefix("@@ -")?.split_once(',')?;
        let (length, rest) = rest.split_once(" +")?;
        let (after, rest) = rest.split_once(',')?;
        let [before, after] = [before, after].map(|line| line.parse::<u32>().unwrap_or_default() - 1);
        Some(text.replacen(header, &format!("@@ -{before},{length} +{after},{rest}"), 1))
    })
}

fn a_patch_that_needs_fuzz_is_refused() -> Result<()> {
    refuses_the_patch(|text| {
        let (header, hunk) = text.split_once("\n@@ -")?;
        // A line of context that has something in it.
        let context = hunk.lines().skip(1).find(|line| line.starts_with(' ') && line.len() > 4)?;
        let hunk = hunk.replacen(context, &format!("{context} /* changed */"), 1);
        Some(format!("{header}\n@@ -{hunk}"))
    })
}

/// Checks that the series is refused when `spoil` has changed one of its patches, and applied when that is undone. The patch is the
/// last one that can be spoiled.
fn refuses_the_patch(spoil: impl Fn(&str) -> Option<String>) -> Result<()> {
    let checkout = Checkout::new()?;
    let series = support::series()?;
    let spoiled = series.iter().rev().find_map(|Patch { name, .. }| {
        let good = fs::read_to_string(checkout.series().join(name)).ok()?;
        let bad = spoil(&good).filter(|bad| *bad != good)?;
        Some((name, good, bad))
    });
    let (name, good, bad) = spoiled.context("no patch can be spoiled")?;
    let file = checkout.series().join(name);
    fs::write(&file, bad)?;
    let output = checkout.xtask(["build"]).run()?;
    output.expect(4, &[&format!("{name} does not apply exactly"), "CONTRIBUTING.md"])?;
    ensure!(!checkout.work("patched").join("prefix").exists(), "there is a prefix");

    fs::write(&file, good)?;
    let mut next = checkout.xtask(["build"]).start()?;
    let log = checkout.work("patched").join("logs/autoreconf.log");
    next.wait_until("the step after the patches", || log.exists())?;
    next.interrupt()?.expect(130, &[&format!("{} patches, no fuzz, no offset", series.len())])
}

fn a_patch_that_is_not_listed_is_refused() -> Result<()> {
    let checkout = Checkout::new()?;
    fs::write(checkout.series().join("0099-forgotten.patch"), "")?;
    checkout.xtask(["build"]).run()?.expect(1, &["does not list 0099-forgotten.patch"])
}

fn a_step_that_fails_shows_the_end_of_its_log() -> Result<()> {
    let checkout = Checkout::new()?;
    let output =
        checkout.xtask(["build", "--variant", "stock", "--", "--with-ssh=maybe", "CC=false"]).run()?;
    output.expect(
        1,
        &[
            "configure failed",
            "C compiler cannot create executables",
            "the whole log: ",
            "logs/configure.log",
        ],
    )
}

fn stock_builds() -> Result<()> {
    builds("stock")
}

fn patched_builds() -> Result<()> {
    builds("patched")
}

fn keys_builds() -> Result<()> {
    builds("keys")
}

fn builds(variant: &str) -> Result<()> {
    let output = xtask(["build", "--variant", variant]).run()?;
    output.expect(0, &[])?;
    let prefix = support::prefix(variant);
    ensure!(Path::new(output.stdout.trim()) == prefix, "it says {:?}", output.stdout);
    let version = Command::new(prefix.join("sbin/guacd"))
        .arg("-v")
        .env("LD_LIBRARY_PATH", prefix.join("lib"))
        .output()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let stated = stated_version(&prefix.with_file_name("pristine"))?;
    ensure!(version.contains(&format!("version {stated}")), "guacd says {version:?}");

    let manifest = fs::read(prefix.with_file_name("prefix.manifest.json"))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    ensure!(manifest["variant"] == variant && manifest["release"] == *release().version, "{manifest:#}");
    let patches = manifest["patches"].as_array().map(Vec::len);
    let expected = match variant {
        "stock" => 0,
        "keys" => support::series()?.iter().filter(|patch| patch.group == KEYS).count(),
        _ => support::series()?.len(),
    };
    ensure!(patches == Some(expected), "{manifest:#}");
    let protocols = manifest["protocols"].as_array().context("no protocols")?;
    ensure!(protocols.iter().any(|protocol| protocol == "ssh"), "{manifest:#}");

    let share = prefix.join("share/guacd-uncapped");
    let bill: serde_json::Value = serde_json::from_slice(&fs::read(share.join("sbom.cdx.json"))?)?;
    let components = bill["components"].as_array().context("no components")?;
    for patch in manifest["patches"].as_array().into_iter().flatten() {
        let listed = |one: &&serde_json::Value| one["name"] == patch["name"];
        let component = components.iter().find(listed);
        let component = component.with_context(|| format!("{patch} is not in the bill of materials"))?;
        ensure!(component["hashes"][0]["content"] == patch["sha256"], "{component:#}");
    }
    let lists = |name: &str| components.iter().any(|one| one["name"] == name);
    ensure!(lists("tls-rs") == (variant != "stock") && lists("guacamole-server"), "{bill:#}");
    let files = components.iter().flat_map(|one| one["properties"].as_array().into_iter().flatten());
    let libc = |property: &serde_json::Value| property["value"] == "libc.so.6";
    ensure!(files.into_iter().any(libc) || lists("libc.so.6"), "no libc in the bill of materials");
    for license in [
        "guacd-uncapped/LICENSE",
        "guacd-uncapped/NOTICE",
        "guacamole-server/LICENSE",
        "guacamole-server/NOTICE",
    ] {
        ensure!(share.join("licenses").join(license).is_file(), "{license} is missing");
    }
    Ok(())
}

/// The version that an unpacked source gives itself.
fn stated_version(source: &Path) -> Result<String> {
    let text = fs::read_to_string(source.join("configure.ac"))?;
    let stated = text.split_once("AC_INIT([guacamole-server], [").and_then(|(_, rest)| rest.split_once(']'));
    Ok(stated.context("configure.ac has no AC_INIT")?.0.to_owned())
}

fn nothing_to_do_is_said_in_under_a_second() -> Result<()> {
    let mut best = Duration::MAX;
    // The machine may be busy with something else.
    for _ in 0..3 {
        let output = xtask(["build", "--variant", "patched"]).run()?;
        output.expect(0, &["nothing has changed"])?;
        best = best.min(output.took);
    }
    ensure!(best < Duration::from_secs(1), "it took {best:?}");
    Ok(())
}

fn an_interruption_leaves_nothing_and_the_next_run_continues() -> Result<()> {
    let dir = TempDir::new()?;
    let (target, prefix) = (dir.path().join("target"), dir.path().join("guacd"));
    let prefix_argument = prefix.to_string_lossy();
    let arguments = [&["build", "--prefix", &prefix_argument, "--"][..], SMALL].concat();
    let build = || xtask(&arguments).env("CARGO_TARGET_DIR", &target);
    let log = |step: &str| {
        let works =
            fs::read_dir(target.join("guacd").join(&release().version)).into_iter().flatten().flatten();
        works.into_iter().any(|work| work.path().join("logs").join(format!("{step}.log")).exists())
    };
    for step in ["autoreconf", "tls-rs", "configure", "make", "install"] {
        let started = Descendants::since_now()?;
        let mut running = build().start()?;
        running.wait_until(step, || log(step))?;
        // Into the middle of it.
        std::thread::sleep(Duration::from_millis(300));
        running.interrupt()?.expect(130, &["interrupted"])?;
        ensure!(!prefix.exists(), "a prefix after {step} was interrupted");
        let left: Vec<_> = fs::read_dir(dir.path())?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left == ["target"], "left next to the prefix: {left:?}");
        // The programs that make has started take a moment to end.
        let have_ended = || started.ensure_gone().is_ok();
        let _ = wait_until("they end", Duration::from_secs(1), have_ended);
        started.ensure_gone().context(step)?;
    }
    let output = build().run()?;
    output.expect(0, &["unpack       unchanged", "configure    unchanged", "protocols: ssh\n"])?;
    let variant = || -> Result<serde_json::Value> {
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join("guacd.manifest.json"))?)?;
        Ok(manifest["variant"].clone())
    };
    ensure!(prefix.join("sbin/guacd").exists() && variant()? == "patched", "no prefix");
    build().run()?.expect(0, &["nothing has changed"])?;

    // Another variant in its place is noticed, though every step before has been done.
    let stock = [&arguments[..1], &["--variant", "stock"], &arguments[1..]].concat();
    xtask(&stock).env("CARGO_TARGET_DIR", &target).run()?.expect(0, &[])?;
    ensure!(variant()? == "stock", "the manifest says {}", variant()?);
    build().run()?.expect(0, &["make         unchanged", "install      done"])?;
    ensure!(variant()? == "patched", "the manifest says {}", variant()?);
    Ok(())
}

fn is_empty(dir: &Path) -> Result<bool> {
    Ok(fs::read_dir(dir)?.next().is_none())
}
