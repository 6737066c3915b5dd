//! What the storage needs: memory, which comes from the kernel, and libc's own keys, which are found by `dlsym`.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem;
use core::ptr;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::Relaxed;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

pub(crate) use crate::posix::*;

/// Before each piece of memory lies its length. As long as a cache line, so that what follows is aligned to one.
const PREFIX: usize = 64;

/// Zeroed memory, or NULL. Not by way of `calloc`: allocators create keys, and the first one's memory is theirs.
pub(crate) unsafe fn calloc(count: usize, size: usize) -> *mut c_void {
    let Some(length) = count.checked_mul(size).and_then(|length| length.checked_add(PREFIX)) else {
        return ptr::null_mut();
    };
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses the address, so nothing is replaced.
    match unsafe { mmap_anonymous(ptr::null_mut(), length, access, MapFlags::PRIVATE) } {
        Ok(memory) => {
            // SAFETY: it is as long as PREFIX at least, and begins with a page.
            unsafe {
                memory.cast::<usize>().write(length);
                memory.byte_add(PREFIX)
            }
        }
        Err(_) => ptr::null_mut(),
    }
}

/// Gives memory back that came from `calloc`.
pub(crate) unsafe fn free(memory: *mut c_void) {
    // SAFETY: that is where `calloc` has written the length of what it had mapped.
    let _ = unsafe {
        let mapped = memory.byte_sub(PREFIX);
        munmap(mapped, mapped.cast::<usize>().read())
    };
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Of `dlsym`'s handles, the one for "the next that comes after who asks". The same in glibc and in musl.
const RTLD_NEXT: *mut c_void = ptr::without_provenance_mut(usize::MAX);

/// A function of libc's, or of a library that is preloaded after this one.
struct Native {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

static KEY_CREATE: Native = Native::new(c"pthread_key_create");
static KEY_DELETE: Native = Native::new(c"pthread_key_delete");
static SETSPECIFIC: Native = Native::new(c"pthread_setspecific");

impl Native {
    const fn new(name: &'static CStr) -> Native {
        Native { name, found: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Looks it up, for which the dynamic linker takes a lock.
    fn find(&self) {
        // SAFETY: the name is a C string. It knows who asks by the return address, which is here, as its result
        // is still to be stored.
        let found = unsafe { dlsym(RTLD_NEXT, self.name.as_ptr()) };
        self.found.store(found, Relaxed);
    }

    /// Where it is, or NULL if it was not found.
    fn get(&self) -> *mut c_void {
        self.found.load(Relaxed)
    }
}

/// Takes a native key. This happens once, when the library is loaded, and then there is no lock to inherit.
pub(crate) unsafe fn pthread_key_create(key: *mut pthread_key_t, destructor: Option<Destructor>) -> c_int {
    for native in [&SETSPECIFIC, &KEY_DELETE, &KEY_CREATE] {
        native.find();
    }
    type Create = unsafe extern "C" fn(*mut pthread_key_t, Option<Destructor>) -> c_int;
    // SAFETY: libc's function of that name has this type, or there is none.
    match unsafe { mem::transmute::<*mut c_void, Option<Create>>(KEY_CREATE.get()) } {
        // SAFETY: the caller keeps POSIX's terms.
        Some(create) => unsafe { create(key, destructor) },
        None => EAGAIN.get(),
    }
}

/// Gives a native key back.
pub(crate) unsafe fn pthread_key_delete(key: pthread_key_t) -> c_int {
    type Delete = unsafe extern "C" fn(pthread_key_t) -> c_int;
    // SAFETY: libc's function of that name has this type, or there is none.
    match unsafe { mem::transmute::<*mut c_void, Option<Delete>>(KEY_DELETE.get()) } {
        // SAFETY: the caller keeps POSIX's terms.
        Some(delete) => unsafe { delete(key) },
        None => EINVAL.get(),
    }
}

/// Sets the value of a native key.
pub(crate) unsafe fn pthread_setspecific(key: pthread_key_t, value: *const c_void) -> c_int {
    type Set = unsafe extern "C" fn(pthread_key_t, *const c_void) -> c_int;
    // SAFETY: libc's function of that name has this type, or there is none.
    match unsafe { mem::transmute::<*mut c_void, Option<Set>>(SETSPECIFIC.get()) } {
        // SAFETY: the caller keeps POSIX's terms.
        Some(set) => unsafe { set(key, value) },
        None => EINVAL.get(),
    }
}
