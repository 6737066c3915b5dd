//! What happens when a thread ends.
//!
//! Libc says when that is: it calls the destructor of one native key, taken when the library is loaded, before
//! most others can use them all up. A native key it must be: POSIX runs its destructor on return, on
//! `pthread_exit` and on cancellation, for the main thread too, and not on `exit`. (`__cxa_thread_atexit_impl`
//! would do the opposite for the main thread.)

use core::ffi::c_void;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{AcqRel, Acquire};

use crate::root::Root;
use crate::sys::{self, PTHREAD_DESTRUCTOR_ITERATIONS, pthread_key_t};
use crate::table::{self, Table};

/// The native key plus one, or 0 as long as there is none.
static HOOK: AtomicUsize = AtomicUsize::new(0);

/// Takes the native key when the library is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static TAKE_HOOK: extern "C" fn() = {
    extern "C" fn take_hook() {
        let _ = hook(); // if it fails, then the first thread that needs it tries again
    }
    take_hook
};

/// The native key whose destructor is `thread_exit`.
pub(crate) fn hook() -> Option<pthread_key_t> {
    // Acquire: glibc notes a key's destructor after it has taken the key, so that must have been seen.
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
            // SAFETY: another thread was faster, so nobody has seen ours.
            unsafe { sys::pthread_key_delete(key) };
            Some((taken - 1) as pthread_key_t)
        }
    }
}

/// Runs the destructors of this thread's values, then leaves the thread as it began.
///
/// Values without a destructor stay until the last destructor of ours has run, then go too: destructors of
/// native keys that libc calls later do not see them. (glibc and musl clear such values in between, POSIX says
/// nothing of it.) Other libraries' destructors may still set values. The first that needs a destructor or
/// memory sets the hook again, and libc, which has more than one round as well, calls this again. Memory for values
/// that are set in libc's last round is lost.
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
    root.spare.give_back();
    root.disarm();
    root.end();
}

/// One round: calls the destructor of each value at most once. Says whether there was any.
fn run_destructors(root: &Root) -> bool {
    let table = Root::current_table();
    let mut any = false;
    // A destructor may set values, and so move the table. The round is over the positions of the one that it
    // began with, or it might never end.
    root.set_walked(Some(table));
    for key in table.keys() {
        if let Some((value, destructor)) = table::take(key) {
            any = true;
            // SAFETY: POSIX's contract between who created the key and who set the value. The destructor may end the
            // thread, by `pthread_exit` or because it is cancelled: libc then unwinds this frame and that of
            // `thread_exit`, or leaves them (musl). They have nothing to drop, and unwind tables, and nothing here
            // catches. What the thread's table took is lost.
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
    use crate::spare;

    /// Enough to make the table move, several times unless under Miri, which is slow.
    const MORE: usize = if cfg!(miri) { 2 } else { 100 };

    static FREED: AtomicUsize = AtomicUsize::new(0);

    unsafe extern "C" fn free_number(value: *mut c_void) {
        // SAFETY: `allocated_number` made it.
        FREED.fetch_add(unsafe { *std::boxed::Box::from_raw(value.cast::<usize>()) }, Relaxed);
    }

    fn allocated_number() -> *mut c_void {
        std::boxed::Box::into_raw(std::boxed::Box::new(1_usize)).cast()
    }

    /// Sets values for more keys than the table that is being walked has room for.
    unsafe extern "C" fn set_more(value: *mut c_void) {
        for _ in 0..MORE {
            table::set(spare::create(Some(free_number)).unwrap(), allocated_number()).unwrap();
        }
        // SAFETY: as `free_number` asks.
        unsafe { free_number(value) };
    }

    #[test]
    fn each_value_is_taken_once_though_destructors_move_the_table() {
        for values in if cfg!(miri) { &[1, 25][..] } else { &[1, 12, 25] } {
            FREED.store(0, Relaxed);
            thread::spawn(move || {
                for _ in 0..*values {
                    table::set(spare::create(Some(set_more)).unwrap(), allocated_number()).unwrap();
                }
            })
            .join()
            .unwrap();
            assert_eq!(FREED.load(Relaxed), values * (MORE + 1));
        }
    }

    #[test]
    fn a_thread_is_left_as_it_began() {
        unsafe extern "C" fn nothing(_: *mut c_void) {}
        thread::spawn(|| {
            for count in [1, 12, if cfg!(miri) { 30 } else { 100 }] {
                let keys: Vec<_> = (0..count).map(|_| spare::create(Some(nothing)).unwrap()).collect();
                for key in &keys {
                    table::set(*key, core::ptr::dangling_mut()).unwrap();
                }
                // SAFETY: what libc calls when the thread ends.
                unsafe { thread_exit(core::ptr::null_mut()) };
                assert!(Root::current_table() == Table::none());
                assert!(keys.iter().all(|key| table::get(*key).is_null()));
            }
        })
        .join()
        .unwrap();
    }
}
