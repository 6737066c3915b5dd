//! Where do things lie? The checkout, the build output, the user's cache.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use duct::Expression;
use rustix::fs::FlockOperation;

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

/// Keeps a second run of a command, whose files would be the same, out for as long as the result lives.
pub fn lock(command: &str) -> Result<File> {
    let dir = target_dir().join("guacd");
    let path = dir.join(format!("{command}.lock"));
    let file = fs::create_dir_all(&dir).and_then(|()| File::create(&path));
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another `cargo xtask {command}` is at work in {}: wait for it to end", target_dir().display());
    }
    Ok(file)
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

#[cfg(test)]
mod tests {
    #[test]
    fn a_command_runs_once_at_a_time() {
        let first = super::lock("test-of-the-lock").unwrap();
        assert!(super::lock("test-of-the-lock").unwrap_err().to_string().contains("wait for it"));
        drop(first);
        super::lock("test-of-the-lock").unwrap();
    }
}
