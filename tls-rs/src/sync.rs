//! The atomics and the memory that the registry uses: those of `core` and libc, or loom's in its models.

#[cfg(not(all(test, loom)))]
pub(crate) use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};

#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};

#[cfg(not(all(test, loom)))]
use crate::sys;

/// Zeroed memory for `count` values of a type for which zeroes are valid, or NULL.
#[cfg(not(all(test, loom)))]
pub(crate) fn allocate_zeroed<T>(count: usize) -> *mut T {
    // SAFETY: calloc may be called at any time, in a forked child too: glibc and musl (since 1.2.2) reset its
    // locks in fork().
    unsafe { sys::calloc(count, size_of::<T>()) }.cast()
}

/// Runs `f`, in which the thread is not cancelled even if its cancellation is asynchronous: that must not happen within
/// `calloc` and `free`, nor while the thread's table is on its stack. There is no cancellation point in `f`. (To disable
/// cancellation is not enough: glibc 2.36 cancels a thread that does so just after another has called `pthread_cancel`.)
#[cfg(not(any(miri, all(test, loom))))]
pub(crate) fn uncancelled<T>(f: impl FnOnce() -> T) -> T {
    let mut before = 0;
    // SAFETY: POSIX allows it at any time, even if cancellation is asynchronous.
    let error = unsafe { sys::pthread_setcanceltype(sys::PTHREAD_CANCEL_DEFERRED, &mut before) };
    let result = f();
    if error == 0 {
        // SAFETY: the same.
        unsafe { sys::pthread_setcanceltype(before, &mut before) };
    }
    result
}

/// Neither Miri nor loom knows cancellation.
#[cfg(any(miri, all(test, loom)))]
pub(crate) fn uncancelled<T>(f: impl FnOnce() -> T) -> T {
    f()
}

/// Frees memory.
///
/// # Safety
///
/// It must come from `allocate_zeroed` with the same `count`, and must not be used again.
#[cfg(not(all(test, loom)))]
pub(crate) unsafe fn free<T>(memory: *mut T, _count: usize) {
    // SAFETY: the caller's promise.
    unsafe { sys::free(memory.cast()) };
}

/// Zeroes are no valid loom atomics, so they are made one by one.
#[cfg(all(test, loom))]
pub(crate) fn allocate_zeroed<T: Default>(count: usize) -> *mut T {
    let all: std::boxed::Box<[T]> = (0..count).map(|_| T::default()).collect();
    std::boxed::Box::into_raw(all).cast()
}

#[cfg(all(test, loom))]
pub(crate) unsafe fn free<T>(memory: *mut T, count: usize) {
    // SAFETY: `allocate_zeroed` has made it from a box.
    drop(unsafe { std::boxed::Box::from_raw(core::ptr::slice_from_raw_parts_mut(memory, count)) });
}
