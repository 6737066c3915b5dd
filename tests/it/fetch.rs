//! `cargo xtask fetch`: is a source that does not match its pin refused, and is nothing of it left in the cache?

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;
use toolkit::host::digest::Stream;

use crate::support::checkout::Checkout;
use crate::support::{self, Output, Xtask, release, xtask};

crate::tests! {
    Nothing:
        a_git_clone_without_the_commit_is_refused,
        a_directory_that_is_no_source_is_refused,
        a_source_that_is_not_there_is_refused,
        without_a_network_every_way_to_supply_the_source_is_named,
        offline_asks_nobody,
        a_stalled_download_can_be_interrupted_and_leaves_nothing,
        an_unknown_release_is_answered_with_those_that_are_known,
        broken_and_hostile_downloads_are_refused_and_leave_nothing,
        downloads_that_break_off_go_on;
    Tarball:
        a_tarball_with_a_flipped_byte_is_refused,
        damage_in_the_cache_is_noticed;
    Source:
        an_unpacked_tree_is_checked_byte_by_byte,
        the_users_git_settings_change_no_byte;
}

/// An empty cache, and runs of xtask that use it.
pub struct Cache(TempDir);

impl Cache {
    pub fn new() -> Result<Cache> {
        Ok(Cache(TempDir::new()?))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn fetch(&self, arguments: &[&str]) -> Xtask {
        xtask(["fetch"].iter().chain(arguments)).env("XDG_CACHE_HOME", self.0.path())
    }

    pub fn fetch_from(&self, from: &Path) -> Result<Output> {
        self.fetch(&["--from", &from.to_string_lossy()]).run()
    }

    /// The archive of the release in it.
    pub fn archive(&self) -> Result<PathBuf> {
        let is_archive = |file: &PathBuf| file.to_string_lossy().contains("/guacamole-server.tar");
        self.files()?.into_iter().find(is_archive).context("there is no archive in the cache")
    }

    /// Everything in it that is not an empty directory.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
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
    let text = fs::read_to_string(&file)?;
    fs::write(&file, format!("{text}\n"))?;
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
    // A commit without a tag has no file to download.
    let download = (!release().origins.is_empty()).then(|| "curl -LO".to_owned());
    let import = format!("cargo xtask fetch --release {version} --from DIRECTORY");
    let words: Vec<String> = origins.chain(["the cache".to_owned(), clone, import]).chain(download).collect();
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

/// A tarball with one top directory, and what else is added.
pub fn made_up(add: impl FnOnce(&mut tar::Builder<GzEncoder<Vec<u8>>>)) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
    let mut header = tar::Header::new_ustar();
    // Not compressible, so that it takes several packets.
    let content =
        (0..200_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "top/file", &content[..])?;
    add(&mut tar);
    Ok(tar.into_inner()?.finish()?)
}

/// A checkout with a release whose only origin is this URL, and whose pin is the digest of this file.
pub fn pinned(url: &str, file: &[u8]) -> Result<Checkout> {
    let checkout = Checkout::new()?;
    let mut digest = Stream::default();
    digest.add(file);
    let sha256 = digest.finish();
    let toml = format!(
        "[release.\"9.9.9\"]\nstate = \"supported\"\ntag = \"9.9.9\"\ncommit = \"c\"\ntree = \"t\"\nepoch = 1\nnar = \"n\"\n\
         git = \"https://localhost/\"\npatches = \"patches/9.9.9\"\n\
         [[release.\"9.9.9\".origins]]\nname = \"origin\"\nurl = \"{url}\"\nsha256 = \"{sha256}\"\n"
    );
    let path = checkout.path().join("upstream.toml");
    fs::remove_file(&path)?;
    fs::write(path, toml)?;
    Ok(checkout)
}

/// What a server does with its connection number `n`, from 0 on, once it has read the request.
pub type Answer = Box<dyn Fn(&mut TcpStream, usize, &str) -> std::io::Result<()> + Send>;

/// Serves connections until the test ends. Returns the URL of a file.
pub fn serve(answer: Answer) -> Result<String> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/guacamole-server.tar.gz", server.local_addr()?);
    std::thread::spawn(move || {
        for (number, stream) in server.incoming().enumerate() {
            let Ok(mut stream) = stream else { continue };
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                request.push(byte[0]);
            }
            // A client may leave in the middle.
            let _ = answer(&mut stream, number, &String::from_utf8_lossy(&request).to_lowercase());
        }
    });
    Ok(url)
}

