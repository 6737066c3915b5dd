//! Does a patch for upstream build there and pass upstream's tests, alone? Do they fail without it? One build tree serves all
//! patches: each is applied, what it affects is made, and it is taken back.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use fs_err as fs;
use tempfile::TempDir;

use super::guacd::{self, Options, Setup, Tree};
use crate::host::files;
use crate::host::run::{self, WhenInterrupted};
use crate::source::release::Release;
use crate::source::series::{self, Patch};
use crate::source::upkeep::upstream::Offer;
use crate::ui;

/// The most seconds that a make may take. Upstream's tests take some 5, and compiling what a patch affects up to a minute.
const SECONDS: &str = "600";

/// A build tree in which patches are tried.
pub struct Trial {
    tree: Tree,
    jobs: String,
}

impl Trial {
    /// Builds upstream's commit, unless that was done before, and checks that its tests pass.
    ///
    /// # Errors
    ///
    /// When something is missing, or the build or its tests fail.
    pub fn prepare(release: &Release, setup: &Setup, options: &Options<'_>) -> Result<Trial> {
        let tree = guacd::tree(release, "upstream", setup, options)?;
        let trial = Trial { tree, jobs: options.jobs_flag() };
        trial.restore()?;
        trial.forget(&[])?;
        let step = ui::Step::start("make check");
        trial.check(&step, "make-check").context("upstream's own tests fail without any patch")?;
        step.done("upstream's tests pass without any patch");
        Ok(trial)
    }

    /// Tries a patch. Returns what is wrong with it.
    ///
    /// # Errors
    ///
    /// When a signal has asked xtask to stop, or a file cannot be written.
    pub fn patch(&self, step: &ui::Step, offer: &Offer) -> Result<Vec<String>> {
        self.take_back(offer)?;
        let result = self.applied(step, offer);
        self.take_back(offer)?;
        result
    }

    fn applied(&self, step: &ui::Step, offer: &Offer) -> Result<Vec<String>> {
        let (tests, rest): (Vec<_>, Vec<_>) = offer.files.iter().partition(|(path, _)| Offer::is_test(path));
        let mut wrong = Vec::new();
        self.apply(&tests)?;
        self.forget(&offer.files)?;
        let log = format!("without-{}", offer.name);
        if offer.untested.is_none() && self.check(step, &log).is_ok() {
            wrong.push("upstream's tests, with those that it adds, pass without the rest of it".into());
        }
        run::check_interrupted()?;
        self.apply(&rest)?;
        self.forget(&offer.files)?;
        if let Err(error) = self.check(step, &offer.name) {
            run::check_interrupted()?;
            wrong.push(format!("{error:#}"));
        }
        Ok(wrong)
    }

    /// Makes what has changed, and runs upstream's tests.
    fn check(&self, step: &ui::Step, name: &str) -> Result<()> {
        let log = self.tree.logs.join(format!("{}.log", name.trim_end_matches(".patch")));
        files::begin_log(&log)?;
        for target in ["all", "check"] {
            let make = duct::cmd!("timeout", "--foreground", SECONDS, "make", &self.jobs, target);
            // If make runs xtask, these describe that make's job server.
            let make = make.dir(&self.tree.build).env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
            let result = run::logged(step, &format!("make {target}"), make, &log, WhenInterrupted::End);
            if let Err(error) = result {
                run::check_interrupted()?;
                let text = fs::read(&log)?;
                let text = String::from_utf8_lossy(&text);
                let is_result = |line: &&str| line.starts_with("FAIL: ") || line.starts_with("ERROR: ");
                let failed = text.lines().filter(is_result).collect::<Vec<_>>();
                ensure!(
                    failed.is_empty(),
                    "make {target} failed:\n{}\nthe whole log: {}",
                    failed.join("\n"),
                    log.display()
                );
                return Err(error);
            }
        }
        Ok(())
    }

    /// Applies parts of a patch.
    fn apply(&self, parts: &[&(String, String)]) -> Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let dir = TempDir::new()?;
        let diff = parts.iter().map(|(_, diff)| diff.as_str()).collect::<String>();
        fs::write(dir.path().join("part"), diff)?;
        let patch = Patch { name: "part".into(), group: String::new(), sha256: String::new() };
        series::apply(dir.path(), &[patch], &self.tree.build)
    }

    /// Takes a patch back.
    fn take_back(&self, offer: &Offer) -> Result<()> {
        self.restore()?;
        for (path, _) in offer.files.iter().filter(|(path, _)| !self.tree.source.join(path).exists()) {
            files::remove_file(&self.tree.build.join(path))?;
        }
        self.forget(&offer.files)
    }

    /// Gives each file of the source its contents back, also if an earlier run was interrupted.
    fn restore(&self) -> Result<()> {
        for path in files::tree(&self.tree.source)? {
            let Ok(relative) = path.strip_prefix(&self.tree.source) else { continue };
            let built = self.tree.build.join(relative);
            if path.is_file()
                && !path.is_symlink()
                && fs::read(&path)? != fs::read(&built).unwrap_or_default()
            {
                // With a new time, so that make sees it.
                fs::write(&built, fs::read(&path)?)?;
            }
        }
        Ok(())
    }

    /// Removes what upstream's rules for make do not make anew by themselves when the files of a patch have changed: the tests'
    /// programs, which do not depend on the libraries that they contain, nor on the list of their sources; and all libraries, if
    /// one that the others contain has changed.
    fn forget(&self, changed: &[(String, String)]) -> Result<()> {
        let is_contained = changed.iter().any(|(path, _)| self.is_of_a_contained_library(Path::new(path)));
        let is_stale = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_tests_program = path.extension().is_none() && name.starts_with("test_");
            let is_library = path.extension().is_some_and(|extension| extension == "la");
            is_tests_program || name == "_generated_runner.c" || (is_contained && is_library)
        };
        let all = files::tree(&self.tree.build.join("src"))?;
        all.iter()
            .filter(|path| path.is_file() && is_stale(path))
            .try_for_each(|path| files::remove_file(path))
    }

    /// Whether a file belongs to a library that is not installed, but contained in others.
    fn is_of_a_contained_library(&self, path: &Path) -> bool {
        let makefiles = path.ancestors().skip(1).map(|dir| self.tree.source.join(dir).join("Makefile.am"));
        let nearest: Option<PathBuf> = makefiles.into_iter().find(|makefile| makefile.exists());
        let text = nearest.and_then(|makefile| fs::read_to_string(makefile).ok()).unwrap_or_default();
        text.contains("noinst_LTLIBRARIES")
    }
}
