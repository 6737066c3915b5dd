//! The library as C sees it: built as it is for libguac, linked statically and into a shared library, and put
//! through the programs in `tests/c`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Where this test keeps what it builds.
const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const CFLAGS: [&str; 7] = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Iinclude", "-Itests/c"];

#[test]
fn the_headers_are_clean_in_every_language_that_may_include_them() {
    for header in ["include/guacamole/thread-local.h", "include/guacamole/private/thread-local-error.h"] {
        for standard in ["-std=c99", "-std=c11"] {
            run(cc().args([standard, "-fsyntax-only", "-x", "c", header]));
        }
    }
    if Command::new("c++").arg("--version").output().is_ok() {
        let header = "include/guacamole/thread-local.h";
        run(Command::new("c++")
            .args(["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"])
            .args(["-x", "c++", header]));
    } else {
        skipped("there is no c++ to check the header with");
    }
}

#[test]
fn keys_answer_as_posix_says() {
    for program in [static_program("keys"), shared_program("keys")] {
        run(&mut Command::new(program));
    }
}

#[test]
fn a_signal_handler_may_read_values_at_any_time() {
    for program in [static_program("signals"), shared_program("signals")] {
        run(&mut Command::new(program));
    }
}

#[test]
fn destructors_run_as_posix_says() {
    for program in [static_program("destructors"), shared_program("destructors")] {
        run(&mut Command::new(program));
    }
}

#[test]
fn a_forked_child_can_use_keys_at_once() {
    for program in [static_program("fork"), shared_program("fork")] {
        run(&mut Command::new(program));
    }
}

#[test]
fn no_value_is_lost_when_memory_runs_out() {
    run(&mut Command::new(static_program("memory")));
}

#[test]
fn valgrind_finds_nothing() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skipped("valgrind is not installed");
    }
    // A forked child has copies of what its parent's other threads had allocated: no leak of ours.
    let programs =
        [("keys", "full"), ("signals", "full"), ("destructors", "full"), ("fork", "no"), ("memory", "full")];
    for (program, leaks) in programs {
        run(Command::new("valgrind")
            .args(["--quiet", "--error-exitcode=9", "--fair-sched=yes", &format!("--leak-check={leaks}")])
            .arg(static_program(program))
            .arg("quick"));
    }
}

#[test]
fn a_shared_library_exports_the_api_and_nothing_else() {
    let symbols =
        run(Command::new("nm").args(["-D", "--defined-only", "--format=just-symbols"]).arg(libguac()));
    let mut symbols: Vec<_> = symbols.lines().filter(|symbol| !symbol.starts_with("guac_test_")).collect();
    symbols.sort_unstable();
    assert_eq!(
        symbols,
        [
            "guac_thread_local_getspecific",
            "guac_thread_local_key_create",
            "guac_thread_local_key_delete",
            "guac_thread_local_setspecific",
        ]
    );
}

#[test]
fn a_shared_library_grows_by_no_more_than_24_kib() {
    let size = |library: &Path| {
        let stripped = library.with_extension("stripped");
        run(Command::new("strip").arg("-o").arg(&stripped).arg(library));
        fs::metadata(&stripped).expect("strip has written it").len()
    };
    let empty = link("libempty.so", Command::new("cc").args(["-shared", "-fPIC", "-x", "c", "/dev/null"]));
    let (with, without) = (size(libguac()), size(&empty));
    assert!(with - without <= 24 * 1024, "{with} bytes with the library, {without} without");
}

#[test]
fn a_shared_library_needs_libc_alone() {
    let symbols = run(Command::new("nm").args(["-D", "--undefined-only", "--format=posix"]).arg(libguac()));
    let mut needed: Vec<_> = symbols.lines().filter_map(|line| line.trim_end().strip_suffix(" U")).collect();
    needed.iter_mut().for_each(|symbol| *symbol = symbol.split('@').next().unwrap_or(symbol));
    // On aarch64, compiler_builtins asks whether there are instructions for atomics.
    needed.retain(|symbol| !symbol.ends_with("getauxval"));
    needed.sort_unstable();
    // No abort: the panic handler would call it, so nothing that may panic has been linked in.
    assert_eq!(needed, ["calloc", "free", "pthread_key_create", "pthread_key_delete", "pthread_setspecific"]);
}

/// Compiles a program of `tests/c` with the static library in it.
fn static_program(name: &str) -> PathBuf {
    let wrap: &[_] = if name == "memory" { &["-Wl,--wrap=calloc"] } else { &[] };
    let source = format!("tests/c/{name}.c");
    link(&format!("{name}-static"), cc().args(wrap).args([&source, "tests/c/libguac.c"]).arg(staticlib()))
}

/// Compiles a program of `tests/c` against the shared library.
fn shared_program(name: &str) -> PathBuf {
    let source = format!("tests/c/{name}.c");
    let rpath = format!("-Wl,-rpath,{TMP}");
    link(&format!("{name}-shared"), cc().args([source, rpath]).arg(libguac()))
}

/// A shared library with the static library in it, as libguac is one.
fn libguac() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let nodelete = "-Wl,-z,nodelete"; // libc will call the hook for thread exit
        let flags = ["-shared", "-fPIC", "-Wl,-soname,libguac-test.so", nodelete, "tests/c/libguac.c"];
        link("libguac-test.so", cc().args(flags).arg(staticlib()))
    })
}

/// Has `cc` write to a file of that name, and replaces the file in one step: another test may be running it.
fn link(name: &str, cc: &mut Command) -> PathBuf {
    static LINKED: AtomicU32 = AtomicU32::new(0);
    let path = Path::new(TMP).join(name);
    let new = path.with_extension(format!("{}-{}", std::process::id(), LINKED.fetch_add(1, Relaxed)));
    run(cc.arg("-o").arg(&new));
    fs::rename(&new, &path).expect("the linker has written it");
    path
}

/// The static library. Its target directory is its own, for Cargo holds the lock of the one this runs in.
fn staticlib() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let target = Path::new(TMP).join("target");
        run(Command::new(env!("CARGO"))
            .args(["rustc", "--offline", "--quiet", "-p", "tls-rs", "--features", "staticlib"])
            .args(["--profile", "staticlib", "--crate-type", "staticlib", "--target-dir"])
            .arg(&target));
        target.join("staticlib/libtls_rs.a")
    })
}

fn cc() -> Command {
    let mut cc = Command::new("cc");
    cc.args(CFLAGS);
    cc
}

/// Runs a command, which must succeed, and returns what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Says, also when the test harness captures what tests print, that something was not tested.
fn skipped(why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
