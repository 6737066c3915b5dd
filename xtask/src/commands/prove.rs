//! `cargo xtask prove`: is `tls-rs` right? These checks need other tools than those of `cargo xtask test`, or more time.
//!
//! Each check also runs on copies of the checkout, each with a bug of `tls-rs/bugs` in it. It must report the bug, which shows
//! that the check works.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use duct::Expression;
use fs_err as fs;
use planted_bugs::Bug;
use serde::Serialize;

use toolkit::failure::Failure;
use toolkit::host::run::{self, WhenInterrupted};
use toolkit::host::{checkout, files, layout, lock};
use toolkit::ui;

use crate::flags::{Check, Prove};

/// The flags that cargo-fuzz gives rustc, without those that need a nightly Rust.
const FUZZING: &str = "--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Seconds in which the fuzzer must find a bug.
const TIME_FOR_A_BUG: u64 = 300;

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

    /// The command that installs what this machine lacks for the check, or `None` if it lacks nothing.
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

    /// The directory of the check's logs and builds.
    fn dir(self) -> PathBuf {
        layout::target_dir().join("prove").join(self.name())
    }

    /// Cargo's target directory. With a bug it is another one than without: cargo compares the times of files, and would take a
    /// build of one tree for that of the other. (For Miri, it does not compare the files at all.)
    fn target_dir(self, with_bug: bool) -> PathBuf {
        if with_bug { self.dir().join("with-bug") } else { self.dir() }
    }

    /// The commands of the check, to be run one after another in `tree`: the checkout, or a copy with a bug.
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
                // libFuzzer adds what it finds to the first corpus. With a bug, it starts from an empty one.
                let found = self.dir().join(if with_bug { "found-with-bug" } else { "found" });
                let mut corpora = vec![found.clone()];
                if with_bug {
                    let _ = fs::remove_dir_all(&found);
                } else {
                    corpora.push(tree.join("tls-rs/fuzz/corpus/model"));
                }
                let _ = fs::create_dir_all(&found); // without the directory, libFuzzer fails
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
                // The model's steps run one after the other, so there is no race for ThreadSanitizer to find.
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

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// The result of a check.
#[derive(Serialize)]
struct Outcome {
    check: &'static str,
    result: Verdict,
    /// How long it took, in seconds.
    seconds: u64,
    /// The error, or the command that installs what is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<String>,
}

/// The results of all checks, which `--json` prints.
#[derive(Serialize)]
struct Outcomes<'a> {
    schema_version: u32,
    checks: &'a [Outcome],
}

/// Runs the checks that the flags name, or all.
pub fn run(flags: &Prove) -> Result<()> {
    let _lock = lock::command("prove")?;
    let named = !flags.checks.is_empty();
    let mut outcomes = Vec::new();
    for check in Check::ALL.into_iter().filter(|check| !named || flags.checks.contains(check)) {
        let start = Instant::now();
        let (result, remark) = match check.missing() {
            Some(install) if named => bail!(Failure::Preflight(format!(
                "`prove {}` needs what is not installed here: {install}",
                check.name()
            ))),
            Some(install) => {
                ui::warning(format!("SKIPPED: {}: NOT INSTALLED HERE: {install}", check.name()));
                (Verdict::Skipped, Some(install.to_owned()))
            }
            None => match run_check(check, flags) {
                Ok(()) => (Verdict::Passed, None),
                Err(error) => {
                    run::check_interrupted()?;
                    ui::error(&error);
                    (Verdict::Failed, Some(format!("{error:#}")))
                }
            },
        };
        outcomes.push(Outcome { check: check.name(), result, seconds: start.elapsed().as_secs(), remark });
    }
    if flags.json {
        ui::result(serde_json::to_string_pretty(&Outcomes { schema_version: 1, checks: &outcomes })?);
    }
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.result == Verdict::Failed)
        .map(|outcome| outcome.check)
        .collect();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Runs a check on the checkout, and then, for each bug that it must report, on a copy with the bug. For loom,
/// `tls-rs/tests/loom.rs` does the latter.
fn run_check(check: Check, flags: &Prove) -> Result<()> {
    let dir = check.dir();
    let log = dir.join("log");
    let step = ui::Step::start(check.name());
    run_all(&step, check.name(), check.commands(&layout::root(), flags, false), &log)?;
    step.done(log.display());
    if check == Check::Loom {
        return Ok(());
    }
    let bugs = planted_bugs::load(&layout::root())?;
    let bugs: Vec<_> = bugs.iter().filter_map(|bug| Some((bug, bug.seen_by(check.name())?))).collect();
    ensure!(!bugs.is_empty(), "no bug in tls-rs/bugs shows that {} works: add one", check.name());
    for (bug, words) in bugs {
        run_with_bug(check, flags, bug, words)?;
    }
    Ok(())
}

/// Runs a check on a copy of the checkout with a bug in it. The check must fail, and print `words`.
fn run_with_bug(check: Check, flags: &Prove, bug: &Bug, words: &str) -> Result<()> {
    let tree = copy_with(bug)?;
    let log = check.dir().join(format!("log-with-{}", bug.name));
    let title = format!("{} bug", check.name());
    let step = ui::Step::start(&title);
    let result = run_all(&step, &title, check.commands(&tree, flags, true), &log);
    run::check_interrupted()?;
    let printed = fs::read(&log)?;
    ensure!(
        result.is_err() && String::from_utf8_lossy(&printed).contains(words),
        "{} does not report the bug that was planted, {}: {}",
        check.name(),
        bug.name,
        log.display()
    );
    step.done(format!("reported, as it must be: {}", log.display()));
    Ok(())
}

/// Runs commands until one fails, with their output in the new file `log`.
fn run_all(step: &ui::Step, title: &str, commands: Vec<Expression>, log: &Path) -> Result<()> {
    files::begin_log(log)?;
    commands.into_iter().try_for_each(|command| run::logged(step, title, command, log, WhenInterrupted::End))
}

/// Makes a copy of the checkout with a bug in it, in place of the one before. Returns its path.
fn copy_with(bug: &Bug) -> Result<PathBuf> {
    let copy = layout::target_dir().join("prove/copy");
    files::remove_tree(&copy)?;
    checkout::copy(&copy)?;
    bug.plant(&copy)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bugs_name_the_checks_that_there_are() {
        assert_eq!(Check::ALL.map(Check::name), planted_bugs::CHECKS);
    }
}
