//! `cargo xtask bench`: is tls-rs as fast as libc's keys? Compiles and runs the program in `bench/`, and compares its figures
//! with limits.

#[path = "../../../tls-rs/tests/budgets/mod.rs"]
mod budgets;
mod chart;
mod report;
mod rounds;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fs_err as fs;

use toolkit::build::guacd::{self, Options, Variant};
use toolkit::build::steps::{Running, Steps};
use toolkit::build::tls_rs;
use toolkit::failure::Failure;
use toolkit::host::install;
use toolkit::host::run::{self, WhenInterrupted};
use toolkit::host::tools::{self, Need};
use toolkit::host::{digest, files, layout, lock};
use toolkit::ui;

use crate::flags;

use budgets::Count;
use report::{Case, Library, Machine, Report};
use rounds::Verdict;

/// How many samples a round takes of each case, and how many nanoseconds a sample must last at least.
const THOROUGH: [&str; 2] = ["9", "10000"];
const QUICK: [&str; 2] = ["1", "5000"];

/// Whether instructions can be counted on this architecture.
const CAN_COUNT: bool = cfg!(target_arch = "x86_64");

/// The flags of the C compiler. Functions and loops are aligned, so that no design is faster because of its addresses.
const CFLAGS: [&str; 6] =
    ["-std=c99", "-O2", "-falign-functions=64", "-falign-loops=64", "-Itls-rs/include", "-Ibench"];

/// Each design of keys: its name, which its functions begin with, and its sources and flags. The loops in `bench/loops.c` are
/// compiled once for each.
const DESIGNS: [(&str, &[&str]); 5] = [
    ("pthread", &["-DDESIGN_IS_LIBC"]),
    ("thread", &["bench/thread.c"]),
    ("mutex_array", &["tls-rs/tests/c/mutex_array.c"]),
    ("mutex_array_large", &["tls-rs/tests/c/mutex_array.c", "-DKEYS=1000100"]),
    ("tls_rs", &[]),
];

