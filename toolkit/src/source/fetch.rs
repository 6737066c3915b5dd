//! Where does a release's source come from, and does it match its pin?

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use fs_err as fs;
use tempfile::TempDir;
use xshell::{Cmd, Shell, cmd};

use crate::failure::Failure;
use crate::host::lock::{self, Lock};
use crate::host::{digest, files, layout, run};
use crate::source::cache::{self, Cache, Checked, NAME, Scratch, Source};
use crate::source::release::{Origin, Release};
use crate::source::signature::{self, Keyring};
use crate::source::{archive, download};
use crate::ui;

/// Where a source may come from.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// A URL, a tarball, an unpacked tree or a git clone, instead of the release's origins.
    pub from: Option<String>,
    /// Whether the network must not be used.
    pub offline: bool,
    /// A file with keys. The source has to be a tarball that one of them has signed.
    pub keyring: Option<PathBuf>,
}

/// The source of `release`: from `access.from` if that is given, or else from the cache, or else from the release's origins. If
/// it has no origins, from its git repository.
///
/// # Errors
///
/// [`Failure::Preflight`] when neither the cache nor an origin has the source; any other when what is at `access.from` cannot
/// be read, or does not match a pin.
pub fn source(release: &Release, access: &Access) -> Result<Source> {
    let cache = Cache::of_user()?;
    let keyring = access.keyring.as_deref().map(Keyring::read).transpose()?;
    let keyring = keyring.as_ref();
    if let Some(from) = &access.from {
        return import(release, from, access.offline, keyring, &cache)
            .with_context(|| format!("cannot take guacamole-server {} from {from}", release.version));
    }
    let mut tried = Vec::new();
    match cached(release, keyring, &cache) {
        Ok(source) => return Ok(source),
        Err(error) => tried.push(format!("the cache, {}: {error:#}", cache.dir().display())),
    }
    let mut attempt = |name: &str, url: &str, get: &dyn Fn() -> Result<Source>| -> Result<Option<Source>> {
        if access.offline {
            tried.push(format!("{name}, {url}: not tried, because of --offline"));
            return Ok(None);
        }
        match get() {
            Ok(source) => Ok(Some(source)),
            Err(error) => {
                run::check_interrupted()?;
                ui::warning(format!("{name}: {error:#}"));
                tried.push(format!("{name}, {url}: {error:#}"));
                Ok(None)
            }
        }
    };
    for Origin { name, url, sha256, signature } in &release.origins {
        let get = || {
            let signed = match keyring {
                Some(keyring) => {
                    let url = signature.as_deref().context("upstream.toml has no signature for it")?;
                    Some((keyring, url))
                }
                None => None,
            };
            download(url, signed, std::slice::from_ref(sha256), &cache)
        };
        if let Some(source) = attempt(name, url, &get)? {
            return Ok(source);
        }
    }
    if release.origins.is_empty() {
        let get = || match keyring {
            Some(_) => Err(anyhow!(UNSIGNED)),
            None => from_git(release, &release.git, &cache),
        };
        if let Some(source) = attempt("git", &release.git, &get)? {
            return Ok(source);
        }
    }
    Err(Failure::Preflight(no_source(release, &tried)).into())
}

/// What to say of a source from git, or a tree, when a key ring was given.
const UNSIGNED: &str = "a key ring is for the signature of a release's tarball, and there is none for git: leave out --keyring, \
                        as the commit's ID pins every byte";

/// The source of a release in the cache. With a key ring, only one that it has the key of.
fn cached(release: &Release, keyring: Option<&Keyring>, cache: &Cache) -> Result<Source> {
    let mut refused = None;
    for source in release.pins().into_iter().filter_map(|pin| cache.get(pin)) {
        let Some(keyring) = keyring else { return Ok(source) };
        let signature = source.signature().context("there without a signature");
        match signature.and_then(|signature| keyring.check(&signature, &source.archive)) {
            Ok(_) => return Ok(source),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| anyhow!("not there")))
}

