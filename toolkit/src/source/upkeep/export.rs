//! How are the patches for upstream sent? As a branch of commits, in a git work tree of the user's choice.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use fs_err as fs;
use tempfile::TempDir;

use super::conflict;
use super::git::Git;
use super::rebase;
use super::upstream::{Offer, Offers};
use crate::failure::Failure;
use crate::host::run;
use crate::ui;

/// Makes the branch `branch` of the patches on top of `onto`: a commit, tag or branch. If there is nothing at `dir`, it becomes a
/// clone of the git repository `from`, with the branch checked out. If there is a work tree, what is checked out there stays.
///
/// # Errors
///
/// When there is no such commit, or the branch is there already. [`Failure::Patch`] when a patch conflicts, with the places.
/// Nothing is left then of what was begun.
pub fn export(offers: &Offers, dir: &Path, from: &str, onto: &str, branch: &str) -> Result<()> {
    if dir.exists() {
        ensure!(dir.join(".git").exists(), "{} is no git work tree: give another --dir", dir.display());
        let git = Git::at(dir);
        let Ok(onto) = git.read(&["rev-parse", "--verify", "--quiet", &format!("{onto}^{{commit}}")]) else {
            bail!("{} has no commit, tag or branch called {onto}: fetch it there first", dir.display());
        };
        return commit(offers, &git, &onto, branch);
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    // Whole or not at all.
    let work = TempDir::new_in(parent).with_context(|| format!("cannot write to {}", parent.display()))?;
    let tree = work.path().join("tree");
    fs::create_dir(&tree)?;
    let git = Git::at(&tree);
    git.run(&["init", "--quiet"])?;
    let onto = rebase::fetch(&git, from, onto)?;
    commit(offers, &git, &onto, branch)?;
    git.run(&["checkout", "--quiet", branch])?;
    fs::rename(&tree, dir)?;
    Ok(())
}

/// A work tree of the same repository, for as long as this lives.
struct Second<'a> {
    of: &'a Git,
    git: Git,
    _dir: TempDir,
}

impl Second<'_> {
    fn new<'a>(of: &'a Git, commit: &str) -> Result<Second<'a>> {
        let dir = TempDir::new()?;
        let tree = dir.path().join("tree");
        let add = ["worktree", "add", "--quiet", "--detach", "--no-checkout"];
        of.run(&[&add[..], &[&tree.to_string_lossy(), commit]].concat())?;
        Ok(Second { of, git: Git::at(&tree), _dir: dir })
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        // What it has in the repository is pruned by git some day, if this fails.
        let _ = self.of.run(&["worktree", "remove", "--force", &self.git.dir().to_string_lossy()]);
    }
}

/// Makes the branch in the repository of a work tree.
fn commit(offers: &Offers, repository: &Git, onto: &str, branch: &str) -> Result<()> {
    let name = format!("refs/heads/{branch}");
    repository
        .run(&["check-ref-format", "--branch", branch])
        .with_context(|| format!("{branch} cannot be the name of a branch"))?;
    ensure!(
        !repository.succeeds(&["show-ref", "--verify", "--quiet", &name])?,
        "there is a branch {branch} already: give another --branch"
    );
    let base = &offers.release.commit;
    ensure!(
        repository.succeeds(&["cat-file", "-e", &format!("{base}^{{commit}}")])?,
        "{} lacks the commit {base}, which the patches are for: fetch it there first",
        repository.dir().display()
    );
    let second = Second::new(repository, base)?;
    let git = &second.git;
    let progress = ui::Step::start("export");
    let mut head = onto.to_owned();
    for offer in &offers.list {
        run::check_interrupted()?;
        progress.busy_with(&offer.name);
        // On the commit that it is for, it applies. From there, git merges it.
        git.run(&["checkout", "--quiet", "--force", "--detach", base])?;
        git.run(&["am", "--quiet", "--keep-cr", &offers.path(offer)])?;
        let id = git.read(&["rev-parse", "HEAD"])?;
        git.run(&["checkout", "--quiet", "--detach", &head])?;
        if !git.succeeds(&["cherry-pick", &id])? {
            resolve_lists(git, offer)?;
            if !git.read(&["diff", "--name-only", "--diff-filter=U"])?.is_empty() {
                let conflict = conflict::read(git, "CHERRY_PICK_HEAD", base, onto)?;
                bail!(Failure::Patch(format!("{}: {conflict}no branch was made", offer.name)));
            }
            ensure!(
                git.succeeds(&["cherry-pick", "--continue"])?,
                "{} changes nothing on {onto}: upstream may have it already. Name the other patches",
                offer.name
            );
        }
        head = git.read(&["rev-parse", "HEAD"])?;
    }
    repository.run(&["branch", "--no-track", branch, &head])?;
    progress.done(format!("{} commits on {branch}", offers.list.len()));
    Ok(())
}

/// Resolves conflicts in the lists of upstream's tests: all patches add to the same few lists.
fn resolve_lists(git: &Git, offer: &Offer) -> Result<()> {
    for path in git.read(&["diff", "--name-only", "--diff-filter=U"])?.lines() {
        if !Offer::is_test(path) || !path.ends_with("Makefile.am") {
            continue;
        }
        let version = |stage: &str| git.read(&["show", &format!(":{stage}:{path}")]);
        let Some(merged) = merge_lists(&version("1")?, &version("2")?, &version("3")?) else { continue };
        fs::write(git.dir().join(path), merged + "\n")
            .with_context(|| format!("cannot resolve a conflict of {}", offer.name))?;
        git.run(&["add", path])?;
    }
    Ok(())
}

