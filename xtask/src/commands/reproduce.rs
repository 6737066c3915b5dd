//! `cargo xtask reproduce`: does the same source always give the same files, whoever builds it, where and when?
//!
//! It builds twice, in two copies of the checkout, under conditions that differ as far as possible. Both builds install into
//! the same prefix, and the two installations are compared byte by byte.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use duct::Expression;
use fs_err as fs;
use rustix::fs::Mode;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use toolkit::build::guacd::OPTIONAL_NEEDS;
use toolkit::build::prefix;
use toolkit::failure::Failure;
use toolkit::host::install;
use toolkit::host::run::{self, WhenInterrupted};
use toolkit::host::tools::Need;
use toolkit::host::{checkout, files, layout, lock};
use toolkit::ship::compare::{Difference, compare};
use toolkit::source::fetch;
use toolkit::ui;

use crate::flags;

/// How many differing files diffoscope explains. The others probably differ for the same reason.
const MOST_EXPLAINED: usize = 10;

/// The directories of the two builds. Their paths have different lengths, as the length of a path may affect a file, too.
const PLACES: [&str; 2] = ["one", "another/and/deeper"];

/// Runs a program under another user ID, in a user namespace.
const AS_ANOTHER_USER: [&str; 4] = ["unshare", "--user", "--map-user=4822", "--map-group=4822"];

/// The result, which `--json` prints.
#[derive(Serialize)]
struct Reproduction {
    schema_version: u32,
    release: String,
    variant: &'static str,
    reproducible: bool,
    /// What differed between the two builds.
    conditions: Vec<Condition>,
    /// What could not be made to differ, and why.
    not_varied: Vec<String>,
    /// How many files, links and directories were compared.
    files: usize,
    differences: Vec<Difference>,
}

/// A condition under which the builds run, and its value in each.
#[derive(Serialize)]
struct Condition {
    name: &'static str,
    values: [String; 2],
}

/// Builds twice, and compares the installations.
pub fn run(flags: &flags::Reproduce) -> Result<()> {
    install::preflight(&[Need::Build], &[OPTIONAL_NEEDS, &[Need::Reproduce]].concat(), flags.setup.install)?;
    let release = flags.release.load()?;
    let _lock = lock::command("reproduce")?;
    // This puts it into the cache, from where both builds take it.
    fetch::source(&release, &flags.setup.source.to_toolkit())?;
    let name = format!("reproduce-{}", flags.variant.to_toolkit().name());
    let work = Work::new(&layout::target_dir().join("guacd").join(&release.version).join(name))?;
    let (conditions, not_varied) = conditions();

    for (index, name) in ["first", "second"].into_iter().enumerate() {
        let progress = ui::Step::start(format!("{name} build"));
        let log = work.dir.join(format!("{name}.log"));
        files::begin_log(&log)?;
        let checkout = work.checkout(index, &conditions)?;
        let command = work.build(flags, &release.version, index, &checkout, &conditions)?;
        run::logged(&progress, &format!("the {name} build"), command, &log, WhenInterrupted::End)?;
        fs::rename(work.prefix(), work.installed(index))?;
        progress.done(checkout.dir.display());
    }

    let (files, mut differences) = compare(&work.installed(0), &work.installed(1))?;
    explain(&work, &mut differences)?;
    let reproducible = differences.is_empty();
    let variant = flags.variant.to_toolkit().name();
    let version = release.version.clone();
    let report = Reproduction {
        schema_version: 1,
        release: version,
        variant,
        reproducible,
        conditions,
        not_varied,
        files,
        differences,
    };
    if flags.json {
        ui::result(serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    ensure!(
        reproducible,
        Failure::Difference(format!(
            "{} of {files} files differ between the two builds, which are in {}",
            report.differences.len(),
            work.dir.display()
        ))
    );
    work.remove()
}

fn print(report: &Reproduction) {
    for Condition { name, values: [first, second] } in &report.conditions {
        ui::result(format!("  {name:<12} {first:<20} {second}"));
    }
    for reason in &report.not_varied {
        ui::warning(reason);
    }
    for difference in &report.differences {
        ui::result(format!("\n{difference}"));
        let explanation = difference.explanation.as_ref().and_then(|file| fs::read_to_string(file).ok());
        for line in explanation.iter().flat_map(|text| text.lines().skip(2).take(20)) {
            ui::result(format!("    {line}"));
        }
        if let Some(file) = &difference.explanation {
            ui::result(format!("    the whole explanation: {}", file.display()));
        }
    }
    if report.reproducible {
        ui::result(format!("\nreproducible: none of {} files differs", report.files));
    }
}

/// What differs between the builds, and what cannot be made to differ here.
fn conditions() -> (Vec<Condition>, Vec<String>) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let locales = duct::cmd!("locale", "-a").stderr_null().read().unwrap_or_default();
    // Preferably one with messages in another language, and another order of letters.
    let locale =
        locales.lines().find(|name| !["C", "POSIX", "en"].iter().any(|plain| name.starts_with(plain)));
    let condition = |name, values: [&str; 2]| Condition { name, values: values.map(str::to_owned) };
    let mut conditions = vec![
        condition("directory", PLACES),
        condition("jobs", ["1", &(cores + 1).to_string()]),
        condition("umask", ["022", "077"]),
        condition("time zone", ["UTC0", "ELSEWHERE-13"]),
        condition("locale", ["C", locale.unwrap_or("C.UTF-8")]),
        condition("home", ["home", "another-home"]),
        condition("user", ["builder", "somebody-else"]),
    ];
    let mut not_varied = Vec::new();
    let mut add = |name, values, can: bool, why: &str| match can {
        true => conditions.push(condition(name, values)),
        false => not_varied.push(format!("{name} is the same in both builds: {why}")),
    };
    let is_there = |program: &str| run::version_line(program, "--version").is_some();
    let missing = |name: &str| format!("{name} is missing, which --install installs");
    add("time", ["now", "+400d"], is_there("faketime"), &missing("faketime"));
    // disorderfs is a file system that lists directories in reverse.
    add("file order", ["as it comes", "reversed"], is_there("disorderfs"), &missing("disorderfs"));
    let can_unshare = duct::cmd(AS_ANOTHER_USER[0], [&AS_ANOTHER_USER[1..], &["true"]].concat())
        .stderr_null()
        .run()
        .is_ok();
    add("user id", ["your own", "4822"], can_unshare, "this system allows no user namespaces");
    (conditions, not_varied)
}

/// The value of a condition in the build `index`. `None` if the condition is the same in both builds.
fn value<'a>(conditions: &'a [Condition], name: &str, index: usize) -> Option<&'a str> {
    conditions
        .iter()
        .find(|condition| condition.name == name)
        .map(|condition| condition.values[index].as_str())
}

