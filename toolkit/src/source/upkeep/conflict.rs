//! Where does a patch conflict with upstream, and which of upstream's commits is it?

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result};
use fs_err as fs;
use serde::Serialize;

use super::git::Git;

/// How many commits of upstream are named for a file, and how many lines of its conflicts are shown, at most.
const MAX_COMMITS: usize = 8;
const MAX_LINES: usize = 60;

/// A patch that conflicts with what upstream has changed.
#[derive(Debug, Serialize)]
pub struct Conflict {
    /// The name of the patch.
    pub patch: String,
    /// Where.
    pub files: Vec<ConflictingFile>,
}

/// A file that a patch and upstream have changed.
#[derive(Debug, Serialize)]
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
            let changed = match (since.is_empty(), is_exact) {
                (true, _) => "",
                (false, true) => ", changed by upstream in these lines",
                (false, false) => ", changed by upstream in this file",
            };
            writeln!(f, "{path}{changed}:")?;
            since.iter().try_for_each(|commit| writeln!(f, "    {commit}"))?;
            lines.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        Ok(())
    }
}

/// The conflict at which git has stopped, with the commit `stopped_at`: `REBASE_HEAD` or `CHERRY_PICK_HEAD`. Upstream's commits
/// are those from `since` to `onto`.
pub(super) fn read(git: &Git, stopped_at: &str, since: &str, onto: &str) -> Result<Conflict> {
    let patch = git.read(&["log", "-1", "--format=%s", stopped_at])?;
    let diff = git.diff(stopped_at)?;
    let paths = git.read(&["diff", "--name-only", "--diff-filter=U"])?;
    let file = |path: &str| {
        let lines = conflicting_lines(git, path);
        let lines = if lines.is_empty() { vec!["upstream has removed or renamed it".into()] } else { lines };
        let exact = changed_lines(git, path, &diff, since, onto).unwrap_or_default();
        let is_exact = !exact.is_empty();
        let since = if is_exact { exact } else { changed_file(git, path, since, onto).unwrap_or_default() };
        ConflictingFile { path: path.into(), lines, since, is_exact }
    };
    Ok(Conflict { patch, files: paths.lines().map(file).collect() })
}

/// The lines between the marks of git, with their numbers.
pub(super) fn conflicting_lines(git: &Git, path: &str) -> Vec<String> {
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
fn changed_lines(git: &Git, path: &str, diff: &str, since: &str, onto: &str) -> Result<Vec<String>> {
    let before = git.read(&["show", &format!("{since}:{path}")])?;
    let before = before.lines().collect::<Vec<_>>();
    let mut last = BTreeSet::new();
    for known in known_lines(diff, path) {
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
        } else if is_it && line.starts_with([' ', '-']) {
            if let Some(hunk) = hunks.last_mut() {
                hunk.push(line[1..].to_owned());
            }
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
