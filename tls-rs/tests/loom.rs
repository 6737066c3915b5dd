//! Do the models in `src/registry/loom_models.rs` notice when the registry is wrong? Bugs are planted in copies of
//! the crate, and each must fail the model that is there for it. See there for how to run this.

#![cfg(loom)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A bug, and the model that must fail.
struct Bug {
    name: &'static str,
    /// What to replace in `registry.rs`, each of which is there once.
    changes: &'static [(&'static str, &'static str)],
    caught_by: &'static str,
}

const BUGS: [Bug; 12] = [
    Bug {
        name: "the head of the free list has no generation",
        changes: &[(
            "let above = cell.key.load(Relaxed);",
            "let above = key::index(cell.key.load(Relaxed)) as usize;",
        )],
        caught_by: "a_cell_that_comes_back_to_the_free_list_is_not_taken_for_what_it_was",
    },
    Bug {
        name: "the generation is not looked at again after the destructor",
        changes: &[("if !self.is_live(key) {\n            return None;\n        }", "let _ = key;")],
        caught_by: "a_value_never_gets_the_destructor_of_a_later_key",
    },
    Bug {
        name: "the destructor is read before what tells its key",
        changes: &[("self.destructor.load(Acquire)", "self.destructor.load(Relaxed)")],
        caught_by: "a_value_never_gets_the_destructor_of_a_later_key",
    },
    Bug {
        name: "the destructor is written before its cell is free",
        changes: &[("|f| f as *mut ()), Release)", "|f| f as *mut ()), Relaxed)")],
        caught_by: "a_value_never_gets_the_destructor_of_a_later_key",
    },
    Bug {
        name: "a link of the free list is written before its cell is free",
        changes: &[("without_provenance_mut(head), Release)", "without_provenance_mut(head), Relaxed)")],
        caught_by: "a_value_never_gets_a_link_of_the_free_list_for_a_destructor",
    },
    Bug {
        name: "a key is published before its destructor",
        changes: &[("cell.key.swap(key, Release)", "cell.key.swap(key, Relaxed)")],
        caught_by: "who_finds_a_key_alive_finds_its_destructor",
    },
    Bug {
        name: "a key is found before its destructor",
        changes: &[("cell.key.load(Acquire) == key", "cell.key.load(Relaxed) == key")],
        caught_by: "who_finds_a_key_alive_finds_its_destructor",
    },
    Bug {
        name: "a free cell is published before its generation",
        changes: &[(
            "compare_exchange_weak(head, above, Release, Relaxed)",
            "compare_exchange_weak(head, above, Relaxed, Relaxed)",
        )],
        caught_by: "a_deleted_cell_passes_from_thread_to_thread",
    },
    Bug {
        name: "a free cell is taken before its generation is known",
        changes: &[
            ("let mut head = self.free.load(Acquire)", "let mut head = self.free.load(Relaxed)"),
            (
                "compare_exchange_weak(head, below, Acquire, Acquire)",
                "compare_exchange_weak(head, below, Relaxed, Relaxed)",
            ),
        ],
        caught_by: "a_deleted_cell_passes_from_thread_to_thread",
    },
    Bug {
        name: "a bucket is published before its cells",
        changes: &[(
            "compare_exchange(ptr::null_mut(), cells, AcqRel, Acquire)",
            "compare_exchange(ptr::null_mut(), cells, Relaxed, Relaxed)",
        )],
        caught_by: "threads_that_need_a_bucket_share_it",
    },
    Bug {
        name: "a key can be deleted twice",
        changes: &[(
            "cell.key.compare_exchange(key, dead, AcqRel, Relaxed).map_err(|_| EINVAL)?;",
            "if cell.key.load(Acquire) != key { return Err(EINVAL); }\n        cell.key.store(dead, Release);",
        )],
        caught_by: "of_threads_that_delete_the_same_key_one_succeeds",
    },
    Bug {
        name: "an index can be taken twice",
        changes: &[(
            "match self.fresh.compare_exchange_weak(index, index + 1, Relaxed, Relaxed) {",
            "self.fresh.store(index + 1, Relaxed);\n            match Ok::<u32, u32>(index) {",
        )],
        caught_by: "threads_that_need_a_bucket_share_it",
    },
];

#[test]
fn the_loom_models_catch_planted_bugs() {
    let (passed, failed) = run_models(&[]);
    assert!(passed && failed.is_empty(), "without a bug, these fail: {failed:?}");
    let mut missed = Vec::new();
    for bug in BUGS {
        let (_, failed) = run_models(bug.changes);
        if !failed.iter().any(|model| model == bug.caught_by) {
            missed.push(format!("{}: caught by {failed:?}", bug.name));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// Runs the models on a copy of the crate with these changes. Returns whether all is well, and which have failed.
fn run_models(changes: &[(&str, &str)]) -> (bool, Vec<String>) {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR")).join("loom");
    let dir = copy_of_the_crate(&tmp);
    let registry = dir.join("src/registry.rs");
    let mut source = fs::read_to_string(&registry).unwrap();
    for (from, to) in changes {
        assert_eq!(source.matches(from).count(), 1, "registry.rs has changed, look for {from:?}");
        source = source.replace(from, to);
    }
    fs::write(&registry, source).unwrap();

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

/// The crate's sources in a workspace of their own, with what they have been locked to.
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
