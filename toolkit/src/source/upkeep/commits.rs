//! How is a patch edited? As a commit in a git work tree, whose message is the patch's name, its group and its header. All that git
//! can do with commits is then done with patches: amend, reorder, split, drop, and bisect.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use fs_err as fs;

use super::check;
use super::git::{BASE, Git, SINCE};
use crate::host::{files, run};
use crate::source::fetch::{self, Access};
use crate::source::release::Release;
use crate::source::series::{self, GROUP, Patch};
use crate::ui;

/// The line of a commit's message that names the patch's group.
const GROUP_LINE: &str = "Group: ";

/// Writes the series of a release to a new git work tree at `dir`: a commit for upstream's source, and one for each patch.
///
/// # Errors
///
/// When there is something at `dir`, or the source cannot be had; [`Failure::Patch`](crate::failure::Failure::Patch) when a
/// patch does not apply exactly.
pub fn edit(release: &Release, access: &Access, dir: &Path) -> Result<()> {
    ensure!(
        !dir.exists(),
        "{} is there already: edit the series in it, or remove it, or give another --dir",
        dir.display()
    );
    let patches = series::series(&release.patches_dir())?;
    let source = fetch::source(release, access)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    // Whole or not at all.
    let work =
        tempfile::TempDir::new_in(parent).with_context(|| format!("cannot write to {}", parent.display()))?;
    let tree = work.path().join("tree");
    fetch::unpack(&source, &tree)?;
    let git = Git::at(&tree);
    git.run(&["init", "--quiet", "--initial-branch=series"])?;
    git.run(&["add", "--all", "--force"])?;
    git.commit(release.epoch, &format!("guacamole-server {}", release.version))?;
    git.run(&["tag", BASE])?;
    git.run(&["config", SINCE, &release.commit])?;
    let progress = ui::Step::start("patches");
    for patch in &patches {
        run::check_interrupted()?;
        progress.busy_with(&patch.name);
        series::apply(&release.patches_dir(), std::slice::from_ref(patch), &tree)?;
        git.run(&["add", "--all", "--force"])?;
        git.commit(release.epoch, &message(&release.patches_dir(), patch)?)?;
    }
    fs::rename(&tree, dir)?;
    progress.done(format!("{} commits", patches.len()));
    Ok(())
}

/// The message of a patch's commit.
fn message(dir: &Path, Patch { name, group, .. }: &Patch) -> Result<String> {
    let text = fs::read_to_string(dir.join(name))?;
    let (header, _) = text.split_once("\n---\n").with_context(|| format!("{name} has no header"))?;
    Ok(format!("{name}\n\n{GROUP_LINE}{group}\n{header}\n"))
}

/// What a refresh has changed in the directory of the series.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// The names of the files that were written or removed.
    pub changed: Vec<String>,
    /// How many patches there are.
    pub patches: usize,
}

/// Writes the commits of the work tree at `dir` back to the series of a release. Files that stay the same are not touched.
///
/// # Errors
///
/// When the work tree has changes that were not committed or is for another commit of upstream, or a commit is not that of a
/// patch: nothing is written then.
pub fn refresh(release: &Release, dir: &Path) -> Result<Refreshed> {
    let git = Git::open(dir)?;
    git.ensure_clean()?;
    super::rebase::settle(&git)?;
    let since = git.read(&["config", SINCE])?;
    ensure!(
        since == release.commit,
        "the series in {} is for upstream's commit {since}, and release {} is {}: give the release that it is for, as in \
         --release RELEASE, or pin that commit in upstream.toml",
        dir.display(),
        release.version,
        release.commit
    );
    write(&git, BASE, &release.patches_dir())
}

