//! Where does the source come from, and is it what is pinned?

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::read::GzDecoder;
use rustix::fs::{CWD, RenameFlags};
use tempfile::TempDir;
use xshell::{Cmd, Shell, cmd};

use crate::failure::Failure;
use crate::host::{digest, layout, run};
use crate::source::release::{Origin, Release};
use crate::ui;

/// More than any release's tarball has: a download that is larger is none of them.
const LARGEST_TARBALL: u64 = 64 << 20;

/// From where a source may be taken.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// A URL, a tarball, an unpacked tree or a git clone, in place of the release's origins.
    pub from: Option<String>,
    /// Whether the network is off limits.
    pub offline: bool,
}

/// A release's source in the cache, checked against `pin`.
pub struct Source {
    /// The pin: `sha256-…` of the archive as it was served, or `commit-…` if git vouched for it.
    pub pin: String,
    /// The archive: a tar file, gzipped if it came so.
    pub archive: PathBuf,
}

/// The source of `release`: from where the flags say, else from the cache, else from the release's origins.
pub fn source(release: &Release, access: &Access) -> Result<Source> {
    let cache = layout::cache_dir()?.join("sources");
    if let Some(from) = &access.from {
        return import(release, from, access.offline, &cache)
            .with_context(|| format!("cannot take guacamole-server {} from {from}", release.version));
    }
    let tarballs = release.origins.iter().map(|origin| format!("sha256-{}", origin.sha256));
    let mut pins = tarballs.chain([commit_pin(release)]);
    if let Some(source) = pins.find_map(|pin| cached(release, &cache, pin)) {
        return Ok(source);
    }
    let mut tried = vec![format!("the cache, {}: not there", cache.display())];
    for Origin { name, url, sha256 } in &release.origins {
        if access.offline {
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

/// The source of `release` as its tag has it, without what Apache's tarball has generated besides.
pub fn git_tree(release: &Release, access: &Access) -> Result<Source> {
    let cache = layout::cache_dir()?.join("sources");
    match &access.from {
        None => cached(release, &cache, commit_pin(release)).map_or_else(
            || {
                ensure!(
                    !access.offline,
                    Failure::Preflight(format!(
                        "the source as git has it is not in the cache: cargo xtask fetch --release {} --from {}",
                        release.version, release.git
                    ))
                );
                import(release, &release.git, false, &cache).or_else(|error| {
                    run::check_interrupted()?;
                    bail!(Failure::Preflight(format!(
                        "the source as git has it is not in the cache, and cannot be had from {0}: {error:#}\nfrom a \
                         machine with a network, take a clone, and give it to xtask: git clone --depth 1 --branch {1} {0} \
                         DIRECTORY; cargo xtask fetch --release {1} --from DIRECTORY",
                        release.git, release.version
                    )))
                })
            },
            Ok,
        ),
        Some(_) => source(release, access),
    }
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

/// Puts the source into the checkout's source/, for builds in another root: in a form that can be checked there once more.
pub fn stage(release: &Release, access: &Access) -> Result<()> {
    let source = source(release, access)?;
    let dir = layout::root().join("source");
    create(&dir)?;
    let tree = dir.join(release.source_name());
    let tarball = dir.join(format!("{}.tar.gz", release.source_name()));
    if source.pin.starts_with("sha256-") {
        fs::copy(&source.archive, &tarball).with_context(|| format!("cannot write {}", tarball.display()))?;
        match fs::remove_dir_all(&tree) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", tree.display()))
            }
            _ => Ok(()),
        }
    } else {
        // The archive is of git's making, and has no pin. But the files in it have one.
        let _ = fs::remove_file(&tarball);
        unpack(&source, &tree)
    }
}

/// The source that an earlier fetch left in the cache under `pin`, unless it has been damaged since.
fn cached(release: &Release, cache: &Path, pin: String) -> Option<Source> {
    let dir = cache.join(&pin);
    let archive = archive_in(&dir, release)?;
    // A tarball is what its pin says. For what git vouched for, we have recorded what that was.
    let recorded = fs::read_to_string(dir.join("sha256")).ok();
    let expected = pin.strip_prefix("sha256-").map(str::to_owned).or(recorded);
    if expected.is_some() && digest::file(&archive).ok() == expected {
        return Some(Source { pin, archive });
    }
    ui::warning(format!("{} was damaged in the cache: it has to be fetched again", archive.display()));
    // If it cannot be removed, the same warning comes again next time.
    let _ = fs::remove_dir_all(&dir);
    None
}

fn commit_pin(release: &Release) -> String {
    format!("commit-{}", release.commit)
}

/// The archive of `release` in an entry of the cache.
fn archive_in(entry: &Path, release: &Release) -> Option<PathBuf> {
    let names = ["tar.gz", "tar"].map(|ending| format!("{}.{ending}", release.source_name()));
    names.iter().map(|name| entry.join(name)).find(|archive| archive.is_file())
}

/// Puts an archive that has been checked into the cache, whole or not at all.
fn keep(release: &Release, cache: &Path, pin: String, ending: &str, checked: &Path) -> Result<Source> {
    let dir = cache.join(&pin);
    let entry = TempDir::new_in(cache)?;
    let archive = entry.path().join(format!("{}.{ending}", release.source_name()));
    fs::copy(checked, &archive).with_context(|| format!("cannot write to {}", cache.display()))?;
    fs::write(entry.path().join("sha256"), digest::file(&archive)?)?;
    if fs::rename(entry.path(), &dir).is_err() {
        // It is there already. Whoever reads the old one goes on doing so.
        let replaced = rustix::fs::renameat_with(CWD, entry.path(), CWD, &dir, RenameFlags::EXCHANGE);
        replaced.with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let archive = archive_in(&dir, release).with_context(|| format!("{} is gone", dir.display()))?;
    Ok(Source { pin, archive })
}

/// Takes the source from what the user named.
fn import(release: &Release, from: &str, offline: bool, cache: &Path) -> Result<Source> {
    let pins: Vec<String> = release.origins.iter().map(|origin| origin.sha256.clone()).collect();
    if from.contains("://") && !from.starts_with("file://") {
        ensure!(!offline, "--offline forbids it, as it is a URL");
        return if from.trim_end_matches('/').ends_with(".git") || !from.starts_with("http") {
            from_git(release, from, cache)
        } else {
            download(release, from, &pins, cache)
        };
    }
    let path = PathBuf::from(from.strip_prefix("file://").unwrap_or(from));
    let path = path.canonicalize().context(
        "cannot find it here; for a git repository elsewhere give its URL, as in ssh://git@HOST/PATH or https://HOST/PATH.git",
    )?;
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
    let repository = ScratchRepository::new(cache)?;
    let commit = &release.commit;
    let progress = ui::Step::start("git fetch");
    progress.busy_with(format!("commit {commit}"));
    let fetch = repository.git(&["fetch", "--quiet", "--no-tags", "--depth=1", origin, commit]);
    let fetched = fetch.ignore_status().output()?;
    if !fetched.status.success() {
        run::check_interrupted()?;
        let said = String::from_utf8_lossy(&fetched.stderr);
        let advice = match origin.contains("://") {
            true => String::new(),
            false => format!(
                "\nif the clone is an old or partial one, complete it: git -C {origin} fetch {} tag {}",
                release.git, release.version
            ),
        };
        bail!(
            "git cannot get commit {commit} (the tag {}) from it:\n{}{advice}",
            release.version,
            said.trim_end()
        );
    }
    let source = repository.keep(release, commit, cache)?;
    progress.done("");
    Ok(source)
}

/// Lets git compute the id of an unpacked tree.
fn from_tree(release: &Release, tree: &Path, cache: &Path) -> Result<Source> {
    ensure!(
        tree.join("configure.ac").is_file() && tree.join("src/libguac").is_dir(),
        "it is neither a guacamole-server source tree nor a git clone"
    );
    let repository = ScratchRepository::new(cache)?;
    let progress = ui::Step::start("git add");
    let work_tree = format!("--work-tree={}", tree.display());
    repository.git(&[&work_tree, "add", "--all", "--force", "."]).ignore_stderr().run()?;
    let id = repository.git(&["write-tree"]).read()?;
    ensure!(
        id == release.tree,
        "its git tree is {id}, and upstream.toml pins {}: it was changed or built in, or it comes from Apache's release \
         tarball, which has generated files besides; give the tarball itself, or a git clone",
        release.tree
    );
    let source = repository.keep(release, &id, cache)?;
    progress.done("");
    Ok(source)
}

/// An empty git repository, gone when it is dropped, in which the user's settings and environment change no byte.
struct ScratchRepository {
    dir: TempDir,
    shell: Shell,
}

impl ScratchRepository {
    fn new(cache: &Path) -> Result<ScratchRepository> {
        if run::version_line("git", "--version").is_none() {
            bail!(Failure::Preflight(
                "git is needed to check this source, and is missing: apt-get install git".into()
            ));
        }
        create(cache)?;
        let repository = ScratchRepository { dir: TempDir::new_in(cache)?, shell: Shell::new()? };
        repository.git(&["init", "--quiet", "--bare"]).run()?;
        Ok(repository)
    }

    fn git(&self, arguments: &[&str]) -> Cmd<'_> {
        let mut git =
            cmd!(self.shell, "git -c core.autocrlf=false -c core.eol=lf -c core.attributesFile=/dev/null");
        git = git.args(["-c", "core.fileMode=true", "-c", "tar.umask=0002"]).args(arguments).quiet();
        // What git itself calls local to a repository. A hook of another repository's has them set.
        for name in [
            "GIT_ALTERNATE_OBJECT_DIRECTORIES",
            "GIT_COMMON_DIR",
            "GIT_CONFIG",
            "GIT_CONFIG_COUNT",
            "GIT_CONFIG_PARAMETERS",
            "GIT_GRAFT_FILE",
            "GIT_INDEX_FILE",
            "GIT_NAMESPACE",
            "GIT_OBJECT_DIRECTORY",
            "GIT_PREFIX",
            "GIT_REPLACE_REF_BASE",
            "GIT_SHALLOW_FILE",
            "GIT_WORK_TREE",
        ] {
            git = git.env_remove(name);
        }
        git.env("GIT_DIR", self.dir.path()).env("GIT_TERMINAL_PROMPT", "0")
    }

    /// Keeps the commit or tree `id`, which is the release's.
    fn keep(&self, release: &Release, id: &str, cache: &Path) -> Result<Source> {
        let tar = self.dir.path().join("source.tar");
        let prefix = format!("--prefix={}/", release.source_name());
        let output = format!("--output={}", tar.display());
        self.git(&["archive", "--format=tar", &prefix, &output, id]).run()?;
        keep(release, cache, commit_pin(release), "tar", &tar)
    }
}

fn download(release: &Release, url: &str, pins: &[String], cache: &Path) -> Result<Source> {
    create(cache)?;
    let dir = TempDir::new_in(cache)?;
    let file = dir.path().join("download");
    // In a thread, as nothing else can be done while a server that has stalled is waited for.
    let thread = thread::spawn({
        let (url, file) = (url.to_owned(), file.clone());
        move || download_to(&url, &file)
    });
    while !thread.is_finished() {
        run::check_interrupted()?;
        thread::sleep(Duration::from_millis(50));
    }
    thread.join().map_err(|_| anyhow!("the download panicked"))??;
    from_tarball(release, &file, pins, cache)
}

fn download_to(url: &str, path: &Path) -> Result<()> {
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
    // One byte more than there may be, to notice that there is more.
    let mut reader = progress.wrap_read(body.into_reader().take(LARGEST_TARBALL + 1));
    let mut file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let length = io::copy(&mut reader, &mut file).context("the download broke off")?;
    progress.finish_and_clear();
    ensure!(length <= LARGEST_TARBALL, "it is larger than any release");
    Ok(())
}

fn create(cache: &Path) -> Result<()> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))
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
