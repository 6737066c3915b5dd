//! `cargo xtask fetch`: fetches a release's source into the cache, and shows and prunes the cache.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;
use toolkit::source::cache::{Cache, Entry, State};
use toolkit::source::fetch;
use toolkit::source::release::Release;
use toolkit::ui;

use crate::flags;

/// What `--json` prints.
#[derive(Serialize)]
struct Listing<'a> {
    schema_version: u32,
    /// What is in the cache; with `--prune`, what was removed, or would be.
    entries: &'a [Entry],
    /// Whether they were removed.
    removed: bool,
}

/// Fetches the source, and prints where it is; or lists or prunes the cache.
pub fn run(flags: &flags::Fetch) -> Result<()> {
    if flags.list || flags.prune {
        return show(flags);
    }
    let release = flags.release.load()?;
    let mut access = flags.source.to_toolkit();
    access.keyring.clone_from(&flags.keyring);
    let source = fetch::source(&release, &access)?;
    ui::result(source.archive.display());
    Ok(())
}

fn show(flags: &flags::Fetch) -> Result<()> {
    let (cache, releases) = (Cache::of_user()?, Release::all()?);
    let entries =
        if flags.prune { cache.prune(&releases, flags.dry_run)? } else { cache.entries(&releases)? };
    let removed = flags.prune && !flags.dry_run;
    if flags.json {
        let listing = Listing { schema_version: 1, entries: &entries, removed };
        ui::result(serde_json::to_string_pretty(&listing)?);
        return Ok(());
    }
    for entry in &entries {
        print(entry, flags.prune);
    }
    let total = megabytes(entries.iter().map(|entry| entry.size).sum());
    let (count, dir) = (entries.len(), cache.dir().display());
    ui::note(match (flags.prune, removed) {
        (false, _) => format!("{count} in {dir}, {total}"),
        (true, true) => format!("{count} removed from {dir}, {total}"),
        (true, false) => {
            format!("{count} would be removed from {dir}, {total}: nothing was, because of --dry-run")
        }
    });
    Ok(())
}

fn print(entry: &Entry, pruned: bool) {
    let releases =
        if entry.releases.is_empty() { "no release".to_owned() } else { entry.releases.join(", ") };
    let state = match entry.state {
        State::Verified => "verified",
        State::Damaged => "damaged",
        State::Unfinished => "unfinished",
        State::BeingFetched => "being fetched",
    };
    let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(entry.time));
    ui::result(format!("{releases:<16} {state:<14} {:>8}  {time}", megabytes(entry.size)));
    ui::result(format!("  {}", entry.path.display()));
    if let Some(origin) = &entry.origin {
        let signed = origin.signed_by.as_ref().map(|key| format!(", signed with {key}"));
        ui::result(format!("  from {}{}", origin.from, signed.unwrap_or_default()));
    }
    if let (true, Some(why)) = (pruned, entry.useless()) {
        ui::result(format!("  {why}"));
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
