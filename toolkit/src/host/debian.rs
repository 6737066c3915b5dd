//! How is a root of Debian's packages made? By mmdebstrap, of which nothing is left, however it ends.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::host::run::{self, WhenInterrupted};
use crate::ui;

/// Has the root trust the host's own certificate authorities: there may be a proxy of theirs before the network.
pub const CERTIFICATES: [&str; 3] = [
    "--include=ca-certificates",
    "--customize-hook=cp -r /usr/local/share/ca-certificates \"$1\"/usr/local/share/",
    "--customize-hook=chroot \"$1\" update-ca-certificates",
];

/// What it says when something is missing that it cannot do without, and what to do about it.
const ADVICE: [(&str, &str); 4] = [
    (NO_NAME, NO_NETWORK),
    ("Could not connect to", NO_NETWORK),
    ("Unable to connect to", NO_NETWORK),
    ("No space left on device", "make room, or set CARGO_TARGET_DIR to another disk"),
];

/// What apt-get says without a network.
pub const NO_NAME: &str = "Temporary failure resolving";

const NO_NETWORK: &str =
    "Debian's packages come from the network: connect it, or set http_proxy to a proxy that has one";

/// Runs `mmdebstrap --variant=minbase ARGUMENTS SUITE TARGET` as root, with its output in the new file `log`.
pub fn mmdebstrap(step: &ui::Step, arguments: &[&str], suite: &str, target: &Path, log: &Path) -> Result<()> {
    let parent = log.parent().unwrap_or(Path::new("."));
    fs::write(log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let scratch = TempDir::with_prefix_in("mmdebstrap-", parent)?;
    // In namespaces of its own: what it mounts and starts goes with them, and then its files can.
    let words = ["--mount", "--pid", "--fork", "--kill-child", "mmdebstrap", "--variant=minbase"];
    let words = words.iter().chain(arguments).chain([&suite]).map(OsString::from);
    let command = duct::cmd("unshare", words.chain([target.into()])).env("TMPDIR", scratch.path());
    let ran = run::logged(step, "mmdebstrap", command, log, WhenInterrupted::End);
    run::advise(ran, log, &ADVICE)
}

/// A path as a word of the shell's, for hooks.
pub fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}
