//! Which steps of a build have to run? Each records the digest of its inputs, and is skipped while the digest stays the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use duct::Expression;
use fs_err as fs;

use crate::host::digest::Hasher;
use crate::host::files;
use crate::host::run::{self, WhenInterrupted};
use crate::ui;

/// The record of a work directory's steps, in its `steps.json`.
pub struct Steps {
    dir: PathBuf,
    done: BTreeMap<String, String>,
    /// Whether any step had to run.
    pub ran: bool,
}

/// A step that is running.
pub struct Running<'a> {
    /// The digest of its inputs.
    pub digest: &'a str,
    progress: &'a ui::Step,
    log: &'a Path,
}

impl Running<'_> {
    /// Runs a program with its output in the step's log.
    pub fn run(&self, what: &str, command: Expression) -> Result<()> {
        run::logged(self.progress, what, command, self.log, WhenInterrupted::End)
    }

    /// Makes `to` a copy of the tree `from`, with the files' times, which make compares.
    pub fn copy_tree(&self, from: &Path, to: &Path) -> Result<()> {
        files::remove_tree(to)?;
        self.run("copying files", duct::cmd!("cp", "-a", from, to))
    }
}

/// The digest of a step that is done: an input of the steps after it.
#[derive(Clone)]
pub struct Done(String);

impl Steps {
    /// Opens the record of the work directory `dir`.
    pub fn open(dir: &Path) -> Result<Steps> {
        fs::create_dir_all(dir.join("logs"))?;
        // If the record cannot be read, every step runs again.
        let record = fs::read(dir.join("steps.json")).ok();
        let done = record.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Ok(Steps { dir: dir.to_owned(), done, ran: false })
    }

    /// Runs the step `name`, unless it has run before with the same `inputs`, after the same steps, and `is_there` says that
    /// its output still exists. (`is_there` gets the digest of the inputs.)
    ///
    /// `body` does the work, and returns a remark for the line that reports the step.
    ///
    /// # Errors
    ///
    /// When `body` fails: the step will run again next time.
    pub fn step(
        &mut self,
        name: &str,
        after: &[&Done],
        inputs: &[&str],
        is_there: impl FnOnce(&str) -> bool,
        body: impl FnOnce(&Running<'_>) -> Result<String>,
    ) -> Result<Done> {
        run::check_interrupted()?;
        let mut hasher = Hasher::default();
        hasher.add(name);
        for done in after {
            hasher.add(&done.0);
        }
        hasher.add("inputs");
        for input in inputs {
            hasher.add(input);
        }
        let digest = hasher.finish();

        if self.done.get(name) == Some(&digest) && is_there(&digest) {
            ui::unchanged(name);
            return Ok(Done(digest));
        }
        self.ran = true;
        // From now on the step counts as not done, until it has succeeded.
        self.done.remove(name);
        self.save()?;
        let log = self.dir.join("logs").join(format!("{name}.log"));
        files::begin_log(&log)?;
        let progress = ui::Step::start(name);
        let remark = body(&Running { digest: &digest, progress: &progress, log: &log })?;
        progress.done(remark);
        self.done.insert(name.to_owned(), digest.clone());
        self.save()?;
        Ok(Done(digest))
    }

    fn save(&self) -> Result<()> {
        files::write(&self.dir.join("steps.json"), serde_json::to_vec_pretty(&self.done)?)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;
    use tempfile::TempDir;

    use super::*;

    /// Runs two steps, the second after the first, and returns the names of those that had to run.
    fn run(dir: &Path, inputs: [&str; 2], is_there: bool) -> Vec<&'static str> {
        let mut steps = Steps::open(dir).unwrap();
        let mut ran = Vec::new();
        let first = steps.step(
            "first",
            &[],
            &[inputs[0]],
            |_| true,
            |_| {
                ran.push("first");
                Ok(String::new())
            },
        );
        let second = steps.step(
            "second",
            &[&first.unwrap()],
            &[inputs[1]],
            |_| is_there,
            |_| {
                ran.push("second");
                Ok(String::new())
            },
        );
        second.unwrap();
        assert_eq!(steps.ran, !ran.is_empty());
        ran
    }

    #[test]
    fn a_step_runs_again_when_an_input_or_a_step_before_it_has_changed() {
        let dir = TempDir::new().unwrap();
        assert_eq!(run(dir.path(), ["a", "b"], true), ["first", "second"]);
        assert!(run(dir.path(), ["a", "b"], true).is_empty());
        assert_eq!(run(dir.path(), ["a", "c"], true), ["second"]);
        assert_eq!(run(dir.path(), ["d", "c"], true), ["first", "second"]);
        assert!(run(dir.path(), ["d", "c"], true).is_empty());
    }

    #[test]
    fn a_step_runs_again_when_what_it_made_is_gone() {
        let dir = TempDir::new().unwrap();
        run(dir.path(), ["a", "b"], true);
        assert_eq!(run(dir.path(), ["a", "b"], false), ["second"]);
    }

    #[test]
    fn a_step_that_failed_is_not_done_even_if_it_was_before() {
        let dir = TempDir::new().unwrap();
        run(dir.path(), ["a", "b"], true);
        let mut steps = Steps::open(dir.path()).unwrap();
        assert!(steps.step("first", &[], &["other"], |_| true, |_| bail!("no")).is_err());
        assert_eq!(run(dir.path(), ["a", "b"], true), ["first"]);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_as_good_as_none() {
        let dir = TempDir::new().unwrap();
        run(dir.path(), ["a", "b"], true);
        fs::write(dir.path().join("steps.json"), "{").unwrap();
        assert_eq!(run(dir.path(), ["a", "b"], true), ["first", "second"]);
    }
}
