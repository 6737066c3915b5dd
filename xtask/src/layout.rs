//! Where do things lie? The checkout, the build output, the user's cache.

use std::path::PathBuf;

use anyhow::{Context, Result};
use duct::Expression;

/// The root of the checkout.
pub fn root() -> PathBuf {
    // `cargo run` sets the variable, so that a checkout which was moved after xtask was compiled is still found.
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let manifest = xtask.join("../upstream.toml");
    let xtask = if manifest.is_file() { xtask } else { PathBuf::from(env!("CARGO_MANIFEST_DIR")) };
    xtask.parent().map_or_else(|| xtask.clone(), PathBuf::from)
}

/// Cargo's output directory, which everything that is built goes below.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Where sources are kept from one checkout to the next: below `$XDG_CACHE_HOME`, or `~/.cache`.
pub fn cache_dir() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let cache = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .context("no cache directory: set HOME or XDG_CACHE_HOME to an absolute path")?;
    Ok(cache.join("guacd-uncapped"))
}

/// A run of cargo on this workspace, with its output where [`target_dir`] says.
pub fn cargo(arguments: &[&str], offline: bool) -> Expression {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let command = duct::cmd(cargo, arguments)
        .dir(root())
        .env("CARGO_TARGET_DIR", target_dir())
        // It would move the output, to a directory that nobody looks into.
        .env_remove("CARGO_BUILD_TARGET");
    if offline { command.env("CARGO_NET_OFFLINE", "true") } else { command }
}
