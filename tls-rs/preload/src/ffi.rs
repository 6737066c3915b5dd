//! Libc's functions for keys, under every name that glibc and musl export.
//!
//! Where POSIX leaves the behaviour undefined, it is that of glibc: with a key that is not alive, `pthread_getspecific`
//! returns NULL and the other functions return EINVAL. Unit tests do not export these names, as the test program needs
//! libc's functions.

use core::ffi::{c_int, c_void};

use crate::lookup;
use crate::registry::REGISTRY;
use crate::spare;
use crate::sys::{EINVAL, Errno, pthread_key_t};

/// A destructor; `None` is NULL.
pub type Destructor = Option<unsafe extern "C-unwind" fn(*mut c_void)>;

/// `thrd_error` of C11's threads.h, the same in glibc and in musl.
const THRD_ERROR: c_int = 2;

/// `pthread_key_create(3)`. `EAGAIN`, `ENOMEM`, or `EINVAL` if `key` is NULL.
///
/// # Safety
///
/// `key` is NULL or may be written to. `destructor` may be called with any value that a thread sets.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_key_create(key: *mut pthread_key_t, destructor: Destructor) -> c_int {
    if key.is_null() {
        return EINVAL.get();
    }
    match spare::take().map_or_else(|| REGISTRY.take(), Ok) {
        Ok(free) => {
            // SAFETY: not NULL, and the caller promises the rest.
            unsafe { key.write(free.publish(destructor) as pthread_key_t) };
            0
        }
        Err(error) => error.get(),
    }
}

/// `pthread_key_delete(3)`. `EINVAL` if the key is not alive.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn pthread_key_delete(key: pthread_key_t) -> c_int {
    spare::delete(key as usize).map_or_else(Errno::get, |()| 0)
}

/// `pthread_setspecific(3)`. `ENOMEM`, or `EINVAL` if the key is not alive.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn pthread_setspecific(key: pthread_key_t, value: *const c_void) -> c_int {
    lookup::set(key as usize, value.cast_mut()).map_or_else(Errno::get, |()| 0)
}

/// `pthread_getspecific(3)`. NULL if there is no value or the key is not alive.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn pthread_getspecific(key: pthread_key_t) -> *mut c_void {
    lookup::get(key as usize)
}

/// glibc's other name for `pthread_key_create`.
///
/// # Safety
///
/// That of [`pthread_key_create`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __pthread_key_create(key: *mut pthread_key_t, destructor: Destructor) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { pthread_key_create(key, destructor) }
}

/// glibc's other name for `pthread_setspecific`, for programs linked with versions before 2.34.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn __pthread_setspecific(key: pthread_key_t, value: *const c_void) -> c_int {
    pthread_setspecific(key, value)
}

/// glibc's other name for `pthread_getspecific`, for programs linked with versions before 2.34.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn __pthread_getspecific(key: pthread_key_t) -> *mut c_void {
    pthread_getspecific(key)
}

/// C11's `tss_create`: `thrd_success`, or `thrd_error` on any error.
///
/// # Safety
///
/// That of [`pthread_key_create`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn tss_create(key: *mut pthread_key_t, destructor: Destructor) -> c_int {
    // SAFETY: the caller's promise.
    thrd(unsafe { pthread_key_create(key, destructor) })
}

/// C11's `tss_delete`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn tss_delete(key: pthread_key_t) {
    pthread_key_delete(key);
}

/// C11's `tss_set`: `thrd_success`, or `thrd_error` on any error.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn tss_set(key: pthread_key_t, value: *mut c_void) -> c_int {
    thrd(pthread_setspecific(key, value))
}

/// C11's `tss_get`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn tss_get(key: pthread_key_t) -> *mut c_void {
    pthread_getspecific(key)
}

/// C11's status for a POSIX error number.
fn thrd(status: c_int) -> c_int {
    if status == 0 { 0 } else { THRD_ERROR }
}
