//! How is `tls-rs` compiled, and in which form does upstream's build get it?

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::build::steps::Running;
use crate::host::digest::{self, Hasher};
use crate::host::layout;

/// Variables that change what cargo makes of it.
const ENVIRONMENT: [&str; 3] = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER"];

/// A digest of everything that the library is made from, but for the compiler.
pub fn digest_of_inputs() -> Result<String> {
    let files = ["Cargo.lock", "Cargo.toml", "tls-rs/Cargo.toml", "tls-rs/include", "tls-rs/src"];
    let mut hasher = Hasher::default();
    hasher.add(digest::files(&layout::root(), &files)?);
    for name in ENVIRONMENT {
        hasher.add(std::env::var_os(name).unwrap_or_default().as_encoded_bytes());
    }
    Ok(hasher.finish())
}

/// The arguments of cargo that compile the static library. Those of `nix/tls-rs.nix` are the same.
pub fn cargo_arguments(offline: bool) -> Vec<&'static str> {
    let mut arguments = vec!["rustc", "--locked", "--package=tls-rs", "--profile=staticlib"];
    arguments.extend(["--crate-type=staticlib", "--features=staticlib"]);
    if offline {
        arguments.push("--offline");
    }
    // See tls-rs/Cargo.toml.
    arguments.extend(["--", "-Cllvm-args=-align-all-functions=6"]);
    arguments
}

/// Compiles the static library, and lays it out as `dir/lib` and `dir/include`.
pub fn build(step: &Running<'_>, dir: &Path, offline: bool) -> Result<()> {
    step.run("compiling tls-rs", layout::cargo(&cargo_arguments(offline), false))?;
    let target = layout::target_dir();
    copy(&target.join("staticlib/libtls_rs.a"), &dir.join("lib/libtls_rs.a"))?;
    let headers = layout::root().join("tls-rs/include");
    for header in ["guacamole/thread-local.h", "guacamole/private/thread-local-error.h"] {
        copy(&headers.join(header), &dir.join("include").join(header))?;
    }
    Ok(())
}

/// The crates that the library is made of, as `NAME vVERSION`: itself, and what it would link if it had dependencies.
pub fn crates(offline: bool) -> Result<BTreeSet<String>> {
    let tree =
        ["tree", "--locked", "--package=tls-rs", "--features=staticlib", "--edges=normal", "--prefix=none"];
    let text = layout::cargo(&tree, offline).stderr_null().read().context("cannot list what tls-rs links")?;
    // A path, or a mark that it has been listed before, stands behind it.
    Ok(text.lines().map(|line| line.split(" (").next().unwrap_or(line).to_owned()).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::copy(from, to));
    copied.map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
