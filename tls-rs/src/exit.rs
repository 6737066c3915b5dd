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

use hook::thread_exit;

use crate::key;
use crate::registry::REGISTRY;
use crate::root::Root;
use crate::sys::{self, Destructor, ENOMEM, Errno, PTHREAD_DESTRUCTOR_ITERATIONS, pthread_key_t};
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

/// The destructors of this thread's values are called in rounds, and in each round by the index of their keys, as glibc and
/// musl do. So a destructor may set the value of a later key, and that is destroyed in the same round.
///
/// The keys of a round wait in the table's queue. Keys that are created during the round must wait for the next one, or it
/// might never end. POSIX: "If, after all the destructors have been called for all non-NULL values with associated
/// destructors, there are still some [...], then the process is repeated."
///
/// A destructor may end the thread, through `pthread_exit` or cancellation. glibc then unwinds the frames of its callers,
/// and musl abandons them, and both may call the hook again. So the hook has its value while destructors run, and the
/// thread's root says how far the rounds are. It has none while the last value is destroyed, as glibc goes through all native
/// keys once more if a destructor has set any, even if only to NULL again. The table is dropped first, and the first value
/// that the destructor sets arms the hook.
///
/// Values without a destructor stay until the last of these destructors has run, and are dropped then: destructors of
/// native keys that libc calls later do not see them. (glibc and musl clear such values in between. POSIX leaves it
/// open.) Destructors of other libraries may still set values. The first value that needs a destructor or memory arms
/// the hook again, and libc calls this again in its next round. Memory for values that are set in libc's last round is
/// lost.
extern "C" fn begin() {
    let root = Root::current();
    root.set_armed(false); // libc has set the hook's value to NULL before it called this
    root.set_changing(None); // asynchronous cancellation may have ended `set`
}

/// The destructor to be called next. Writes its value to `value`. If there is none, resets the thread's storage to what it
/// was at the start.
extern "C" fn next(value: &mut *mut c_void) -> Option<Destructor> {
    let root = Root::current();
    root.set_changing(Some(Root::current_table()));
    let next = next_of(root);
    root.set_changing(None);
    let (taken, destructor) = next?;
    *value = taken;
    Some(destructor)
}

/// The same, with the value.
fn next_of(root: &Root) -> Option<(*mut c_void, Destructor)> {
    loop {
        while let Some(key) = next_key(root) {
            let table = Root::current_table();
            let Some(taken) = table.take(key) else { continue };
            if table.has_values() {
                let _ = arm(root); // if it fails, the destructor must not end the thread
            } else {
                drop_table(root);
            }
            root.progress.called.set(true);
            return Some(taken);
        }
        if !begin_round(root) {
            break;
        }
    }
    drop_table(root);
    root.set_ended();
    None
}

/// Frees what the thread has, so that libc need not call the hook again unless a value is set.
fn drop_table(root: &Root) {
    let table = Root::current_table();
    Root::exchange_table(Table::none());
    root.set_changing(Some(Table::none())); // a signal handler must no longer look into the old table
    root.progress.queued.set(0); // the queue was in the table
    root.release(table);
    if let Some(spare) = root.take_spare() {
        REGISTRY.give_back(spare);
    }
}

/// Begins a round, unless there are no values, or the last round has called no destructor, or it was the last that POSIX
/// requires.
fn begin_round(root: &Root) -> bool {
    let progress = &root.progress;
    let rounds = progress.rounds.get();
    let again = rounds == 0 || progress.called.get() && usize::from(rounds) < PTHREAD_DESTRUCTOR_ITERATIONS;
    let again = again && Root::current_table().has_values();
    progress.rounds.set(if again { rounds + 1 } else { 0 });
    progress.called.set(false);
    progress.last.set(0);
    progress.end.set(if again { REGISTRY.end() } else { 0 });
    if again {
        queue_all(root);
    }
    again
}

/// Removes the first key from the queue.
fn next_key(root: &Root) -> Option<usize> {
    let progress = &root.progress;
    let left = progress.queued.get().checked_sub(1)?;
    progress.queued.set(left);
    let key = Root::current_table().pop(left as usize);
    progress.last.set(key::index(key));
    Some(key)
}

/// Whether `key` has its turn later in this round of thread exit, if there is one.
#[inline]
fn is_due(root: &Root, key: usize) -> bool {
    (root.progress.last.get() + 1..root.progress.end.get()).contains(&key::index(key))
}

/// Puts a key that has just been added to the thread's table into the queue, if thread exit runs and is to find it.
#[inline]
pub(crate) fn queue(root: &Root, key: usize) {
    if is_due(root, key) {
        let (table, queued) = (Root::current_table(), root.progress.queued.get());
        if queued as usize == table.len() {
            return queue_all(root); // many are dead
        }
        table.push(queued as usize, key);
        root.progress.queued.set(queued + 1);
    }
}

