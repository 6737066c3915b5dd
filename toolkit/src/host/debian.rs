//! How is a root directory made from Debian's packages? By mmdebstrap, in its own namespaces.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::failure::Failure;
use crate::host::files;
use crate::host::run::{self, WhenInterrupted};
use crate::ui;

/// Arguments of mmdebstrap that make the root trust the certificate authorities that were added to this machine: a proxy may
/// use one.
pub const CERTIFICATES: [&str; 3] = [
    "--include=ca-certificates",
    "--customize-hook=cp -r /usr/local/share/ca-certificates \"$1\"/usr/local/share/",
    "--customize-hook=chroot \"$1\" update-ca-certificates",
];

/// What mmdebstrap prints when it lacks something, and what to do about it.
const ADVICE: [(&str, &str); 4] = [
    (UNRESOLVED, NO_NETWORK),
    ("Could not connect to", NO_NETWORK),
    ("Unable to connect to", NO_NETWORK),
    ("No space left on device", "make room, or set CARGO_TARGET_DIR to another disk"),
];

/// What apt-get prints when it cannot resolve a host's name, as without a network.
pub const UNRESOLVED: &str = "Temporary failure resolving";

const NO_NETWORK: &str =
    "Debian's packages come from the network: connect this machine to it, or set http_proxy";

/// Checks that a root can be made, which `flags` do.
///
/// # Errors
///
/// [`Failure::Preflight`] without mmdebstrap, or without root.
pub fn preflight(flags: &str) -> Result<()> {
    ensure!(
        run::version_line("mmdebstrap", "--version").is_some(),
        Failure::Preflight("missing here: mmdebstrap\ninstall with: apt-get install mmdebstrap".into())
    );
    ensure!(
        rustix::process::geteuid().is_root(),
        Failure::Preflight(format!("{flags} make roots of Debian's packages, which takes root: run as root"))
    );
    Ok(())
}

/// Runs `mmdebstrap --variant=minbase ARGUMENTS SUITE TARGET`, with its output in the new file `log`. Needs root.
pub fn mmdebstrap(step: &ui::Step, arguments: &[&str], suite: &str, target: &Path, log: &Path) -> Result<()> {
    files::begin_log(log)?;
    let scratch = TempDir::with_prefix_in("mmdebstrap-", log.parent().unwrap_or(Path::new(".")))?;
    // In its own namespaces: when they end, so does all that it mounted and started, and its files can be removed.
    let words = ["--mount", "--pid", "--fork", "--kill-child", "mmdebstrap", "--variant=minbase"];
    let words = words.iter().chain(arguments).chain([&suite]).map(OsString::from);
    let command = duct::cmd("unshare", words.chain([target.into()])).env("TMPDIR", scratch.path());
    let ran = run::logged(step, "mmdebstrap", command, log, WhenInterrupted::End);
    run::advise(ran, log, &ADVICE)
}

/// Quotes a path for the shell that runs mmdebstrap's hooks.
pub fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}
