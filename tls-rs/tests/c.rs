//! The library as C programs use it: built as for libguac, linked statically and into a shared library, and tested with the
//! programs in `tests/c`.

#[cfg(target_arch = "x86_64")]
mod budgets;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The directory for the programs and libraries that these tests build.
const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const CFLAGS: [&str; 7] = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Iinclude", "-Itests/c"];

#[test]
fn the_headers_are_clean_in_every_language_that_may_include_them() {
    for header in ["include/guacamole/thread-local.h", "include/guacamole/private/thread-local-error.h"] {
        for standard in ["-std=c99", "-std=c11"] {
            run(HOST.cc().args([standard, "-fsyntax-only", "-x", "c", header]));
        }
    }
    if answers("c++") {
        let header = "include/guacamole/thread-local.h";
        run(Command::new("c++")
            .args(["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"])
            .args(["-x", "c++", header]));
    } else {
        skipped("there is no c++ to check the header with");
    }
}

#[test]
fn each_test_that_posix_md_names_is_there() {
    let mut sources = String::new();
    for folder in ["src", "src/registry", "tests", "tests/c"] {
        for entry in fs::read_dir(folder).expect("tests run in the crate's folder").flatten() {
            sources += &fs::read_to_string(entry.path()).unwrap_or_default();
        }
    }
    let table = fs::read_to_string("POSIX.md").expect("it is there");
    let named = table.lines().filter_map(|line| line.strip_suffix(" |")?.rsplit(" | ").next());
    let mut named: Vec<_> = named.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 40);
    named.retain(|name| {
        !["void ", "void* ", "fn "].iter().any(|kind| sources.contains(&format!("{kind}{name}(")))
    });
    assert!(named.is_empty(), "there are no such tests: {named:?}");
}

#[test]
fn keys_answer_as_posix_says() {
    HOST.run_both("keys", &[]);
}

#[test]
fn a_signal_handler_may_read_values_at_any_time() {
    HOST.run_both("signals", &[]);
}

#[test]
fn a_value_is_read_and_written_where_it_is() {
    HOST.run_both("slot", &[]);
}

#[test]
fn destructors_run_as_posix_says() {
    HOST.run_both("destructors", &[]);
}

#[test]
fn a_forked_child_can_use_keys_at_once() {
    HOST.run_both("fork", &[]);
}

#[test]
fn of_ten_thousand_forked_children_none_hangs() {
    for (threads, children) in [("2", "4000"), ("4", "3000"), ("8", "3000")] {
        let said = HOST.run_static("torture", &[threads, children, "30"]);
        assert_eq!(said, format!("{children} children of {threads} threads: 0 hung, 0 wrong\n"));
    }
}

#[test]
fn a_child_that_inherits_a_lock_would_be_noticed() {
    let sources = ["tests/c/torture.c", "tests/c/mutex_array.c"];
    let program = link("torture-mutex-array", HOST.cc().args(sources).arg("-pthread"));
    for threads in ["2", "4", "8"] {
        let output = Command::new(&program).args([threads, "3000", "1"]).output().expect("it has been built");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.code() == Some(2) && said.contains(": 1 hung, "), "{}: {said}", output.status);
    }
}

#[test]
fn threads_end_as_posix_says_and_leave_nothing_behind() {
    HOST.run_static("exit", &[]);
    HOST.run_shared("exit", &["quick"]);
}

#[test]
fn a_leak_at_thread_exit_would_be_noticed() {
    let output = Command::new(HOST.static_program("exit")).arg("leak").output().expect("it has been built");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("not true: after - before <"),
        "{}: {said}",
        output.status
    );
}

#[test]
fn no_value_is_lost_when_memory_runs_out() {
    HOST.run_static("memory", &[]);
}

#[test]
fn keys_without_destructors_do_without_a_native_key() {
    HOST.run_static("native", &[]);
}

#[test]
fn the_c_tests_pass_with_musl() {
    if !MUSL.has_tools() {
        return skipped("there is no musl-gcc, so nothing has been tested with musl");
    }
    MUSL.run_everything();
}

#[test]
fn the_c_tests_pass_on_aarch64() {
    if !AARCH64.has_tools() {
        return skipped(
            "aarch64 is untested: that needs aarch64-linux-gnu-gcc, qemu-aarch64 and the Rust target",
        );
    }
    AARCH64.run_everything();
}

