//! What the storage needs of the system: memory from the kernel, and functions of libc through `dlsym`.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem;
use core::ptr;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::Relaxed;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

pub(crate) use crate::posix::*;

/// Bytes in front of each block of memory, which hold its length. A whole cache line, so that blocks are aligned to one.
const PREFIX: usize = 64;

/// Zeroed memory, or NULL. Not from libc's `calloc`: an allocator may create a key before it can allocate anything.
pub(crate) unsafe fn calloc(count: usize, size: usize) -> *mut c_void {
    let Some(length) = count.checked_mul(size).and_then(|length| length.checked_add(PREFIX)) else {
        return ptr::null_mut();
    };
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses the address, so nothing is replaced.
    match unsafe { mmap_anonymous(ptr::null_mut(), length, access, MapFlags::PRIVATE) } {
        Ok(memory) => {
            // SAFETY: the memory has at least PREFIX bytes and is aligned to a page.
            unsafe {
                memory.cast::<usize>().write(length);
                memory.byte_add(PREFIX)
            }
        }
        Err(_) => ptr::null_mut(),
    }
}

/// Frees memory that came from `calloc`.
pub(crate) unsafe fn free(memory: *mut c_void) {
    // SAFETY: `calloc` has written the length of the mapping there.
    let _ = unsafe {
        let mapped = memory.byte_sub(PREFIX);
        munmap(mapped, mapped.cast::<usize>().read())
    };
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// `dlsym`'s handle for the libraries after the calling one. It has the same value in glibc and musl.
const RTLD_NEXT: *mut c_void = ptr::without_provenance_mut(usize::MAX);

/// A function of libc, or of a library that is preloaded after this one.
struct Native {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

static KEY_CREATE: Native = Native::new(c"pthread_key_create");
static KEY_DELETE: Native = Native::new(c"pthread_key_delete");
static SETSPECIFIC: Native = Native::new(c"pthread_setspecific");
static SETCANCELTYPE: Native = Native::new(c"pthread_setcanceltype");

impl Native {
    const fn new(name: &'static CStr) -> Native {
        Native { name, found: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Looks the function up. The dynamic linker takes a lock for that.
    fn find(&self) {
        // SAFETY: the name is a C string. `dlsym` tells the calling library from the return address, which is in this
        // one: this is no tail call, as the result is stored afterwards.
        let found = unsafe { dlsym(RTLD_NEXT, self.name.as_ptr()) };
        self.found.store(found, Relaxed);
    }

    /// The function's address, or NULL if it was not found.
    fn get(&self) -> *mut c_void {
        self.found.load(Relaxed)
    }
}

/// Creates a native key. The library does so once, when it is loaded, when there is no other thread whose lock a child
/// could inherit.
pub(crate) unsafe fn pthread_key_create(key: *mut pthread_key_t, destructor: Option<Destructor>) -> c_int {
    for native in [&SETCANCELTYPE, &SETSPECIFIC, &KEY_DELETE, &KEY_CREATE] {
        native.find();
    }
    type Create = unsafe extern "C" fn(*mut pthread_key_t, Option<Destructor>) -> c_int;
    // SAFETY: libc's function of that name has this type, or the pointer is NULL.
    match unsafe { mem::transmute::<*mut c_void, Option<Create>>(KEY_CREATE.get()) } {
        // SAFETY: the caller's promise, which is POSIX's contract.
        Some(create) => unsafe { create(key, destructor) },
        None => EAGAIN.get(),
    }
}

/// Deletes a native key.
pub(crate) unsafe fn pthread_key_delete(key: pthread_key_t) -> c_int {
    type Delete = unsafe extern "C" fn(pthread_key_t) -> c_int;
    // SAFETY: libc's function of that name has this type, or the pointer is NULL.
    match unsafe { mem::transmute::<*mut c_void, Option<Delete>>(KEY_DELETE.get()) } {
        // SAFETY: the caller's promise, which is POSIX's contract.
        Some(delete) => unsafe { delete(key) },
        None => EINVAL.get(),
    }
}

/// Sets the value of a native key.
pub(crate) unsafe fn pthread_setspecific(key: pthread_key_t, value: *const c_void) -> c_int {
    type Set = unsafe extern "C" fn(pthread_key_t, *const c_void) -> c_int;
    // SAFETY: libc's function of that name has this type, or the pointer is NULL.
    match unsafe { mem::transmute::<*mut c_void, Option<Set>>(SETSPECIFIC.get()) } {
        // SAFETY: the caller's promise, which is POSIX's contract.
        Some(set) => unsafe { set(key, value) },
        None => EINVAL.get(),
    }
}

/// Sets whether the thread is cancelled at once. Does nothing before the native key has been created.
pub(crate) unsafe fn pthread_setcanceltype(kind: c_int, before: *mut c_int) -> c_int {
    type Set = unsafe extern "C" fn(c_int, *mut c_int) -> c_int;
    // SAFETY: libc's function of that name has this type, or the pointer is NULL.
    match unsafe { mem::transmute::<*mut c_void, Option<Set>>(SETCANCELTYPE.get()) } {
        // SAFETY: the caller's promise, which is POSIX's contract.
        Some(set) => unsafe { set(kind, before) },
        None => EINVAL.get(),
    }
}
