//! `cargo xtask fetch`: where does the source come from, and is it what is pinned?

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::read::GzDecoder;
use tempfile::TempDir;
use xshell::{Shell, cmd};

use crate::failure::Failure;
use crate::upstream::{Origin, Release};
use crate::{digest, flags, layout, run, ui};

/// More than any release's tarball has: a download that is larger is none of them.
const LARGEST_TARBALL: u64 = 64 << 20;

/// Fetches a release's source into the cache.
pub fn fetch(flags: &flags::Fetch) -> Result<()> {
    let release = Release::load(&flags.release.release)?;
    let source = source(&release, &flags.source)?;
    ui::result(source.archive.display());
    Ok(())
}

/// A release's source in the cache, checked against `pin`.
pub struct Source {
    /// The pin: `sha256-…` of the archive as it was served, or `commit-…` if git vouched for it.
    pub pin: String,
    /// The archive: a tar file, gzipped if it came so.
    pub archive: PathBuf,
}

/// The source of `release`: from where the flags say, else from the cache, else from the release's origins.
pub fn source(release: &Release, flags: &flags::Source) -> Result<Source> {
    let cache = layout::cache_dir()?.join("sources");
    if let Some(from) = &flags.from {
        return import(release, from, flags.offline, &cache)
            .with_context(|| format!("cannot take guacamole-server {} from {from}", release.version));
    }
    if let Some(source) = cached(release, &cache) {
        return Ok(source);
    }
    let mut tried = vec![format!("the cache, {}: not there", cache.display())];
    for Origin { name, url, sha256 } in &release.origins {
        if flags.offline {
            tried.push(format!("{name}, {url}: not tried, because of --offline"));
            continue;
        }
        match download(release, url, std::slice::from_ref(sha256), &cache) {
            Ok(source) => return Ok(source),
            Err(error) => {
                run::check_interrupted()?;
                ui::warning(format!("{name}: {error:#}"));
                tried.push(format!("{name}, {url}: {error:#}"));
            }
        }
    }
    Err(Failure::Preflight(no_source(release, &tried)).into())
}

/// Unpacks the source into the new directory `into`, without the directory that holds everything in the archive.
pub fn unpack(source: &Source, into: &Path) -> Result<()> {
    let parent = into.parent().context("a source tree needs a directory to be in")?;
    let temporary =
        TempDir::new_in(parent).with_context(|| format!("cannot write to {}", parent.display()))?;
    let file = File::open(&source.archive)?;
    let tar: Box<dyn Read> = match source.archive.extension() {
        Some(extension) if extension == "gz" => Box::new(GzDecoder::new(file)),
        _ => Box::new(file),
    };
    tar::Archive::new(tar)
        .unpack(temporary.path())
        .with_context(|| format!("cannot unpack {} below {}", source.archive.display(), parent.display()))?;
    let mut entries = fs::read_dir(temporary.path())?.collect::<io::Result<Vec<_>>>()?;
    let tree =
        entries.pop().filter(|_| entries.is_empty()).context("the archive holds more than one directory")?;
    if into.exists() {
        fs::remove_dir_all(into).with_context(|| format!("cannot remove {}", into.display()))?;
    }
    fs::rename(tree.path(), into).with_context(|| format!("cannot create {}", into.display()))
}

/// The source that an earlier fetch left in the cache, unless it has been damaged since.
fn cached(release: &Release, cache: &Path) -> Option<Source> {
    let tarballs = release.origins.iter().map(|origin| format!("sha256-{}", origin.sha256));
    for pin in tarballs.chain([format!("commit-{}", release.commit)]) {
        let dir = cache.join(&pin);
        let archive = ["tar.gz", "tar"]
            .map(|ending| dir.join(format!("{}.{ending}", release.source_name())))
            .into_iter()
            .find(|archive| archive.is_file());
        let Some(archive) = archive else { continue };
        let recorded = fs::read_to_string(dir.join("sha256")).ok();
        if digest::file(&archive).ok() == recorded {
            return Some(Source { pin, archive });
        }
        ui::warning(format!("{} was damaged in the cache: fetching it again", archive.display()));
        // If it cannot be removed, the same warning comes again next time.
        let _ = fs::remove_dir_all(&dir);
    }
    None
}

