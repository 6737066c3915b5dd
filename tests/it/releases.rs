//! Is a release data? A made-up one takes a table in `upstream.toml`, a series, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use toolkit::source::release::{Release, State};
use toolkit::source::series::{Difference, Kind};

use crate::support::checkout::Checkout;
use crate::support::differences::without;
use crate::support::{SMALL, release, root};
use crate::{Needs, Test, image};

crate::tests! {
    Nothing:
        no_release_is_named_in_the_code,
        the_documentation_names_the_default_release,
        a_test_is_ignored_where_the_release_has_nothing_to_test,
        a_release_that_is_not_there_is_refused_by_every_command;
    Source:
        a_made_up_release_takes_a_table_and_a_series;
}

/// Where a release may be named: its own data, history, and what documents it.
const MAY_NAME_RELEASES: [&str; 6] =
    ["upstream.toml", "patches/", "CHANGELOG.md", "README.md", "docs/", "compose.yaml"];

/// The lines of a file that name one of the releases. Comments do not count, as they may say what was measured with one.
fn lines_that_name<'a>(text: &'a str, releases: &[String]) -> Vec<&'a str> {
    let is_comment =
        |line: &str| ["//", "#", "*", "<!--"].iter().any(|start| line.trim_start().starts_with(start));
    let names = |line: &str| releases.iter().any(|release| line.contains(release.as_str()));
    text.lines().filter(|line| names(line) && !is_comment(line)).collect()
}

fn no_release_is_named_in_the_code() -> Result<()> {
    let releases: Vec<String> = Release::all()?.into_keys().collect();
    let version = release().version.clone();
    let found = lines_that_name(
        "a\n// measured with VERSION\nlet x = \"VERSION\";".replace("VERSION", &version).leak(),
        &releases,
    );
    ensure!(
        found == [format!("let x = \"{version}\";")],
        "a line that names a release is not found: {found:?}"
    );

    let files = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output()?;
    if !files.status.success() {
        // Without git, there is no list of files. Whoever has made this archive has a checkout.
        return Ok(());
    }
    let mut named = Vec::new();
    for name in String::from_utf8(files.stdout)?.split_terminator('\0') {
        let is_code = [".rs", ".c", ".h", ".nix", ".sh", ".toml", "Dockerfile"]
            .iter()
            .any(|ending| name.ends_with(ending));
        if !is_code || MAY_NAME_RELEASES.iter().any(|allowed| name.starts_with(allowed)) {
            continue;
        }
        let text = fs::read_to_string(root().join(name)).unwrap_or_default();
        named.extend(
            lines_that_name(&text, &releases).into_iter().map(|line| format!("{name}: {}", line.trim())),
        );
    }
    ensure!(
        named.is_empty(),
        "these name a release, which upstream.toml alone should:\n{}",
        named.join("\n")
    );
    Ok(())
}

fn the_documentation_names_the_default_release() -> Result<()> {
    let default = Release::load(None)?.version;
    for name in ["README.md", "compose.yaml"] {
        let text = fs::read_to_string(root().join(name))?;
        ensure!(text.contains(&default), "{name} does not name {default}");
        for (_, rest) in
            text.match_indices("guacd-uncapped:").map(|(at, found)| text.split_at(at + found.len()))
        {
            let tag: String =
                rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect();
            ensure!(
                tag.trim_end_matches('.') == default,
                "{name} names guacd-uncapped:{tag}, and the default is {default}"
            );
        }
    }
    Ok(())
}

fn a_test_is_ignored_where_the_release_has_nothing_to_test() -> Result<()> {
    let patches = ["0001-a.patch", "0002-b.patch"].map(String::from);
    let test = |name, of| Test { name, needs: Needs::Nothing, of, run: || Ok(()) };
    let tests = [test("always", &[]), test("of a", &["0001"]), test("of both", &["0002", "0001"])];
    let ignored = |name: &str, kind| {
        let said = Difference { name: name.into(), kind, reason: "reason".into() };
        without(&tests, &patches, &[said])
    };
    ensure!(ignored("0001-a.patch", Kind::Without)? == BTreeSet::from(["of a", "of both"]));
    ensure!(ignored("0002-b.patch", Kind::Without)? == BTreeSet::from(["of both"]));
    for kind in [Kind::Mended, Kind::InPart] {
        ensure!(ignored("0001-a.patch", kind)?.is_empty(), "{kind:?}");
    }
    // A number that no patch has would never have its test ignored.
    let Err(error) = without(&[test("of none", &["0003"])], &patches, &[]) else {
        bail!("0003 is taken for a patch")
    };
    ensure!(format!("{error:#}") == "of none: the default release has no patch 0003", "{error:#}");
    Ok(())
}

fn a_release_that_is_not_there_is_refused_by_every_command() -> Result<()> {
    for command in ["fetch", "build", "stress", "bench", "image", "package", "reproduce", "test"] {
        let output = crate::support::xtask([command, "--release", "0.9.9"]).run()?;
        output.expect(1, &["0.9.9 is not pinned in upstream.toml"]).context(command)?;
    }
    Ok(())
}

fn a_made_up_release_takes_a_table_and_a_series() -> Result<()> {
    let copied = release();
    let name = format!("{}-copy", copied.version);
    let checkout = Checkout::new()?;
    let series = format!("patches/{name}");
    fs::rename(checkout.series(), checkout.path().join(&series))?;
    let upstream = checkout.path().join("upstream.toml");
    fs::remove_file(&upstream)?;
    let text = fs::read_to_string(root().join("upstream.toml"))?;
    let table = table_of(&text, &copied.version).context("upstream.toml has no such table")?;
    let series_of = copied.patches_dir();
    let series_of = series_of.strip_prefix(root())?.to_string_lossy();
    let table = table.replace(&format!("release.\"{}\"", copied.version), &format!("release.\"{name}\""));
    fs::write(&upstream, table.replace(&format!("\"{series_of}\""), &format!("\"{series}\"")))?;

    // Both releases have the source that is in the cache.
    let run = |arguments: &[&str]| checkout.xtask(arguments).env(crate::support::RELEASE_VARIABLE, &name);
    run(&["fetch", "--offline"]).run()?.expect(0, &[])?;
    if copied.state == State::Supported {
        // It is the only one, so it is the default.
        checkout
            .xtask(["fetch", "--offline"])
            .without(crate::support::RELEASE_VARIABLE)
            .run()?
            .expect(0, &[])?;
    }
    let output = run(&[&["build", "--"], SMALL].concat()).run()?;
    output.expect(0, &["no fuzz, no offset", &format!("guacd {name} patched")])?;
    let prefix = output.stdout.trim();
    let manifest: Value =
        serde_json::from_slice(&fs::read(format!("{prefix}/share/guacd-uncapped/manifest.json"))?)?;
    ensure!(
        manifest["release"] == name.as_str() && manifest["commit"] == copied.commit.as_str(),
        "{manifest:#}"
    );

    toolkit::stress::hold("copy", Path::new(prefix), 5, false)?;
    image::is_built_as(run(&["image", "--offline"]), &name)
}

/// The lines of a release's tables.
fn table_of(upstream: &str, version: &str) -> Option<String> {
    let begin = upstream.find(&format!("[release.\"{version}\"]"))?;
    let own = format!("[[release.\"{version}\".");
    let rest = &upstream[begin..];
    let end = rest.match_indices("\n[").find(|(at, _)| !rest[at + 1..].starts_with(&own));
    Some(rest[..end.map_or(rest.len(), |(at, _)| at)].to_owned())
}