/// With keys of 32 bits, and with the root from `std`, as on all architectures but x86_64 and aarch64.
#[test]
fn the_c_tests_pass_on_a_32_bit_architecture() {
    if !I686.has_tools() {
        return skipped(
            "32-bit keys are untested: that needs i686-linux-gnu-gcc, qemu-i386 and the Rust target",
        );
    }
    I686.run_everything();
}

#[test]
#[ignore = "takes a nightly Rust: cargo xtask prove address"]
fn the_address_sanitizer_finds_nothing() {
    // Not "fork": its children would wait for a lock of the sanitizer's allocator that another thread held.
    for program in ["keys", "signals", "destructors", "exit"] {
        ADDRESS.run_both(program, &["quick"]);
    }
    ADDRESS.run_static("memory", &[]);
}

#[test]
#[ignore = "takes a nightly Rust: cargo xtask prove thread"]
fn the_thread_sanitizer_finds_nothing() {
    // "destructors" and "exit" call `pthread_exit` in the main thread. ThreadSanitizer's own thread goes on then, and so
    // does the process. In "fork", children of a process with threads hang.
    for program in ["keys", "signals"] {
        THREAD.run_both(program, &["quick"]);
    }
    THREAD.run_static("memory", &[]);
}

#[test]
fn valgrind_finds_nothing() {
    if !answers("valgrind") {
        return skipped("valgrind is not installed");
    }
    for program in ["keys", "slot", "signals", "destructors", "fork", "exit", "memory", "native"] {
        let output = Command::new("valgrind")
            .args(["--quiet", "--error-exitcode=9", "--fair-sched=yes", "--leak-check=full"])
            .arg("--errors-for-leak-kinds=definite,indirect,possible")
            .arg(HOST.static_program(program))
            .arg("quick")
            .output()
            .expect("it answers");
        // Errors in forked children are only printed.
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{program}: {}\n{said}", output.status);
    }
}

