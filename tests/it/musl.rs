//! Does libguac link with `tls-rs` where libc is musl?

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::support;

crate::tests! {
    Source:
        libguac_links_with_musl;
}

/// As libcairo does: where libc's symbols have no versions, the linker takes any `fmod` for this one.
const NEEDS_FMOD: &str = "double fmod(double, double); double rest(double x) { return fmod(x, 3); }";

const LIBGUAC: &str = "
    int guac_thread_local_key_create(unsigned long* key, void (*destructor)(void*));
    double rest(double x);
    int create(void) { unsigned long key; return guac_thread_local_key_create(&key, 0) + rest(5); }";

fn libguac_links_with_musl() -> Result<()> {
    let archive = support::built("patched")?.with_file_name("tls-rs").join("lib/libtls_rs.a");
    let linked = link(&archive)?;
    ensure!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));

    // In the whole archive that rustc makes, the linker finds another `fmod`, which needs more of Rust's runtime.
    let whole = support::target_dir().join("staticlib/libtls_rs.a");
    let error = String::from_utf8(link(&whole)?.stderr)?;
    ensure!(error.contains("rust_eh_personality"), "the whole archive: {error}");
    Ok(())
}

/// Links and runs a program with a library such as libguac in it.
fn link(archive: &Path) -> Result<Output> {
    let dir = TempDir::new()?;
    for (name, source) in [
        ("cairo", NEEDS_FMOD),
        ("guac", LIBGUAC),
        ("main", "int create(void); int main(void) { return create() != 2; }"),
    ] {
        fs::write(dir.path().join(name).with_extension("c"), source)?;
    }
    let steps = [
        "musl-gcc -shared -fPIC -o libcairo.so cairo.c",
        "musl-gcc -shared -fPIC -o libguac.so guac.c -L. -lcairo -Wl,$archive -Wl,-z,nodelete",
        "musl-gcc -o main main.c -L. -lguac -Wl,-rpath,. -Wl,-rpath-link,.",
        "./main",
    ];
    let mut shell = Command::new("sh");
    shell.args(["-c", &steps.join(" && ")]).current_dir(dir.path()).env("archive", archive);
    Ok(shell.output()?)
}