pub fn respond(stream: &mut TcpStream, head: &str, body: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\n\r\n")?;
    stream.write_all(body)
}

/// Fetches the made-up release from a server that answers like this.
fn fetch_made_up(answer: Answer, file: &[u8]) -> Result<(Output, Cache)> {
    let checkout = pinned(&serve(answer)?, file)?;
    let cache = Cache::new()?;
    let fetch = checkout
        .xtask(["fetch", "--release", "9.9.9"])
        .env("XDG_CACHE_HOME", cache.0.path())
        .env("NO_PROXY", "127.0.0.1");
    Ok((fetch.run()?, cache))
}

fn broken_and_hostile_downloads_are_refused_and_leave_nothing() -> Result<()> {
    let good = made_up(|_| ())?;
    let entry = |kind, name: &'static str, target: &'static str| {
        made_up(move |tar| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(0);
            let ustar = header.as_ustar_mut().expect("it is one");
            ustar.name[..name.len()].copy_from_slice(name.as_bytes());
            ustar.linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_cksum();
            tar.append(&header, std::io::empty()).expect("memory has room");
        })
    };
    let bomb = made_up(|tar| {
        let mut header = tar::Header::new_ustar();
        header.set_size(300 << 20);
        tar.append_data(&mut header, "top/zeros", std::io::repeat(0).take(300 << 20))
            .expect("memory has room");
    })?;
    let whole = |file: Vec<u8>| -> Answer {
        Box::new(move |stream, _, _| {
            respond(stream, &format!("200 OK\r\nContent-Length: {}", file.len()), &file)
        })
    };
    let say = |head: &'static str, body: &'static [u8]| -> Answer {
        Box::new(move |stream, _, _| respond(stream, head, body))
    };
    let mut flipped = good.clone();
    flipped[1000] ^= 1;
    let cut = good.clone();
    let half = good.len() / 2;
    let tar = |kind, name, target| -> Result<(Answer, Vec<u8>)> {
        let file = entry(kind, name, target)?;
        Ok((whole(file.clone()), file))
    };
    use tar::EntryType;
    let cases: Vec<(&str, (Answer, Vec<u8>))> = vec![
        ("404", (say("404 Not Found", b"nothing"), good.clone())),
        ("403", (say("403 Forbidden", b""), good.clone())),
        ("tried 4 times", (say("503 Service Unavailable", b""), good.clone())),
        ("tried 4 times", (say("429 Too Many Requests", b""), good.clone())),
        (
            "its SHA-256 is",
            (say("200 OK\r\nContent-Type: text/html", b"<html>Log in to this network</html>"), good.clone()),
        ),
        ("its SHA-256 is", (say("200 OK\r\nContent-Length: 0", b""), good.clone())),
        ("its SHA-256 is", (whole(flipped), good.clone())),
        ("its SHA-256 is", (whole(cut[..half].to_vec()), good.clone())),
        // It says that there is more, every time.
        (
            "tried 4 times",
            (
                Box::new(move |stream, _, _| {
                    respond(stream, "200 OK\r\nContent-Length: 999999", &cut[..half])
                }),
                good.clone(),
            ),
        ),
        ("tried 4 times", (Box::new(|_, _, _| Ok(())), good.clone())),
        ("tried 4 times", (Box::new(|stream, _, _| stream.write_all(b"SSH-2.0-OpenSSH\r\n")), good.clone())),
        (
            "larger than 65536 KiB",
            (
                Box::new(|stream, _, _| {
                    respond(stream, "200 OK", b"")?;
                    loop {
                        stream.write_all(&[7; 65536])?;
                    }
                }),
                good.clone(),
            ),
        ),
        (
            "redirect",
            (say("302 Found\r\nLocation: /guacamole-server.tar.gz\r\nContent-Length: 0", b""), good.clone()),
        ),
        ("", (say("302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0", b""), good.clone())),
        ("cannot send the rest", (say("206 Partial Content", b"abc"), good.clone())),
        ("leads out of it", tar(EntryType::Regular, "top/../../escaped", "")?),
        ("leads out of it", tar(EntryType::Regular, "/tmp/escaped", "")?),
        ("leads out of it", tar(EntryType::Symlink, "top/link", "../../etc")?),
        ("leads out of it", tar(EntryType::Link, "top/link", "../etc/passwd")?),
        ("neither a file", tar(EntryType::Char, "top/null", "")?),
        ("more than one top directory", tar(EntryType::Regular, "other/file", "")?),
        ("unpacks to more than", (whole(bomb.clone()), bomb)),
    ];
    ensure!(cases.len() >= 20, "{} cases", cases.len());
    // Retries pause. Beside each other, all of them take as long as one.
    std::thread::scope(|scope| {
        let runs = cases.into_iter().enumerate().map(|(number, (words, (answer, file)))| {
            scope.spawn(move || -> Result<()> {
                let (output, cache) = fetch_made_up(answer, &file)?;
                output
                    .expect(3, &[words, "no source for guacamole-server 9.9.9"])
                    .with_context(|| format!("case {number}"))?;
                ensure!(
                    cache.files()?.is_empty(),
                    "case {number}, {words}: left behind: {:?}",
                    cache.files()?
                );
                Ok(())
            })
        });
        let runs = runs.collect::<Vec<_>>();
        runs.into_iter().try_for_each(|run| run.join().map_err(|_| anyhow::anyhow!("a case panicked"))?)
    })
}

