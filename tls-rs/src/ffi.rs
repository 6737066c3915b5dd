//! The C API, as `include/guacamole/thread-local.h` declares and documents it.

use core::ffi::{c_int, c_void};

use crate::lookup;
use crate::registry::REGISTRY;
use crate::spare;
use crate::sys::{EINVAL, Errno};

// Libguac's own calls go straight to these functions, without the jump through a table that calls of an exported function
// take otherwise: protected symbols are exported, and nothing else can take their place within the library.
#[cfg(not(miri))]
core::arch::global_asm!(
    ".protected guac_thread_local_key_create",
    ".protected guac_thread_local_key_delete",
    ".protected guac_thread_local_setspecific",
    ".protected guac_thread_local_getspecific",
    ".protected guac_thread_local_slot",
);

/// `guac_thread_local_key_t`.
pub type Key = usize;

/// `guac_thread_local_destructor_t`; `None` is NULL.
pub type Destructor = Option<unsafe extern "C-unwind" fn(*mut c_void)>;

/// Creates a key, as `pthread_key_create` does. `EAGAIN`, `ENOMEM`, or `EINVAL` if `key` is NULL.
///
/// # Safety
///
/// `key` is NULL or may be written to. `destructor` may be called with any value that a thread sets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn guac_thread_local_key_create(key: *mut Key, destructor: Destructor) -> c_int {
    if key.is_null() {
        return EINVAL.get();
    }
    match spare::take() {
        // SAFETY: not NULL, and the caller promises the rest.
        Some(free) => unsafe { key.write(free.publish(destructor)) },
        // SAFETY: the same.
        None => return unsafe { create_from_registry(key, destructor) },
    }
    0
}

/// Creates a key for a thread that has no spare cell.
///
/// # Safety
///
/// `key` may be written to.
#[cold]
#[inline(never)]
unsafe fn create_from_registry(key: *mut Key, destructor: Destructor) -> c_int {
    match REGISTRY.take() {
        Ok(free) => {
            // SAFETY: the caller's promise.
            unsafe { key.write(free.publish(destructor)) };
            0
        }
        Err(error) => error.get(),
    }
}

/// Deletes a key, as `pthread_key_delete` does. `EINVAL` if it is not alive.
#[unsafe(no_mangle)]
pub extern "C" fn guac_thread_local_key_delete(key: Key) -> c_int {
    status(spare::delete(key))
}

/// Sets this thread's value, as `pthread_setspecific` does. `ENOMEM`, or `EINVAL` if `key` is not alive.
#[unsafe(no_mangle)]
pub extern "C" fn guac_thread_local_setspecific(key: Key, value: *const c_void) -> c_int {
    status(lookup::set(key, value.cast_mut()))
}

/// This thread's value, as `pthread_getspecific` gives it. NULL if there is none or `key` is not alive.
#[unsafe(no_mangle)]
pub extern "C" fn guac_thread_local_getspecific(key: Key) -> *mut c_void {
    lookup::get(key)
}

/// The location of this thread's value, to be read and written until the thread sets a value of another key. NULL if the
/// thread has set none, or `key` is not alive.
#[unsafe(no_mangle)]
pub extern "C" fn guac_thread_local_slot(key: Key) -> *mut *mut c_void {
    lookup::slot(key)
}

fn status(result: Result<(), Errno>) -> c_int {
    result.map_or_else(Errno::get, |()| 0)
}
