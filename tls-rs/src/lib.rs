//! Thread-local storage without libc's cap on keys, for libguac.
//!
//! A process has 1024 keys with glibc and 128 with musl, and each of guacd's connections needs two. This
//! library has the four functions of POSIX under another name ([`ffi`], and `include/guacamole/thread-local.h`
//! for C), with as many keys as memory allows. It becomes a part of `libguac.so`, and knows nothing of guacd.
//! `POSIX.md` says which test shows what.
//!
//! # From a key to its value
//!
//! ```text
//! key (a number)          generation | index                                 key.rs
//!
//! registry, shared        32 cells   bucket 0: 64   bucket 1: 128   ...      registry.rs
//!   cell                  key while it lives, destructor
//!
//! one per thread          pointer to its table                               root.rs
//!   root                  walked | armed | spare cell | inline table
//!   table                 multiplier, mask, used | slot slot slot ...        table.rs
//!   slot                  key, value, pointer to the key's cell
//! ```
//!
//! The **registry** knows which keys exist. A cell is created and deleted over and over, and each time its
//! generation goes up by one: odd while a key lives. The key holds the generation it was made in, so a deleted
//! key is dead for ever, and what threads have stored under it is dead with it: nobody needs to be told. A thread
//! keeps one cell of those that it has deleted for the next key that it creates (`spare.rs`).
//!
//! The **table** of a thread holds what this thread has stored, so its size follows the keys that the thread
//! uses and not those that exist. `get` finds the table (two instructions on x86_64 and four on aarch64, for the
//! pointer to it is a variable in static thread-local storage), multiplies the key to find the slot, and compares it
//! with the slot's key and with what the cell says. As long as a thread has few values, that is all: the multiplier is
//! chosen such that no two of its keys get the same slot. `set` does the same if there is a slot. If not, it asks the
//! registry whether the key lives, and adds a slot. 12 values fit into the inline table, and 16 nearly always. After that
//! the table is allocated, and each time that it is full the live values move to another.
//!
//! When a thread ends, libc calls the destructor of the one native key that the library has (`exit.rs`), which
//! runs the destructors of the thread's values. Only threads that have something to destroy or to free take
//! part in that.
//!
//! `guac_error` needs no key: two variables in thread-local storage (`error.rs`).
//!
//! # Fork
//!
//! guacd forks while other threads run, and only the forking thread goes on in the child. A lock that another
//! thread held would stay locked there for ever, so there is none. Each change to the registry is one atomic
//! instruction, and between any two of them it is in a state that the child can use: at worst, the cells
//! that other threads had just taken, or keep for their next key, are never used again. Tables belong to one thread, and a thread does not fork in
//! the middle of its own call. Memory comes from `calloc`, which glibc and musl (since 1.2.2) keep usable in
//! the child of a multi-threaded process.
//!
//! # Signals
//!
//! `get` allocates nothing, takes no lock, writes nothing, and may interrupt the thread anywhere, in `set` too:
//! see `table.rs`. The other functions are not async-signal-safe, nor are POSIX's. (Where `std` provides the root, see
//! below, the dynamic linker may allocate memory when a thread first asks for it, also in `get`.)
//!
//! # What is absent
//!
//! - Locks, see above.
//! - Panics, unwinding and `std`: the library needs five functions of libc and nothing else. (On architectures
//!   other than x86_64 and aarch64, `std` provides the root, and the shared library exports three symbols of
//!   `std` unless the linker is told otherwise.)
//! - Unloading: libc will call the hook for thread exit, so the shared library must be linked with
//!   `-z nodelete`.
//! - Memory that is given back by the registry: a cell stays, to be used by the next key.

#![no_std]
// The models of `registry` leave everything else out.
#![cfg_attr(all(test, loom), allow(dead_code))]

// For the tests, and for where `root` needs it.
#[cfg(any(test, miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
extern crate std;

mod config;
mod key;
mod posix;
mod registry;
mod sync;
mod sys;

// What belongs to one thread, and loom has no models of.
#[cfg(not(all(test, loom)))]
mod error;
#[cfg(not(all(test, loom)))]
mod exit;
#[cfg(not(all(test, loom)))]
pub mod ffi;
#[cfg(not(all(test, loom)))]
mod root;
#[cfg(not(all(test, loom)))]
mod spare;
#[cfg(not(all(test, loom)))]
mod table;

/// Nothing here panics, but a `no_std` library must say what would happen.
#[cfg(all(feature = "staticlib", panic = "abort", any(target_arch = "x86_64", target_arch = "aarch64")))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        safe fn abort() -> !;
    }
    abort()
}
