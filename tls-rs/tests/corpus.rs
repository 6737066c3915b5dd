//! Runs the programs of the fuzzer's corpus. Together they reach every branch that any of its programs has reached.
//! `fuzz/Cargo.toml` says how to fuzz.

#![cfg(not(miri))]

#[path = "program/bytes.rs"]
mod bytes;
mod program;

use std::fs;

/// The only test here. `model.rs` has the reason.
#[test]
fn no_program_of_the_corpus_can_tell_the_keys_from_posix_ones() {
    let mut programs: Vec<_> =
        fs::read_dir("fuzz/corpus/model").unwrap().map(|file| file.unwrap().path()).collect();
    programs.sort();
    assert!(programs.len() > 20, "the corpus is gone: {programs:?}");
    for program in programs {
        let steps = bytes::decode(&fs::read(&program).unwrap());
        program::run(&steps).unwrap_or_else(|wrong| panic!("{}: {wrong}", program.display()));
    }
}