/// The source of `release` exactly as its commit has it. (Apache's tarball has generated files as well.)
///
/// # Errors
///
/// [`Failure::Preflight`] when neither the cache nor the release's git repository has it; with `access.from`, as for
/// [`source`].
pub fn git_tree(release: &Release, access: &Access) -> Result<Source> {
    if access.from.is_some() {
        return source(release, access);
    }
    let cache = Cache::of_user()?;
    if let Some(source) = cache.get(release.commit_pin()) {
        return Ok(source);
    }
    let Release { version, git, .. } = release;
    if access.offline {
        bail!(Failure::Preflight(format!(
            "the source from git is not in the cache: cargo xtask fetch --release {version} --from {git}"
        )));
    }
    import(release, git, false, None, &cache).or_else(|error| {
        run::check_interrupted()?;
        bail!(Failure::Preflight(format!(
            "the source from git is not in the cache, and {git} does not give it: {error:#}\non a machine with a network \
             make a clone, and give it to xtask: {}; cargo xtask fetch --release {version} --from DIRECTORY",
            clone_command(release, "DIRECTORY")
        )))
    })
}

/// Unpacks the source, without the archive's top directory, to the directory `into`. A directory that is there is replaced.
pub fn unpack(source: &Source, into: &Path) -> Result<()> {
    let parent = into.parent().context("a source tree needs a directory to be in")?;
    let temporary =
        TempDir::new_in(parent).with_context(|| format!("cannot write to {}", parent.display()))?;
    archive::open(&source.archive)?
        .unpack(temporary.path())
        .with_context(|| format!("cannot unpack {} below {}", source.archive.display(), parent.display()))?;
    let mut entries = fs::read_dir(temporary.path())?.collect::<io::Result<Vec<_>>>()?;
    let tree = entries
        .pop()
        .filter(|_| entries.is_empty())
        .context("the archive does not have one top directory")?;
    files::remove_tree(into)?;
    Ok(fs::rename(tree.path(), into)?)
}

/// A source in the checkout's source/. No other is put there until this is dropped.
pub struct Staged {
    /// Its path, relative to the checkout.
    pub path: PathBuf,
    _lock: Lock,
}

/// Puts the source into the checkout's source/, for a build in another root, in a form that can be checked there again.
pub fn stage(release: &Release, access: &Access) -> Result<Staged> {
    let source = source(release, access)?;
    let dir = layout::root().join("source");
    fs::create_dir_all(&dir)?;
    let lock = lock::wait_for_dir(&dir)?;
    let (tree, tarball) = (dir.join(NAME), dir.join(format!("{NAME}.tar.gz")));
    // The source of another release may be there.
    files::remove_tree(&tree)?;
    files::remove_file(&tarball)?;
    let staged = if source.pin.starts_with("sha256-") {
        files::copy(&source.archive, &tarball, 0o644)?;
        tarball
    } else {
        // There is no pin for git's archive. But there is one for the files in it: the tree.
        unpack(&source, &tree)?;
        tree
    };
    let path = staged.strip_prefix(layout::root()).unwrap_or(&staged).to_owned();
    Ok(Staged { path, _lock: lock })
}

/// Takes the source from `from`, which the user named.
fn import(
    release: &Release,
    from: &str,
    offline: bool,
    keyring: Option<&Keyring>,
    cache: &Cache,
) -> Result<Source> {
    let pins: Vec<String> = release.origins.iter().map(|origin| origin.sha256.clone()).collect();
    if from.contains("://") && !from.starts_with("file://") {
        ensure!(!offline, "--offline forbids it, as it is a URL");
        return if from.trim_end_matches('/').ends_with(".git") || !from.starts_with("http") {
            ensure!(keyring.is_none(), UNSIGNED);
            from_git(release, from, cache)
        } else {
            let signature = format!("{from}.asc");
            download(from, keyring.map(|keyring| (keyring, &*signature)), &pins, cache)
        };
    }
    let path = PathBuf::from(from.strip_prefix("file://").unwrap_or(from));
    let path = path.canonicalize().context(
        "cannot find it here; for a git repository elsewhere give its URL, as in ssh://git@HOST/PATH or https://HOST/PATH.git",
    )?;
    let is_git = path.join(".git").exists() || (path.join("HEAD").is_file() && path.join("objects").is_dir());
    if path.is_file() {
        from_tarball(&path, keyring, &pins, cache)
    } else {
        ensure!(keyring.is_none(), UNSIGNED);
        if is_git {
            from_git(release, &path.to_string_lossy(), cache)
        } else {
            from_tree(release, &path, cache)
        }
    }
}

fn from_tarball(file: &Path, keyring: Option<&Keyring>, pins: &[String], cache: &Cache) -> Result<Source> {
    let mut signature = file.as_os_str().to_owned();
    signature.push(".asc");
    let signature = Path::new(&signature);
    let signed = match keyring {
        Some(keyring) if signature.is_file() => Some((keyring, signature)),
        Some(_) => bail!("its signature is missing: put it next to it, at {}", signature.display()),
        None => None,
    };
    keep_tarball(file, digest::file(file)?, signed, pins, &file.to_string_lossy(), cache)
}

