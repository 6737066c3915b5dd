//! `cargo xtask fetch --list` and `--prune`: what is in the cache, and what goes when nothing can use it?

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fetch::{Answer, Cache, made_up, pinned, respond, serve, tarball};
use crate::support::{Output, release};

crate::tests! {
    Nothing:
        an_empty_cache_lists_nothing,
        what_no_release_pins_is_pruned,
        what_a_killed_fetch_left_is_pruned_once_nobody_fetches,
        the_flags_of_the_cache_exclude_those_of_a_fetch;
    Tarball:
        the_list_says_how_a_source_came_and_whether_it_is_whole;
}

/// The entries that `--json` lists.
fn entries(output: &Output) -> Result<Vec<Value>> {
    ensure!(output.code == 0, "{}", output.stderr);
    let listing: Value = serde_json::from_str(&output.stdout)?;
    ensure!(listing["schema_version"] == 1, "{listing:#}");
    Ok(listing["entries"].as_array().context("no list of entries")?.clone())
}

fn list(cache: &Cache) -> Result<Vec<Value>> {
    entries(&cache.fetch(&["--list", "--json"]).run()?)
}

fn an_empty_cache_lists_nothing() -> Result<()> {
    let cache = Cache::new()?;
    ensure!(list(&cache)?.is_empty());
    cache.fetch(&["--list"]).run()?.expect(0, &["0 in ", "guacd-uncapped/sources, 0.0 MB"])?;
    cache.fetch(&["--prune"]).run()?.expect(0, &["0 removed from"])?;
    ensure!(cache.files()?.is_empty(), "left behind: {:?}", cache.files()?);
    Ok(())
}

fn the_flags_of_the_cache_exclude_those_of_a_fetch() -> Result<()> {
    let cache = Cache::new()?;
    for arguments in [
        &["--list", "--prune"][..],
        &["--list", "--from", "/tmp"],
        &["--prune", "--offline"],
        &["--list", "--keyring", "/tmp"],
        &["--dry-run"],
        &["--json"],
    ] {
        cache.fetch(arguments).run()?.expect(2, &["Usage: "])?;
    }
    Ok(())
}

