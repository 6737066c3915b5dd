//! The few functions of libc that the library uses, declared here so that it depends on nothing else.

use core::ffi::{c_int, c_void};

pub(crate) use crate::posix::*;

unsafe extern "C" {
    pub(crate) fn calloc(count: usize, size: usize) -> *mut c_void;
    pub(crate) fn free(memory: *mut c_void);
    pub(crate) fn pthread_key_create(key: *mut pthread_key_t, destructor: Option<Destructor>) -> c_int;
    pub(crate) fn pthread_key_delete(key: pthread_key_t) -> c_int;
    #[cfg(not(any(miri, all(test, loom))))]
    pub(crate) fn pthread_setcanceltype(kind: c_int, before: *mut c_int) -> c_int;
    pub(crate) fn pthread_setspecific(key: pthread_key_t, value: *const c_void) -> c_int;
}