/// Puts a tarball into the cache, if it matches a pin and, with a key ring, one of its keys has signed it.
fn keep_tarball(
    file: &Path,
    sha256: String,
    signed: Option<(&Keyring, &Path)>,
    pins: &[String],
    from: &str,
    cache: &Cache,
) -> Result<Source> {
    if !pins.contains(&sha256) {
        bail!(
            "its SHA-256 is {sha256}, and upstream.toml pins {}: it is damaged, or not this release; fetch it anew",
            unique(pins).join(" or ")
        );
    }
    let signed_by = match signed {
        Some((keyring, signature)) => {
            let fingerprint = keyring.check(signature, file)?;
            ui::note(format!("signed with the key {fingerprint}"));
            Some(fingerprint)
        }
        None => None,
    };
    cache.keep(Checked {
        pin: format!("sha256-{sha256}"),
        ending: "tar.gz",
        file,
        signature: signed.map(|(_, signature)| signature),
        origin: cache::Origin { from: from.to_owned(), signed_by },
    })
}

/// Takes the pinned commit from a git repository. Git computes the ID of every object that it receives, and the commit's ID
/// depends on all of them.
fn from_git(release: &Release, origin: &str, cache: &Cache) -> Result<Source> {
    let repository = ScratchRepository::new(cache)?;
    let commit = &release.commit;
    let progress = ui::Step::start("git fetch");
    progress.busy_with(format!("commit {commit}"));
    let fetch = repository.git(&["fetch", "--quiet", "--no-tags", "--depth=1", origin, commit]);
    let fetched = fetch.ignore_status().output()?;
    if !fetched.status.success() {
        run::check_interrupted()?;
        let message = String::from_utf8_lossy(&fetched.stderr);
        let what = match &release.tag {
            Some(tag) => format!("tag {tag}"),
            None => commit.clone(),
        };
        let advice = match origin.contains("://") {
            true => String::new(),
            false => format!(
                "\nif the clone is old or partial, complete it: git -C {origin} fetch {} {what}",
                release.git
            ),
        };
        let known_as = release.tag.as_ref().map_or_else(String::new, |tag| format!(" (the tag {tag})"));
        bail!("git cannot get commit {commit}{known_as} from it:\n{}{advice}", message.trim_end());
    }
    let source = repository.keep(release, commit, origin, cache)?;
    progress.done("");
    Ok(source)
}

/// Takes an unpacked tree, if the ID that git computes for it is the pinned one.
fn from_tree(release: &Release, tree: &Path, cache: &Cache) -> Result<Source> {
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
         tarball, which has generated files as well; give the tarball itself, or a git clone",
        release.tree
    );
    let source = repository.keep(release, &id, &tree.to_string_lossy(), cache)?;
    progress.done("");
    Ok(source)
}

/// A new git repository, which is removed when this is dropped. Neither the user's settings nor the environment change a byte
/// of the source.
struct ScratchRepository {
    dir: Scratch,
    shell: Shell,
}

impl ScratchRepository {
    fn new(cache: &Cache) -> Result<ScratchRepository> {
        if run::version_line("git", "--version").is_none() {
            bail!(Failure::Preflight(
                "git is needed to check this source, and is missing: apt-get install git".into()
            ));
        }
        let repository = ScratchRepository { dir: cache.scratch()?, shell: Shell::new()? };
        repository.git(&["init", "--quiet", "--bare"]).run()?;
        Ok(repository)
    }