#[test]
fn a_shared_library_exports_the_api_and_nothing_else() {
    let symbols =
        run(Command::new("nm").args(["-D", "--defined-only", "--format=just-symbols"]).arg(HOST.libguac()));
    let mut symbols: Vec<_> = symbols.lines().filter(|symbol| !symbol.starts_with("guac_test_")).collect();
    symbols.sort_unstable();
    assert_eq!(
        symbols,
        [
            "guac_thread_local_getspecific",
            "guac_thread_local_key_create",
            "guac_thread_local_key_delete",
            "guac_thread_local_setspecific",
            "guac_thread_local_slot",
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
    let (with, without) = (size(HOST.libguac()), size(&empty));
    assert!(with - without <= 24 * 1024, "{with} bytes with the library, {without} without");
}

#[test]
fn a_shared_library_needs_libc_alone() {
    let symbols =
        run(Command::new("nm").args(["-D", "--undefined-only", "--format=posix"]).arg(HOST.libguac()));
    let mut needed: Vec<_> = symbols.lines().filter_map(|line| line.trim_end().strip_suffix(" U")).collect();
    needed.iter_mut().for_each(|symbol| *symbol = symbol.split('@').next().unwrap_or(symbol));
    // On aarch64, libgcc asks whether there are instructions for atomics.
    needed.retain(|symbol| !symbol.ends_with("getauxval"));
    needed.sort_unstable();
    // No abort: the panic handler would call it, so nothing that may panic has been linked in.
    assert_eq!(
        needed,
        [
            "calloc",
            "free",
            "pthread_key_create",
            "pthread_key_delete",
            "pthread_setcanceltype",
            "pthread_setspecific",
        ]
    );
}

#[test]
#[cfg(target_arch = "x86_64")]
fn no_call_executes_more_than_its_budget() {
    if !answers("objdump") {
        return skipped("objdump is not installed, so instructions have not been counted");
    }
    let counts = budgets::count(&HOST.shared_program("steps")).unwrap_or_else(|error| panic!("{error}"));
    for call in ["get", "set"] {
        let (ours, native) = (counts[call], counts[&format!("pthread_{call}")]);
        assert!(
            ours.instructions < native.instructions,
            "{call}: {ours:?}, with a pthread key from 32 on {native:?}"
        );
    }
    let over = budgets::BUDGETS.iter().filter(|(call, budget)| {
        counts[*call].instructions > budget.instructions || counts[*call].loads > budget.loads
    });
    let over: Vec<_> = over.collect();
    assert!(over.is_empty(), "over their budget: {over:?}\nall counts: {counts:#?}");
}

/// How programs are compiled and run.
struct Platform {
    name: &'static str,
    cc: &'static str,
    /// The library's Rust target, unless it is the host's.
    target: Option<&'static str>,
    /// The command that runs a program, unless the host can.
    emulator: &'static [&'static str],
    /// The sanitizer, for both compilers.
    sanitizer: Option<&'static str>,
    staticlib: OnceLock<PathBuf>,
    libguac: OnceLock<PathBuf>,
}

static HOST: Platform = Platform::new("host", "cc", None, &[], None);

static ADDRESS: Platform = Platform::new("address", "cc", None, &[], Some("address"));
static THREAD: Platform = Platform::new("thread", "cc", None, &[], Some("thread"));

/// The library uses nothing of libc that musl lacks, so it is not compiled for musl.
static MUSL: Platform = Platform::new("musl", "musl-gcc", None, &[], None);

static AARCH64: Platform = Platform::new(
    "aarch64",
    "aarch64-linux-gnu-gcc",
    Some("aarch64-unknown-linux-gnu"),
    &["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"],
    None,
);

static I686: Platform = Platform::new(
    "i686",
    "i686-linux-gnu-gcc",
    Some("i686-unknown-linux-gnu"),
    &["qemu-i386", "-L", "/usr/i686-linux-gnu"],
    None,
);

impl Platform {
    const fn new(
        name: &'static str,
        cc: &'static str,
        target: Option<&'static str>,
        emulator: &'static [&'static str],
        sanitizer: Option<&'static str>,
    ) -> Platform {
        let staticlib = OnceLock::new();
        Platform { name, cc, target, emulator, sanitizer, staticlib, libguac: OnceLock::new() }
    }

    fn has_tools(&self) -> bool {
        let has_target = self.target.is_none_or(|target| {
            let args = ["--print", "target-libdir", "--target", target];
            let libdir = Command::new("rustc").args(args).output().expect("cargo needs rustc, too");
            Path::new(String::from_utf8_lossy(&libdir.stdout).trim_end()).exists()
        });
        has_target && answers(self.cc) && self.emulator.first().is_none_or(|emulator| answers(emulator))
    }

    fn cc(&self) -> Command {
        let mut cc = Command::new(self.cc);
        cc.args(CFLAGS);
        self.sanitizer.map(|sanitizer| cc.args(["-g", &format!("-fsanitize={sanitizer}")]));
        cc
    }

    /// Compiles a program of `tests/c` with the static library in it.
    fn static_program(&self, name: &str) -> PathBuf {
        let libc: &[_] = if self.cc == "cc" { &[] } else { &["-static"] };
        let wrap: &[_] = match name {
            "memory" => &["-Wl,--wrap=calloc"],
            "native" => &["-Wl,--wrap=pthread_setspecific"],
            _ => &[],
        };
        let sources = [&format!("tests/c/{name}.c"), "tests/c/libguac.c"];
        let mut cc = self.cc();
        cc.args(libc).args(wrap).args(sources).arg(self.staticlib()).arg("-pthread");
        link(&format!("{name}-static-{}", self.name), &mut cc)
    }

    /// Compiles a program of `tests/c` against the shared library.
    fn shared_program(&self, name: &str) -> PathBuf {
        let source = format!("tests/c/{name}.c");
        let libguac = self.libguac();
        let rpath = format!("-Wl,-rpath,{}", libguac.parent().expect("it is in a folder").display());
        let mut cc = self.cc();
        let cc = cc.args([source, rpath]).arg(libguac).args(["-pthread", "-ldl"]);
        link(&format!("{name}-shared-{}", self.name), cc)
    }

    /// A shared library with the static library in it, as libguac is one.
    fn libguac(&self) -> &Path {
        self.libguac.get_or_init(|| {
            let dir = Path::new(TMP).join(self.name);
            fs::create_dir_all(&dir).expect("it can be written to");
            let nodelete = "-Wl,-z,nodelete"; // libc will call the hook for thread exit
            let flags = ["-shared", "-fPIC", "-Wl,-soname,libguac-test.so", nodelete, "tests/c/libguac.c"];
            let name = format!("{}/libguac-test.so", self.name);
            link(&name, self.cc().args(flags).arg(self.staticlib()))
        })
    }

    /// The static library. It has a target directory of its own: Cargo holds the lock of the one that this test runs in.
    fn staticlib(&self) -> &Path {
        self.staticlib.get_or_init(|| {
            let dir =
                Path::new(TMP).join(self.sanitizer.map_or("target".into(), |name| format!("target-{name}")));
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["rustc", "--offline", "--quiet", "-p", "tls-rs", "--features", "staticlib"]);
            cargo.args(["--profile", "staticlib", "--crate-type", "staticlib", "--target-dir"]).arg(&dir);
            let mut target = self.target.map(str::to_owned);
            if let Some(sanitizer) = self.sanitizer {
                cargo.arg("-Zbuild-std=core").env("RUSTFLAGS", format!("-Zsanitizer={sanitizer}"));
                target = Some(format!("{}-unknown-linux-gnu", env::consts::ARCH));
            }
            target.as_ref().map(|target| cargo.args(["--target", target]));
            cargo.args(["--", "-Cllvm-args=-align-all-functions=6"]);
            run(&mut cargo);
            let built = dir.join(target.unwrap_or_default()).join("staticlib/libtls_rs.a");
            self.without_foreign_objects(&built)
        })
    }

    /// A copy of the static library that has its own objects only, as the one that libguac gets.
    fn without_foreign_objects(&self, built: &Path) -> PathBuf {
        let copy = built.with_file_name(format!("libtls_rs-{}.a", self.name));
        fs::copy(built, &copy).expect("it can be written to");
        // That of the same cross compiler knows the objects, which it lists the symbols of.
        let ar = self.cc.strip_suffix("linux-gnu-gcc").map(|prefix| format!("{prefix}linux-gnu-ar"));
        let ar = ar.as_deref().unwrap_or("ar");
        let list = run(Command::new(ar).arg("t").arg(&copy));
        let foreign = list.lines().filter(|name| !name.starts_with("tls_rs-"));
        run(Command::new(ar).arg("dD").arg(&copy).args(foreign));
        copy
    }

    fn run(&self, program: &Path, args: &[&str]) -> String {
        let words = self.emulator.iter().map(Path::new).chain([program]).collect::<Vec<_>>();
        run(Command::new(words[0]).args(&words[1..]).args(args))
    }

    fn run_static(&self, program: &str, args: &[&str]) -> String {
        self.run(&self.static_program(program), args)
    }

    fn run_shared(&self, program: &str, args: &[&str]) -> String {
        self.run(&self.shared_program(program), args)
    }

    fn run_both(&self, program: &str, args: &[&str]) {
        self.run_static(program, args);
        self.run_shared(program, args);
    }

    /// All programs, for less time, for a platform other than the host.
    fn run_everything(&self) {
        for program in ["keys", "slot", "signals", "destructors", "exit"] {
            self.run_both(program, &["quick"]);
        }
        self.run_static("memory", &[]);
        self.run_static("native", &[]);
        // Not under an emulator, which has threads and locks itself: children of qemu-user hung in the allocator of its
        // translations.
        if self.emulator.is_empty() {
            self.run_both("fork", &["quick"]);
            self.run_static("torture", &["4", "50", "30"]);
        }
    }
}

/// Runs `cc`, and puts its output into a file of that name in one step: another test may be running the old file.
fn link(name: &str, cc: &mut Command) -> PathBuf {
    static LINKED: AtomicU32 = AtomicU32::new(0);
    let path = Path::new(TMP).join(name);
    let new = path.with_extension(format!("{}-{}", std::process::id(), LINKED.fetch_add(1, Relaxed)));
    run(cc.arg("-o").arg(&new));
    fs::rename(&new, &path).expect("the linker has written it");
    path
}

/// Whether there is such a program.
fn answers(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// Runs a command, which must succeed, and returns what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Reports that something was not tested, even if the test harness captures the output of tests.
fn skipped(why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
