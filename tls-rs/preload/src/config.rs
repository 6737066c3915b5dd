//! What this library chooses, and `tls-rs` chooses differently.

/// How many bits of a key are in use: 11 for its generation, 20 for its index. The highest bit stays 0, as programs
/// keep keys in an `int`: CPython's `PyThread_create_key` fails if the key does not fit.
pub(crate) const KEY_BITS: u32 = 31;
