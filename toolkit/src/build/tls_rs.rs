//! How is `tls-rs` compiled for upstream's build?

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use fs_err as fs;

use crate::build::steps::Running;
use crate::host::digest::{self, Hasher};
use crate::host::{files, layout, run};

/// Environment variables that change what cargo compiles.
const ENVIRONMENT: [&str; 3] = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER"];

/// What the names of the library's own objects begin with. `nix/tls-rs.nix` keeps the same objects.
pub const OWN_OBJECTS: &str = "tls_rs-";

/// A digest of the library's sources and of the environment variables that affect it, but not of the compiler.
pub fn digest_of_inputs() -> Result<String> {
    let files = ["Cargo.lock", "Cargo.toml", "tls-rs/Cargo.toml", "tls-rs/include", "tls-rs/src"];
    let mut hasher = Hasher::default();
    hasher.add(digest::files(&layout::root(), &files)?);
    for name in ENVIRONMENT {
        hasher.add(std::env::var_os(name).unwrap_or_default().as_encoded_bytes());
    }
    hasher.add(OWN_OBJECTS);
    Ok(hasher.finish())
}

/// The arguments of cargo that compile the static library. `nix/tls-rs.nix` repeats them.
pub fn cargo_arguments(offline: bool) -> Vec<&'static str> {
    let mut arguments = vec!["rustc", "--locked", "--package=tls-rs", "--profile=staticlib"];
    arguments.extend(["--crate-type=staticlib", "--features=staticlib"]);
    if offline {
        arguments.push("--offline");
    }
    // tls-rs/Cargo.toml explains it.
    arguments.extend(["--", "-Cllvm-args=-align-all-functions=6"]);
    arguments
}

/// Compiles the static library, and puts it and its headers into `dir/lib` and `dir/include`, as configure's `--with-tls-rs`
/// expects them.
pub fn build(step: &Running<'_>, dir: &Path, offline: bool) -> Result<()> {
    // The arguments say it if cargo has to be offline.
    step.run("compiling tls-rs", layout::cargo(&cargo_arguments(offline), false))?;
    let archive = dir.join("lib/libtls_rs.a");
    copy(&layout::target_dir().join("staticlib/libtls_rs.a"), &archive)?;
    remove_foreign_objects(step, &archive)?;
    let headers = layout::root().join("tls-rs/include");
    for header in ["guacamole/thread-local.h", "guacamole/private/thread-local-error.h"] {
        copy(&headers.join(header), &dir.join("include").join(header))?;
    }
    Ok(())
}

/// Removes the objects that are not the library's own. rustc adds `compiler_builtins`, which defines `fmod`, `sqrt` and the
/// like. musl's symbols have no versions, so for libcairo the linker would take the functions in this archive and not musl's.
fn remove_foreign_objects(step: &Running<'_>, archive: &Path) -> Result<()> {
    let list = duct::cmd!("ar", "t", archive).read();
    let list = list.with_context(|| format!("cannot list the objects of {}", archive.display()))?;
    let (own, foreign): (Vec<_>, Vec<_>) = list.lines().partition(|name| name.starts_with(OWN_OBJECTS));
    ensure!(!own.is_empty(), "{} has no object whose name begins with {OWN_OBJECTS}", archive.display());
    if foreign.is_empty() {
        return Ok(());
    }
    let words =
        [OsStr::new("dD"), archive.as_os_str()].into_iter().chain(foreign.into_iter().map(OsStr::new));
    step.run("removing compiler_builtins", duct::cmd("ar", words))
}

/// The crates in the library, as `NAME vVERSION`: itself and its dependencies.
pub fn crates(offline: bool) -> Result<BTreeSet<String>> {
    let tree =
        ["tree", "--locked", "--package=tls-rs", "--features=staticlib", "--edges=normal", "--prefix=none"];
    let text =
        run::read("cargo tree", layout::cargo(&tree, offline)).context("cannot list what tls-rs links")?;
    // A path, or a mark for a crate that was listed before, follows the version.
    Ok(text.lines().map(|line| line.split(" (").next().unwrap_or(line).to_owned()).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    files::create_parent(to)?;
    fs::copy(from, to)?;
    Ok(())
}
