//! POSIX's numbers and types, as glibc and musl have them on every architecture. `sys` adds the functions.

use core::ffi::{c_int, c_uint, c_void};
use core::num::NonZero;

/// An error number. A `Result<(), Errno>` has the layout of the `int` that C returns, with 0 for `Ok`.
pub(crate) type Errno = NonZero<c_int>;

/// POSIX: "lacked the necessary resources to create another key, or the limit [...] has been exceeded".
pub(crate) const EAGAIN: Errno = Errno::new(11).unwrap();
/// POSIX: "insufficient memory exists".
pub(crate) const ENOMEM: Errno = Errno::new(12).unwrap();
/// POSIX: "the key value is invalid".
pub(crate) const EINVAL: Errno = Errno::new(22).unwrap();

/// POSIX asks for at least this many rounds of destructors; glibc and musl both make 4.
pub(crate) const PTHREAD_DESTRUCTOR_ITERATIONS: usize = 4;

/// A native key.
#[allow(non_camel_case_types)]
pub(crate) type pthread_key_t = c_uint;

/// What a key may be created with: called at thread exit with the thread's value.
pub(crate) type Destructor = unsafe extern "C" fn(*mut c_void);
