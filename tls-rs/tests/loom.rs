//! Do the models in `src/registry/loom_models.rs` notice when the registry is wrong? Each bug of `bugs/` that loom must
//! see is planted in a copy of the crate, and the model that its patch names must fail. See there for how to run this.

#![cfg(loom)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use planted_bugs::Bug;

#[test]
fn the_loom_models_catch_planted_bugs() {
    let (passed, failed) = run_models(None);
    assert!(passed && failed.is_empty(), "without a bug, these fail: {failed:?}");
    let bugs = planted_bugs::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
    let mut missed = Vec::new();
    for bug in &bugs {
        let Some(model) = bug.seen_by("loom") else { continue };
        let (_, failed) = run_models(Some(bug));
        if !failed.iter().any(|name| name == model) {
            missed.push(format!("{}: {model} passes, and these fail: {failed:?}", bug.name));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// Runs the models on a copy of the crate, with a bug in it or without. Returns whether all is well, and which models have
/// failed.
fn run_models(bug: Option<&Bug>) -> (bool, Vec<String>) {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR")).join("loom");
    let dir = copy_of_the_crate(&tmp);
    if let Some(bug) = bug {
        bug.plant(&tmp).unwrap();
    }

    let output = Command::new(env!("CARGO"))
        .args(["test", "--offline", "--quiet", "--release", "--lib", "--no-fail-fast", "--target-dir"])
        .arg(tmp.join("target"))
        .args(["--", "loom_models", "--format=pretty"])
        .current_dir(&dir)
        .env("RUSTFLAGS", "--cfg loom")
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("running "), "{stdout}\n{stderr}");
    let failed = stdout.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    let failed = failed.map(|name| name.rsplit("::").next().unwrap().to_owned()).collect();
    (output.status.success(), failed)
}

/// The crate's sources in a workspace of their own, with the versions that Cargo.lock pins.
fn copy_of_the_crate(tmp: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tmp.join("tls-rs");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("src/registry")).unwrap();
    for folder in ["src", "src/registry"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, dir.join(folder).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    fs::copy(root.join("../Cargo.lock"), dir.join("Cargo.lock")).unwrap();
    let manifest = "[package]\nname = \"tls-rs\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
        [features]\nstaticlib = []\n\n[dev-dependencies]\nloom = \"0.7\"\n\n[workspace]\n";
    fs::write(dir.join("Cargo.toml"), manifest).unwrap();
    dir
}
