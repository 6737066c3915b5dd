//! Does the limit hold? Each test runs itself again, with the library in `LD_PRELOAD`, and checks the counters.

use std::{
    env, fs,
    path::PathBuf,
    process::Command,
    sync::{
        Barrier, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use shared::key_counters::{self, KeyCounters};

/// The variable that is set where a test runs again.
const AGAIN: &str = "KEY_LIMIT_TEST";

fn create() -> Result<libc::pthread_key_t, i32> {
    let mut key = 0;
    // SAFETY: the key is valid for a write, and there is no destructor.
    match unsafe { libc::pthread_key_create(&mut key, None) } {
        0 => Ok(key),
        error => Err(error),
    }
}

fn delete(key: libc::pthread_key_t) -> i32 {
    // SAFETY: a key that is not live is answered with EINVAL.
    unsafe { libc::pthread_key_delete(key) }
}

/// The library, built now: `cargo test` builds no library that Rust cannot link with.
fn library() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let deps = env::current_exe().unwrap();
            let profile_dir = deps.ancestors().nth(2).unwrap();
            let profile = match profile_dir.file_name().unwrap().to_str().unwrap() {
                "debug" => "dev",
                profile => profile,
            };
            let cargo = Command::new(env!("CARGO"))
                .args(["build", "--quiet", "--offline", "--package", "key-limit", "--profile", profile])
                .arg("--target-dir")
                .arg(profile_dir.parent().unwrap())
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .unwrap();
            assert!(cargo.success(), "the library does not build");
            profile_dir.join("libkey_limit.so")
        })
        .clone()
}

/// Runs a test of this file again, under a limit. Returns the highest number of keys, and the number of refusals.
fn again(test: &str, limit: u32) -> (u32, u32) {
    let stats: PathBuf = env::temp_dir().join(format!("key-limit-{test}-{}", std::process::id()));
    fs::write(&stats, [0; key_counters::SIZE]).unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("LD_PRELOAD", library())
        .env("KEY_LIMIT", limit.to_string())
        .env("KEY_LIMIT_STATS", &stats)
        .env(AGAIN, "1")
        .output()
        .unwrap();
    let counters = KeyCounters::read(&stats).unwrap();
    fs::remove_file(&stats).unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(counters.is_loaded, "the library was not loaded");
    (counters.most_in_a_process, counters.refusals)
}

fn is_again() -> bool {
    env::var_os(AGAIN).is_some()
}

/// Creates as many keys as it can.
fn all_keys() -> Vec<libc::pthread_key_t> {
    let mut keys = Vec::new();
    loop {
        match create() {
            Ok(key) => keys.push(key),
            Err(error) => {
                assert_eq!(error, libc::EAGAIN);
                return keys;
            }
        }
    }
}

#[test]
fn refuses_the_key_past_the_limit_and_takes_a_deleted_one_back() {
    if !is_again() {
        assert_eq!(again("refuses_the_key_past_the_limit_and_takes_a_deleted_one_back", 40), (40, 2));
        return;
    }
    let keys = all_keys();
    assert!(keys.len() <= 40 && keys.len() > 30, "{} keys, the runtime's own aside", keys.len());
    assert_eq!(delete(keys[0]), 0);
    assert_eq!(delete(keys[0]), libc::EINVAL, "a key that is gone must not be given back twice");
    assert!(create().is_ok());
    assert_eq!(create(), Err(libc::EAGAIN));
}

#[test]
fn a_refusal_by_libc_counts_as_one_and_not_as_a_key() {
    if !is_again() {
        let (most, refusals) = again("a_refusal_by_libc_counts_as_one_and_not_as_a_key", 100_000);
        // PTHREAD_KEYS_MAX: glibc has 1024, musl 128.
        assert!([1024, 128].contains(&most), "{most} keys");
        assert_eq!(refusals, 1);
        return;
    }
    all_keys();
}

#[test]
fn threads_never_get_more_than_the_limit_together() {
    if !is_again() {
        let (most, refusals) = again("threads_never_get_more_than_the_limit_together", 50);
        assert_eq!(most, 50);
        assert!(refusals > 0);
        return;
    }
    let (live, together) = (AtomicU32::new(0), Barrier::new(8));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    together.wait();
                    let keys = (0..20).filter_map(|_| create().ok()).collect::<Vec<_>>();
                    live.fetch_add(keys.len() as u32, Ordering::SeqCst);
                    together.wait();
                    // The runtime may have a few keys, too.
                    let now = live.load(Ordering::SeqCst);
                    assert!((40..=50).contains(&now), "{now} keys");
                    together.wait();
                    live.fetch_sub(keys.len() as u32, Ordering::SeqCst);
                    for key in keys {
                        assert_eq!(delete(key), 0);
                    }
                }
            });
        }
    });
}

#[test]
fn a_forked_child_begins_with_the_keys_of_its_parent() {
    if !is_again() {
        let (most, refusals) = again("a_forked_child_begins_with_the_keys_of_its_parent", 30);
        assert_eq!((most, refusals), (30, 2));
        return;
    }
    let keys = all_keys();
    delete(keys[0]);
    // SAFETY: the child makes system calls and no others, and leaves at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // One is left, and not thirty.
        let as_expected = create().is_ok() && create() == Err(libc::EAGAIN);
        // SAFETY: nothing of the test harness is to be run a second time.
        unsafe { libc::_exit(i32::from(!as_expected)) };
    }
    let mut status = 0;
    // SAFETY: the status is valid for a write.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    // The child's key was the child's alone.
    assert!(create().is_ok());
}
