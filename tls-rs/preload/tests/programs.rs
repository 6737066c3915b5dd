//! Can the preload library replace libc's keys? Unmodified programs run with it: the C tests of `tls-rs`, on `pthread_`
//! functions, those in `tests/c`, and programs that use GLib, OpenSSL and Python.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The directory for the programs and libraries that these tests build.
const TMP: &str = env!("CARGO_TARGET_TMPDIR");

/// The folders of the C tests of `tls-rs`, and of those of this crate.
const OF_TLS_RS: &str = "../tests/c";
const OURS: &str = "tests/c";

#[test]
fn the_tests_of_tls_rs_pass_on_pthread_keys() {
    GLIBC.passes(OF_TLS_RS, "keys", &[]);
    GLIBC.passes(OF_TLS_RS, "destructors", &[]);
    GLIBC.passes(OF_TLS_RS, "exit", &["quick"]);
    GLIBC.passes(OF_TLS_RS, "fork", &["quick"]);
    GLIBC.passes(OF_TLS_RS, "signals", &[]);
}

#[test]
fn of_forked_children_none_hangs() {
    let said = GLIBC.passes(OF_TLS_RS, "torture", &["8", "1000", "30"]);
    assert_eq!(said, "1000 children of 8 threads: 0 hung, 0 wrong\n");
}

#[test]
fn keys_may_be_created_before_any_constructor_and_in_malloc() {
    GLIBC.passes(OURS, "early", &[]);
}

#[test]
fn errors_are_those_that_posix_names() {
    GLIBC.passes(OURS, "limits", &[]);
}

#[test]
fn the_functions_of_c11_use_the_same_keys() {
    GLIBC.passes(OURS, "tss", &[]);
}

#[test]
fn the_same_file_works_with_musl() {
    if !answers(MUSL.cc) {
        return skipped("there is no musl-gcc, so nothing has been tested with musl");
    }
    for name in ["keys", "destructors", "exit", "fork", "signals"] {
        MUSL.passes(OF_TLS_RS, name, &["quick"]);
    }
    MUSL.passes(OF_TLS_RS, "torture", &["4", "300", "30"]);
    for name in ["early", "limits", "tss"] {
        MUSL.passes(OURS, name, &[]);
    }
}

#[test]
fn it_works_on_aarch64() {
    if !AARCH64.has_tools() {
        return skipped(
            "aarch64 is untested: that needs aarch64-linux-gnu-gcc, qemu-aarch64 and the Rust target",
        );
    }
    // Neither `fork`, as a child can inherit locks of the emulator, nor `limits`, as the emulator does not limit memory.
    for name in ["keys", "destructors", "exit", "signals"] {
        AARCH64.passes(OF_TLS_RS, name, &["quick"]);
    }
    for name in ["early", "tss"] {
        AARCH64.passes(OURS, name, &[]);
    }
}

#[test]
fn without_it_the_same_programs_run_out_of_keys() {
    for (folder, name) in [(OF_TLS_RS, "keys"), (OURS, "early"), (OURS, "limits"), (OURS, "tss")] {
        let output = Command::new(GLIBC.program(folder, name)).output().expect("it has been built");
        assert!(!output.status.success(), "{name} succeeds");
    }
}

#[test]
fn glib_can_have_more_private_values_than_libc_has_keys() {
    let Some(flags) = pkg_config("glib-2.0") else {
        return skipped("GLib is untested: there is no glib-2.0");
    };
    let program = build("glib", GLIBC.cc().arg("tests/c/glib.c").args(flags));
    assert_eq!(succeeds(GLIBC.preloaded(&program)), "8000 values freed\n");
    assert!(!output(&mut Command::new(&program)).status.success(), "it succeeds without the library");
}

#[test]
fn openssl_can_be_loaded_after_libcs_keys_are_used_up() {
    let Some(flags) = pkg_config("openssl") else {
        return skipped("OpenSSL is untested: there is no openssl");
    };
    let program = build("openssl", GLIBC.cc().args(["tests/c/openssl.c", "-pthread"]).args(flags));
    succeeds(GLIBC.preloaded(&program));
}

#[test]
fn python_runs_threads_and_processes() {
    if !answers("python3") {
        return skipped("Python is untested: there is no python3");
    }
    let mut python = GLIBC.preloaded("python3");
    succeeds(python.arg("tests/threads.py"));
}

#[test]
fn it_exports_libcs_functions_and_nothing_else() {
    let symbols = succeeds(
        Command::new("nm").args(["-D", "--defined-only", "--format=just-symbols"]).arg(GLIBC.library()),
    );
    let mut symbols: Vec<_> = symbols.lines().collect();
    symbols.sort_unstable();
    assert_eq!(
        symbols,
        [
            "__pthread_getspecific",
            "__pthread_key_create",
            "__pthread_setspecific",
            "pthread_getspecific",
            "pthread_key_create",
            "pthread_key_delete",
            "pthread_setspecific",
            "tss_create",
            "tss_delete",
            "tss_get",
            "tss_set",
        ]
    );
}

