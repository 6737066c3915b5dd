//! How is a series carried over to another release? By a rebase of its commits. Where one of them conflicts, upstream's commit that
//! changed the place is named.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use fs_err as fs;

use super::commits::{BASE, SINCE};
use super::git::Git;
use crate::source::release::Release;

/// The setting of a work tree that has the commit which its series is being carried over to.
const ONTO: &str = "xtask.onto";

/// How many commits of upstream are named for a file, and how many lines of its conflicts are shown, at most.
const MAX_COMMITS: usize = 8;
const MAX_LINES: usize = 60;

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

/// A patch that conflicts with what upstream has changed.
#[derive(Debug)]
pub struct Conflict {
    /// The name of the patch.
    pub patch: String,
    /// Where.
    pub files: Vec<ConflictingFile>,
}

/// A file that a patch and upstream have changed.
#[derive(Debug)]
pub struct ConflictingFile {
    /// Its path in the source.
    pub path: String,
    /// The lines in question, as git marks them, with their numbers.
    pub lines: Vec<String>,
    /// Upstream's commits that changed the place: the abbreviated ID and the subject.
    pub since: Vec<String>,
    /// Whether these changed the very lines. Else they changed the file.
    pub is_exact: bool,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} conflicts", self.patch)?;
        for ConflictingFile { path, lines, since, is_exact } in &self.files {
            writeln!(
                f,
                "{path}, changed by upstream {}:",
                if *is_exact { "in these lines" } else { "in this file" }
            )?;
            since.iter().try_for_each(|commit| writeln!(f, "    {commit}"))?;
            lines.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        Ok(())
    }
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
    git.run(&["config", ONTO, &onto])?;
    let before = subjects(&git, BASE)?;
    let is_done = git.succeeds(&["rebase", "--quiet", "--empty=drop", "--onto", &onto, BASE])?;
    outcome(&git, is_done, before)
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
    let marked =
        unresolved.lines().filter(|path| !conflicting_lines(&git, path).is_empty()).collect::<Vec<_>>();
    ensure!(marked.is_empty(), "resolve what is marked first, in {}", marked.join(", "));
    let before = fs::read_to_string(dir.join(".git/rebase-merge/done"))?
        .lines()
        .chain(fs::read_to_string(dir.join(".git/rebase-merge/git-rebase-todo"))?.lines())
        .filter_map(|line| {
            line.split_once(" # ").or_else(|| line.splitn(3, ' ').nth(2).map(|subject| ("", subject)))
        })
        .map(|(_, subject)| subject.to_owned())
        .collect();
    git.run(&["add", "--all"])?;
    let is_done = git.succeeds(&["rebase", "--continue"])?;
    outcome(&git, is_done, before)
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

fn subjects(git: &Git, base: &str) -> Result<Vec<String>> {
    let subjects = git.read(&["log", "--reverse", "--format=%s", &format!("{base}..HEAD")])?;
    Ok(subjects.lines().map(str::to_owned).collect())
}

fn outcome(git: &Git, is_done: bool, before: Vec<String>) -> Result<Outcome> {
    if is_done {
        settle(git)?;
        let left = subjects(git, BASE)?.into_iter().collect::<BTreeSet<_>>();
        return Ok(Outcome::Done {
            dropped: before.into_iter().filter(|name| !left.contains(name)).collect(),
        });
    }
    ensure!(git.is_rebasing(), "git cannot rebase in {}: see `git -C {0} status`", git.dir().display());
    conflict(git).map(Outcome::Stopped)
}

/// The conflict at which a rebase has stopped.
fn conflict(git: &Git) -> Result<Conflict> {
    let patch = git.read(&["log", "-1", "--format=%s", "REBASE_HEAD"])?;
    let (since, onto) = (git.read(&["config", SINCE])?, git.read(&["config", ONTO])?);
    let paths = git.read(&["diff", "--name-only", "--diff-filter=U"])?;
    let file = |path: &str| {
        let lines = conflicting_lines(git, path);
        let lines = if lines.is_empty() { vec!["upstream has removed or renamed it".into()] } else { lines };
        let exact = changed_lines(git, path, &since, &onto).unwrap_or_default();
        let is_exact = !exact.is_empty();
        let since = if is_exact { exact } else { changed_file(git, path, &since, &onto).unwrap_or_default() };
        ConflictingFile { path: path.into(), lines, since, is_exact }
    };
    Ok(Conflict { patch, files: paths.lines().map(file).collect() })
}