/// The directory of the two builds and their installations.
struct Work {
    dir: PathBuf,
}

impl Work {
    fn new(dir: &Path) -> Result<Work> {
        // A run that was killed may have left files and a mounted file system.
        let work = Work { dir: dir.to_owned() };
        unmount(&work.place(1));
        work.remove()?;
        fs::create_dir_all(dir)?;
        let work = Work { dir: fs::canonicalize(dir)? };
        prefix::check_space(&work.dir, 2 * prefix::BYTES_NEEDED)?;
        // Both builds use a copy of xtask: cargo may replace the original meanwhile.
        fs::copy(std::env::current_exe()?, work.xtask())?;
        // Without faketime's library: its lock and that of rustc's allocator would cause a deadlock.
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        fs::write(work.rustc(), format!("#!/bin/sh\nunset LD_PRELOAD\nexec {rustc} \"$@\"\n"))?;
        fs::set_permissions(work.rustc(), Permissions::from_mode(0o755))?;
        Ok(work)
    }

    fn remove(&self) -> Result<()> {
        files::remove_tree(&self.dir)
    }

    /// The directory of one of the builds.
    fn place(&self, index: usize) -> PathBuf {
        self.dir.join(PLACES[index])
    }

    /// The prefix of both builds: it is part of the files.
    fn prefix(&self) -> PathBuf {
        self.dir.join("prefix")
    }

    fn xtask(&self) -> PathBuf {
        self.dir.join("xtask")
    }

    fn rustc(&self) -> PathBuf {
        self.dir.join("rustc")
    }

    /// Where the installation of one of the builds is kept.
    fn installed(&self, index: usize) -> PathBuf {
        self.dir.join(["installed-first", "installed-second"][index])
    }

    /// Makes the copy of the checkout for one of the builds.
    fn checkout(&self, index: usize, conditions: &[Condition]) -> Result<Checkout> {
        let dir = self.place(index);
        fs::create_dir_all(&dir)?;
        let reversed = index == 1 && value(conditions, "file order", index).is_some();
        let disorder = reversed.then(|| Disorder::mount(&self.dir.join("backwards"), &dir)).transpose()?;
        checkout::copy(&dir)?;
        Ok(Checkout { dir, _disorder: disorder })
    }

