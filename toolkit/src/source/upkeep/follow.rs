//! Does a series still apply to upstream's newest commit? Each patch is tried on top of those before it that apply.

use anyhow::Result;
use serde::Serialize;
use tempfile::TempDir;

use super::commits;
use super::conflict::{self, Conflict};
use super::git::{BASE, Git};
use super::rebase;
use crate::host::{layout, run};
use crate::source::fetch::Access;
use crate::source::release::Release;
use crate::ui;

/// What becomes of a patch.
#[derive(Debug, Serialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum Fate {
    /// It applies, perhaps elsewhere in its files.
    Applies,
    /// Upstream has all that it does.
    Upstream,
    /// It conflicts with what upstream has changed, or builds upon a patch that does.
    Conflicts(Conflict),
}

/// How a series stands to a commit of upstream.
#[derive(Debug, Serialize)]
pub struct Followed {
    /// The ID of the commit.
    pub commit: String,
    /// The patches, by name, in the order of the series.
    pub patches: Vec<(String, Fate)>,
    /// The commit as a release, with the patches that apply.
    #[serde(skip)]
    pub release: Release,
}

impl Followed {
    /// The first patch that conflicts.
    pub fn first_conflict(&self) -> Option<&Conflict> {
        self.patches.iter().find_map(|(_, fate)| match fate {
            Fate::Conflicts(conflict) => Some(conflict),
            Fate::Applies | Fate::Upstream => None,
        })
    }
}

/// Tries the series of a release on a commit, tag or branch of the git repository `from`, which has upstream's history.
///
/// # Errors
///
/// When there is no such commit, or the release's source cannot be had.
pub fn follow(release: &Release, access: &Access, from: &str, to: &str) -> Result<Followed> {
    let work = TempDir::new()?;
    let dir = work.path().join("series");
    commits::edit(release, access, &dir)?;
    let git = Git::open(&dir)?;
    let onto = rebase::fetch(&git, from, to)?;
    let ids = git.read(&["rev-list", "--reverse", &format!("{BASE}..HEAD")])?;
    git.run(&["checkout", "--quiet", "--detach", &onto])?;
    let since = rebase::since(&git, &onto)?;
    let progress = ui::Step::start("follow");
    let mut patches = Vec::new();
    for id in ids.lines() {
        run::check_interrupted()?;
        let name = git.read(&["log", "-1", "--format=%s", id])?;
        progress.busy_with(&name);
        patches.push((name, fate(&git, id, &since, &onto)?));
    }
    let version = format!("{}-{}", to.replace('/', "-"), &onto[..10]);
    let series = layout::target_dir().join("guacd").join(&version).join("series");
    commits::write(&git, &onto, &series)?;
    let tree = git.read(&["rev-parse", &format!("{onto}^{{tree}}")])?;
    let epoch = git.read(&["log", "-1", "--format=%ct", &onto])?.parse()?;
    let carried = Release::of_commit(version, onto.clone(), tree, epoch, from.into(), series);
    let count = patches.iter().filter(|(_, fate)| !matches!(fate, Fate::Conflicts(_))).count();
    progress.done(format!("{count} of {} patches apply", patches.len()));
    Ok(Followed { commit: onto, patches, release: carried })
}

/// Applies a commit, or leaves it out.
fn fate(git: &Git, id: &str, since: &str, onto: &str) -> Result<Fate> {
    if git.succeeds(&["cherry-pick", id])? {
        return Ok(Fate::Applies);
    }
    let unmerged = git.read(&["diff", "--name-only", "--diff-filter=U"])?;
    let fate = match unmerged.is_empty() {
        true => Fate::Upstream,
        false => Fate::Conflicts(conflict::read(git, "CHERRY_PICK_HEAD", since, onto)?),
    };
    git.run(&["cherry-pick", "--skip"])?;
    Ok(fate)
}
