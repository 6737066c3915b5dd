//! Which sources are in the user's cache? Each one is in a directory that has its pin for a name.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use fs_err as fs;
use rustix::fs::{CWD, RenameFlags};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::host::lock::{self, Lock};
use crate::host::{digest, files, layout};
use crate::source::archive;
use crate::source::release::Release;
use crate::ui;

/// The name of a source in the cache and in the checkout's source/. (Archives have an ending, too.) It does not contain the
/// release's name, as two releases with the same pin have the same source.
pub const NAME: &str = "guacamole-server";

/// The endings of archives in the cache.
const ENDINGS: [&str; 2] = ["tar.gz", "tar"];

/// The files next to the archive: its SHA-256, how it came, and its signature, if that was checked.
const SHA256: &str = "sha256";
const ORIGIN: &str = "origin.json";
const SIGNATURE: &str = "signature.asc";

/// The source of a release in the cache. It matches `pin`.
pub struct Source {
    /// The pin: `sha256-…`, the digest of a tarball, or `commit-…`, if git checked the source.
    pub pin: String,
    /// The path of the archive: a tarball (`.tar.gz`), or git's archive (`.tar`).
    pub archive: PathBuf,
}

impl Source {
    /// The signature of the archive, if a fetch with a key ring has kept it.
    pub fn signature(&self) -> Option<PathBuf> {
        let signature = self.archive.with_file_name(SIGNATURE);
        signature.is_file().then_some(signature)
    }
}

/// How a source came into the cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Origin {
    /// The URL, tarball, tree or git repository that it was taken from.
    pub from: String,
    /// The fingerprint of the key that has signed it, if a key ring was given.
    pub signed_by: Option<String>,
}

/// A file that was checked, and can enter the cache.
pub struct Checked<'a> {
    /// The pin that it matches.
    pub pin: String,
    /// The ending of its name in the cache.
    pub ending: &'a str,
    /// The file.
    pub file: &'a Path,
    /// Its signature, if that was checked as well.
    pub signature: Option<&'a Path>,
    /// How it came.
    pub origin: Origin,
}

/// The state of something in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It matches its pin.
    Verified,
    /// It was changed after it had been checked.
    Damaged,
    /// It was left by a fetch that was killed.
    Unfinished,
    /// It is being fetched now.
    BeingFetched,
}

/// Something in the cache.
#[derive(Serialize)]
pub struct Entry {
    /// The path of its directory.
    pub path: PathBuf,
    /// Its pin. `None` for what has none yet.
    pub pin: Option<String>,
    /// The releases of upstream.toml that it is the source of.
    pub releases: Vec<String>,
    /// How it came. `None` for what came before that was recorded.
    pub origin: Option<Origin>,
    /// The size of its files, in bytes.
    pub size: u64,
    /// When it came, in seconds since 1970.
    pub time: u64,
    /// Whether it can be used.
    pub state: State,
}

impl Entry {
    /// Why no release can use it. `None` if one can.
    pub fn useless(&self) -> Option<&'static str> {
        match self.state {
            State::Unfinished => Some("a fetch that was killed has left it"),
            State::Damaged => Some("it is damaged"),
            State::Verified if self.releases.is_empty() => Some("no release in upstream.toml has its pin"),
            State::Verified | State::BeingFetched => None,
        }
    }
}

