//! Which libraries does `LD_PRELOAD` add to guacd? Those of `--preload` and `--key-limit`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use procfs::process::{MMapPath, Process};
use rustix::process::Pid;

use crate::preflight::Preflight;

/// The full path of a library that can be preloaded. `flag` names it, and `build` is the command that makes it.
///
/// # Errors
///
/// When it is not there, or has a path that `LD_PRELOAD` cannot hold.
pub fn find(library: &Path, flag: &str, build: &str) -> Result<PathBuf> {
    if !library.is_file() {
        bail!(Preflight(format!(
            "there is no {}: build it with `{build}`, or name it with {flag}",
            library.display()
        )));
    }
    let library = library.canonicalize().with_context(|| format!("find {}", library.display()))?;
    // ld.so(8): "the items of the list can be separated by spaces or colons, and there is no support for escaping".
    if library.as_os_str().as_encoded_bytes().iter().any(|byte| b" :".contains(byte)) {
        bail!(Preflight(format!(
            "{} cannot be preloaded, because LD_PRELOAD ends a path at a space or a colon: copy the library to \
             another directory, and name it with {flag}",
            library.display()
        )));
    }
    Ok(library)
}

/// The value of `LD_PRELOAD`: the libraries in this order, in which the loader looks for a function, and then those that are
/// preloaded already.
pub fn list(libraries: &[&Path], others: OsString) -> OsString {
    let mut list = OsString::new();
    let libraries = libraries.iter().map(|library| library.as_os_str());
    for library in libraries.chain((!others.is_empty()).then_some(others.as_os_str())) {
        if !list.is_empty() {
            list.push(":");
        }
        list.push(library);
    }
    list
}

/// Whether a process has loaded a library that was found. ld.so only warns about one that it cannot load.
pub fn is_loaded(process: Pid, library: &Path) -> bool {
    let maps = Process::new(process.as_raw_pid()).and_then(|process| process.maps());
    maps.is_ok_and(|maps| {
        maps.iter().any(|map| matches!(&map.pathname, MMapPath::Path(path) if path == library))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_preloaded_already_stays_and_comes_last() {
        let (preload, limit) = (Path::new("/x/libguacd_uncapped.so"), Path::new("/x/libkey_limit.so"));
        assert_eq!(list(&[limit], OsString::new()), "/x/libkey_limit.so");
        assert_eq!(list(&[limit], "liba.so:libb.so".into()), "/x/libkey_limit.so:liba.so:libb.so");
        assert_eq!(
            list(&[preload, limit], "liba.so".into()),
            "/x/libguacd_uncapped.so:/x/libkey_limit.so:liba.so"
        );
    }

    #[test]
    fn a_process_has_the_libraries_that_it_has_loaded() {
        let own = std::env::current_exe().unwrap().canonicalize().unwrap();
        assert!(is_loaded(rustix::process::getpid(), &own));
        assert!(!is_loaded(rustix::process::getpid(), Path::new("/x/libguacd_uncapped.so")));
    }
}
