//! `cargo xtask prove`: is `tls-rs` right? The checks that take other tools than `test` does, or more time.
//!
//! Each check is shown to see: it also runs on a copy of the checkout with a bug in it, and must report that bug.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use duct::Expression;
use serde::Serialize;

use toolkit::failure::Failure;
use toolkit::host::layout;
use toolkit::host::run::{self, WhenInterrupted};
use toolkit::ui;

use crate::flags::{Check, Prove};

/// What cargo-fuzz has rustc do, less what only a nightly Rust can.
const FUZZING: &str = "--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Seconds in which the fuzzer has to find the bug that is there for it.
const TIME_FOR_A_BUG: u64 = 300;

/// A bug, and what is said of it.
struct Bug {
    what: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    says: &'static str,
}

const TABLE_IS_FREED_WHILE_WALKED: Bug = Bug {
    what: "a table is freed while thread exit walks over it",
    file: "tls-rs/src/root.rs",
    from: " && !self.is_walked(table) {",
    to: " {",
    says: "",
};

impl Check {
    const ALL: [Check; 6] =
        [Check::Loom, Check::Valgrind, Check::Fuzz, Check::Address, Check::Thread, Check::Miri];

    fn name(self) -> &'static str {
        match self {
            Check::Loom => "loom",
            Check::Valgrind => "valgrind",
            Check::Fuzz => "fuzz",
            Check::Address => "address",
            Check::Thread => "thread",
            Check::Miri => "miri",
        }
    }

    /// What is missing here, and how to get it.
    fn missing(self) -> Option<&'static str> {
        let has = |program| run::version_line(program, "--version").is_some();
        let nightly = |component: &str| {
            let installed =
                duct::cmd!("rustup", "component", "list", "--installed", "--toolchain", "nightly");
            let list = installed.stderr_null().unchecked().read().unwrap_or_default();
            list.lines().any(|line| line.starts_with(component))
        };
        match self {
            Check::Loom => None,
            Check::Valgrind => (!has("valgrind")).then_some("apt-get install valgrind"),
            Check::Fuzz => (!has("c++")).then_some("apt-get install g++"),
            Check::Address | Check::Thread => {
                (!nightly("rust-src")).then_some("rustup toolchain install nightly --component rust-src")
            }
            Check::Miri => (!nightly("miri") || !nightly("rust-src"))
                .then_some("rustup toolchain install nightly --component miri --component rust-src"),
        }
    }

    /// The bug that the check must report. Loom's are in `tls-rs/tests/loom.rs`.
    fn bug(self) -> Option<Bug> {
        match self {
            Check::Loom => None,
            Check::Valgrind => Some(Bug {
                what: "a thread's table is not freed",
                file: "tls-rs/src/root.rs",
                from: "unsafe { table.free() };",
                to: "let _ = Table::free;",
                says: "definitely lost",
            }),
            Check::Fuzz => Some(Bug {
                what: "a deleted key comes alive with the next in its cell",
                file: "tls-rs/src/registry.rs",
                from: "self.key.load(Relaxed) == key\n",
                to: "key != 0 && self.key.load(Relaxed) & key::GENERATION != 0\n",
                says: "Test unit written to",
            }),
            Check::Address => {
                Some(Bug { says: "AddressSanitizer: heap-use-after-free", ..TABLE_IS_FREED_WHILE_WALKED })
            }
            Check::Thread => Some(Bug {
                what: "a bucket is published before its cells",
                file: "tls-rs/src/registry.rs",
                from: "compare_exchange(ptr::null_mut(), cells, AcqRel, Acquire)",
                to: "compare_exchange(ptr::null_mut(), cells, Relaxed, Relaxed)",
                says: "ThreadSanitizer: data race",
            }),
            Check::Miri => Some(Bug { says: "Undefined Behavior", ..TABLE_IS_FREED_WHILE_WALKED }),
        }
    }

    /// Where the check keeps what it builds.
    fn dir(self) -> PathBuf {
        layout::target_dir().join("prove").join(self.name())
    }

    /// Cargo's target directory. Not the same with a bug as without: Cargo would take what it has built of one tree for what it is
    /// to build of the other (it goes by the age of files, and of what Miri runs it does not know the files at all).
    fn target_dir(self, with_bug: bool) -> PathBuf {
        if with_bug { self.dir().join("with-bug") } else { self.dir() }
    }

    /// What to run in `tree`, which is the checkout or a copy with a bug.
    fn commands(self, tree: &Path, flags: &Prove, with_bug: bool) -> Vec<Expression> {
        let stable = |words: &[&str]| {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            duct::cmd(cargo, words)
        };
        let nightly = |words: &[&str]| duct::cmd("rustup", [&["run", "nightly", "cargo"], words].concat());
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let commands = match self {
            Check::Loom => {
                let test = stable(&["test", "--locked", "--release", "--package=tls-rs", "loom"]);
                vec![test.env("RUSTFLAGS", "--cfg loom")]
            }
            Check::Valgrind => {
                vec![stable(&[
                    "test",
                    "--locked",
                    "--package=tls-rs",
                    "--test=c",
                    "--",
                    "valgrind_finds_nothing",
                ])]
            }
            Check::Fuzz => {
                let build = ["build", "--locked", "--release", "--manifest-path=tls-rs/fuzz/Cargo.toml"];
                let build = stable(&[&build[..], &["--target", &target]].concat()).env("RUSTFLAGS", FUZZING);
                let seconds = if with_bug { TIME_FOR_A_BUG } else { flags.fuzz_time.as_secs() };
                // libFuzzer adds what it finds to the first corpus. With a bug, it starts from nothing.
                let found = self.dir().join(if with_bug { "found-with-bug" } else { "found" });
                let mut corpora = vec![found.clone()];
                if with_bug {
                    let _ = fs::remove_dir_all(&found);
                } else {
                    corpora.push(tree.join("tls-rs/fuzz/corpus/model"));
                }
                let _ = fs::create_dir_all(&found); // if not, libFuzzer says so
                let program = self.target_dir(with_bug).join(&target).join("release/model");
                let options = [
                    format!("-max_total_time={seconds}"),
                    format!("-artifact_prefix={}/", self.dir().display()),
                ];
                let options = options
                    .into_iter()
                    .chain(["-max_len=200", "-len_control=0", "-timeout=60"].map(String::from));
                let corpora = corpora.into_iter().map(|corpus| corpus.display().to_string());
                vec![build, duct::cmd(program, options.chain(["-print_final_stats=1".into()]).chain(corpora))]
            }
            Check::Address | Check::Thread => {
                let name = self.name();
                let test = ["test", "--locked", "--package=tls-rs", "-Zbuild-std", "--target", &target];
                let sanitized = |what: &[&str]| {
                    nightly(&[&test[..], what].concat()).env("RUSTFLAGS", format!("-Zsanitizer={name}"))
                };
                let mut commands = vec![sanitized(&["--lib"])];
                // The model's steps run one after the other, so there is no race to be seen.
                if self == Check::Address && !with_bug {
                    commands.push(sanitized(&["--test=model"]));
                }
                if !with_bug {
                    let programs = format!("the_{name}_sanitizer_finds_nothing");
                    let test =
                        ["test", "--locked", "--package=tls-rs", "--test=c", "--", "--ignored", &programs];
                    commands.push(nightly(&test));
                }
                commands
            }
            Check::Miri => {
                let seeds = if with_bug { 1 } else { flags.seeds };
                let test = nightly(&["miri", "test", "--locked", "--package=tls-rs", "--lib"]);
                vec![test.env("MIRIFLAGS", format!("-Zmiri-strict-provenance -Zmiri-many-seeds=0..{seeds}"))]
            }
        };
        let command = |command: Expression| {
            let command = command.dir(tree).env("CARGO_TARGET_DIR", self.target_dir(with_bug));
            command.env_remove("CARGO_ENCODED_RUSTFLAGS")
        };
        commands.into_iter().map(command).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// What became of a check.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    result: Verdict,
    seconds: u64,
    /// The error, or the command that installs what is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    checks: &'a [Finding],
}