/// Writes the commits after `base` to the directory `series`.
///
/// # Errors
///
/// When one of them is not that of a patch.
pub(super) fn write(git: &Git, base: &str, series: &Path) -> Result<Refreshed> {
    let mut commits = Vec::new();
    for id in git.read(&["rev-list", "--reverse", &format!("{base}..HEAD")])?.lines() {
        run::check_interrupted()?;
        let commit = Commit::read(git, id)?;
        if commits.iter().any(|other: &Commit| other.name == commit.name) {
            bail!("two commits are called {}: rename one of them", commit.name);
        }
        commits.push(commit);
    }
    let mut refreshed = Refreshed { patches: commits.len(), ..Refreshed::default() };
    let names = commits.iter().map(|commit| commit.name.as_str()).collect::<BTreeSet<_>>();
    fs::create_dir_all(series)?;
    // A release that is new has no series yet.
    let listed = list(&fs::read_to_string(series.join("series")).unwrap_or_default(), &commits);
    let contents = commits.iter().map(|commit| (commit.name.as_str(), &commit.patch));
    for (name, content) in contents.chain([("series", &listed)]) {
        let path = series.join(name);
        if fs::read(&path).ok().as_deref() != Some(content.as_bytes()) {
            files::write(&path, content)?;
            refreshed.changed.push(name.into());
        }
    }
    for entry in fs::read_dir(series)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".patch") && !names.contains(name.as_str()) {
            files::remove_file(&series.join(&name))?;
            refreshed.changed.push(name);
        }
    }
    Ok(refreshed)
}

/// A commit, as a patch.
#[derive(Debug)]
struct Commit {
    name: String,
    group: String,
    /// The whole file.
    patch: String,
}

impl Commit {
    fn read(git: &Git, id: &str) -> Result<Commit> {
        let message = git.read(&["log", "-1", "--format=%B", id])?;
        let (name, body) = message.split_once("\n\n").unwrap_or((&message, ""));
        let about = |what: &str| format!("the commit {} ({name}) {what}", &id[..id.len().min(10)]);
        ensure!(
            !["fixup! ", "squash! ", "amend! "].iter().any(|prefix| name.starts_with(prefix)),
            about(&format!("belongs to another: git rebase --interactive --autosquash {BASE}"))
        );
        ensure!(
            is_file_name(name),
            about(
                "has no file name as the first line of its message: make that NNNN-area-what-it-does.patch"
            )
        );
        let (group, header) =
            body.strip_prefix(GROUP_LINE).and_then(|rest| rest.split_once('\n')).with_context(|| {
                about(&format!("must have `{GROUP_LINE}NAME` as the first line of its message's body"))
            })?;
        let wrong = check::header(header);
        ensure!(
            wrong.is_empty(),
            about(&format!("must have a patch's header in its message: {}", wrong.join("; ")))
        );
        let parents = git.read(&["log", "-1", "--format=%P", id])?;
        ensure!(!parents.contains(' '), about("is a merge: a series has none"));
        let diff = git.diff(id)?;
        ensure!(!diff.is_empty(), about("changes nothing: drop it"));
        ensure!(!diff.contains("\nBinary files "), about("changes a binary file: a patch cannot"));
        Ok(Commit { name: name.into(), group: group.trim().into(), patch: format!("{header}\n---\n{diff}") })
    }
}

fn is_file_name(name: &str) -> bool {
    let number = name.get(..4).is_some_and(|number| number.chars().all(|c| c.is_ascii_digit()));
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    number && name[4..].starts_with('-') && name.ends_with(".patch") && name.chars().all(allowed)
}

