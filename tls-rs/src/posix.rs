//! POSIX's numbers and types. They are the same in glibc and musl on every architecture. `sys.rs` has the functions.

use core::ffi::{c_int, c_uint, c_void};
use core::num::NonZero;

/// An error number. A `Result<(), Errno>` has the layout of the `int` that a C function returns: 0 is `Ok`.
pub(crate) type Errno = NonZero<c_int>;

/// POSIX: "lacked the necessary resources to create another key, or the limit [...] has been exceeded".
pub(crate) const EAGAIN: Errno = Errno::new(11).unwrap();
/// POSIX: "insufficient memory exists".
pub(crate) const ENOMEM: Errno = Errno::new(12).unwrap();
/// POSIX: "the key value is invalid".
pub(crate) const EINVAL: Errno = Errno::new(22).unwrap();

/// POSIX requires at least this many rounds of destructors. glibc and musl make 4 as well.
pub(crate) const PTHREAD_DESTRUCTOR_ITERATIONS: usize = 4;

/// For `pthread_setcanceltype`.
#[cfg(not(miri))]
pub(crate) const PTHREAD_CANCEL_DEFERRED: c_int = 0;

/// A native key.
#[allow(non_camel_case_types)]
pub(crate) type pthread_key_t = c_uint;

/// A destructor, called at thread exit with the thread's value. It may end the thread, which unwinds its callers.
pub(crate) type Destructor = unsafe extern "C-unwind" fn(*mut c_void);
