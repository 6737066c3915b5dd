//! `cargo xtask patch`: what it finds in a series, and patches as commits.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::support::checkout::Checkout;
use crate::support::{self, release, root, xtask};

crate::tests! {
    Source:
        the_series_is_as_it_should_be,
        what_is_wrong_with_a_series_is_said,
        a_series_that_was_not_edited_is_written_back_as_it_was,
        edited_commits_become_patches,
        what_is_no_patch_is_not_written_back,
        a_series_is_carried_over_but_for_what_upstream_has_already,
        a_conflict_names_the_commit_of_upstream_that_caused_it,
        upstreams_newest_commit_is_followed_until_it_breaks_a_patch;
    Minutes:
        what_applies_to_upstreams_newest_commit_is_built_and_loaded;
}

fn the_series_is_as_it_should_be() -> Result<()> {
    let count = support::series()?.len();
    xtask(["patch", "check"]).run()?.expect(0, &[&format!("{count} patches, no fuzz, no offset")])
}

fn what_is_wrong_with_a_series_is_said() -> Result<()> {
    let checkout = Checkout::new()?;
    let check = || checkout.xtask(["patch", "check"]).run();
    let name = support::series()?.last().context("the series is empty")?.name.clone();
    let (file, list) = (checkout.series().join(&name), checkout.series().join("series"));
    let (patch, listed) = (fs::read_to_string(&file)?, fs::read_to_string(&list)?);

    fs::write(&list, format!("{listed}{name}\n"))?;
    check()?.expect(1, &[&format!("lists {name} twice")])?;
    fs::write(&list, listed.replace(&name, ""))?;
    check()?.expect(1, &[&format!("does not list {name}")])?;
    // The first patch is one of the default release's as well.
    let first = support::series()?.first().context("the series is empty")?.name.clone();
    fs::write(&list, format!("# without: {first}: there is nothing to change\n{listed}"))?;
    let output = check()?;
    ensure!(
        output.stdout.contains(&format!("{first}: the series has it, and says that it lacks")),
        "{output:?}"
    );
    output.expect(1, &["1 things are wrong"])?;
    fs::write(&list, format!("# without: {first}:\n{listed}"))?;
    check()?.expect(1, &["gives no reason"])?;
    fs::write(&list, &listed)?;

    let (_, diff) = patch.split_once("\n---\n").context("it has no header")?;
    fs::write(&file, diff)?;
    let output = check()?;
    ensure!(
        output.stdout.contains(&format!("{name}: a line `---` must end its header")),
        "{}",
        output.stdout
    );
    output.expect(1, &["1 things are wrong"])?;

    // Line numbers that are off by one.
    let start = diff.find("@@ -").context("it has no hunk")? + 4;
    let number = diff[start..].split(',').next().context("no number")?;
    let next = (number.parse::<u32>()? + 1).to_string();
    fs::write(&file, patch.replacen(&format!("@@ -{number},"), &format!("@@ -{next},"), 1))?;
    check()?.expect(4, &[&format!("{name} does not apply exactly"), "offset"])
}

/// A work tree with the series, and the files of the series.
fn edit(checkout: &Checkout) -> Result<PathBuf> {
    let output = checkout.xtask(["patch", "edit"]).run()?;
    output.expect(0, &[&format!("{} commits", support::series()?.len())])?;
    Ok(output.stdout.trim().into())
}

fn files(checkout: &Checkout) -> Result<BTreeMap<String, Vec<u8>>> {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry?.path();
        Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), fs::read(&path)?))
    };
    fs::read_dir(checkout.series())?.map(read).collect()
}