    /// The command that builds in `checkout`, and installs.
    fn build(
        &self,
        flags: &flags::Reproduce,
        release: &str,
        index: usize,
        checkout: &Checkout,
        conditions: &[Condition],
    ) -> Result<Expression> {
        let value = |name| value(conditions, name, index);
        let mut words: Vec<String> = Vec::new();
        if index == 1 {
            if value("user id").is_some() {
                words.extend(AS_ANOTHER_USER.map(str::to_owned));
            }
            if let Some(time) = value("time") {
                words.extend(["faketime".into(), "-f".into(), time.into()]);
            }
        }
        words.push(self.xtask().to_string_lossy().into_owned());
        words.extend(["build", "--offline"].map(str::to_owned));
        words.push(format!("--release={release}"));
        words.push(format!("--variant={}", flags.variant.to_toolkit().name()));
        words.push(format!("--prefix={}", self.prefix().display()));
        words.push(format!("--jobs={}", value("jobs").unwrap_or("1")));
        words.push("--".into());
        words.extend(flags.configure_args.iter().cloned());

        let home = self.dir.join(value("home").unwrap_or("home"));
        fs::create_dir_all(&home)?;
        // HOME changes, and these directories stay the same.
        let cache = layout::cache_dir()?;
        let users_home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let or_below_home =
            |name: &str, dir: &str| std::env::var_os(name).unwrap_or_else(|| users_home.join(dir).into());
        let umask = u32::from_str_radix(value("umask").unwrap_or("022"), 8)?;
        Ok(duct::cmd(&words[0], &words[1..])
            .dir(&checkout.dir)
            .env("CARGO_MANIFEST_DIR", checkout.dir.join("xtask"))
            .env("CARGO_TARGET_DIR", checkout.dir.join("target"))
            .env("CARGO_HOME", or_below_home("CARGO_HOME", ".cargo"))
            .env("RUSTUP_HOME", or_below_home("RUSTUP_HOME", ".rustup"))
            .env("XDG_CACHE_HOME", cache.parent().unwrap_or(&cache))
            .env("RUSTC", self.rustc())
            .env("HOME", home)
            .env("LC_ALL", value("locale").unwrap_or("C"))
            .env("TZ", value("time zone").unwrap_or("UTC0"))
            .env("USER", value("user").unwrap_or_default())
            .env("LOGNAME", value("user").unwrap_or_default())
            // faketime changes the current time alone: make compares the times of files, and locks use the monotonic clock.
            .env("NO_FAKE_STAT", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .before_spawn(move |command| {
                // SAFETY: the closure runs in the forked child and makes one system call: it neither allocates nor locks.
                unsafe {
                    command.pre_exec(move || {
                        rustix::process::umask(Mode::from_raw_mode(umask));
                        Ok(())
                    });
                }
                Ok(())
            }))
    }
}

/// A copy of the checkout, and the file system that it is on.
struct Checkout {
    dir: PathBuf,
    _disorder: Option<Disorder>,
}

/// A mounted file system whose directories list their files in reverse. It is unmounted when this is dropped.
struct Disorder {
    daemon: Child,
    dir: PathBuf,
}

impl Disorder {
    fn mount(files: &Path, dir: &Path) -> Result<Disorder> {
        fs::create_dir_all(files)?;
        let outside = fs::metadata(dir)?.dev();
        let mut command = Command::new("disorderfs");
        command.args(["-f", "--shuffle-dirents=no", "--reverse-dirents=yes", "--sort-dirents=yes"]);
        command.arg(files).arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Its own process group, so that Ctrl-C does not reach it: the build needs the file system until it has ended.
        command.process_group(0);
        shared::parent_death::die_with_parent(&mut command);
        let daemon = command.spawn().context("cannot start disorderfs")?;
        let mut disorder = Disorder { daemon, dir: dir.to_owned() };
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::metadata(dir)?.dev() == outside {
            ensure!(
                disorder.daemon.try_wait()?.is_none() && Instant::now() < deadline,
                "disorderfs cannot mount a file system here (it needs /dev/fuse): uninstall disorderfs to build without it"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(disorder)
    }
}

impl Drop for Disorder {
    fn drop(&mut self) {
        unmount(&self.dir);
        let _ = kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        let _ = self.daemon.wait();
    }
}

/// Unmounts what is mounted on `dir`, if anything is.
fn unmount(dir: &Path) {
    let _ = duct::cmd!("fusermount", "-u", "-z", dir).stdout_null().stderr_null().unchecked().run();
}

/// Has diffoscope explain how the files differ, if it is installed.
fn explain(work: &Work, differences: &mut [Difference]) -> Result<()> {
    if differences.is_empty() || run::version_line("diffoscope", "--version").is_none() {
        return Ok(());
    }
    let progress = ui::Step::start("diffoscope");
    let dir = work.dir.join("differences");
    fs::create_dir_all(&dir)?;
    for difference in differences.iter_mut().take(MOST_EXPLAINED) {
        progress.busy_with(difference.path.display());
        let report = dir.join(format!("{}.txt", difference.path.to_string_lossy().replace('/', "-")));
        let files = [0, 1].map(|index| work.installed(index).join(&difference.path));
        if !files.iter().all(|file| file.is_file()) {
            continue;
        }
        // It exits with 1 because the files differ.
        let command = duct::cmd!("diffoscope", "--no-progress", "--text", &report, &files[0], &files[1]);
        let log = work.dir.join("diffoscope.log");
        let _ = run::logged(&progress, "diffoscope", command, &log, WhenInterrupted::End);
        run::check_interrupted()?;
        difference.explanation = report.is_file().then_some(report);
    }
    progress.done("");
    Ok(())
}
