//! Which files does a package have? A prefix that runs from any directory, and around it what a system looks for: the systemd
//! unit, guacd among the system's programs, its manual, and the plugins where FreeRDP finds them.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use fs_err::os::unix::fs::symlink;
use fs_err::{self as fs, File};
use tempfile::TempDir;

use crate::build::guacd::{self, Setup, Variant};
use crate::host::tools::Need;
use crate::host::{files, install, layout};
use crate::source::release::Release;
use crate::ui;

/// The path of the prefix in a package.
pub const HOME: &str = "usr/lib/guacd-uncapped";

/// Writes the files of a package to the new directory `dir`, for a tool that packs them.
///
/// # Errors
///
/// When the directory is there and not empty; [`crate::failure::Failure::Preflight`] when a tool is missing; any other when the
/// build fails.
pub fn build(release: &Release, setup: &Setup, dir: &Path) -> Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    let is_empty = !dir.exists() || fs::read_dir(&dir)?.next().is_none();
    ensure!(is_empty, "{} is not empty: remove it, or choose another directory", dir.display());
    install::preflight(&[Need::Package], &[], setup.install)?;
    let prefix = guacd::build(release, Variant::Patched, setup, &guacd::Options::default())?;
    let step = ui::Step::start("tree");
    files::create_parent(&dir)?;
    let stage =
        TempDir::with_prefix_in(".guacd-", dir.parent().context("a tree needs a directory to be in")?)?;
    let root = stage.path().join("root");
    let home = stage_prefix(&prefix, &root)?;
    make_relocatable(&home)?;
    add_system_files(&root, "usr/bin")?;
    if dir.exists() {
        fs::remove_dir(&dir)?;
    }
    fs::rename(&root, &dir)?;
    step.done(dir.display());
    Ok(dir)
}

/// Copies a prefix to its place below `root`. Returns the path of the copy.
pub fn stage_prefix(prefix: &Path, root: &Path) -> Result<PathBuf> {
    let home = root.join(HOME);
    files::create_parent(&home)?;
    duct::cmd!("cp", "-a", prefix, &home).run().context("cannot copy the prefix")?;
    Ok(home)
}

/// Removes what guacd does not need at run time, and makes its files find their libraries by relative paths.
pub fn make_relocatable(home: &Path) -> Result<()> {
    fs::remove_dir_all(home.join("include"))?;
    for (dir, library_path) in [("sbin", "$ORIGIN/../lib"), ("bin", "$ORIGIN/../lib"), ("lib", "$ORIGIN")] {
        for entry in fs::read_dir(home.join(dir))? {
            let path = entry?.path();
            if path.is_symlink() {
                continue;
            }
            if path.extension().is_some_and(|extension| extension == "a" || extension == "la") {
                fs::remove_file(&path)?;
                continue;
            }
            for command in [
                duct::cmd!("strip", "--strip-unneeded", &path),
                duct::cmd!("patchelf", "--set-rpath", library_path, &path),
            ] {
                command.run().with_context(|| format!("cannot make {} relocatable", path.display()))?;
            }
        }
    }
    Ok(())
}

/// Adds to the tree below `root` what a system looks for outside of the prefix. `bin` is the directory of guacd's name among the
/// system's programs.
pub fn add_system_files(root: &Path, bin: &str) -> Result<()> {
    let link = |to: &str, at: &Path| -> Result<()> {
        files::create_parent(at)?;
        Ok(symlink(to, at)?)
    };
    let unit = root.join("usr/lib/systemd/system/guacd.service");
    files::create_parent(&unit)?;
    files::copy(&layout::root().join("packaging/guacd.service"), &unit, 0o644)?;
    link("../lib/guacd-uncapped/sbin/guacd", &root.join(bin).join("guacd"))?;
    for page in ["man5/guacd.conf.5", "man8/guacd.8"] {
        let text = fs::read(root.join(HOME).join("share/man").join(page))?;
        let path = root.join(format!("usr/share/man/{page}.gz"));
        files::create_parent(&path)?;
        let mut gzip = GzBuilder::new().mtime(0).write(File::create(&path)?, Compression::best());
        gzip.write_all(&text)?;
        gzip.finish()?;
    }
    // FreeRDP looks for plugins in its own directory only.
    if let Some(dir) = guacd::freerdp_plugin_dir() {
        for plugin in ["libguac-common-svc-client.so", "libguacai-client.so"] {
            link(&format!("/{HOME}/lib/{plugin}"), &root.join(dir.trim_start_matches('/')).join(plugin))?;
        }
    }
    Ok(())
}
