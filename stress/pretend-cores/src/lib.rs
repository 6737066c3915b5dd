//! How does a program behave on a machine with more processors, or fewer? With this library in `LD_PRELOAD`, it sees as many as
//! `PRETEND_CORES` says: by `sched_getaffinity(2)`, by `sysconf(3)`, and by `get_nprocs(3)`. It still runs on those that there
//! are. If the variable is not set to a number, it sees those, too.
//!
//! A child may be forked while another thread holds any lock, so nothing here takes one: the setting is read and libc's functions
//! are looked up before `main`.

use std::{
    ffi::{CStr, c_int, c_long, c_void},
    ptr::null_mut,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed},
};

use libc::{cpu_set_t, pid_t};

type Sysconf = unsafe extern "C" fn(c_int) -> c_long;
type GetAffinity = unsafe extern "C" fn(pid_t, usize, *mut cpu_set_t) -> c_int;

/// How many processors are seen. 0 is as many as there are.
static CORES: AtomicUsize = AtomicUsize::new(0);

static SYSCONF: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
static GET_AFFINITY: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = read_setting;

extern "C" fn read_setting() {
    find(&SYSCONF, c"sysconf");
    find(&GET_AFFINITY, c"sched_getaffinity");
    // SAFETY: there is only one thread, so nothing changes the environment meanwhile, and the value is a C string.
    let cores = unsafe {
        let value = libc::getenv(c"PRETEND_CORES".as_ptr());
        if value.is_null() {
            None
        } else {
            CStr::from_ptr(value).to_str().ok().and_then(|cores| cores.parse().ok())
        }
    };
    CORES.store(cores.unwrap_or(0), Relaxed);
}

/// libc's function of this name. Two threads that look it up at the same time find the same.
fn find(real: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let known = real.load(Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: the name is a C string, and RTLD_NEXT is a handle that dlsym knows.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    real.store(found, Relaxed);
    found
}

/// `sysconf(3)`, with another number of processors.
///
/// # Safety
///
/// As for libc's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysconf(name: c_int) -> c_long {
    let cores = CORES.load(Relaxed);
    if cores != 0 && matches!(name, libc::_SC_NPROCESSORS_ONLN | libc::_SC_NPROCESSORS_CONF) {
        return cores as c_long;
    }
    let real = find(&SYSCONF, c"sysconf");
    if real.is_null() {
        return -1;
    }
    // SAFETY: this is libc's function of that name, and the caller keeps its terms.
    unsafe { std::mem::transmute::<*mut c_void, Sysconf>(real)(name) }
}

/// `get_nprocs(3)`, with another number of processors.
///
/// # Safety
///
/// As for libc's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn get_nprocs() -> c_int {
    // SAFETY: any name is valid.
    unsafe { sysconf(libc::_SC_NPROCESSORS_ONLN) as c_int }
}

/// `get_nprocs_conf(3)`, with another number of processors.
///
/// # Safety
///
/// As for libc's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn get_nprocs_conf() -> c_int {
    // SAFETY: any name is valid.
    unsafe { sysconf(libc::_SC_NPROCESSORS_CONF) as c_int }
}

/// `sched_getaffinity(2)`, with another number of processors: the first ones.
///
/// # Safety
///
/// As for libc's function: `set` is valid for writes of `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sched_getaffinity(pid: pid_t, size: usize, set: *mut cpu_set_t) -> c_int {
    let real = find(&GET_AFFINITY, c"sched_getaffinity");
    if real.is_null() {
        return -1;
    }
    // SAFETY: this is libc's function of that name, and the caller keeps its terms.
    let result = unsafe { std::mem::transmute::<*mut c_void, GetAffinity>(real)(pid, size, set) };
    let cores = CORES.load(Relaxed);
    if result == 0 && cores != 0 {
        // SAFETY: the caller vouches for so many bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(set.cast::<u8>(), size) };
        // The kernel writes whole words.
        for (index, word) in bytes.chunks_exact_mut(size_of::<usize>()).enumerate() {
            let bits = cores.saturating_sub(index * usize::BITS as usize).min(usize::BITS as usize);
            let ones = (0..bits).fold(0_usize, |word, bit| word | 1 << bit);
            word.copy_from_slice(&ones.to_ne_bytes());
        }
    }
    result
}
