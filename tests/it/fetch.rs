//! `cargo xtask fetch`: is a source that does not match its pin refused, and is nothing of it left in the cache?

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::support::{self, Output, Xtask, release, xtask};

crate::tests! {
    Nothing:
        a_git_clone_without_the_commit_is_refused,
        a_directory_that_is_no_source_is_refused,
        a_source_that_is_not_there_is_refused,
        without_a_network_every_way_to_supply_the_source_is_named,
        offline_asks_nobody,
        a_stalled_download_can_be_interrupted_and_leaves_nothing,
        an_unknown_release_is_answered_with_those_that_are_known;
    Tarball:
        a_tarball_with_a_flipped_byte_is_refused,
        damage_in_the_cache_is_noticed;
    Source:
        an_unpacked_tree_is_checked_byte_by_byte,
        the_users_git_settings_change_no_byte;
}

/// An empty cache, and runs of xtask that use it.
struct Cache(TempDir);

impl Cache {
    fn new() -> Result<Cache> {
        Ok(Cache(TempDir::new()?))
    }

    fn fetch(&self, arguments: &[&str]) -> Xtask {
        xtask(["fetch"].iter().chain(arguments)).env("XDG_CACHE_HOME", self.0.path())
    }

    fn fetch_from(&self, from: &Path) -> Result<Output> {
        self.fetch(&["--from", &from.to_string_lossy()]).run()
    }

    /// The archive of the release in it.
    fn archive(&self) -> Result<PathBuf> {
        let is_archive = |file: &PathBuf| file.to_string_lossy().contains("/guacamole-server.tar");
        self.files()?.into_iter().find(is_archive).context("there is no archive in the cache")
    }

    /// Everything in it that is not an empty directory.
    fn files(&self) -> Result<Vec<PathBuf>> {
        fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                if path.is_dir() { walk(&path, files)? } else { files.push(path) }
            }
            Ok(())
        }
        let mut files = Vec::new();
        walk(self.0.path(), &mut files)?;
        Ok(files)
    }
}

fn a_tarball_with_a_flipped_byte_is_refused() -> Result<()> {
    let cache = Cache::new()?;
    let dir = TempDir::new()?;
    let tarball = tarball(dir.path())?;

    let mut bytes = fs::read(&tarball)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let flipped = dir.path().join("flipped.tar.gz");
    fs::write(&flipped, bytes)?;
    let output = cache.fetch_from(&flipped)?;
    output.expect(1, &["flipped.tar.gz", "SHA-256", "upstream.toml pins", "fetch it anew"])?;
    ensure!(cache.files()?.is_empty(), "left behind: {:?}", cache.files()?);

    // The tarball is accepted without the flip, so it was the byte that was refused.
    cache.fetch_from(&tarball)?.expect(0, &[])?;
    cache.fetch(&["--offline"]).run()?.expect(0, &[])
}

