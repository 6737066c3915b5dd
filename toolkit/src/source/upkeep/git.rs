//! Git in the work tree of a series.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use duct::Expression;

use crate::host::run;

/// The tag of the commit that has upstream's source, in a work tree.
pub(super) const BASE: &str = "upstream";

/// The setting of a work tree that has the ID of upstream's commit which its series is for.
pub(super) const SINCE: &str = "xtask.since";

/// In whose name commits are made: nobody's in particular.
const NAME: &str = "guacd-uncapped";
const EMAIL: &str = "guacd-uncapped@localhost";

/// Git, in a work tree. The settings of the user and of the system have no effect on what it writes.
pub struct Git(PathBuf);

impl Git {
    /// Git in a directory that may not be a work tree yet.
    pub fn at(dir: &Path) -> Git {
        Git(dir.to_owned())
    }

    /// Git in a work tree that is there.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn open(dir: &Path) -> Result<Git> {
        ensure!(
            dir.join(".git").is_dir(),
            "there is no git work tree at {}: `cargo xtask patch edit` makes one",
            dir.display()
        );
        Ok(Git::at(dir))
    }

    /// The work tree.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Whether a rebase has stopped.
    pub fn is_rebasing(&self) -> bool {
        self.0.join(".git/rebase-merge").exists()
    }

    /// Checks that everything is committed.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn ensure_clean(&self) -> Result<()> {
        let changes = self.read(&["status", "--porcelain", "--untracked-files=no"])?;
        ensure!(
            changes.is_empty() && !self.is_rebasing(),
            "{} has changes that are not committed, or a rebase that has not ended: finish it first\n{changes}",
            self.0.display()
        );
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Expression {
        duct::cmd("git", [&["-C", &self.0.to_string_lossy()], arguments].concat())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("LC_ALL", "C")
            .env("GIT_EDITOR", "true")
            .env("GIT_AUTHOR_NAME", NAME)
            .env("GIT_AUTHOR_EMAIL", EMAIL)
            .env("GIT_COMMITTER_NAME", NAME)
            .env("GIT_COMMITTER_EMAIL", EMAIL)
    }

    /// What git prints.
    pub fn read(&self, arguments: &[&str]) -> Result<String> {
        run::read(&format!("git {}", arguments[0]), self.command(arguments))
    }

    /// Runs git, whatever it prints.
    pub fn run(&self, arguments: &[&str]) -> Result<()> {
        self.read(arguments).map(drop)
    }

    /// Runs git, whatever it prints. Returns whether it has succeeded.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    pub fn succeeds(&self, arguments: &[&str]) -> Result<bool> {
        let output = self.command(arguments).stdin_null().stdout_null().stderr_null().unchecked().run();
        Ok(output.with_context(|| format!("cannot run git {}", arguments[0]))?.status.success())
    }

    /// Commits what was added, in the name of nobody in particular, so that the same series gives the same commits.
    pub fn commit(&self, epoch: u64, message: &str) -> Result<()> {
        let date = format!("{epoch} +0000");
        let mut commit = self.command(&["commit", "--quiet", "--cleanup=verbatim", "--message", message]);
        for who in ["AUTHOR", "COMMITTER"] {
            commit = commit.env(format!("GIT_{who}_DATE"), &date);
        }
        run::read("git commit", commit).map(drop)
    }

    /// What a commit changes, with one line of context, as the patches have it.
    pub fn diff(&self, id: &str) -> Result<String> {
        let parent = format!("{id}~");
        let arguments = [
            "diff",
            "--unified=1",
            "--no-renames",
            "--no-color",
            "--no-ext-diff",
            "--src-prefix=a/",
            "--dst-prefix=b/",
            &parent,
            id,
        ];
        let output =
            self.command(&arguments).stdin_null().stdout_capture().run().context("cannot run git diff")?;
        let text = String::from_utf8(output.stdout).context("the patch is not UTF-8")?;
        // What only git understands.
        let is_gits = |line: &str| {
            let heads =
                ["diff --git", "index ", "new file mode", "deleted file mode", "old mode", "new mode"];
            heads.iter().any(|head| line.starts_with(head))
        };
        Ok(text.split_inclusive('\n').filter(|line| !is_gits(line)).collect())
    }
}
