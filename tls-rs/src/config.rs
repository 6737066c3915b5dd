//! What this library chooses, and the preload library chooses differently.

/// How many bits of a key are in use: all of a `guac_thread_local_key_t`.
pub(crate) const KEY_BITS: u32 = usize::BITS;