/// Puts an archive that has been checked into the cache, whole or not at all.
fn keep(release: &Release, cache: &Path, pin: String, ending: &str, checked: &Path) -> Result<Source> {
    let name = format!("{}.{ending}", release.source_name());
    let dir = cache.join(&pin);
    let entry = TempDir::new_in(cache)?;
    let archive = entry.path().join(&name);
    fs::copy(checked, &archive).with_context(|| format!("cannot write to {}", cache.display()))?;
    fs::write(entry.path().join("sha256"), digest::file(&archive)?)?;
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot replace {}", dir.display()))?;
    }
    fs::rename(entry.path(), &dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(Source { pin, archive: dir.join(name) })
}

/// Takes the source from what the user named.
fn import(release: &Release, from: &str, offline: bool, cache: &Path) -> Result<Source> {
    let pins: Vec<String> = release.origins.iter().map(|origin| origin.sha256.clone()).collect();
    if from.contains("://") && !from.starts_with("file://") {
        ensure!(!offline, "--offline forbids it, as it is a URL");
        return if from.ends_with(".git") || !from.starts_with("http") {
            from_git(release, from, cache)
        } else {
            download(release, from, &pins, cache)
        };
    }
    let path = PathBuf::from(from.strip_prefix("file://").unwrap_or(from));
    let path = path.canonicalize().context("cannot find it")?;
    let is_git = path.join(".git").exists() || (path.join("HEAD").is_file() && path.join("objects").is_dir());
    if path.is_file() {
        from_tarball(release, &path, &pins, cache)
    } else if is_git {
        from_git(release, &path.to_string_lossy(), cache)
    } else {
        from_tree(release, &path, cache)
    }
}

fn from_tarball(release: &Release, file: &Path, pins: &[String], cache: &Path) -> Result<Source> {
    let sha256 = digest::file(file)?;
    if !pins.contains(&sha256) {
        bail!(
            "its SHA-256 is {sha256}, and upstream.toml pins {}: it is damaged, or not this release; fetch it anew",
            unique(pins).join(" or ")
        );
    }
    create(cache)?;
    keep(release, cache, format!("sha256-{sha256}"), "tar.gz", file)
}

/// Lets git copy the pinned commit: it computes the id of every object that it receives, so that the commit's id vouches
/// for all of them.
fn from_git(release: &Release, origin: &str, cache: &Path) -> Result<Source> {
    let (shell, repository) = scratch_repository(cache)?;
    let commit = &release.commit;
    let progress = ui::Step::start("git fetch");
    progress.busy_with(format!("commit {commit}"));
    let fetched = cmd!(shell, "git fetch --quiet --no-tags --depth=1 {origin} {commit}")
        .quiet()
        .ignore_status()
        .output()?;
    if !fetched.status.success() {
        let said = String::from_utf8_lossy(&fetched.stderr);
        bail!(
            "git cannot get commit {commit} (the tag {0}) from it:\n{1}\nif the clone is an old or partial one, \
             complete it: git -C {origin} fetch {2} tag {0}",
            release.version,
            said.trim_end(),
            release.git
        );
    }
    let source = archive(release, &shell, repository.path(), commit, cache)?;
    progress.done("");
    Ok(source)
}

/// Lets git compute the id of an unpacked tree.
fn from_tree(release: &Release, tree: &Path, cache: &Path) -> Result<Source> {
    ensure!(
        tree.join("configure.ac").is_file() && tree.join("src/libguac").is_dir(),
        "it is neither a guacamole-server source tree nor a git clone"
    );
    let (shell, repository) = scratch_repository(cache)?;
    let progress = ui::Step::start("git add");
    cmd!(shell, "git --work-tree={tree} add --all --force .").quiet().ignore_stderr().run()?;
    let id = cmd!(shell, "git write-tree").quiet().read()?;
    ensure!(
        id == release.tree,
        "its git tree is {id}, and upstream.toml pins {}: it was changed or built in, or it comes from Apache's release \
         tarball, which has generated files besides; give the tarball itself, or a git clone",
        release.tree
    );
    let source = archive(release, &shell, repository.path(), &id, cache)?;
    progress.done("");
    Ok(source)
}

