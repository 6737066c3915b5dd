//! Where are the checkout, cargo's output and the user's cache? And how is cargo run on this workspace?

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use duct::Expression;

/// The root of the checkout.
pub fn root() -> PathBuf {
    // `cargo run` sets the variable, so a checkout that was moved after xtask was compiled is still found.
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let is_ours = package.join("../upstream.toml").is_file();
    let package = if is_ours { package } else { PathBuf::from(env!("CARGO_MANIFEST_DIR")) };
    package.parent().map_or_else(|| package.clone(), PathBuf::from)
}

/// Cargo's output directory: CARGO_TARGET_DIR, or `target` in the checkout. Everything that is built goes below it.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The directory of sources and libraries that all checkouts of the user share: `guacd-uncapped` in `$XDG_CACHE_HOME`, or in
/// `~/.cache`.
///
/// # Errors
///
/// When neither `XDG_CACHE_HOME` nor `HOME` is an absolute path.
pub fn cache_dir() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let cache = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .context("no cache directory: set HOME or XDG_CACHE_HOME to an absolute path")?;
    Ok(cache.join("guacd-uncapped"))
}

/// Prepares a run of cargo on this workspace, with its output in [`target_dir`].
pub fn cargo(arguments: &[&str], offline: bool) -> Expression {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = duct::cmd(cargo, arguments)
        .dir(root())
        .env("CARGO_TARGET_DIR", target_dir())
        // Its output would be in a directory with the target's name.
        .env_remove("CARGO_BUILD_TARGET");
    for name in variables_of_a_package() {
        command = command.env_remove(name);
    }
    if offline { command.env("CARGO_NET_OFFLINE", "true") } else { command }
}

/// The environment variables that cargo has set for the package that this program belongs to. They must not reach another run
/// of cargo: some build scripts run again when they change, and what depends on those is compiled anew, for this user of
/// the target directory and for the next.
pub fn variables_of_a_package() -> impl Iterator<Item = OsString> {
    let is_of_a_package = |name: &OsString| {
        name.to_str().is_some_and(|name| {
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|prefix| name.starts_with(prefix))
                || ["CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"].contains(&name)
        })
    };
    std::env::vars_os().map(|(name, _)| name).filter(is_of_a_package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_cargo_knows_nothing_of_the_package_that_starts_it() {
        let names: Vec<_> = variables_of_a_package().collect();
        for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION_MAJOR"] {
            assert!(names.contains(&name.into()), "{name}");
        }
        assert!(!names.contains(&"PATH".into()));
    }
}