fn a_git_clone_without_the_commit_is_refused() -> Result<()> {
    let cache = Cache::new()?;
    let clone = TempDir::new()?;
    let git = |arguments: &[&str]| -> Result<()> {
        let status = Command::new("git").arg("-C").arg(clone.path()).args(arguments).status()?;
        ensure!(status.success(), "git {arguments:?} failed");
        Ok(())
    };
    git(&["init", "--quiet"])?;
    fs::write(clone.path().join("README"), "not guacamole-server")?;
    git(&["add", "README"])?;
    git(&["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "one"])?;
    let output = cache.fetch_from(clone.path())?;
    output.expect(
        1,
        &[
            &format!("git cannot get commit {}", release().commit),
            &format!("git -C {} fetch {}", clone.path().display(), release().git),
        ],
    )?;
    ensure!(cache.files()?.is_empty(), "left behind: {:?}", cache.files()?);
    Ok(())
}

fn a_directory_that_is_no_source_is_refused() -> Result<()> {
    let cache = Cache::new()?;
    let dir = TempDir::new()?;
    cache.fetch_from(dir.path())?.expect(1, &["neither a guacamole-server source tree nor a git clone"])
}

fn a_source_that_is_not_there_is_refused() -> Result<()> {
    let cache = Cache::new()?;
    cache.fetch_from(Path::new("/nowhere/at/all"))?.expect(1, &["/nowhere/at/all", "cannot find it"])
}

fn an_unpacked_tree_is_checked_byte_by_byte() -> Result<()> {
    let cache = Cache::new()?;
    let dir = TempDir::new()?;
    let tree = tree(dir.path())?;
    if tree.join("configure").exists() {
        // Apache's own tarball has generated files besides: its tree is not the tag's.
        return cache.fetch_from(&tree)?.expect(1, &["generated files"]);
    }
    cache.fetch_from(&tree)?.expect(0, &[])?;

    let cache = Cache::new()?;
    let file = tree.join("src/libguac/rwlock.c");
    let text = fs::read_to_string(&file)?.replacen("count + 1", "count + 2", 1);
    fs::write(&file, text)?;
    let refused = ["its git tree is", &*release().tree, "was changed"];
    cache.fetch_from(&tree)?.expect(1, &refused)?;
    ensure!(cache.files()?.is_empty(), "left behind: {:?}", cache.files()?);
    Ok(())
}

fn the_users_git_settings_change_no_byte() -> Result<()> {
    let cache = Cache::new()?;
    let dir = TempDir::new()?;
    let tree = tree(dir.path())?;
    if tree.join("configure").exists() {
        return Ok(());
    }
    let home = dir.path().join("home");
    fs::create_dir(&home)?;
    fs::write(home.join(".gitconfig"), "[core]\n\tautocrlf = true\n\teol = crlf\n")?;
    // As in a hook of another repository.
    let index = dir.path().join("index");
    let fetch = cache.fetch(&["--from", &tree.to_string_lossy()]);
    fetch
        .env("HOME", &home)
        .env("GIT_INDEX_FILE", &index)
        .env("GIT_DIR", "/nowhere")
        .run()?
        .expect(0, &[])?;
    ensure!(!index.exists(), "the index of another repository was written to");
    let archive = cache.archive()?;
    ensure!(!fs::read(&archive)?.windows(2).any(|two| two == b"\r\n"), "{} has CRLF", archive.display());
    Ok(())
}

fn damage_in_the_cache_is_noticed() -> Result<()> {
    let cache = Cache::new()?;
    let dir = TempDir::new()?;
    cache.fetch_from(&tarball(dir.path())?)?.expect(0, &[])?;
    let archive = cache.archive()?;
    let mut bytes = fs::read(&archive)?;
    bytes[1000] ^= 1;
    fs::write(&archive, bytes)?;
    cache.fetch(&["--offline"]).run()?.expect(3, &["was damaged in the cache", "no source for"])?;
    ensure!(!archive.exists(), "the damaged archive is still there");
    Ok(())
}

fn without_a_network_every_way_to_supply_the_source_is_named() -> Result<()> {
    let cache = Cache::new()?;
    // Port 9 is discard's: nobody listens there.
    let fetch =
        cache.fetch(&[]).env("ALL_PROXY", "http://127.0.0.1:9").env("HTTPS_PROXY", "http://127.0.0.1:9");
    let output = fetch.run()?;
    let version = &release().version;
    let origins = release().origins.iter().map(|origin| format!("{}: ", origin.url));
    let clone = match &release().tag {
        Some(tag) => format!("git clone --depth 1 --branch {tag} {}", release().git),
        None => format!("git clone {}", release().git),
    };
    let others = ["the cache".to_owned(), "curl -LO".to_owned(), clone];
    let import = format!("cargo xtask fetch --release {version} --from DIRECTORY");
    let words: Vec<String> = origins.chain(others).chain([import]).collect();
    output.expect(3, &words.iter().map(String::as_str).collect::<Vec<_>>())?;
    ensure!(cache.files()?.is_empty(), "left behind: {:?}", cache.files()?);
    Ok(())
}

fn offline_asks_nobody() -> Result<()> {
    let cache = Cache::new()?;
    let output = cache.fetch(&["--offline"]).run()?;
    output.expect(3, &["not tried, because of --offline"])?;
    let output = cache.fetch(&["--offline", "--from", "https://localhost/guacamole-server.tar.gz"]).run()?;
    output.expect(1, &["--offline forbids it"])
}

fn a_stalled_download_can_be_interrupted_and_leaves_nothing() -> Result<()> {
    let cache = Cache::new()?;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/guacamole-server.tar.gz", server.local_addr()?);
    let running = cache.fetch(&["--from", &url]).env("NO_PROXY", "127.0.0.1").start()?;
    let (mut client, _) = server.accept()?;
    client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning")?;
    // Long enough to be waiting for the rest, which never comes.
    std::thread::sleep(Duration::from_millis(500));
    let since = Instant::now();
    running.interrupt()?.expect(130, &["interrupted"])?;
    ensure!(since.elapsed() < Duration::from_secs(5), "it took {:?} to end", since.elapsed());
    ensure!(cache.files()?.is_empty(), "left behind: {:?}", cache.files()?);
    Ok(())
}

fn an_unknown_release_is_answered_with_those_that_are_known() -> Result<()> {
    let output = Cache::new()?.fetch(&["--release", "0.9.9"]).run()?;
    output.expect(1, &["0.9.9 is not pinned in upstream.toml", "known releases: ", &release().version])
}

/// The release as an unpacked tree.
fn tree(dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("tree");
    fs::create_dir(&tree)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(support::source()?).arg("--strip-components=1").arg("-C").arg(&tree);
    ensure!(tar.status()?.success(), "the source does not unpack");
    Ok(tree)
}

/// Whether the source in the cache gives a tarball that is pinned. A source that was imported from a tree does not: its archive has
/// the time of the import.
pub fn has_tarball() -> bool {
    let accepted = || -> Result<bool> {
        let (cache, dir) = (Cache::new()?, TempDir::new()?);
        Ok(cache.fetch_from(&tarball(dir.path())?)?.code == 0)
    };
    accepted().unwrap_or(false)
}

/// The release as a tarball that is pinned: the cache's own, or GitHub's, which is what gzip makes of git's archive.
fn tarball(dir: &Path) -> Result<PathBuf> {
    let source = support::source()?;
    if source.extension().is_some_and(|extension| extension == "gz") {
        return Ok(source);
    }
    let tarball = dir.join("tag.tar.gz");
    let status =
        Command::new("gzip").args(["-n", "-c"]).arg(&source).stdout(fs::File::create(&tarball)?).status()?;
    ensure!(status.success(), "gzip failed");
    Ok(tarball)
}