/// A list of a Makefile.am: lines that each go on in the next one.
struct List<'a> {
    /// The name of the variable.
    name: &'a str,
    /// Where its lines are.
    lines: std::ops::Range<usize>,
    /// The first of them is that of the name.
    entries: Vec<&'a str>,
}

fn lists<'a>(lines: &[&'a str]) -> Vec<List<'a>> {
    let entry = |line: &'a str| line.trim_end_matches('\\').trim();
    let mut lists = Vec::new();
    let mut start = 0;
    while start < lines.len() {
        let mut end = start + 1;
        while end < lines.len() && lines[end - 1].ends_with('\\') {
            end += 1;
        }
        if let Some(name) = lines[start].strip_suffix('\\').and_then(|line| line.trim_end().strip_suffix('='))
        {
            let entries = lines[start + 1..end].iter().map(|line| entry(line)).collect();
            lists.push(List { name: name.trim_end(), lines: start..end, entries });
        }
        start = end;
    }
    lists
}

/// Adds to `ours` what `theirs` has added to the lists of `base`. `None` if `theirs` has changed something else.
fn merge_lists(base: &str, ours: &str, theirs: &str) -> Option<String> {
    let (base, ours, theirs): (Vec<_>, Vec<_>, Vec<_>) =
        (base.lines().collect(), ours.lines().collect(), theirs.lines().collect());
    let (before, after) = (lists(&base), lists(&theirs));
    let rest = |lines: &[&str], lists: &[List<'_>]| -> Vec<String> {
        let is_in_list = |index: usize| lists.iter().any(|list| list.lines.contains(&index));
        lines
            .iter()
            .enumerate()
            .filter(|(index, _)| !is_in_list(*index))
            .map(|(_, line)| (*line).to_owned())
            .collect()
    };
    if rest(&base, &before) != rest(&theirs, &after) {
        return None;
    }
    let mut merged = Vec::new();
    let mut done = 0;
    for list in lists(&ours) {
        merged.extend(ours[done..list.lines.start].iter().map(|line| (*line).to_owned()));
        done = list.lines.end;
        let of = |lists: &'_ [List<'_>]| -> Vec<String> {
            let same = lists.iter().find(|other| other.name == list.name);
            same.map(|same| same.entries.iter().map(|entry| (*entry).to_owned()).collect())
                .unwrap_or_default()
        };
        let (known, added) = (of(&before), of(&after));
        if known.iter().any(|entry| !added.contains(entry)) {
            return None;
        }
        let mut entries = list.entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>();
        for entry in added.iter().filter(|entry| !known.contains(entry)) {
            if !entries.contains(entry) {
                let at = entries.iter().position(|other| other > entry).unwrap_or(entries.len());
                entries.insert(at, entry.clone());
            }
        }
        merged.extend(written(ours[list.lines.start], &entries));
    }
    merged.extend(ours[done..].iter().map(|line| (*line).to_owned()));
    Some(merged.join("\n"))
}

/// A list as upstream writes it: with the backslashes in one column.
fn written(first: &str, entries: &[String]) -> Vec<String> {
    let column = first.len() - 1;
    let widest = entries.iter().map(|entry| entry.len() + 5).max().unwrap_or(0);
    let column = column.max(widest);
    let head = first.trim_end_matches('\\').trim_end();
    let mut lines = vec![format!("{head:<column$}\\")];
    for (index, entry) in entries.iter().enumerate() {
        let line = format!("    {entry}");
        lines.push(if index + 1 < entries.len() { format!("{line:<column$}\\") } else { line });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str =
        "# a\n\ntest_SOURCES =  \\\n    a/one.c    \\\n    b/two.c\n\ntest_LDADD = \\\n    @A@";

    #[test]
    fn what_two_patches_add_to_a_list_is_in_it() {
        let ours = BASE.replace("    b/two.c", "    a/three.c  \\\n    b/two.c");
        let theirs = "# a\n\ntest_SOURCES = \\\n    a/one.c \\\n    b/two.c \\\n    c/long-name.c\n\ntest_LDADD = \\\n    @A@ \\\n    @B@";
        let merged = "# a\n\ntest_SOURCES =    \\\n    a/one.c       \\\n    a/three.c     \\\n    b/two.c       \\\n    c/long-name.c\n\n\
                      test_LDADD = \\\n    @A@      \\\n    @B@";
        assert_eq!(merge_lists(BASE, &ours, theirs).as_deref(), Some(merged));
    }

    #[test]
    fn what_is_more_than_an_addition_to_a_list_is_not_merged() {
        let ours = BASE.replace("    b/two.c", "    a/three.c \\\n    b/two.c");
        assert_eq!(merge_lists(BASE, &ours, &BASE.replace("# a", "# b")), None);
        assert_eq!(merge_lists(BASE, &ours, &BASE.replace("    a/one.c    \\\n", "")), None);
    }
}