fn archive(release: &Release, shell: &Shell, repository: &Path, id: &str, cache: &Path) -> Result<Source> {
    let tar = repository.join("source.tar");
    let prefix = format!("{}/", release.source_name());
    cmd!(shell, "git archive --format=tar --prefix={prefix} --output={tar} {id}").quiet().run()?;
    keep(release, cache, format!("commit-{}", release.commit), "tar", &tar)
}

/// An empty repository that is gone when it is dropped, and a shell whose git works in it and minds no configuration.
fn scratch_repository(cache: &Path) -> Result<(Shell, TempDir)> {
    if run::version_line("git", "--version").is_none() {
        bail!(Failure::Preflight(
            "git is needed to check this source, and is missing: apt-get install git".into()
        ));
    }
    create(cache)?;
    let dir = TempDir::new_in(cache)?;
    let shell = Shell::new()?;
    shell.change_dir(dir.path());
    shell.set_var("GIT_CONFIG_NOSYSTEM", "1");
    shell.set_var("GIT_DIR", dir.path());
    shell.set_var("GIT_TERMINAL_PROMPT", "0");
    cmd!(shell, "git init --quiet --bare").quiet().run()?;
    Ok((shell, dir))
}

fn download(release: &Release, url: &str, pins: &[String], cache: &Path) -> Result<Source> {
    create(cache)?;
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_resolve(Some(Duration::from_secs(10)))
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(Duration::from_secs(30)))
        .timeout_recv_body(Some(Duration::from_secs(600)))
        .build()
        .into();
    let response = agent.get(url).call().map_err(|error| anyhow!("{error}"))?;
    let body = response.into_body();
    let progress = ui::download(body.content_length());
    let mut reader = body.into_reader();
    let mut file = tempfile::NamedTempFile::new_in(cache)?;
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        run::check_interrupted()?;
        let length = reader.read(&mut buffer).context("the download broke off")?;
        if length == 0 {
            break;
        }
        total += length as u64;
        ensure!(total <= LARGEST_TARBALL, "it is larger than any release");
        file.write_all(&buffer[..length]).with_context(|| format!("cannot write to {}", cache.display()))?;
        progress.set_position(total);
    }
    progress.finish_and_clear();
    from_tarball(release, file.path(), pins, cache)
}

fn create(cache: &Path) -> Result<()> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create the cache {}", cache.display()))
}

fn unique(pins: &[String]) -> Vec<&str> {
    let mut unique: Vec<&str> = Vec::new();
    for pin in pins {
        if !unique.contains(&pin.as_str()) {
            unique.push(pin);
        }
    }
    unique
}

fn no_source(release: &Release, tried: &[String]) -> String {
    let version = &release.version;
    let name = release.source_name();
    let url = release.origins.first().map_or("URL", |origin| &origin.url);
    format!(
        "no source for guacamole-server {version}. Tried:\n  - {tried}\n\
         Any one of these supplies it, once, from whatever machine has a network:\n  \
         - a tarball:          curl -LO {url}\n                        \
             cargo xtask fetch --release {version} --from {name}.tar.gz\n  \
         - a git clone:        git clone --depth 1 --branch {version} {git} {name}\n                        \
             cargo xtask fetch --release {version} --from {name}\n  \
         - an unpacked tree:   cargo xtask fetch --release {version} --from DIRECTORY\n  \
         - a mirror of yours:  cargo xtask fetch --release {version} --from https://HOST/{name}.tar.gz",
        tried = tried.join("\n  - "),
        git = release.git,
    )
}