#[test]
fn it_needs_no_particular_libc() {
    let dynamic = succeeds(Command::new("readelf").args(["--dynamic", "--wide"]).arg(GLIBC.library()));
    assert!(dynamic.contains("INIT_ARRAY") && !dynamic.contains("(NEEDED)"), "{dynamic}");
    let symbols =
        succeeds(Command::new("nm").args(["-D", "--undefined-only", "--format=posix"]).arg(GLIBC.library()));
    // Weak symbols are used by the C compiler's own files. On aarch64, compiler_builtins asks whether there are
    // instructions for atomics. No abort: nothing that can panic has been linked in.
    let needed = symbols.lines().filter_map(|line| line.trim_end().strip_suffix(" U"));
    let needed: Vec<_> = needed.filter(|symbol| *symbol != "getauxval").collect();
    assert_eq!(needed, ["dlsym"]);
}

/// How programs are compiled and run.
struct Platform {
    name: &'static str,
    cc: &'static str,
    /// The library's Rust target and its linker, unless they are the host's.
    target: Option<(&'static str, &'static str)>,
    /// The command that runs a program, unless the host can.
    emulator: &'static [&'static str],
    library: OnceLock<PathBuf>,
}

static GLIBC: Platform = Platform::new("glibc", "cc", None, &[]);

/// With the same library as glibc.
static MUSL: Platform = Platform::new("musl", "musl-gcc", None, &[]);

static AARCH64: Platform = Platform::new(
    "aarch64",
    "aarch64-linux-gnu-gcc",
    Some(("aarch64-unknown-linux-gnu", "target.aarch64-unknown-linux-gnu.linker='aarch64-linux-gnu-gcc'")),
    &["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"],
);

impl Platform {
    const fn new(
        name: &'static str,
        cc: &'static str,
        target: Option<(&'static str, &'static str)>,
        emulator: &'static [&'static str],
    ) -> Platform {
        Platform { name, cc, target, emulator, library: OnceLock::new() }
    }

    fn has_tools(&self) -> bool {
        let has_target = self.target.is_none_or(|(target, _)| {
            let libdir = succeeds(Command::new("rustc").args(["--print=target-libdir", "--target", target]));
            Path::new(libdir.trim_end()).exists()
        });
        has_target && answers(self.cc) && self.emulator.first().is_none_or(|emulator| answers(emulator))
    }

    fn cc(&self) -> Command {
        let mut cc = Command::new(self.cc);
        // Tests that are left out here are unused functions. The headers of this crate come before those of tls-rs.
        cc.args(["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Itests/c", "-I../tests/c"]);
        cc
    }

    /// Compiles a program, and links it with libc only.
    fn program(&self, folder: &str, name: &str) -> PathBuf {
        let libguac: &[_] = if folder == OF_TLS_RS { &["../tests/c/libguac.c"] } else { &[] };
        let source = format!("{folder}/{name}.c");
        build(&format!("{name}-{}", self.name), self.cc().arg(source).args(libguac).arg("-pthread"))
    }

    /// Runs a program with the library, and returns what it prints.
    fn passes(&self, folder: &str, name: &str, arguments: &[&str]) -> String {
        let program = self.program(folder, name);
        succeeds(self.preloaded(program).args(arguments))
    }

    /// A program, to be run with the library.
    fn preloaded(&self, program: impl AsRef<OsStr>) -> Command {
        let Some((emulator, arguments)) = self.emulator.split_first() else {
            let mut command = Command::new(program);
            command.env("LD_PRELOAD", self.library());
            return command;
        };
        let mut command = Command::new(emulator);
        let preload = format!("LD_PRELOAD={}", self.library().display());
        command.args(arguments).args(["-E", &preload]).arg(program);
        command
    }

    /// The library. It has its own target directory: Cargo holds the lock of the one that this test runs in.
    fn library(&self) -> &Path {
        self.library.get_or_init(|| {
            let dir = Path::new(TMP).join("target");
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args([
                "rustc",
                "--offline",
                "--quiet",
                "-p",
                "guacd-uncapped-preload",
                "--features",
                "library",
            ]);
            cargo.args(["--profile", "staticlib", "--crate-type", "cdylib", "--target-dir"]).arg(&dir);
            self.target.map(|(target, linker)| cargo.args(["--target", target, "--config", linker]));
            succeeds(&mut cargo);
            let target = self.target.map_or("", |(target, _)| target);
            dir.join(target).join("staticlib/libguacd_uncapped.so")
        })
    }
}

/// Runs `cc`, and puts its output into a file of that name in one step: another test may be running the old file.
fn build(name: &str, cc: &mut Command) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static BUILT: AtomicU32 = AtomicU32::new(0);
    let path = Path::new(TMP).join(name);
    let new = path.with_extension(format!("{}-{}", std::process::id(), BUILT.fetch_add(1, Relaxed)));
    succeeds(cc.arg("-o").arg(&new));
    fs::rename(&new, &path).expect("the linker has written it");
    path
}

/// The flags to compile and to link with a library, if it is there.
fn pkg_config(library: &str) -> Option<Vec<String>> {
    let output = Command::new("pkg-config").args(["--cflags", "--libs", library]).output().ok()?;
    let flags = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| flags.split_whitespace().map(str::to_owned).collect())
}

/// Whether there is such a program.
fn answers(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a command, which must succeed and print nothing on standard error: the loader would report there that it cannot
/// load the library. Returns what the command printed.
fn succeeds(mut command: impl std::borrow::BorrowMut<Command>) -> String {
    let command = command.borrow_mut();
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Reports that something was not tested, even if the test harness captures the output of tests.
fn skipped(why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