/// Measures the designs, prints the report, and fails with `--check` if a limit is not met.
pub fn run(flags: &flags::Bench) -> Result<()> {
    // Checked now, as the files are written minutes later.
    for path in [&flags.json, &flags.chart].into_iter().flatten() {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        ensure!(dir.is_dir(), "cannot write {}: there is no directory {}", path.display(), dir.display());
    }
    if !flags.keys_only {
        install::preflight(&[Need::Build], guacd::OPTIONAL_NEEDS, flags.setup.install)?;
    }
    let _lock = lock::command("bench")?;
    let libguacs = if flags.keys_only { None } else { Some(libguacs(flags)?) };

    let dir = layout::target_dir().join("bench");
    ui::heading(format!("benchmark -> {}", dir.display()));
    let mut steps = Steps::open(&dir)?;
    let program = compile(&mut steps, &dir, flags.setup.source.offline)?;
    let counts = count(&dir.join("steps"), flags.judge.name())?;
    let checkpoints: &[usize] = if flags.quick { &rounds::QUICK_CHECKPOINTS } else { &rounds::CHECKPOINTS };
    let cases = measure(&program, &dir, flags, checkpoints, libguacs.as_ref())?;
    let library = libguacs.map(|[stock, patched]| Library::compare(&stock, &patched, &dir)).transpose()?;
    let judged = flags.judge.name();
    let report = Report::new(machine(), flags.quick, judged, cases, library, counts, checkpoints.len());

    ui::result(&report);
    if let Some(path) = &flags.json {
        files::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    if let Some(path) = &flags.chart {
        files::write(path, chart::draw(&report))?;
    }
    let [undecided, missed] =
        [Verdict::Undecided, Verdict::Missed].map(|verdict| report.thresholds_that_are(verdict));
    if !undecided.is_empty() {
        ui::warning(format!(
            "undecided after {} rounds: {}",
            checkpoints.last().unwrap_or(&0),
            undecided.join("; ")
        ));
    }
    if flags.check && !report.passed {
        let name = flags.judge.name();
        bail!(Failure::Benchmark(match missed.is_empty() {
            true => format!("{name} is not shown to meet its limits: {}", undecided.join("; ")),
            false => format!("{name} missed: {}", missed.join("; ")),
        }));
    }
    Ok(())
}

/// libguac.so of a stock and of a patched guacd.
fn libguacs(flags: &flags::Bench) -> Result<[PathBuf; 2]> {
    let release = flags.release.load()?;
    let library = |variant| {
        let prefix = guacd::build(&release, variant, &flags.setup.to_toolkit(), &Options::default())?;
        Ok::<_, anyhow::Error>(prefix.join("lib/libguac.so"))
    };
    Ok([library(Variant::Stock)?, library(Variant::Patched)?])
}

/// Compiles the benchmark, with each design in a shared library that is linked as libguac is. Returns the program's path.
fn compile(steps: &mut Steps, dir: &Path, offline: bool) -> Result<PathBuf> {
    let program = dir.join("bench");
    let sources = digest::files(&layout::root(), &["bench", "tls-rs/tests/c", "tls-rs/include"])?;
    let (compiler, rustc) = (tools::c_compiler_version(), tools::rustc_version());
    let inputs =
        [&*sources, &compiler, &rustc, &tls_rs::digest_of_inputs()?, &format!("{DESIGNS:?} {CFLAGS:?}")];
    steps.step(
        "compile",
        &[],
        &inputs,
        |_| program.exists(),
        |step| {
            tls_rs::build(step, dir, offline)?;
            let library = |name: &str| dir.join(format!("libbench_{name}.so"));
            for (name, more) in DESIGNS {
                let mut arguments: Vec<String> =
                    ["-shared", "-fPIC", "bench/loops.c"].map(str::to_owned).into();
                arguments.extend(more.iter().map(|&argument| argument.to_owned()));
                arguments.push(format!("-DDESIGN=bench_{name}"));
                if name == "tls_rs" {
                    let archive = dir.join("lib/libtls_rs.a");
                    arguments.extend([format!("-Wl,{}", archive.display()), "-Wl,-z,nodelete".to_owned()]);
                } else {
                    // Each library has other names. With the same names, all would call the first library's functions.
                    let functions = ["key_create", "key_delete", "getspecific", "setspecific"];
                    let rename = |function| format!("-Dguac_thread_local_{function}={name}_{function}");
                    arguments.extend(functions.map(rename));
                }
                cc(step, &library(name), arguments)?;
            }
            let slots16 = ["-shared", "-fPIC", "bench/slots16.c", "-pthread"].map(str::to_owned);
            cc(step, &library("slots16"), slots16.into())?;
            let mut arguments = vec!["bench/bench.c".to_owned(), "-pthread".to_owned()];
            let names = DESIGNS.iter().map(|(name, _)| *name).chain(["slots16"]);
            arguments.extend(names.map(|name| library(name).display().to_string()));
            arguments.extend([format!("-Wl,-rpath,{}", dir.display()), "-ldl".to_owned()]);
            cc(step, &program, arguments)?;
            if CAN_COUNT {
                let steps = ["tls-rs/tests/c/steps.c", "-Itls-rs/tests/c", "-pthread"].map(str::to_owned);
                let linked = [
                    library("tls_rs").display().to_string(),
                    format!("-Wl,-rpath,{}", dir.display()),
                    "-ldl".to_owned(),
                ];
                cc(step, &dir.join("steps"), steps.into_iter().chain(linked).collect())?;
            }
            Ok(compiler.clone())
        },
    )?;
    Ok(program)
}

/// Compiles a program or a library to the file `output`.
fn cc(step: &Running<'_>, output: &Path, arguments: Vec<String>) -> Result<()> {
    let compiler = tools::c_compiler();
    let mut words = compiler.split_whitespace().map(str::to_owned);
    let program = words.next().context("CC is empty")?;
    let flags = CFLAGS.map(str::to_owned).into_iter();
    let arguments =
        words.chain(flags).chain(arguments).chain(["-o".to_owned(), output.display().to_string()]);
    step.run(&format!("compiling {}", output.display()), duct::cmd(program, arguments).dir(layout::root()))
}

/// Counts the instructions and loads of each call of tls-rs with the program `steps`. The inner error says why they cannot be
/// counted.
fn count(steps: &Path, judged: &str) -> Result<Result<HashMap<String, Count>, &'static str>> {
    if judged != "tls_rs" {
        return Ok(Err("they are for tls_rs only"));
    }
    if !CAN_COUNT {
        return Ok(Err("they are for x86_64 only"));
    }
    if run::version_line("objdump", "--version").is_none() {
        return Ok(Err("objdump is not installed"));
    }
    budgets::count(steps).map(Ok).map_err(anyhow::Error::msg).context("cannot count instructions")
}

/// Runs the benchmark, round by round, until each case is decided. Returns the cases.
fn measure(
    program: &Path,
    dir: &Path,
    flags: &flags::Bench,
    checkpoints: &[usize],
    libguacs: Option<&[PathBuf; 2]>,
) -> Result<Vec<Case>> {
    let (samples, log) = (dir.join("samples.jsonl"), dir.join("logs/measure.log"));
    files::begin_log(&log)?;
    let mut arguments = vec![samples.clone().into_os_string()];
    arguments.extend(if flags.quick { QUICK } else { THOROUGH }.map(Into::into));
    arguments.extend(libguacs.into_iter().flatten().map(|path| path.clone().into_os_string()));
    let progress = ui::Step::start("measure");
    let mut made = 0;
    let cases = report::decide(flags.judge.name(), checkpoints, |wanted| {
        let command = duct::cmd(program, &arguments).stdin_bytes(wanted.join("\n"));
        run::logged(&progress, "measuring", command, &log, WhenInterrupted::End)?;
        made += 1;
        let text = fs::read_to_string(&samples)?;
        let cases = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        cases.with_context(|| format!("cannot understand {}", samples.display()))
    })?;
    progress.done(format!("{} cases, {made} rounds", cases.len()));
    Ok(cases)
}

/// Describes this machine, for the report.
fn machine() -> Machine {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpu.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let text = |name| field(name).unwrap_or_default();
    Machine {
        cpu: format!("{}, family {} model {}", text("model name"), text("cpu family"), text("model\t")),
        vendor: text("vendor_id"),
        family: text("cpu family"),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        libc: duct::cmd!("getconf", "GNU_LIBC_VERSION").stderr_null().read().unwrap_or_default(),
        compiler: tools::c_compiler_version(),
        rustc: tools::rustc_version(),
    }
}
