//! `pthread_key_create` without libc's cap on keys, for a program that cannot be rebuilt.
//!
//! This is an `LD_PRELOAD` library: the dynamic linker finds the functions of [`ffi`] before libc's. So all keys of the
//! process are kept by the code of `tls-rs`, whichever library creates them. The files of `tls-rs` are compiled into this
//! library unchanged, with its own files `config`, `ffi` and `sys`. The differences from `tls-rs` in libguac:
//!
//! - **Keys have 31 bits**, see `config.rs` and `key.rs`: 1,048,543 keys can be alive at once. A key's number is never
//!   issued again here either. So a cell of the registry is used up after 1023 keys, and a process gets EAGAIN once it has
//!   deleted a billion keys, those included that its parent had deleted when it forked.
//! - **Every library calls it**: constructors that run before this library's own, and allocators in the middle of their
//!   first `malloc`. So memory comes from the kernel, in pages, and the only things taken from libc are its functions for
//!   native keys, as one native key tells when a thread ends, and `pthread_setcanceltype`. `errno` is left alone, even when memory has run out.
//! - **It works with any libc.** `dlsym` is the one symbol that it needs, without a version. Both musl and glibc, from
//!   2.34 on, can load the same file. (Before, `pthread_key_create` was not in libc itself, and libstdc++ took its presence
//!   as a sign that libpthread was loaded.)
//!
//! Calls that libc makes to its own functions do not reach this library, nor do those of a statically linked program.

#![no_std]

// For the tests, and for the root on other architectures.
#[cfg(any(test, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
extern crate std;

mod config;
pub mod ffi;
mod sys;

#[path = "../../src/exit.rs"]
mod exit;
#[path = "../../src/key.rs"]
mod key;
#[path = "../../src/lookup.rs"]
mod lookup;
#[path = "../../src/posix.rs"]
mod posix;
#[path = "../../src/registry.rs"]
mod registry;
#[path = "../../src/root.rs"]
mod root;
#[path = "../../src/spare.rs"]
mod spare;
#[path = "../../src/sync.rs"]
mod sync;
#[path = "../../src/table.rs"]
mod table;

/// Nothing in this library panics, but a `no_std` library must have a panic handler.
#[cfg(all(feature = "library", panic = "abort", any(target_arch = "x86_64", target_arch = "aarch64")))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        safe fn abort() -> !;
    }
    abort()
}
