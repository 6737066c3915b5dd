//! The patches for upstream: are they ready, what is found in those that are not, and a branch of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use toolkit::source::fetch::{self, Access};
use toolkit::source::release::Release;
use toolkit::source::series;
use toolkit::source::upkeep::upstream::Offers;

use crate::support::checkout::Checkout;
use crate::support::{root, target_dir, xtask};

crate::tests! {
    Nothing: the_status_of_each_patch_is_documented;
    SourceForUpstream:
        the_patches_for_upstream_apply_and_have_its_form,
        what_is_wrong_with_a_patch_for_upstream_is_said,
        patches_for_upstream_become_a_branch,
        a_patch_for_upstream_that_conflicts_leaves_nothing_behind;
    Minutes:
        the_patches_for_upstream_pass_its_tests_one_by_one,
        a_patch_for_upstream_whose_tests_show_nothing_is_found;
}

/// The first of the patches, which the tests spoil.
const FIRST: &str = "0008-libguac-handshake-parser.patch";

/// Whether the source of the commit that the patches are for is in the user's cache.
pub fn has_source() -> bool {
    let Ok(offers) = Offers::load(&[]) else { return false };
    fetch::source(&offers.release, &Access { offline: true, ..Access::default() }).is_ok()
}

/// A checkout whose patches for upstream can be spoiled.
fn checkout() -> Result<Checkout> {
    let checkout = Checkout::new()?;
    let series = Release::load(None)?.patches_dir();
    for dir in [series, root().join("patches/upstream")] {
        let to = checkout.path().join(dir.strip_prefix(root())?);
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(checkout)
}

fn first(checkout: &Checkout) -> PathBuf {
    checkout.path().join("patches/upstream").join(FIRST)
}

/// The table of docs/upstream.md says for each patch of the series, once, how it stands to upstream. Those that are offered are
/// those that the patches for upstream name, and those that are there already are those that the series of their commit lacks.
fn the_status_of_each_patch_is_documented() -> Result<()> {
    let text = fs::read_to_string(root().join("docs/upstream.md"))?;
    let mut status = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells = line.split('|').map(str::trim).collect::<Vec<_>>();
        let [_, word, patches, reason, _] = cells[..] else { continue };
        if patches == "patches" || patches.starts_with('-') {
            continue;
        }
        ensure!(
            ["offered", "needs discussion", "not for upstream", "already there"].contains(&word),
            "{word} is no status"
        );
        ensure!(!reason.is_empty(), "{patches} has no reason");
        for range in patches.split(", ") {
            let (start, end) = range.split_once(" to ").unwrap_or((range, range));
            for number in start.parse::<u32>()?..=end.parse::<u32>()? {
                let before = status.insert(format!("{number:04}"), word);
                ensure!(before.is_none(), "{number:04} is there twice");
            }
        }
    }
    let known = series::series(&Release::load(None)?.patches_dir())?;
    let known = known.iter().map(|patch| patch.name[..4].to_owned()).collect::<BTreeSet<_>>();
    let documented = status.keys().cloned().collect::<BTreeSet<_>>();
    let different = known.symmetric_difference(&documented).collect::<Vec<_>>();
    ensure!(different.is_empty(), "docs/upstream.md and the series differ: {different:?}");
    let offers = Offers::load(&[])?;
    let offered = offers.list.iter().map(|offer| offer.series[..4].to_owned()).collect::<BTreeSet<_>>();
    let mended = series::differences(&offers.release.patches_dir())?.into_iter();
    let mended = mended.filter(|difference| difference.kind == series::Kind::Mended);
    let mended = mended.map(|difference| difference.name[..4].to_owned()).collect::<BTreeSet<_>>();
    for (word, expected) in [("offered", offered), ("already there", mended)] {
        let said = status.iter().filter(|(_, said)| **said == word).map(|(number, _)| number.clone());
        let said = said.collect::<BTreeSet<_>>();
        ensure!(said == expected, "docs/upstream.md says {word} of {said:?}, and not of {expected:?}");
    }
    Ok(())
}