/// Fills the queue anew, for another round or another table.
pub(crate) fn queue_all(root: &Root) {
    let table = Root::current_table();
    let mut queued = 0;
    for key in table.keys().filter(|key| is_due(root, *key)) {
        table.push(queued as usize, key);
        queued += 1;
    }
    root.progress.queued.set(queued);
}

// Calls the destructors. No Rust function may be among their callers, as it must not be unwound: this library is compiled
// with panic=abort, and without a personality routine.
#[cfg(all(not(miri), any(target_arch = "x86_64", target_arch = "aarch64")))]
mod hook {
    use super::c_void;

    #[cfg(target_arch = "x86_64")]
    core::arch::global_asm!(
        ".pushsection .text.guac_thread_local_exit,\"ax\",@progbits",
        ".globl guac_thread_local_exit",
        ".hidden guac_thread_local_exit",
        ".type guac_thread_local_exit, @function",
        "guac_thread_local_exit:",
        ".cfi_startproc",
        "sub rsp, 24",
        ".cfi_adjust_cfa_offset 24",
        "call {begin}",
        "2:",
        "lea rdi, [rsp + 8]",
        "call {next}",
        "test rax, rax",
        "je 3f",
        "mov rdi, qword ptr [rsp + 8]",
        "call rax",
        "jmp 2b",
        "3:",
        "add rsp, 24",
        ".cfi_adjust_cfa_offset -24",
        "ret",
        ".cfi_endproc",
        ".size guac_thread_local_exit, . - guac_thread_local_exit",
        ".popsection",
        begin = sym super::begin,
        next = sym super::next,
    );

    #[cfg(target_arch = "aarch64")]
    core::arch::global_asm!(
        ".pushsection .text.guac_thread_local_exit,\"ax\",@progbits",
        ".globl guac_thread_local_exit",
        ".hidden guac_thread_local_exit",
        ".type guac_thread_local_exit, @function",
        ".balign 4",
        "guac_thread_local_exit:",
        ".cfi_startproc",
        "stp x29, x30, [sp, #-32]!",
        ".cfi_def_cfa_offset 32",
        ".cfi_offset x29, -32",
        ".cfi_offset x30, -24",
        "mov x29, sp",
        "bl {begin}",
        "2:",
        "add x0, sp, #16",
        "bl {next}",
        "cbz x0, 3f",
        "mov x9, x0",
        "ldr x0, [sp, #16]",
        "blr x9",
        "b 2b",
        "3:",
        "ldp x29, x30, [sp], #32",
        ".cfi_restore x29",
        ".cfi_restore x30",
        ".cfi_def_cfa_offset 0",
        "ret",
        ".cfi_endproc",
        ".size guac_thread_local_exit, . - guac_thread_local_exit",
        ".popsection",
        begin = sym super::begin,
        next = sym super::next,
    );

    unsafe extern "C-unwind" {
        #[link_name = "guac_thread_local_exit"]
        pub(super) fn thread_exit(root: *mut c_void);
    }
}

/// The same in Rust, for other architectures and for Miri. The destructor is called as one that does not unwind: otherwise
/// rustc adds code to this function that aborts when `pthread_exit` or cancellation unwinds it. The function has nothing to
/// drop. So unwinding it does no harm in practice, but Rust does not promise that.
#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod hook {
    use super::{begin, c_void, next, ptr};

    pub(super) unsafe extern "C-unwind" fn thread_exit(_root: *mut c_void) {
        begin();
        let mut value = ptr::null_mut();
        while let Some(destructor) = next(&mut value) {
            // Miri knows the types of functions, and calls no destructor that ends the thread.
            #[cfg(not(miri))]
            // SAFETY: the types differ in what rustc makes of a call only.
            let destructor: unsafe extern "C" fn(*mut c_void) = unsafe { core::mem::transmute(destructor) };
            // SAFETY: POSIX's contract between the code that created the key and the code that set the value.
            unsafe { destructor(value) };
        }
    }
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

    unsafe extern "C-unwind" fn free_number(value: *mut c_void) {
        // SAFETY: `allocated_number` made it.
        FREED.fetch_add(unsafe { *std::boxed::Box::from_raw(value.cast::<usize>()) }, Relaxed);
    }

    fn allocated_number() -> *mut c_void {
        std::boxed::Box::into_raw(std::boxed::Box::new(1_usize)).cast()
    }

    /// Sets values for more keys than the table that thread exit walks over has room for.
    unsafe extern "C-unwind" fn set_more(value: *mut c_void) {
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
        unsafe extern "C-unwind" fn nothing(_: *mut c_void) {}
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
