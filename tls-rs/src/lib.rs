//! Thread-local storage without libc's cap on keys, for libguac.
//!
//! A process can have 1024 keys with glibc and 128 with musl, and each connection of guacd takes two. This library has
//! POSIX's four functions for keys under its own names ([`ffi`], and `include/guacamole/thread-local.h` for C), with
//! as many keys as memory allows. It becomes a part of `libguac.so`, and knows nothing of guacd. `POSIX.md` lists what
//! POSIX requires, with the test for each clause.
//!
//! # From a key to its value
//!
//! ```text
//! key (a number)          generation + spread | index                        key.rs
//!
//! registry, shared        32 cells   bucket 0: 64   bucket 1: 128   ...      registry.rs
//!   cell                  key while it is alive, destructor
//!
//! one per thread          pointer to the table                               root.rs
//!   root                  thread exit | armed | ended | changing | spare cell | inline table
//!   table                 shift, mask, used | slot slot slot ...             table.rs
//!   slot                  key, value, pointer to the key's cell
//! ```
//!
//! The **registry** knows which keys exist. Keys are created from a cell and deleted again and again, and each time the
//! generation of the cell goes up by one: it is odd while a key is alive. The key contains the generation in which it was
//! created. So a deleted key is dead for ever, and the values that threads have set for it are dead with it: no thread
//! needs to be told. A thread keeps one cell of a key that it has deleted, for the next key that it creates (`spare.rs`).
//!
//! The **table** of a thread holds the values that this thread has set. Its size follows the keys that the thread uses,
//! and not those that exist. `get` (`lookup.rs`) reads the pointer to the table, which takes two instructions on x86_64 and
//! four on aarch64, as it is a variable in static thread-local storage. Five bits of the key say which slot to look at. It
//! compares the key with that in the slot and with that in the cell. In a thread with few values, that is all: the table
//! chooses the five bits so that its keys differ in them. (If two keys share a slot nevertheless, one of them is found by a
//! search, which takes up to twice as long.) `set` does the same if the key has a slot. If not, it asks the registry whether
//! the key is alive, and adds an entry. 16 values always fit into the inline table, and up to 24 if it has no slots of
//! deleted keys. After that the table is allocated. When it is full, the values of live keys move to another.
//!
//! When a thread ends, libc calls the destructor of the one native key that the library has (`exit.rs`). That runs the
//! destructors of the thread's values, by the index of their keys. Only threads that have something to destroy or to free set a value for this key.
//!
//! `guac_error` needs no key: it is two variables in thread-local storage (`error.rs`).
//!
//! # Which file uses which
//!
//! Each file uses only files below it:
//!
//! ```text
//! ffi       the C API
//! lookup    get and set            spare     create and delete
//! exit      thread exit
//! root      where the thread's storage lies
//! table     the values of a thread
//! registry  the keys of the process
//! key       sync   config   sys   posix
//! ```
//!
//! The preload library compiles the same files, with its own `config`, `sys` and `ffi`.
//!
//! # Fork
//!
//! guacd forks while its other threads run, and only the thread that forks goes on in the child. A lock that another
//! thread held would stay locked there for ever, so there is none. Each change to the registry is one atomic instruction,
//! and between any two of them the child can use it. At worst, the cells that other threads had just taken or kept as
//! their spare are never used again. A table belongs to one thread, and no thread forks in the middle of its own call.
//! Memory comes from `calloc`, which glibc and musl (since 1.2.2) keep usable in the child of a process with threads.
//!
//! # Signals
//!
//! `get` allocates nothing, takes no lock and writes nothing. It may interrupt the thread anywhere, in `set` too: see
//! `table.rs`. The other functions are not async-signal-safe. Neither are POSIX's. But programs call `pthread_setspecific`
//! in signal handlers, and the preload library must not corrupt their memory. So `set` notices when it interrupts a change
//! of the thread's table. It then sets values of keys that have an entry, and adds none. (If signals were blocked, it could
//! add entries. But that takes two system calls, 400 ns, for each key that a thread sets for the first time.) (Where `std` provides the root, see
//! below, the dynamic linker may allocate memory when a thread first uses it, also in `get`.)
//!
//! # What is absent
//!
//! - Locks, see above.
//! - Panics, unwinding and `std`: the library needs six functions of libc and nothing else. A few instructions of assembly
//!   call the destructors, as those may end the thread (`exit.rs`). (On architectures other than x86_64 and aarch64, `std`
//!   provides the root, and the shared library exports three symbols of `std` unless the linker is told otherwise.)
//! - Unloading: libc will call the hook for thread exit, so the shared library must be linked with `-z nodelete`.
//! - Memory that the registry returns: a cell stays, for the next key.

#![no_std]
// The loom models of the registry leave everything else out.
#![cfg_attr(all(test, loom), allow(dead_code))]

// For the tests, and for the root on other architectures.
#[cfg(any(test, miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
extern crate std;

mod config;
mod key;
mod posix;
mod registry;
mod sync;
mod sys;

// The storage of one thread, of which there are no loom models.
#[cfg(not(all(test, loom)))]
mod error;
#[cfg(not(all(test, loom)))]
mod exit;
#[cfg(not(all(test, loom)))]
pub mod ffi;
#[cfg(not(all(test, loom)))]
mod lookup;
#[cfg(not(all(test, loom)))]
mod root;
#[cfg(not(all(test, loom)))]
mod spare;
#[cfg(not(all(test, loom)))]
mod table;

/// Nothing in this library panics, but a `no_std` library must have a panic handler.
#[cfg(all(feature = "staticlib", panic = "abort", any(target_arch = "x86_64", target_arch = "aarch64")))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        safe fn abort() -> !;
    }
    abort()
}