/// The user's cache of sources.
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache of the user who runs this.
    pub fn of_user() -> Result<Cache> {
        Ok(Cache { dir: layout::cache_dir()?.join("sources") })
    }

    /// Its directory, which may not exist yet.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The source with this pin. A damaged one is removed from the cache.
    pub fn get(&self, pin: String) -> Option<Source> {
        let dir = self.dir.join(&pin);
        let archive = archive_in(&dir)?;
        if is_whole(&pin, &archive) {
            return Some(Source { pin, archive });
        }
        ui::warning(format!("{} was damaged in the cache, and has to be fetched again", archive.display()));
        // If it cannot be removed, the same warning comes again next time.
        let _ = fs::remove_dir_all(&dir);
        None
    }

    /// A directory in the cache for what is being fetched. It is removed when this is dropped.
    pub fn scratch(&self) -> Result<Scratch> {
        fs::create_dir_all(&self.dir)?;
        let lock = lock::share_dir(&self.dir)?;
        let dir =
            TempDir::new_in(&self.dir).with_context(|| format!("cannot write to {}", self.dir.display()))?;
        Ok(Scratch { dir, _lock: lock })
    }

    /// Puts a checked file into the cache, whole or not at all.
    pub fn keep(&self, checked: Checked<'_>) -> Result<Source> {
        let Checked { pin, ending, file, signature, origin } = checked;
        let dir = self.dir.join(&pin);
        let entry = self.scratch()?;
        let archive = entry.path().join(format!("{NAME}.{ending}"));
        fs::copy(file, &archive)?;
        archive::check(&archive)?;
        fs::write(entry.path().join(SHA256), digest::file(&archive)?)?;
        fs::write(entry.path().join(ORIGIN), serde_json::to_vec(&origin)?)?;
        if let Some(signature) = signature {
            fs::copy(signature, entry.path().join(SIGNATURE))?;
        }
        if fs::rename(entry.path(), &dir).is_err() {
            // There is an entry already, and another process may be reading it. The exchange does not disturb that.
            let replaced = rustix::fs::renameat_with(CWD, entry.path(), CWD, &dir, RenameFlags::EXCHANGE);
            replaced.with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let archive = archive_in(&dir).with_context(|| format!("{} is gone", dir.display()))?;
        Ok(Source { pin, archive })
    }

    /// Everything in the cache, with the releases that it is the source of, sorted by path.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn entries(&self, releases: &BTreeMap<String, Release>) -> Result<Vec<Entry>> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        let nobody_fetches = lock::try_lock_dir(&self.dir)?.is_some();
        let mut entries = Vec::new();
        for item in fs::read_dir(&self.dir)? {
            // Another run may just have removed it.
            if let Ok(entry) = entry(item?.path(), releases, nobody_fetches) {
                entries.push(entry);
            }
        }
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(entries)
    }

    /// Removes what no release can use, unless this is a `dry_run`. Returns what it was.
    ///
    /// # Errors
    ///
    /// When another run is fetching, or when something cannot be removed.
    pub fn prune(&self, releases: &BTreeMap<String, Release>, dry_run: bool) -> Result<Vec<Entry>> {
        let mut entries = self.entries(releases)?;
        entries.retain(|entry| entry.useless().is_some());
        if entries.is_empty() || dry_run {
            return Ok(entries);
        }
        // From here on, no other run begins to fetch.
        let Some(_lock) = lock::try_lock_dir(&self.dir)? else {
            bail!("another run is fetching into {}: wait for it to end, and try again", self.dir.display());
        };
        for entry in &entries {
            if entry.path.is_dir() {
                files::remove_tree(&entry.path)?
            } else {
                files::remove_file(&entry.path)?
            }
        }
        Ok(entries)
    }
}

/// A directory in the cache for what is being fetched.
pub struct Scratch {
    dir: TempDir,
    _lock: Lock,
}

impl Scratch {
    /// Its path.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// What is at `path`, directly in the cache.
fn entry(path: PathBuf, releases: &BTreeMap<String, Release>, nobody_fetches: bool) -> Result<Entry> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let pin = ["sha256-", "commit-"].iter().any(|kind| name.starts_with(kind)).then_some(name);
    let state = match &pin {
        Some(pin) => match archive_in(&path) {
            Some(archive) if is_whole(pin, &archive) => State::Verified,
            _ => State::Damaged,
        },
        None if nobody_fetches => State::Unfinished,
        None => State::BeingFetched,
    };
    let has_pin = |release: &&Release| {
        pin.as_ref().is_some_and(|pin| release.pins().iter().any(|pinned| pinned == pin))
    };
    let size = |file: &PathBuf| -> io::Result<u64> {
        let metadata = fs::symlink_metadata(file)?;
        Ok(if metadata.is_file() { metadata.len() } else { 0 })
    };
    Ok(Entry {
        releases: releases.values().filter(has_pin).map(|release| release.version.clone()).collect(),
        origin: fs::read(path.join(ORIGIN)).ok().and_then(|text| serde_json::from_slice(&text).ok()),
        size: files::tree(&path)?.iter().map(size).sum::<io::Result<u64>>()?,
        time: fs::metadata(&path)?.modified()?.duration_since(UNIX_EPOCH)?.as_secs(),
        state,
        pin,
        path,
    })
}

/// Whether an archive in the cache still matches its pin.
fn is_whole(pin: &str, archive: &Path) -> bool {
    // The pin of a tarball is its digest. The digest of an archive from git was recorded when git had checked it.
    let recorded = || fs::read_to_string(archive.with_file_name(SHA256)).ok();
    let expected = pin.strip_prefix("sha256-").map(str::to_owned).or_else(recorded);
    expected.is_some() && digest::file(archive).ok() == expected
}

/// The path of the archive in an entry of the cache.
fn archive_in(entry: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(entry).ok()?.filter_map(|file| Some(file.ok()?.path()));
    let is_archive = |file: &PathBuf| {
        let name = file.to_string_lossy();
        ENDINGS.iter().any(|ending| name.ends_with(&format!(".{ending}")))
    };
    files.filter(is_archive).min()
}
