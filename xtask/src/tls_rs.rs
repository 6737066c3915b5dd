//! How is `tls-rs` compiled, and in which form does upstream's build get it?

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{digest, layout, run, ui};

/// A digest of everything that the library is made from.
pub fn digest_of_inputs() -> Result<String> {
    digest::files(
        &layout::root(),
        &["Cargo.lock", "Cargo.toml", "tls-rs/Cargo.toml", "tls-rs/include", "tls-rs/src"],
    )
}

/// Compiles the static library, and lays it out as `dir/lib` and `dir/include`.
pub fn build(progress: &ui::Step, log: &Path, dir: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = layout::target_dir();
    let command = duct::cmd!(
        cargo,
        "rustc",
        "--locked",
        "--package=tls-rs",
        "--profile=staticlib",
        "--crate-type=staticlib",
        "--features=staticlib",
        "--target-dir",
        &target
    )
    .dir(layout::root());
    run::logged(progress, "compiling tls-rs", command, log)?;
    copy(&target.join("staticlib/libtls_rs.a"), &dir.join("lib/libtls_rs.a"))?;
    let headers = layout::root().join("tls-rs/include");
    for header in ["guacamole/thread-local.h", "guacamole/private/thread-local-error.h"] {
        copy(&headers.join(header), &dir.join("include").join(header))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &PathBuf) -> Result<()> {
    let copied = to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::copy(from, to));
    copied.map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