/// Runs the checks that were asked for, or all.
pub fn run(flags: &Prove) -> Result<()> {
    let _lock = layout::lock("prove")?;
    let named = !flags.checks.is_empty();
    let mut findings = Vec::new();
    for check in Check::ALL.into_iter().filter(|check| !named || flags.checks.contains(check)) {
        let start = Instant::now();
        let (result, remark) = match check.missing() {
            Some(install) if named => bail!(Failure::Preflight(format!(
                "`prove {}` takes what is not installed here: {install}",
                check.name()
            ))),
            Some(install) => {
                ui::warning(format!("SKIPPED: {}: NOT INSTALLED HERE: {install}", check.name()));
                (Verdict::Skipped, Some(install.to_owned()))
            }
            None => match prove_one(check, flags) {
                Ok(()) => (Verdict::Passed, None),
                Err(error) => {
                    run::check_interrupted()?;
                    ui::error(&error);
                    (Verdict::Failed, Some(format!("{error:#}")))
                }
            },
        };
        findings.push(Finding { check: check.name(), result, seconds: start.elapsed().as_secs(), remark });
    }
    if flags.json {
        ui::result(serde_json::to_string_pretty(&Report { schema_version: 1, checks: &findings })?);
    }
    let failed: Vec<_> = findings
        .iter()
        .filter(|finding| finding.result == Verdict::Failed)
        .map(|finding| finding.check)
        .collect();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn prove_one(check: Check, flags: &Prove) -> Result<()> {
    let dir = check.dir();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let run_all = |title: &str, tree: &Path, log: &str, with_bug: bool| -> (PathBuf, Result<()>) {
        let log = dir.join(log);
        let _ = fs::remove_file(&log);
        let step = ui::Step::start(title);
        let mut commands = check.commands(tree, flags, with_bug).into_iter();
        let result =
            commands.try_for_each(|command| run::logged(&step, title, command, &log, WhenInterrupted::End));
        match &result {
            Ok(()) => step.done(log.display()),
            // With a bug it is what should happen.
            Err(_) if with_bug => step.done(format!("as it should: {}", log.display())),
            Err(_) => {}
        }
        (log, result)
    };

    run_all(check.name(), &layout::root(), "log", false).1?;
    let Some(bug) = check.bug() else { return Ok(()) };
    let tree = copy_with(&bug)?;
    let (log, result) = run_all(&format!("{} bug", check.name()), &tree, "log-with-bug", true);
    run::check_interrupted()?;
    let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let seen = result.is_err() && String::from_utf8_lossy(&said).contains(bug.says);
    ensure!(
        seen,
        "{} does not report a bug that was planted, `{}`: {}",
        check.name(),
        bug.what,
        log.display()
    );
    Ok(())
}

/// A copy of the checkout with a bug in it.
fn copy_with(bug: &Bug) -> Result<PathBuf> {
    let (root, copy) = (layout::root(), layout::target_dir().join("prove/copy"));
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir_all(&copy).with_context(|| format!("cannot create {}", copy.display()))?;
    let entries = fs::read_dir(&root).with_context(|| format!("cannot read {}", root.display()))?;
    for entry in entries {
        let path = entry?.path();
        if !path.ends_with("target") && !path.ends_with(".git") {
            duct::cmd!("cp", "-a", &path, &copy).run().context("cannot copy the checkout")?;
        }
    }
    let file = copy.join(bug.file);
    let source = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    ensure!(
        source.matches(bug.from).count() == 1,
        "{} has changed: look in xtask/src/commands/prove.rs for how `{}` is planted",
        bug.file,
        bug.what
    );
    fs::write(&file, source.replace(bug.from, bug.to))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(copy)
}
