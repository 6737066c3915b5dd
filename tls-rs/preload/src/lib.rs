//! `pthread_key_create` without libc's cap on keys, for a program that cannot be built anew.
//!
//! An `LD_PRELOAD` library: the dynamic linker finds the functions of [`ffi`] before libc's. So `tls-rs` keeps all
//! keys of the process, whoever creates them. Its modules are compiled into this library as they are, over another
//! `ffi` and another `sys`. What is different from `tls-rs` in libguac:
//!
//! - **Keys have 31 bits**, see `key.rs`: 1,048,543 can live at once. A key's number is never issued again here
//!   either, so a cell of the registry is used up after 1023 keys, and a process gets EAGAIN once it has deleted
//!   a billion, those included that its parent had when it forked.
//! - **Everybody calls it**: constructors that run before this library's, and allocators in the middle of their
//!   first `malloc`. So memory comes from the kernel, in pages, and libc is asked for nothing but the native key
//!   that tells when a thread ends. `errno` stays as it is, even when memory has run out.
//! - **It needs no particular libc.** `dlsym` is the one symbol that it asks for, without a version. The same file
//!   can be loaded by musl and by glibc, from 2.34 on: before, `pthread_key_create` was not in libc itself, and C++'s
//!   library took it for a sign that libpthread is there.
//!
//! Calls that libc makes within itself do not come here, nor do those of a program that is linked statically.

#![no_std]

// For the tests, and for where `root` needs it.
#[cfg(any(test, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
extern crate std;

mod config;
pub mod ffi;
mod sys;

#[path = "../../src/exit.rs"]
mod exit;
#[path = "../../src/key.rs"]
mod key;
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

/// Nothing here panics, but a `no_std` library must say what would happen.
#[cfg(all(feature = "library", panic = "abort", any(target_arch = "x86_64", target_arch = "aarch64")))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        safe fn abort() -> !;
    }
    abort()
}
