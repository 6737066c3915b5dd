//! How does a program behave if libc has fewer pthread keys? With this library in `LD_PRELOAD`, `pthread_key_create` fails with
//! EAGAIN once a process has `KEY_LIMIT` live keys, as POSIX requires for {PTHREAD_KEYS_MAX}. If that variable is not set to a
//! number, nothing is limited.
//!
//! `KEY_LIMIT_STATS` may name a file of at least twelve bytes, which all processes with the same settings share. Its first
//! 32-bit word becomes the highest number of keys that any process had at once. Its second word becomes the number of refusals,
//! libc's own included. Its third word becomes 1 when a process has loaded the library. (If the loader cannot load the library,
//! it only warns, and nothing is limited.)
//!
//! A forked child begins with its parent's keys, as it does in libc. Another thread of the parent may have held any lock then,
//! so nothing here takes a lock: settings are read and libc's functions are looked up before `main`, and counters are atomic.
//! The exception is a key that the constructor of another library creates still earlier: its function is looked up when it is
//! called.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr::null_mut,
    sync::atomic::{AtomicPtr, AtomicU32, Ordering::Relaxed},
};

use libc::{EAGAIN, pthread_key_t};

type Destructor = Option<unsafe extern "C" fn(*mut c_void)>;
type Create = unsafe extern "C" fn(*mut pthread_key_t, Destructor) -> c_int;
type Delete = unsafe extern "C" fn(pthread_key_t) -> c_int;
type TssDelete = unsafe extern "C" fn(pthread_key_t);

/// `thrd_error` of C11's threads.h, the same in glibc and in musl.
const THRD_ERROR: c_int = 2;

/// How many keys this process has. Plain memory: a forked child goes on from its parent's count.
static LIVE: AtomicU32 = AtomicU32::new(0);

/// How many keys it may have.
static LIMIT: AtomicU32 = AtomicU32::new(u32::MAX);

/// The mapping of the counters that all processes share, or NULL.
static STATS: AtomicPtr<Stats> = AtomicPtr::new(null_mut());

/// The counters, as they are in the file.
#[repr(C)]
struct Stats {
    most: AtomicU32,
    refusals: AtomicU32,
    loaded: AtomicU32,
}

/// A function of libc.
struct Real {
    name: &'static CStr,
    /// NULL until it is looked up, or if libc does not have it.
    address: AtomicPtr<c_void>,
}

static KEY_CREATE: Real = Real::new(c"pthread_key_create");
static KEY_DELETE: Real = Real::new(c"pthread_key_delete");
static TSS_CREATE: Real = Real::new(c"tss_create");
static TSS_DELETE: Real = Real::new(c"tss_delete");

impl Real {
    const fn new(name: &'static CStr) -> Self {
        Self { name, address: AtomicPtr::new(null_mut()) }
    }

    /// Looks the function up. The dynamic linker takes a lock for that.
    #[cold]
    fn find(&self) -> *mut c_void {
        // SAFETY: the name is a C string, and RTLD_NEXT is a handle that dlsym knows.
        let address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.address.store(address, Relaxed);
        address
    }