fn the_patches_for_upstream_apply_and_have_its_form() -> Result<()> {
    let count = Offers::load(&[])?.list.len();
    ensure!(count >= 14, "only {count}");
    let output = xtask(["patch", "check", "--upstream", "--no-build", "--offline"]).run()?;
    output.expect(0, &[&format!("{count} patches for upstream: each applies alone")])?;
    ensure!(output.stdout.matches("good ").count() == count, "{}", output.stdout);
    Ok(())
}

fn what_is_wrong_with_a_patch_for_upstream_is_said() -> Result<()> {
    let checkout = checkout()?;
    let path = first(&checkout);
    let good = fs::read_to_string(&path)?;
    let check = |more: &[&str]| {
        let arguments = ["patch", "check", "--upstream", "--no-build", "--offline", "0008"];
        checkout.xtask([&arguments, more].concat()).run()
    };
    check(&[])?.expect(0, &["1 patches for upstream"])?;

    let subject = good.lines().find(|line| line.starts_with("Subject: ")).context("no subject")?;
    let number = good.find("@@ -").context("no hunk")? + 4;
    let line = good[number..].split(',').next().context("no number")?;
    let next = (line.parse::<u32>()? + 1).to_string();
    let long = "a".repeat(73);
    let offset = (format!("@@ -{line},"), format!("@@ -{next},"));
    type Changes<'a> = &'a [(&'a str, &'a str)];
    let spoiled: [(Changes<'_>, i32, &[&str]); 4] = [
        (
            &[
                (subject, subject.trim_end_matches('.')),
                ("\n\nIf ", &format!("\n\n{long}\nIf ")),
                ("Series: 0008-", "Series: 9999-"),
                ("+ * Licensed to the Apache", "+ * Given to the Apache"),
                ("+static void handle", "+\tstatic void handle"),
                ("\nSeries: ", "\nUntested: it is hard.\nSeries: "),
            ],
            1,
            &[
                "ends with a full stop",
                "more than 72 columns",
                "the series has no 9999-",
                "needs the license's header",
                "a tab",
                "it has a test, and a line `Untested:`",
            ],
        ),
        (
            &[(subject, &format!("Subject: [PATCH] GUACAMOLE-1: free {long}.")), ("+void test_", "+void ")],
            1,
            &["begins with a capital", "columns, of 80", "adds no CUnit test"],
        ),
        (&[(&offset.0, &offset.1)], 4, &["does not apply exactly", "offset"]),
        (
            &[("\n-            guac_parser", "\n-           xguac_parser")],
            4,
            &["does not apply exactly", "FAILED"],
        ),
    ];
    for (changes, code, words) in spoiled {
        let mut bad = good.clone();
        for (from, to) in changes {
            ensure!(bad.contains(from), "there is no {from}");
            bad = bad.replace(from, to);
        }
        fs::write(&path, bad)?;
        let output = check(&[])?;
        output.expect(code, &["1 of 1 patches for upstream"])?;
        let missing = words.iter().find(|word| !output.stdout.contains(**word));
        ensure!(missing.is_none(), "{missing:?} is not said: {}", output.stdout);
    }
    // The last of them, as JSON.
    let output = check(&["--json"])?;
    let checked = serde_json::from_str::<Value>(&output.stdout)?;
    let wrong = checked[0]["wrong"][0].as_str().unwrap_or_default();
    ensure!(checked[0]["name"] == FIRST && wrong.contains("does not apply exactly"), "{checked:#}");

    for (bad, words) in [
        (good.replace("From 0000", "Form 0000"), "not that of a mail"),
        (good.replace("Subject: [PATCH] ", "Subject: "), "no line `Subject: [PATCH] SUMMARY`"),
        (good.replace("\nSeries: ", "\nOf: "), "no line `Series: NAME`"),
    ] {
        fs::write(&path, bad)?;
        check(&[])?.expect(1, &[FIRST, words])?;
    }
    fs::write(&path, good)?;
    checkout.xtask(["patch", "check", "--upstream", "--no-build", "9999"]).run()?.expect(1, &["9999"])
}

fn git(tree: &Path, arguments: &[&str]) -> Result<String> {
    let identity = ["-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "commit.gpgsign=false"];
    let output = Command::new("git").arg("-C").arg(tree).args(identity).args(arguments).output()?;
    ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A made-up repository of upstream, and a checkout whose patches are for its only commit.
fn upstream() -> Result<(Checkout, TempDir)> {
    let (checkout, upstream) = (checkout()?, TempDir::new()?);
    let release = Offers::load(&[])?.release;
    let source = fetch::source(&release, &Access { offline: true, ..Access::default() })?;
    let tree = upstream.path().join("tree");
    fetch::unpack(&source, &tree)?;
    git(&tree, &["init", "--quiet", "--initial-branch=main"])?;
    git(&tree, &["add", "--all", "--force"])?;
    git(&tree, &["commit", "--quiet", "--message", "All of it."])?;
    let commit = git(&tree, &["rev-parse", "HEAD"])?;
    let pins = fs::read_to_string(root().join("upstream.toml"))?.replace(&release.commit, &commit);
    let path = checkout.path().join("upstream.toml");
    fs::remove_file(&path)?;
    fs::write(path, pins)?;
    Ok((checkout, upstream))
}

fn patches_for_upstream_become_a_branch() -> Result<()> {
    let (checkout, upstream) = upstream()?;
    let (tree, clone) = (upstream.path().join("tree"), upstream.path().join("clone"));
    let export = |dir: &Path, more: &[&str]| {
        let dir = dir.to_string_lossy();
        checkout.xtask([&["patch", "export", "--dir", &*dir], more].concat()).run()
    };
    let offers = Offers::load(&[])?.list;
    let subjects = |dir: &Path, branch: &str| -> Result<Vec<String>> {
        let log = git(dir, &["log", "--reverse", "--format=%s", &format!("main..{branch}")])?;
        Ok(log.lines().map(str::to_owned).collect())
    };
    let expected = offers.iter().map(|offer| offer.subject.clone()).collect::<Vec<_>>();

    // A clone, with the branch checked out, and lists of tests that have what all patches add.
    let from = tree.to_string_lossy();
    export(&clone, &["--onto", "main", "--from", &from])?
        .expect(0, &[&format!("{} commits", offers.len())])?;
    git(&clone, &["branch", "main", "refs/remotes/upstream/main"])?;
    ensure!(subjects(&clone, "guacd-uncapped")? == expected, "{:?}", subjects(&clone, "guacd-uncapped")?);
    ensure!(git(&clone, &["branch", "--show-current"])? == "guacd-uncapped", "it is not checked out");
    for (path, _) in offers.iter().flat_map(|offer| &offer.files).filter(|(path, _)| path.contains("/tests/"))
    {
        let (dir, name) = path.split_once("/tests/").context("no tests")?;
        let list = fs::read_to_string(clone.join(dir).join("tests/Makefile.am"))?;
        ensure!(name == "Makefile.am" || list.matches(name).count() == 1, "{path} is not listed once");
    }

    // A branch of some in a work tree, where what is checked out and what is not committed stays.
    fs::write(tree.join("README"), "mine\n")?;
    export(&tree, &["--onto", "main", "--branch", "some", "0018", "0087"])?
        .expect(0, &["2 commits on some"])?;
    ensure!(subjects(&tree, "some")?.len() == 2, "{:?}", subjects(&tree, "some")?);
    ensure!(git(&tree, &["branch", "--show-current"])? == "main", "another branch is checked out");
    ensure!(fs::read_to_string(tree.join("README"))? == "mine\n", "the work tree has changed");
    ensure!(git(&tree, &["worktree", "list"])?.lines().count() == 1, "a work tree is left");
    export(&tree, &["--onto", "main", "--branch", "some"])?.expect(1, &["a branch some already"])?;
    export(&tree, &["--onto", "some", "--branch", "again", "0087"])?
        .expect(1, &["changes nothing on", "upstream may have it already"])?;
    export(&tree, &["--onto", "nowhere"])?.expect(1, &["no commit, tag or branch called nowhere"])?;
    export(upstream.path(), &["--onto", "main"])?.expect(1, &["is no git work tree"])
}

fn a_patch_for_upstream_that_conflicts_leaves_nothing_behind() -> Result<()> {
    let (checkout, upstream) = upstream()?;
    let (tree, clone) = (upstream.path().join("tree"), upstream.path().join("clone"));
    // A line that the first patch removes.
    let patch = fs::read_to_string(first(&checkout))?;
    let mut removed = patch.lines().filter_map(|line| line.strip_prefix('-'));
    let removed = removed.find(|line| line.contains("guac_parser_free")).context("it removes nothing")?;
    let file =
        patch.lines().find_map(|line| line.strip_prefix("--- a/src/libguac/user")).context("no file")?;
    let path = tree.join(format!("src/libguac/user{file}"));
    let text = fs::read_to_string(&path)?;
    fs::write(&path, text.replacen(removed, "what upstream has now;", 1))?;
    git(&tree, &["commit", "--quiet", "--all", "--message", "Do it differently."])?;

    let before = git(&tree, &["for-each-ref"])?;
    for dir in [&tree, &clone] {
        let (dir, from) = (dir.to_string_lossy(), tree.to_string_lossy());
        let export = ["patch", "export", "--onto", "main", "--dir", &*dir, "--from", &*from, "0008", "0087"];
        checkout
            .xtask(export)
            .run()?
            .expect(4, &[FIRST, file, "what upstream has now", "Do it differently.", "no branch was made"])?;
    }
    ensure!(git(&tree, &["for-each-ref"])? == before, "a branch is left");
    ensure!(git(&tree, &["status", "--porcelain"])?.is_empty(), "the work tree has changed");
    ensure!(git(&tree, &["worktree", "list"])?.lines().count() == 1, "a work tree is left");
    let left = fs::read_dir(upstream.path())?.count();
    ensure!(left == 1, "there are {left} directories, and not that of upstream alone");
    // The other one applies.
    let dir = tree.to_string_lossy();
    checkout
        .xtask(["patch", "export", "--onto", "main", "--dir", &*dir, "0087"])
        .run()?
        .expect(0, &["1 commits"])
}

fn the_patches_for_upstream_pass_its_tests_one_by_one() -> Result<()> {
    let count = Offers::load(&[])?.list.len();
    xtask(["patch", "check", "--upstream", "--offline"]).run()?.expect(
        0,
        &[&format!("{count} patches for upstream: each applies, builds and passes upstream's tests alone")],
    )
}

fn a_patch_for_upstream_whose_tests_show_nothing_is_found() -> Result<()> {
    let checkout = checkout()?;
    let path = checkout.path().join("patches/upstream/0087-libguac-flag-timeout.patch");
    let good = fs::read_to_string(&path)?;
    let check = || {
        let arguments = ["patch", "check", "--upstream", "--offline", "0087"];
        // In the build tree of the other test.
        checkout.xtask(arguments).env("CARGO_TARGET_DIR", target_dir()).run()
    };
    let wrong = |bad: String, words: &[&str]| -> Result<()> {
        ensure!(bad != good, "{words:?}: nothing was spoiled");
        fs::write(&path, bad)?;
        let output = check()?;
        output.expect(1, &["something is wrong with 1 of 1"])?;
        let missing = words.iter().find(|word| !output.stdout.contains(**word));
        ensure!(missing.is_none(), "{missing:?} is not said: {}", output.stdout);
        Ok(())
    };
    wrong(
        good.replace("CU_ASSERT_TRUE(retval)", "CU_ASSERT_FALSE(retval)"),
        &["make check failed", "long_timeout"],
    )?;
    wrong(good.replace("TEST_EVENT_A, 4295)", "TEST_EVENT_A, 4294)"), &["pass without the rest of it"])?;
    wrong(good.replace("(uint64_t) msec", "(uint64) msec"), &["make all failed", "uint64"])?;
    fs::write(&path, &good)?;
    // A run that is interrupted leaves what it had applied.
    let version = Offers::load(&[])?.release.version;
    let build = target_dir().join("guacd").join(version).join("upstream/build");
    fs::write(build.join("src/libguac/flag.c"), "what was left\n")?;
    check()?.expect(0, &["1 patches for upstream: each applies, builds"])
}