fn downloads_that_break_off_go_on() -> Result<()> {
    let good = made_up(|_| ())?;
    let (first, length) = (good.len() / 3, good.len());
    let head = format!("200 OK\r\nETag: \"one\"\r\nContent-Length: {length}");
    let from = format!("range: bytes={first}-");
    let rest = format!(
        "206 Partial Content\r\nContent-Range: bytes {first}-{}/{length}\r\nContent-Length: {}",
        length - 1,
        length - first
    );
    let file = good.clone();
    let breaks_off: Answer = Box::new(move |stream, number, request| match number {
        0 => respond(stream, "500 Internal Server Error", b""),
        1 => respond(stream, &head, &file[..first]),
        _ if request.contains(&from) && request.contains("if-range: \"one\"") => {
            respond(stream, &rest, &file[first..])
        }
        _ => respond(stream, "400 Bad Request", b""),
    });
    // Another server cannot send parts, and sends the whole each time; a third has another version after the first part.
    let file = good.clone();
    let whole: Answer = Box::new(move |stream, number, _| {
        let end = if number == 0 { first } else { length };
        respond(stream, &format!("200 OK\r\nETag: W/\"weak\"\r\nContent-Length: {length}"), &file[..end])
    });
    let file = good.clone();
    let changes: Answer = Box::new(move |stream, number, _| match number {
        0 => {
            respond(stream, &format!("200 OK\r\nETag: \"old\"\r\nContent-Length: {length}"), &vec![0; first])
        }
        1 => respond(stream, "416 Range Not Satisfiable", b""),
        _ => respond(stream, &format!("200 OK\r\nETag: \"new\"\r\nContent-Length: {length}"), &file),
    });
    for (name, answer) in [("breaks off", breaks_off), ("whole", whole), ("changes", changes)] {
        let (output, cache) = fetch_made_up(answer, &good)?;
        output.expect(0, &["trying again"]).context(name)?;
        ensure!(fs::read(cache.archive()?)? == good, "{name}: it is not what was served");
    }
    Ok(())
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
pub fn tarball(dir: &Path) -> Result<PathBuf> {
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