    /// The function's address, or NULL if libc does not have it.
    fn get(&self) -> *mut c_void {
        match self.address.load(Relaxed) {
            // Two threads that look it up at the same time find the same.
            unknown if unknown.is_null() => self.find(),
            address => address,
        }
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = read_settings;

/// Reads the environment, while there is one thread. Keys that were created before are counted, and were not limited.
extern "C" fn read_settings() {
    for real in [&KEY_CREATE, &KEY_DELETE, &TSS_CREATE, &TSS_DELETE] {
        real.find();
    }
    let setting = |name: &CStr| {
        // SAFETY: there is only one thread, so nothing changes the environment before the value has been copied. The value
        // is a C string.
        unsafe {
            let value = libc::getenv(name.as_ptr().cast::<c_char>());
            (!value.is_null()).then(|| CStr::from_ptr(value).to_owned())
        }
    };
    let limit = setting(c"KEY_LIMIT").and_then(|limit| limit.to_str().ok()?.parse().ok());
    LIMIT.store(limit.unwrap_or(u32::MAX), Relaxed);
    if let Some(file) = setting(c"KEY_LIMIT_STATS") {
        STATS.store(map(&file).unwrap_or(null_mut()), Relaxed);
    }
    count_most(LIVE.load(Relaxed));
    if let Some(stats) = stats() {
        stats.loaded.store(1, Relaxed);
    }
}

/// Maps the file of counters. The mapping is shared, and stays for as long as the process does.
fn map(file: &CStr) -> Option<*mut Stats> {
    // SAFETY: the path is a C string; the descriptor is checked, used for one mapping and closed. The mapping is at an
    // address of the kernel's choice, so it replaces nothing, and is as long as the structure that is read through it.
    unsafe {
        let descriptor = libc::open(file.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if descriptor < 0 {
            return None;
        }
        let mut about = std::mem::zeroed::<libc::stat>();
        let size = size_of::<Stats>();
        // Access beyond the file's end would raise SIGBUS.
        let long_enough = libc::fstat(descriptor, &mut about) == 0 && about.st_size >= size as libc::off_t;
        let mapped = if long_enough {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(null_mut(), size, access, libc::MAP_SHARED, descriptor, 0)
        } else {
            libc::MAP_FAILED
        };
        libc::close(descriptor);
        (mapped != libc::MAP_FAILED).then(|| mapped.cast())
    }
}

fn stats() -> Option<&'static Stats> {
    // SAFETY: the pointer is null or that of a mapping which is never unmapped, and its fields are atomic.
    unsafe { STATS.load(Relaxed).as_ref() }
}

fn count_most(live: u32) {
    if let Some(stats) = stats() {
        stats.most.fetch_max(live, Relaxed);
    }
}

fn count_refusal() {
    if let Some(stats) = stats() {
        stats.refusals.fetch_add(1, Relaxed);
    }
}

/// Counts a key, if the process may have another one, and returns how many it has then. The check and the count are one step,
/// so that two threads cannot both get the last key.
fn take() -> Option<u32> {
    let limit = LIMIT.load(Relaxed);
    let before = LIVE.fetch_update(Relaxed, Relaxed, |live| (live < limit).then_some(live + 1));
    before.ok().map(|before| before + 1)
}

fn give_back() {
    // Not below 0: a key that was created before this library was loaded is not counted.
    let _ = LIVE.fetch_update(Relaxed, Relaxed, |live| live.checked_sub(1));
}

/// Creates a key with a function of libc, or returns `refusal` if there may be no other key.
///
/// # Safety
///
/// As for the function of libc, which has to be of type [`Create`].
unsafe fn create(real: &Real, refusal: c_int, key: *mut pthread_key_t, destructor: Destructor) -> c_int {
    let Some(live) = take() else {
        count_refusal();
        return refusal;
    };
    let real = real.get();
    let result = if real.is_null() {
        refusal
    } else {
        // SAFETY: the caller vouches for the arguments and for the type, and the function is there.
        unsafe { std::mem::transmute::<*mut c_void, Create>(real)(key, destructor) }
    };
    if result == 0 {
        count_most(live);
        return result;
    }
    give_back();
    if result == refusal {
        // libc has a limit too.
        count_refusal();
    }
    result
}

/// `pthread_key_create(3)` with a limit.
///
/// # Safety
///
/// As for POSIX's function: `key` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_key_create(key: *mut pthread_key_t, destructor: Destructor) -> c_int {
    // SAFETY: libc's function of that name has these arguments, and the caller keeps POSIX's terms.
    unsafe { create(&KEY_CREATE, EAGAIN, key, destructor) }
}

/// `pthread_key_delete(3)`. The process may then have another key.
///
/// # Safety
///
/// As for POSIX's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_key_delete(key: pthread_key_t) -> c_int {
    let real = KEY_DELETE.get();
    if real.is_null() {
        return libc::EINVAL;
    }
    // SAFETY: this is libc's function of that name, and the caller keeps POSIX's terms.
    let result = unsafe { std::mem::transmute::<*mut c_void, Delete>(real)(key) };
    if result == 0 {
        give_back();
    }
    result
}

/// `tss_create(3)`: C11's name for the same keys. libc's `tss_create` does not call the function above.
///
/// # Safety
///
/// As for C11's function: `key` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tss_create(key: *mut pthread_key_t, destructor: Destructor) -> c_int {
    // SAFETY: libc's function of that name has these arguments, and the caller keeps C11's terms.
    unsafe { create(&TSS_CREATE, THRD_ERROR, key, destructor) }
}

/// `tss_delete(3)`. The process may then have another key.
///
/// # Safety
///
/// As for C11's function: the key is live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tss_delete(key: pthread_key_t) {
    let real = TSS_DELETE.get();
    if !real.is_null() {
        // SAFETY: this is libc's function of that name, and the caller keeps C11's terms.
        unsafe { std::mem::transmute::<*mut c_void, TssDelete>(real)(key) };
        give_back();
    }
}