fn the_list_says_how_a_source_came_and_whether_it_is_whole() -> Result<()> {
    let cache = Cache::new()?;
    let dir = tempfile::TempDir::new()?;
    let tarball = tarball(dir.path())?;
    cache.fetch_from(&tarball)?.expect(0, &[])?;
    let archive = cache.archive()?;
    let listed = list(&cache)?;
    ensure!(listed.len() == 1, "{listed:#?}");
    let entry = &listed[0];
    let has = |name: &str| entry["releases"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
    ensure!(has(&release().version), "{entry:#}");
    ensure!(entry["path"].as_str().map(Path::new) == archive.parent(), "{entry:#}");
    ensure!(entry["pin"].as_str().is_some_and(|pin| pin.starts_with("sha256-")), "{entry:#}");
    ensure!(entry["origin"]["from"].as_str().map(Path::new) == Some(&tarball.canonicalize()?), "{entry:#}");
    ensure!(entry["size"].as_u64() > Some(fs::metadata(&archive)?.len()), "{entry:#}");
    ensure!(entry["time"].as_u64() > Some(1_700_000_000), "{entry:#}");
    ensure!(entry["state"] == "verified", "{entry:#}");

    // A release needs it, so it stays.
    ensure!(entries(&cache.fetch(&["--prune", "--json"]).run()?)?.is_empty());
    ensure!(archive.exists(), "it was pruned");

    let mut bytes = fs::read(&archive)?;
    bytes[1000] ^= 1;
    fs::write(&archive, bytes)?;
    let text = cache.fetch(&["--list"]).run()?.stdout;
    for words in [&*release().version, "damaged", "MB", "T", &tarball.canonicalize()?.to_string_lossy()] {
        ensure!(text.contains(words), "{words} is not in:\n{text}");
    }
    ensure!(list(&cache)?[0]["state"] == "damaged", "{:#?}", list(&cache)?);
    let output = cache.fetch(&["--prune"]).run()?;
    output.expect(0, &["1 removed from"])?;
    ensure!(output.stdout.contains("it is damaged"), "{}", output.stdout);
    ensure!(!archive.exists(), "the damaged one is still there");
    Ok(())
}

fn what_no_release_pins_is_pruned() -> Result<()> {
    let file = made_up(|_| ())?;
    let served = file.clone();
    let answer: Answer = Box::new(move |stream, _, _| {
        respond(stream, &format!("200 OK\r\nContent-Length: {}", served.len()), &served)
    });
    let checkout = pinned(&serve(answer)?, &file)?;
    let cache = Cache::new()?;
    let fetch = |arguments: &[&str]| {
        let all = ["fetch"].iter().chain(arguments);
        checkout.xtask(all).env("XDG_CACHE_HOME", cache.path()).env("NO_PROXY", "127.0.0.1")
    };
    fetch(&["--release", "9.9.9"]).run()?.expect(0, &[])?;
    let archive = cache.archive()?;
    ensure!(entries(&fetch(&["--prune", "--json"]).run()?)?.is_empty(), "that checkout's release needs it");

    // This checkout has no such release.
    let would = cache.fetch(&["--prune", "--dry-run"]).run()?;
    would.expect(0, &["1 would be removed from", "nothing was, because of --dry-run"])?;
    for words in [
        "no release ",
        "no release in upstream.toml has its pin",
        &archive.parent().unwrap_or(&archive).to_string_lossy(),
    ] {
        ensure!(would.stdout.contains(words), "{words} is not in:\n{}", would.stdout);
    }
    ensure!(archive.exists(), "a dry run has removed it");
    let output = cache.fetch(&["--prune", "--json"]).run()?;
    ensure!(serde_json::from_str::<Value>(&output.stdout)?["removed"] == true, "{}", output.stdout);
    ensure!(entries(&output)?.len() == 1 && cache.files()?.is_empty(), "left behind: {:?}", cache.files()?);
    Ok(())
}

fn what_a_killed_fetch_left_is_pruned_once_nobody_fetches() -> Result<()> {
    let cache = Cache::new()?;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/guacamole-server.tar.gz", server.local_addr()?);
    let start = || -> Result<_> {
        let mut running = cache.fetch(&["--from", &url]).env("NO_PROXY", "127.0.0.1").start()?;
        let (mut client, _) = server.accept()?;
        client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning")?;
        let begun = || {
            let files = cache.files().unwrap_or_default();
            files.iter().any(|file| fs::metadata(file).is_ok_and(|file| file.len() > 0))
        };
        running.wait_until("the beginning of the file", begun)?;
        Ok((running, client))
    };
    let (running, _client) = start()?;
    running.kill()?;
    ensure!(list(&cache)?.iter().all(|entry| entry["state"] == "unfinished"), "{:#?}", list(&cache)?);
    let left = cache.files()?.len();
    ensure!(left == 1, "{left} files were left");

    // While another run fetches, nobody can tell its files from those.
    let (running, _client) = start()?;
    ensure!(list(&cache)?.iter().all(|entry| entry["state"] == "being-fetched"), "{:#?}", list(&cache)?);
    cache.fetch(&["--prune"]).run()?.expect(0, &["0 removed from"])?;
    running.interrupt()?.expect(130, &[])?;
    ensure!(cache.files()?.len() == 1, "left behind: {:?}", cache.files()?);

    cache.fetch(&["--prune", "--dry-run"]).run()?.expect(0, &["1 would be removed"])?;
    ensure!(cache.files()?.len() == 1, "a dry run has removed it");
    let output = cache.fetch(&["--prune"]).run()?;
    output.expect(0, &["1 removed from"])?;
    ensure!(output.stdout.contains("a fetch that was killed has left it"), "{}", output.stdout);
    ensure!(output.took < Duration::from_secs(5), "it took {:?}", output.took);
    ensure!(cache.files()?.is_empty(), "left behind: {:?}", cache.files()?);
    Ok(())
}
