//! How is a series carried over to another release? By a rebase of its commits.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use fs_err as fs;

use super::conflict::{self, Conflict};
use super::git::{BASE, Git, SINCE};
use crate::source::release::Release;

/// The setting of a work tree that has the commit which its series is being carried over to.
const ONTO: &str = "xtask.onto";

/// The file below .git with the names of the patches that are being carried over.
const NAMES: &str = "xtask-patches";

/// How far the series has come.
#[derive(Debug)]
pub enum Outcome {
    /// All of it is there. These patches are not, because upstream has all that they did.
    Done {
        /// Their names.
        dropped: Vec<String>,
    },
    /// A patch conflicts with what upstream has changed.
    Stopped(Conflict),
}

/// Carries the series in the work tree at `dir` over to `to`: a release of upstream.toml, or a commit, tag or branch of the git
/// repository `from`, which has upstream's history.
///
/// # Errors
///
/// When the work tree has changes that were not committed, or there is no such commit.
pub fn start(dir: &Path, from: &str, to: &str) -> Result<Outcome> {
    let git = Git::open(dir)?;
    git.ensure_clean()?;
    settle(&git)?;
    let onto = fetch(&git, from, to)?;
    git.run(&["config", ONTO, &onto])?;
    fs::write(dir.join(".git").join(NAMES), subjects(&git)?.join("\n"))?;
    let is_done = git.succeeds(&["rebase", "--quiet", "--empty=drop", "--onto", &onto, BASE])?;
    outcome(&git, is_done)
}

/// Goes on after the conflict has been resolved in the work tree at `dir`.
///
/// # Errors
///
/// When no rebase has stopped, or a conflict is not resolved.
pub fn proceed(dir: &Path) -> Result<Outcome> {
    let git = Git::open(dir)?;
    ensure!(git.is_rebasing(), "no rebase has stopped in {}", dir.display());
    let unresolved = git.read(&["diff", "--name-only", "--diff-filter=U"])?;
    let marked = unresolved
        .lines()
        .filter(|path| !conflict::conflicting_lines(&git, path).is_empty())
        .collect::<Vec<_>>();
    ensure!(marked.is_empty(), "resolve what is marked first, in {}", marked.join(", "));
    git.run(&["add", "--all"])?;
    let is_done = git.succeeds(&["rebase", "--continue"])?;
    outcome(&git, is_done)
}

/// Makes the commit that the series was carried over to the one with upstream's source, if that is so by now: the rebase may have
/// been continued with git.
///
/// # Errors
///
/// When git fails.
pub(super) fn settle(git: &Git) -> Result<()> {
    let Ok(onto) = git.read(&["config", ONTO]) else { return Ok(()) };
    if !git.is_rebasing() && git.succeeds(&["merge-base", "--is-ancestor", &onto, "HEAD"])? {
        git.run(&["tag", "--force", BASE, &onto])?;
        git.run(&["config", SINCE, &onto])?;
        git.run(&["config", "--unset", ONTO])?;
    }
    Ok(())
}

/// Fetches upstream's history from the git repository `from`, and finds a commit by its ID, a tag or a branch there, or by a
/// release of upstream.toml.
///
/// # Errors
///
/// When there is none.
pub(super) fn fetch(git: &Git, from: &str, to: &str) -> Result<String> {
    git.run(&["fetch", "--quiet", "--tags", from, "+refs/heads/*:refs/remotes/upstream/*"])?;
    let pinned = Release::all()?.remove(to).map(|release| release.commit);
    let names = pinned.iter().cloned().chain([
        format!("refs/tags/{to}"),
        format!("refs/remotes/upstream/{to}"),
        to.into(),
    ]);
    let find =
        |name: String| git.read(&["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")]).ok();
    let Some(onto) = names.into_iter().find_map(find) else {
        bail!("{from} has no commit, tag or branch called {to}, and upstream.toml has no such release");
    };
    Ok(onto)
}

/// The names of the patches in the work tree.
fn subjects(git: &Git) -> Result<Vec<String>> {
    let subjects = git.read(&["log", "--reverse", "--format=%s", &format!("{BASE}..HEAD")])?;
    Ok(subjects.lines().map(str::to_owned).collect())
}

fn outcome(git: &Git, is_done: bool) -> Result<Outcome> {
    if is_done {
        settle(git)?;
        let left = subjects(git)?.into_iter().collect::<BTreeSet<_>>();
        let before = fs::read_to_string(git.dir().join(".git").join(NAMES))?;
        let dropped = before.lines().filter(|name| !left.contains(*name)).map(str::to_owned).collect();
        return Ok(Outcome::Done { dropped });
    }
    ensure!(git.is_rebasing(), "git cannot rebase in {}: see `git -C {0} status`", git.dir().display());
    let onto = git.read(&["config", ONTO])?;
    conflict::read(git, "REBASE_HEAD", &since(git, &onto)?, &onto).map(Outcome::Stopped)
}

/// The commit of upstream from which on its commits count: the one that the series is for.
pub(super) fn since(git: &Git, onto: &str) -> Result<String> {
    match git.succeeds(&["merge-base", "--is-ancestor", BASE, onto])? {
        true => Ok(BASE.into()),
        // The source came without upstream's history.
        false => git.read(&["config", SINCE]),
    }
}