    fn git(&self, arguments: &[&str]) -> Cmd<'_> {
        let mut git =
            cmd!(self.shell, "git -c core.autocrlf=false -c core.eol=lf -c core.attributesFile=/dev/null");
        // The user's hooks are for the user's repositories.
        git = git
            .args(["-c", "core.fileMode=true", "-c", "tar.umask=0002", "-c", "core.hooksPath=/dev/null"])
            .args(arguments)
            .quiet();
        // `git rev-parse --local-env-vars` lists most of them. Git sets some while it runs a hook of another repository.
        for name in [
            "GIT_ALTERNATE_OBJECT_DIRECTORIES",
            "GIT_COMMON_DIR",
            "GIT_CONFIG",
            "GIT_CONFIG_COUNT",
            "GIT_CONFIG_PARAMETERS",
            "GIT_GRAFT_FILE",
            "GIT_IMPLICIT_WORK_TREE",
            "GIT_INDEX_FILE",
            "GIT_NAMESPACE",
            "GIT_NO_REPLACE_OBJECTS",
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

    /// Puts an archive of `id`, which is the release's commit or its tree, into the cache.
    fn keep(&self, release: &Release, id: &str, from: &str, cache: &Cache) -> Result<Source> {
        let tar = self.dir.path().join("source.tar");
        // GitHub's name for the top directory: an archive of a commit with a tag then has the bytes of GitHub's.
        let prefix = format!("--prefix=guacamole-server-{}/", release.upstream_name());
        let output = format!("--output={}", tar.display());
        self.git(&["archive", "--format=tar", &prefix, &output, id]).run()?;
        cache.keep(Checked {
            pin: release.commit_pin(),
            ending: "tar",
            file: &tar,
            signature: None,
            origin: cache::Origin { from: without_password(from), signed_by: None },
        })
    }
}

/// Downloads a tarball and, with a key ring, the signature at a URL.
fn download(url: &str, signed: Option<(&Keyring, &str)>, pins: &[String], cache: &Cache) -> Result<Source> {
    let dir = cache.scratch()?;
    let (file, signature) = (dir.path().join("download"), dir.path().join("signature"));
    // The signature comes first: without it, the tarball is of no use.
    let signed = match signed {
        Some((keyring, url)) => {
            download_to(url, &signature, signature::LARGEST)
                .with_context(|| format!("cannot get its signature from {url}"))?;
            Some((keyring, &*signature))
        }
        None => None,
    };
    let sha256 = download_to(url, &file, download::LARGEST)?;
    keep_tarball(&file, sha256, signed, pins, &without_password(url), cache)
}

/// A URL without its user and password.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// Downloads `url` to a new file that has no more than `largest` bytes, and returns its SHA-256.
fn download_to(url: &str, file: &Path, largest: u64) -> Result<String> {
    // In a thread, so that a signal is noticed while the server stalls.
    let thread = thread::spawn({
        let (url, file) = (url.to_owned(), file.to_owned());
        move || download::to_file(&url, &file, largest)
    });
    while !thread.is_finished() {
        run::check_interrupted()?;
        thread::sleep(Duration::from_millis(50));
    }
    thread.join().map_err(|_| anyhow!("the download panicked"))?
}

/// The pins, each once, in their order.
fn unique(pins: &[String]) -> Vec<&str> {
    let mut unique: Vec<&str> = Vec::new();
    for pin in pins {
        if !unique.contains(&pin.as_str()) {
            unique.push(pin);
        }
    }
    unique
}

/// The command that clones the release's commit into `dir`.
fn clone_command(release: &Release, dir: &str) -> String {
    match &release.tag {
        Some(tag) => format!("git clone --depth 1 --branch {tag} {} {dir}", release.git),
        None => format!("git clone {} {dir}", release.git),
    }
}

/// The error when there is no source: what was tried, and the commands that supply the source.
fn no_source(release: &Release, tried: &[String]) -> String {
    let version = &release.version;
    let fetch = format!("cargo xtask fetch --release {version} --from");
    let mut ways = Vec::new();
    if let Some(Origin { url, .. }) = release.origins.first() {
        let file = url.rsplit('/').next().unwrap_or_default();
        ways.push(("a tarball:", format!("curl -LO {url}"), format!("{fetch} {file}")));
    }
    ways.push(("a git clone:", clone_command(release, NAME), format!("{fetch} {NAME}")));
    ways.push(("an unpacked tree:", String::new(), format!("{fetch} DIRECTORY")));
    if !release.origins.is_empty() {
        ways.push(("your own mirror:", String::new(), format!("{fetch} https://HOST/{NAME}.tar.gz")));
    }
    let mut text = format!(
        "no source for guacamole-server {version}. Tried:\n  - {}\nSupply it once, in one of these ways. Where there are two \
         commands, the first may run on another machine, which has a network:",
        tried.join("\n  - ")
    );
    for (way, get, import) in ways {
        for (title, command) in
            [way, ""].into_iter().zip([get, import].iter().filter(|command| !command.is_empty()))
        {
            text.push_str(&format!("\n  {title:<20}{command}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_recorded() {
        for (url, recorded) in [
            ("https://name:secret@example.org/a@b", "https://example.org/a@b"),
            ("https://example.org", "https://example.org"),
            ("ssh://git@example.org/x.git", "ssh://example.org/x.git"),
            ("/a/file@home", "/a/file@home"),
        ] {
            assert_eq!(without_password(url), recorded);
        }
    }
}
