//! `cargo xtask preload`: does the library remove the limit on keys from a guacd that was not changed?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use guac_stress::report::Run;
use tempfile::TempDir;

use crate::stress::{Stress, stock_keys_of_a_connection};
use crate::support::differences::stock_lacks;
use crate::support::xtask;

crate::tests! {
    Nothing:
        the_library_is_where_it_was_asked_for_and_works,
        a_directory_that_cannot_be_created_is_refused;
    Source:
        stock_stops_at_its_last_key_and_not_with_the_library;
}

fn the_library_is_where_it_was_asked_for_and_works() -> Result<()> {
    let dir = TempDir::new()?;
    let out = dir.path().join("a/b");
    let output = xtask(["preload", "--offline", "--out", &out.to_string_lossy()]).run()?;
    output.expect(0, &["LD_PRELOAD=", "/proc/PID/maps"])?;
    let library = out.canonicalize()?.join("libguacd_uncapped.so");
    ensure!(output.stdout.trim() == library.to_string_lossy(), "{}", output.stdout);
    ensure!(fs::metadata(&library)?.permissions().mode() & 0o777 == 0o755, "others cannot load it");
    ensure!(fs::read_dir(&out)?.count() == 1, "there is something else");
    let maps = Command::new("cat").arg("/proc/self/maps").env("LD_PRELOAD", &library).output()?;
    ensure!(maps.stderr.is_empty(), "{}", String::from_utf8_lossy(&maps.stderr));
    ensure!(String::from_utf8_lossy(&maps.stdout).contains("libguacd_uncapped.so"), "it is not loaded");
    Ok(())
}

fn a_directory_that_cannot_be_created_is_refused() -> Result<()> {
    let output = xtask(["preload", "--offline", "--out", "/proc/guacd"]).run()?;
    output.expect(1, &["failed to create directory `/proc/guacd`"])
}

fn stock_stops_at_its_last_key_and_not_with_the_library() -> Result<()> {
    // Of the 31 keys, SSH takes eleven, and each session takes two or four if each lock has one.
    let load = ["--variant", "stock", "--key-limit", "31", "--count", "20", "--hold", "1s"];
    let run = |code, more: &[&str]| -> Result<Run> {
        let mut report = Stress::new()?.run(code, &[&load[..], more].concat())?;
        report.runs.pop().context("no run")
    };
    let (code, expected) =
        if stock_lacks("0002")? { (5, (31 - 11) / stock_keys_of_a_connection()?) } else { (0, 20) };
    let stock = run(code, &[])?;
    ensure!(stock.proven.abs_diff(expected) <= 2, "stock proved {} and not {expected}", stock.proven);
    let preloaded = run(0, &["--preload"])?;
    ensure!(preloaded.proven == 20, "{preloaded:#?}");
    let guacd = preloaded.guacd.context("no guacd")?;
    let preload = guacd.preload.context("the report names no library")?;
    ensure!(preload.ends_with("libguacd_uncapped.so"), "{preload}");
    let keys = guacd.keys.context("no keys were counted")?;
    ensure!(keys.most_in_a_process == 1 && keys.refusals == 0, "libc was asked for more: {keys:?}");
    Ok(())
}