/// The lines between the marks of git, with their numbers.
fn conflicting_lines(git: &Git, path: &str) -> Vec<String> {
    let text = fs::read(git.dir().join(path)).unwrap_or_default();
    let mut is_in = false;
    let mut lines = Vec::new();
    for (index, line) in String::from_utf8_lossy(&text).lines().enumerate() {
        is_in |= line.starts_with("<<<<<<< ");
        if is_in && lines.len() < MAX_LINES {
            lines.push(format!("{:>5} {line}", index + 1));
        }
        is_in &= !line.starts_with(">>>>>>> ");
    }
    lines
}

/// Upstream's commits that have changed the lines which the patch knows of a file.
fn changed_lines(git: &Git, path: &str, since: &str, onto: &str) -> Result<Vec<String>> {
    let before = git.read(&["show", &format!("{since}:{path}")])?;
    let before = before.lines().collect::<Vec<_>>();
    let mut last = BTreeSet::new();
    for known in known_lines(&git.diff("REBASE_HEAD")?, path) {
        let Some(start) = before.windows(known.len()).position(|lines| lines == known) else { continue };
        let range = format!("{},{}", start + 1, start + known.len());
        let blame = git.read(&[
            "blame",
            "--reverse",
            "-s",
            "-l",
            "-L",
            &range,
            &format!("{since}..{onto}"),
            "--",
            path,
        ])?;
        // Each line begins with the last commit that had it.
        let ids = blame.lines().filter_map(|line| line.split_whitespace().next());
        last.extend(ids.map(|id| id.trim_start_matches('^').to_owned()));
    }
    let mut commits = Vec::new();
    for id in last {
        if onto.starts_with(&id) {
            continue;
        }
        let range = format!("{id}..{onto}");
        let next =
            git.read(&["log", "--reverse", "--ancestry-path", "--format=%h %s", &range, "--", path])?;
        commits.extend(next.lines().next().map(str::to_owned));
    }
    commits.sort_unstable();
    commits.dedup();
    Ok(commits)
}

/// The lines that each hunk of a file expects to find.
fn known_lines(diff: &str, path: &str) -> Vec<Vec<String>> {
    let mut hunks: Vec<Vec<String>> = Vec::new();
    let mut is_it = false;
    for line in diff.lines() {
        if let Some(name) = line.strip_prefix("--- ") {
            is_it = name.strip_prefix("a/") == Some(path);
        } else if is_it && line.starts_with("@@ ") {
            hunks.push(Vec::new());
        } else if is_it
            && line.starts_with([' ', '-'])
            && let Some(hunk) = hunks.last_mut()
        {
            hunk.push(line[1..].to_owned());
        }
    }
    hunks.retain(|hunk| !hunk.is_empty());
    hunks
}

/// Upstream's latest commits that have changed a file, on the way from one release to the other.
fn changed_file(git: &Git, path: &str, since: &str, onto: &str) -> Result<Vec<String>> {
    let max = format!("--max-count={MAX_COMMITS}");
    let range = format!("{since}..{onto}");
    let log = git
        .read(&["log", "--no-merges", "--format=%h %s", &max, &range, "--", path])
        .context("upstream's history")?;
    Ok(log.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hunk_expects_its_context_and_what_it_removes() {
        let diff = "--- a/x.c\n+++ b/x.c\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n@@ -9,1 +9,2 @@ f\n d\n+e\n--- a/y.c\n+++ b/y.c\n@@ -1 +1 @@\n-f\n+g\n";
        assert_eq!(known_lines(diff, "x.c"), [vec!["a", "b"], vec!["d"]]);
        assert_eq!(known_lines(diff, "y.c"), [["f"]]);
        assert!(known_lines(diff, "z.c").is_empty());
    }
}
