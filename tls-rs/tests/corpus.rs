//! The programs that the fuzzer has found worth keeping, run again: `fuzz/corpus` reaches every branch that any program
//! of the fuzzer's has reached. For how to fuzz, see `fuzz/Cargo.toml`.

#![cfg(not(miri))]

#[path = "program/bytes.rs"]
mod bytes;
mod program;

use std::fs;

/// The only test here, for the reason that `model.rs` gives.
#[test]
fn no_program_of_the_fuzzers_tells_the_keys_from_posix_ones() {
    let mut programs: Vec<_> =
        fs::read_dir("fuzz/corpus/model").unwrap().map(|file| file.unwrap().path()).collect();
    programs.sort();
    assert!(programs.len() > 20, "the corpus is gone: {programs:?}");
    for program in programs {
        let steps = bytes::decode(&fs::read(&program).unwrap());
        program::run(&steps).unwrap_or_else(|wrong| panic!("{}: {wrong}", program.display()));
    }
}