fn git(tree: &Path, arguments: &[&str]) -> Result<()> {
    let identity = ["-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "commit.gpgsign=false"];
    let output = Command::new("git").arg("-C").arg(tree).args(identity).args(arguments).output()?;
    ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn a_series_that_was_not_edited_is_written_back_as_it_was() -> Result<()> {
    let checkout = Checkout::new()?;
    let before = files(&checkout)?;
    edit(&checkout)?;
    checkout.xtask(["patch", "edit"]).run()?.expect(1, &["is there already", "--dir"])?;
    let output = checkout.xtask(["patch", "refresh"]).run()?;
    output.expect(0, &[])?;
    ensure!(output.stdout.is_empty(), "{}", output.stdout);
    ensure!(files(&checkout)? == before, "the series is not as it was");
    Ok(())
}

fn edited_commits_become_patches() -> Result<()> {
    let checkout = Checkout::new()?;
    let before = files(&checkout)?;
    let tree = edit(&checkout)?;
    let last = support::series()?.last().context("the series is empty")?.clone();
    // The last is renamed and changed, and another one comes after it.
    let (renamed, new) = (format!("{}-renamed.patch", &last.name[..4]), "0999-docs-say-more.patch");
    let text = fs::read_to_string(tree.join("README"))?;
    fs::write(tree.join("README"), format!("{text}More.\n"))?;
    let header =
        "Description: docs: say more\n Because.\nOrigin: vendor\nForwarded: no\nLast-Update: 2026-01-02";
    let message = |name: &str, group: &str| format!("{name}\n\nGroup: {group}\n{header}\n");
    git(&tree, &["commit", "--all", "--amend", "--message", &message(&renamed, &last.group)])?;
    fs::write(tree.join("MORE"), "more\n")?;
    git(&tree, &["add", "MORE"])?;
    git(&tree, &["commit", "--message", &message(new, "docs")])?;

    let output = checkout.xtask(["patch", "refresh"]).run()?;
    output.expect(0, &[])?;
    let mut changed = output.stdout.lines().collect::<Vec<_>>();
    changed.sort_unstable();
    let mut expected = [&*last.name, &*renamed, new, "series"];
    expected.sort_unstable();
    ensure!(changed == expected, "{changed:?} instead of {expected:?}");

    let mut after = files(&checkout)?;
    let patch = after.remove(new).context("the new patch is missing")?;
    let expected = format!("{header}\n---\n--- /dev/null\n+++ b/MORE\n@@ -0,0 +1 @@\n+more\n");
    ensure!(patch == expected.as_bytes(), "{}", String::from_utf8_lossy(&patch));
    ensure!(after.remove(&renamed).is_some() && !after.contains_key(&last.name), "{:?}", after.keys());
    let list = String::from_utf8(after.remove("series").context("no series")?)?;
    let old = String::from_utf8(before["series"].clone())?.replace(&last.name, &renamed);
    ensure!(list == format!("{old}\n# group: docs\n{new}\n"), "{list}");
    ensure!(after.iter().all(|(name, bytes)| before.get(name) == Some(bytes)), "another patch has changed");
    Ok(())
}

fn what_is_no_patch_is_not_written_back() -> Result<()> {
    let checkout = Checkout::new()?;
    let before = files(&checkout)?;
    checkout.xtask(["patch", "refresh"]).run()?.expect(1, &["no git work tree", "patch edit"])?;
    let tree = edit(&checkout)?;
    let refused = |words: &[&str]| -> Result<()> {
        checkout.xtask(["patch", "refresh"]).run()?.expect(1, words)?;
        ensure!(files(&checkout)? == before, "{words:?}: the series has changed");
        Ok(())
    };
    fs::write(tree.join("README"), "More.\n")?;
    refused(&["changes that are not committed"])?;
    for (message, words) in [
        ("Say more", "has no file name"),
        ("fixup! 0001-a.patch", "--autosquash upstream"),
        ("0999-a.patch\n\nDescription: a\n", "must have `Group: NAME`"),
        ("0999-a.patch\n\nGroup: one\nDescription: a\n", "has no Origin"),
    ] {
        git(&tree, &["commit", "--all", "--allow-empty", "--message", message])?;
        refused(&[words])?;
        git(&tree, &["reset", "--soft", "HEAD~"])?;
    }
    git(&tree, &["reset", "--hard", "--quiet"])?;
    let header = "Description: a\nOrigin: vendor\nForwarded: no\nLast-Update: 2026-01-02\n";
    git(&tree, &["commit", "--allow-empty", "--message", &format!("0999-a.patch\n\nGroup: one\n{header}")])?;
    refused(&["changes nothing"])
}

/// A made-up repository of upstream, with the source that a work tree begins with.
fn upstream(tree: &Path) -> Result<TempDir> {
    let upstream = TempDir::new()?;
    git(upstream.path(), &["clone", "--quiet", &tree.to_string_lossy(), "."])?;
    git(upstream.path(), &["checkout", "--quiet", "-B", "main", "upstream"])?;
    Ok(upstream)
}

/// Commits a change to a line that the first patch changes, too. Returns the patch's name, and the file.
fn break_the_first_patch(checkout: &Checkout, upstream: &Path) -> Result<(String, String)> {
    // A line that the first patch changes.
    let first = support::series()?.first().context("the series is empty")?.name.clone();
    let patch = fs::read_to_string(checkout.series().join(&first))?;
    let (file, hunks) =
        patch.split_once("\n--- a/").and_then(|(_, diff)| diff.split_once('\n')).context("no file")?;
    let removed = hunks.lines().find_map(|line| line.strip_prefix('-')).context("it removes nothing")?;
    let path = upstream.join(file);
    let text = fs::read_to_string(&path)?;
    ensure!(text.matches(removed).count() == 1, "{removed} is not in {file} once");
    fs::write(&path, text.replace(removed, "what upstream has now"))?;
    git(upstream, &["commit", "--quiet", "--all", "--message", "Do it differently"])?;
    Ok((first, file.to_owned()))
}

/// Pins the commit that the series was carried over to. Until then, it is not written to a release that is another commit.
fn pin(checkout: &Checkout, tree: &Path) -> Result<()> {
    checkout.xtask(["patch", "refresh"]).run()?.expect(1, &["is for upstream's commit", "--release"])?;
    let output = Command::new("git").args(["rev-parse", "upstream^{commit}"]).current_dir(tree).output()?;
    let commit = String::from_utf8(output.stdout)?;
    let text = fs::read_to_string(root().join("upstream.toml"))?;
    let upstream = checkout.path().join("upstream.toml");
    fs::remove_file(&upstream)?;
    fs::write(upstream, text.replace(&release().commit, commit.trim()))?;
    Ok(())
}

fn a_series_is_carried_over_but_for_what_upstream_has_already() -> Result<()> {
    let checkout = Checkout::new()?;
    let tree = edit(&checkout)?;
    let upstream = upstream(&tree)?;
    let first = support::series()?.first().context("the series is empty")?.name.clone();
    git(upstream.path(), &["commit", "--quiet", "--allow-empty", "--message", "Something else"])?;
    git(upstream.path(), &["cherry-pick", &format!("origin/series^{{/^{}}}", &first[..5])])?;

    let from = upstream.path().to_string_lossy();
    let rebase = |to: &str| checkout.xtask(["patch", "rebase", "--from", &from, "--to", to]).run();
    rebase("nowhere")?.expect(1, &["has no commit, tag or branch called nowhere"])?;
    rebase("main")?.expect(0, &[&format!("upstream has all that {first} does"), "patch refresh"])?;
    pin(&checkout, &tree)?;
    let output = checkout.xtask(["patch", "refresh"]).run()?;
    output.expect(0, &[])?;
    ensure!(output.stdout.lines().collect::<Vec<_>>() == ["series", &first], "{}", output.stdout);
    Ok(())
}

fn a_conflict_names_the_commit_of_upstream_that_caused_it() -> Result<()> {
    let checkout = Checkout::new()?;
    let tree = edit(&checkout)?;
    let upstream = upstream(&tree)?;
    let (first, file) = break_the_first_patch(&checkout, upstream.path())?;
    git(upstream.path(), &["commit", "--quiet", "--allow-empty", "--message", "Something else"])?;

    let from = upstream.path().to_string_lossy();
    let stopped = checkout.xtask(["patch", "rebase", "--from", &from, "--to", "main"]).run()?;
    stopped.expect(
        4,
        &[
            &format!("{first} conflicts"),
            &format!("{file}, changed by upstream in these lines:"),
            "Do it differently",
            "what upstream has now",
            "patch rebase --continue",
        ],
    )?;
    ensure!(!stopped.stderr.contains("Something else"), "{}", stopped.stderr);
    let go_on = || checkout.xtask(["patch", "rebase", "--continue"]).run();
    go_on()?.expect(1, &["resolve what is marked first", &file])?;
    checkout.xtask(["patch", "refresh"]).run()?.expect(1, &["a rebase that has not ended"])?;
    git(&tree, &["checkout", "--theirs", "."])?;
    go_on()?.expect(0, &[])?;
    pin(&checkout, &tree)?;
    let output = checkout.xtask(["patch", "refresh"]).run()?;
    output.expect(0, &[])?;
    ensure!(output.stdout.trim() == first, "{}", output.stdout);
    let patch = fs::read_to_string(checkout.series().join(&first))?;
    ensure!(patch.contains("\n-what upstream has now\n"), "{patch}");
    go_on()?.expect(1, &["no rebase has stopped"])
}

fn upstreams_newest_commit_is_followed_until_it_breaks_a_patch() -> Result<()> {
    let checkout = Checkout::new()?;
    let tree = edit(&checkout)?;
    let upstream = upstream(&tree)?;
    let from = upstream.path().to_string_lossy();
    let follow =
        |more: &[&str]| checkout.xtask([&["follow", "--from", &*from, "--no-build"], more].concat()).run();
    git(upstream.path(), &["commit", "--quiet", "--allow-empty", "--message", "Something else"])?;
    let output = follow(&[])?;
    output.expect(0, &[])?;
    let series = support::series()?;
    let expected = series.iter().map(|patch| format!("applies    {}\n", patch.name)).collect::<String>();
    ensure!(output.stdout == expected, "{}", output.stdout);

    let (first, file) = break_the_first_patch(&checkout, upstream.path())?;
    let output = follow(&["--json"])?;
    output.expect(
        4,
        &[&format!("{first} conflicts"), &format!("{file}, changed by upstream"), "Do it differently"],
    )?;
    let followed = serde_json::from_str::<serde_json::Value>(&output.stdout)?;
    let fate = &followed["patches"][0];
    ensure!(
        fate[0] == *first && fate[1]["fate"] == "conflicts" && fate[1]["files"][0]["path"] == *file,
        "{fate:#}"
    );
    let conflicts = |patch: &&serde_json::Value| patch[1]["fate"] == "conflicts";
    let count = followed["patches"].as_array().map_or(0, |patches| patches.iter().filter(conflicts).count());
    ensure!(count < series.len(), "no other patch applies: {followed:#}");
    Ok(())
}

fn what_applies_to_upstreams_newest_commit_is_built_and_loaded() -> Result<()> {
    let checkout = Checkout::new()?;
    let tree = edit(&checkout)?;
    let upstream = upstream(&tree)?;
    fs::write(upstream.path().join("README"), "This is upstream's next release.\n")?;
    git(upstream.path(), &["commit", "--quiet", "--all", "--message", "Say what it is"])?;
    let output = checkout.xtask(["follow", "--from", &*upstream.path().to_string_lossy()]).run()?;
    output.expect(0, &[])?;
    ensure!(output.stdout.contains("every session of patched gave back"), "{}", output.stdout);
    Ok(())
}