/// The text of the file `series`, for these commits. Comments stay above the patches that they were above.
fn list(before: &str, commits: &[Commit]) -> String {
    // What is above the patches of each block, and the group that this names.
    let mut blocks: Vec<(String, Option<String>, Vec<&str>)> = Vec::new();
    for line in before.lines() {
        let is_patch = !line.trim().is_empty() && !line.starts_with('#');
        match blocks.last_mut() {
            Some((.., patches)) if is_patch => patches.push(line.trim()),
            Some((above, group, patches)) if patches.is_empty() => {
                above.push_str(line);
                above.push('\n');
                *group = line.strip_prefix(GROUP).map(|name| name.trim().to_owned()).or(group.take());
            }
            _ => {
                let group = line.strip_prefix(GROUP).map(|name| name.trim().to_owned());
                let (above, patches) =
                    if is_patch { (String::new(), vec![line.trim()]) } else { (format!("{line}\n"), vec![]) };
                blocks.push((above, group, patches));
            }
        }
    }
    let mut text = String::new();
    let mut at: Option<usize> = None;
    let mut group = None;
    for commit in commits {
        let own = blocks.iter().position(|(.., patches)| patches.contains(&commit.name.as_str()));
        // A new patch stands with the one before it, unless it is all that is left of the block that follows: it was renamed.
        let next = at.map_or(0, |at| at + 1);
        let is_renamed = blocks.get(next).is_some_and(|(_, named, patches)| {
            named.as_deref() == Some(&*commit.group)
                && patches.iter().all(|name| commits.iter().all(|commit| commit.name != *name))
        });
        let block = own.or(is_renamed.then_some(next)).or(at);
        if block != at || group.as_deref() != Some(&*commit.group) {
            match block.map(|block| &blocks[block]) {
                Some((above, named, _)) if block != at && named.as_deref() == Some(&*commit.group) => {
                    text.push_str(above)
                }
                _ => text.push_str(&format!(
                    "{}{GROUP} {}\n",
                    if text.is_empty() { "" } else { "\n" },
                    commit.group
                )),
            }
        }
        (at, group) = (block, Some(commit.group.clone()));
        text.push_str(&commit.name);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(name: &str, group: &str) -> Commit {
        Commit { name: name.into(), group: group.into(), patch: String::new() }
    }

    const SERIES: &str = "# First.\n# group: one\n0001-a.patch\n0002-b.patch\n\n# More.\n# group: two\n0003-c.patch\n\n# group: one\n0004-d.patch\n";

    #[test]
    fn a_series_that_was_not_edited_is_listed_as_it_was() {
        let commits = [
            ("0001-a.patch", "one"),
            ("0002-b.patch", "one"),
            ("0003-c.patch", "two"),
            ("0004-d.patch", "one"),
        ];
        assert_eq!(list(SERIES, &commits.map(|(name, group)| commit(name, group))), SERIES);
    }

    #[test]
    fn what_is_new_stands_in_its_place_and_group() {
        let commits = [
            ("0001-a.patch", "one"),
            ("0002-new.patch", "one"),
            ("0003-c.patch", "two"),
            ("0005-e.patch", "three"),
        ];
        let expected = "# First.\n# group: one\n0001-a.patch\n0002-new.patch\n\n# More.\n# group: two\n0003-c.patch\n\n# group: three\n0005-e.patch\n";
        assert_eq!(list(SERIES, &commits.map(|(name, group)| commit(name, group))), expected);
        assert_eq!(list("", &[commit("0001-a.patch", "one")]), "# group: one\n0001-a.patch\n");
    }

    #[test]
    fn a_patch_that_is_renamed_keeps_the_comment_above_it() {
        let commits = [
            ("0001-a.patch", "one"),
            ("0002-b.patch", "one"),
            ("0003-renamed.patch", "two"),
            ("0004-d.patch", "one"),
        ];
        let expected = SERIES.replace("0003-c.patch", "0003-renamed.patch");
        assert_eq!(list(SERIES, &commits.map(|(name, group)| commit(name, group))), expected);
    }

    #[test]
    fn the_name_of_a_patch_is_a_file_name() {
        assert!(is_file_name("0012-libguac-do-it.patch"));
        for bad in ["12-a.patch", "0012-a", "0012a.patch", "0012-../a.patch", "Do it", ""] {
            assert!(!is_file_name(bad), "{bad}");
        }
    }
}
