//! What happens when a thread ends, and how libc is made to call it.
//!
//! Libc calls the destructor of one native key, the hook. The library creates it when it is loaded, before others can
//! use up all native keys. POSIX runs the destructor of a native key on return, on `pthread_exit` and on cancellation,
//! in the main thread too, and not on `exit`. That is what keys need. (`__cxa_thread_atexit_impl` does the opposite in
//! the main thread.)

use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{AcqRel, Acquire};

use crate::registry::REGISTRY;
use crate::root::Root;
use crate::sys::{self, ENOMEM, Errno, PTHREAD_DESTRUCTOR_ITERATIONS, pthread_key_t};
use crate::table::Table;

/// The native key plus one, or 0 while there is none.
static HOOK: AtomicUsize = AtomicUsize::new(0);

/// Creates the native key when the library is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static CREATE_HOOK: extern "C" fn() = {
    extern "C" fn create_hook() {
        let _ = hook(); // if it fails, the first thread that needs the hook tries again
    }
    create_hook
};

/// Makes sure that libc calls `thread_exit` when this thread, whose root is `root`, ends. Fails with `ENOMEM`.
pub(crate) fn arm(root: &Root) -> Result<(), Errno> {
    if root.is_armed() {
        return Ok(());
    }
    let hook = hook().ok_or(ENOMEM)?;
    // SAFETY: the hook is a native key that is never deleted.
    if unsafe { sys::pthread_setspecific(hook, ptr::from_ref(root).cast()) } != 0 {
        return Err(ENOMEM);
    }
    root.set_armed(true);
    Ok(())
}

/// The native key whose destructor is `thread_exit`.
fn hook() -> Option<pthread_key_t> {
    // Acquire: glibc stores a key's destructor after it has taken the key. That store must be visible here.
    let taken = HOOK.load(Acquire);
    if taken != 0 {
        return Some((taken - 1) as pthread_key_t);
    }
    let mut key = 0;
    // SAFETY: `key` may be written to.
    if unsafe { sys::pthread_key_create(&mut key, Some(thread_exit)) } != 0 {
        return None;
    }
    match HOOK.compare_exchange(0, key as usize + 1, AcqRel, Acquire) {
        Ok(_) => Some(key),
        Err(taken) => {
            // SAFETY: another thread was faster, so no other thread knows of this key.
            unsafe { sys::pthread_key_delete(key) };
            Some((taken - 1) as pthread_key_t)
        }
    }
}

/// Runs the destructors of this thread's values, then resets the thread's storage to what it was at the start.
///
/// Values without a destructor stay until the last of these destructors has run, and are dropped then: destructors of
/// native keys that libc calls later do not see them. (glibc and musl clear such values in between. POSIX leaves it
/// open.) Destructors of other libraries may still set values. The first value that needs a destructor or memory arms
/// the hook again, and libc calls this again in its next round. Memory for values that are set in libc's last round is
/// lost.
unsafe extern "C" fn thread_exit(_root: *mut c_void) {
    let root = Root::current();
    // POSIX: "If, after all the destructors have been called for all non-NULL values with associated
    // destructors, there are still some [...], then the process is repeated."
    for _ in 0..PTHREAD_DESTRUCTOR_ITERATIONS {
        if !run_destructors(root) {
            break;
        }
    }
    let table = Root::current_table();
    Root::exchange_table(Table::none());
    root.release(table);
    if let Some(spare) = root.take_spare() {
        REGISTRY.give_back(spare);
    }
    root.set_armed(false); // libc has set the hook's value to NULL before it called this
    root.set_ended();
}

/// One round: calls the destructor of each value at most once. Returns whether it called any.
fn run_destructors(root: &Root) -> bool {
    let table = Root::current_table();
    let mut any = false;
    // A destructor may set values, and so replace the table. The round goes over the slots of the table that it began
    // with. Otherwise it might never end.
    root.set_walked(Some(table));
    for key in table.keys() {
        if let Some((value, destructor)) = Root::current_table().take(key) {
            any = true;
            // SAFETY: POSIX's contract between the code that created the key and the code that set the value. The
            // destructor may end the thread, through `pthread_exit` or cancellation: glibc then unwinds this frame and
            // that of `thread_exit`, musl abandons them. They have unwind tables, nothing to drop and nothing that
            // catches. The memory of the thread's table is lost.
            unsafe { destructor(value) };
        }
    }
    root.set_walked(None);
    if Root::current_table() != table {
        root.release(table);
    }
    any
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering::Relaxed;
    use std::thread;
    use std::vec::Vec;

    use super::*;
    use crate::{lookup, spare};

    /// Enough to replace the table, several times unless under Miri, which is slow.
    const MORE: usize = if cfg!(miri) { 2 } else { 100 };

    static FREED: AtomicUsize = AtomicUsize::new(0);

    unsafe extern "C" fn free_number(value: *mut c_void) {
        // SAFETY: `allocated_number` made it.
        FREED.fetch_add(unsafe { *std::boxed::Box::from_raw(value.cast::<usize>()) }, Relaxed);
    }

    fn allocated_number() -> *mut c_void {
        std::boxed::Box::into_raw(std::boxed::Box::new(1_usize)).cast()
    }

    /// Sets values for more keys than the table that thread exit walks over has room for.
    unsafe extern "C" fn set_more(value: *mut c_void) {
        for _ in 0..MORE {
            lookup::set(spare::create(Some(free_number)).unwrap(), allocated_number()).unwrap();
        }
        // SAFETY: as `free_number` asks.
        unsafe { free_number(value) };
    }

    #[test]
    fn each_value_is_destroyed_once_though_destructors_replace_the_table() {
        for values in if cfg!(miri) { &[1, 25][..] } else { &[1, 12, 25] } {
            FREED.store(0, Relaxed);
            thread::spawn(move || {
                for _ in 0..*values {
                    lookup::set(spare::create(Some(set_more)).unwrap(), allocated_number()).unwrap();
                }
            })
            .join()
            .unwrap();
            assert_eq!(FREED.load(Relaxed), values * (MORE + 1));
        }
    }

    #[test]
    fn thread_exit_resets_the_threads_storage() {
        unsafe extern "C" fn nothing(_: *mut c_void) {}
        thread::spawn(|| {
            for count in [1, 12, if cfg!(miri) { 30 } else { 100 }] {
                let keys: Vec<_> = (0..count).map(|_| spare::create(Some(nothing)).unwrap()).collect();
                for key in &keys {
                    lookup::set(*key, ptr::dangling_mut()).unwrap();
                }
                // SAFETY: what libc calls when the thread ends.
                unsafe { thread_exit(ptr::null_mut()) };
                assert!(Root::current_table() == Table::none());
                assert!(keys.iter().all(|key| lookup::get(*key).is_null()));
            }
        })
        .join()
        .unwrap();
    }
}
