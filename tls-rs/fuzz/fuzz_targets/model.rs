//! Runs programs that libFuzzer writes, and compares them with the model. It keeps those that reach new branches of
//! `tls-rs`.

#![no_main]

#[path = "../../tests/program/bytes.rs"]
mod bytes;
#[path = "../../tests/program/mod.rs"]
mod program;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let steps = bytes::decode(bytes);
    if let Err(wrong) = program::run(&steps) {
        panic!("{wrong} in {steps:#?}");
    }
});
