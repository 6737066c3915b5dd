//! `cargo xtask fetch --keyring`: does only what a key in the ring has signed enter the cache?

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::fetch::{Answer, Cache, made_up, pinned, respond, serve};
use crate::support::checkout::Checkout;
use crate::support::{Output, Xtask};

crate::tests! {
    Nothing:
        a_tarball_that_a_key_in_the_ring_has_signed_is_kept,
        without_a_good_signature_nothing_enters_the_cache,
        a_tarball_of_the_users_needs_its_signature_next_to_it,
        a_key_ring_without_keys_or_without_a_use_is_refused;
}

/// A time, as gpg takes it, and one at which a key that is valid for a day from then on has expired.
const LONG_AGO: &str = "20200101T000000";

/// The keys of somebody, in a home of gpg's.
struct Signer(TempDir);

impl Signer {
    /// Somebody with a new key, made at a time and valid as long as gpg is told.
    fn new(time: Option<&str>, valid: &str) -> Result<Signer> {
        let signer = Signer(TempDir::new()?);
        fs::write(signer.0.path().join("gpg-agent.conf"), "disable-scdaemon\n")?;
        let make = [
            "--passphrase",
            "",
            "--quick-gen-key",
            "Somebody <somebody@localhost>",
            "ed25519",
            "sign",
            valid,
        ];
        signer.gpg(time, &make)?;
        Ok(signer)
    }

    fn gpg(&self, time: Option<&str>, arguments: &[&str]) -> Result<Vec<u8>> {
        let mut gpg = Command::new("gpg");
        gpg.env("GNUPGHOME", self.0.path()).args(["--batch", "--quiet", "--no-permission-warning"]);
        if let Some(time) = time {
            gpg.args(["--faked-system-time", time]);
        }
        let output = gpg.args(arguments).stdin(Stdio::null()).output().context("gpg does not run")?;
        ensure!(output.status.success(), "gpg {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    fn fingerprint(&self) -> Result<String> {
        let listed = String::from_utf8(self.gpg(None, &["--with-colons", "--list-keys"])?)?;
        let line = listed.lines().find(|line| line.starts_with("fpr:")).context("there is no key")?;
        Ok(line.split(':').nth(9).context("it has no fingerprint")?.to_owned())
    }

    /// Its public key, in binary form or as text.
    fn public(&self, armor: bool) -> Result<Vec<u8>> {
        self.gpg(None, if armor { &["--armor", "--export"] } else { &["--export"] })
    }

    /// A detached signature of a file, as text.
    fn sign(&self, time: Option<&str>, bytes: &[u8]) -> Result<Vec<u8>> {
        self.signed(time, bytes, "--detach-sign")
    }

    fn signed(&self, time: Option<&str>, bytes: &[u8], how: &str) -> Result<Vec<u8>> {
        let file = self.0.path().join("to-sign");
        fs::write(&file, bytes)?;
        self.gpg(time, &["--armor", "--output", "-", how, &file.to_string_lossy()])
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        // gpg has started an agent.
        let mut end = Command::new("gpgconf");
        let _ = end.args(["--kill", "all"]).env("GNUPGHOME", self.0.path()).stderr(Stdio::null()).status();
    }
}

/// A release that is served with its signature, and a key ring to check it with.
struct Served {
    checkout: Checkout,
    cache: Cache,
    ring: PathBuf,
    _dir: TempDir,
}

impl Served {
    /// `None` for a signature stands for a server that has none.
    fn new(file: &[u8], signature: Option<Vec<u8>>, ring: &[u8]) -> Result<Served> {
        let served = file.to_vec();
        let answer: Answer = Box::new(move |stream, _, request| {
            let wanted = request.split(' ').nth(1).unwrap_or_default();
            match (wanted.ends_with(".asc"), &signature) {
                (false, _) => {
                    respond(stream, &format!("200 OK\r\nContent-Length: {}", served.len()), &served)
                }
                (true, Some(signature)) => {
                    respond(stream, &format!("200 OK\r\nContent-Length: {}", signature.len()), signature)
                }
                (true, None) => respond(stream, "404 Not Found\r\nContent-Length: 0", b""),
            }
        });
        let url = serve(answer)?;
        let checkout = pinned(&url, file)?;
        let upstream = checkout.path().join("upstream.toml");
        let text = fs::read_to_string(&upstream)?;
        fs::write(&upstream, format!("{text}signature = \"{url}.asc\"\n"))?;
        let dir = TempDir::new()?;
        let path = dir.path().join("KEYS");
        fs::write(&path, ring)?;
        Ok(Served { checkout, cache: Cache::new()?, ring: path, _dir: dir })
    }

    fn fetch(&self, arguments: &[&str]) -> Xtask {
        self.checkout
            .xtask(["fetch", "--release", "9.9.9"].iter().chain(arguments))
            .env("XDG_CACHE_HOME", self.cache.path())
            .env("NO_PROXY", "127.0.0.1")
    }

    fn fetch_signed(&self, arguments: &[&str]) -> Result<Output> {
        self.fetch(&[&["--keyring", &*self.ring.to_string_lossy()], arguments].concat()).run()
    }
}

fn a_tarball_that_a_key_in_the_ring_has_signed_is_kept() -> Result<()> {
    let file = made_up(|_| ())?;
    let (signer, other) = (Signer::new(None, "0")?, Signer::new(None, "0")?);
    let fingerprint = signer.fingerprint()?;
    let signature = signer.sign(None, &file)?;
    // As Apache's KEYS: text between keys.
    let text = [
        b"Keys of the project.\n".as_slice(),
        &other.public(true)?,
        b"\npub ed25519\n",
        &signer.public(true)?,
    ]
    .concat();
    for ring in [text, [other.public(false)?, signer.public(false)?].concat()] {
        let served = Served::new(&file, Some(signature.clone()), &ring)?;
        served.fetch_signed(&[])?.expect(0, &["signed with the key", &fingerprint])?;
        let listed = served.fetch(&["--list"]).run()?;
        ensure!(listed.stdout.contains(&format!("signed with {fingerprint}")), "{}", listed.stdout);

        // The signature stays in the cache, and is checked again, with any ring.
        served.fetch_signed(&["--offline"])?.expect(0, &[])?;
        fs::write(&served.ring, other.public(false)?)?;
        served.fetch_signed(&["--offline"])?.expect(3, &["the cache", "not among them"])?;
        served.fetch(&["--offline"]).run()?.expect(0, &[])?;
    }
    // What came without a signature is not taken for signed.
    let served = Served::new(&file, Some(signature), &signer.public(false)?)?;
    served.fetch(&[]).run()?.expect(0, &[])?;
    served.fetch_signed(&["--offline"])?.expect(3, &["there without a signature"])?;
    served.fetch_signed(&[])?.expect(0, &["signed with the key"])?;
    served.fetch_signed(&["--offline"])?.expect(0, &[])
}

fn without_a_good_signature_nothing_enters_the_cache() -> Result<()> {
    let file = made_up(|_| ())?;
    let (signer, other) = (Signer::new(None, "0")?, Signer::new(None, "0")?);
    let expired = Signer::new(Some(LONG_AGO), "1d")?;
    let good = signer.sign(None, &file)?;
    let text = String::from_utf8(good.clone())?;
    let mut flipped = file.clone();
    flipped[1000] ^= 1;
    let revoked = {
        let signer = Signer::new(None, "0")?;
        let signature = signer.sign(None, &file)?;
        let fingerprint = signer.fingerprint()?;
        let certificate = signer.0.path().join("openpgp-revocs.d").join(format!("{fingerprint}.rev"));
        // gpg puts a colon before it, so that nobody imports it by mistake.
        let armed = fs::read_to_string(&certificate)?.replace(":-----BEGIN", "-----BEGIN");
        fs::write(&certificate, armed)?;
        signer.gpg(None, &["--import", &certificate.to_string_lossy()])?;
        (signature, signer.public(true)?)
    };
    let ring = signer.public(true)?;
    for (name, signature, ring, words) in [
        ("missing", None, ring.clone(), "cannot get its signature"),
        ("of another file", Some(signer.sign(None, &flipped)?), ring.clone(), "was changed"),
        ("by another key", Some(other.sign(None, &file)?), ring.clone(), "not among them"),
        (
            "by an expired key",
            Some(expired.sign(Some(LONG_AGO), &file)?),
            expired.public(true)?,
            "the key has expired",
        ),
        ("by a revoked key", Some(revoked.0), revoked.1, "was revoked"),
        ("cut off", Some(text[..text.len() / 2].into()), ring.clone(), "refused"),
        ("empty", Some(Vec::new()), ring.clone(), "no signature"),
        ("a page", Some(b"<html>Log in to this network</html>".to_vec()), ring.clone(), "no signature"),
        ("too large", Some(vec![b'x'; 100_000]), ring.clone(), "larger than 64 KiB"),
        // Its own signature is good, and its content is not the tarball.
        ("around another file", Some(signer.signed(None, &flipped, "--sign")?), ring.clone(), "refused"),
        ("of a text", Some(signer.signed(None, b"some text\n", "--clear-sign")?), ring.clone(), "refused"),
    ] {
        let served = Served::new(&file, signature, &ring)?;
        let output = served.fetch_signed(&[])?;
        output.expect(3, &[words, "no source for guacamole-server 9.9.9"]).context(name)?;
        ensure!(served.cache.files()?.is_empty(), "{name}: left behind: {:?}", served.cache.files()?);
    }
    // It was the signature: with the good one, the same file is kept.
    Served::new(&file, Some(good), &ring)?.fetch_signed(&[])?.expect(0, &[])
}

fn a_tarball_of_the_users_needs_its_signature_next_to_it() -> Result<()> {
    let file = made_up(|_| ())?;
    let signer = Signer::new(None, "0")?;
    let served = Served::new(&file, None, &signer.public(true)?)?;
    let dir = TempDir::new()?;
    let tarball = dir.path().join("mine.tar.gz");
    fs::write(&tarball, &file)?;
    let from = tarball.to_string_lossy();
    served.fetch_signed(&["--from", &from])?.expect(1, &["its signature is missing", "mine.tar.gz.asc"])?;
    fs::write(dir.path().join("mine.tar.gz.asc"), signer.sign(None, b"another")?)?;
    served.fetch_signed(&["--from", &from])?.expect(1, &["was changed"])?;
    ensure!(served.cache.files()?.is_empty(), "left behind: {:?}", served.cache.files()?);
    fs::write(dir.path().join("mine.tar.gz.asc"), signer.sign(None, &file)?)?;
    served.fetch_signed(&["--from", &from])?.expect(0, &["signed with the key"])
}

fn a_key_ring_without_keys_or_without_a_use_is_refused() -> Result<()> {
    let file = made_up(|_| ())?;
    let signer = Signer::new(None, "0")?;
    let served = Served::new(&file, None, b"no keys")?;
    served.fetch_signed(&[])?.expect(1, &["KEYS holds no OpenPGP keys", "Apache's KEYS"])?;
    fs::remove_file(&served.ring)?;
    served.fetch_signed(&[])?.expect(1, &["KEYS"])?;
    fs::write(&served.ring, signer.public(true)?)?;
    let git = "https://localhost/guacamole-server.git";
    served.fetch_signed(&["--from", git])?.expect(1, &["leave out --keyring"])?;

    // An origin without a signature.
    let checkout = pinned("http://127.0.0.1:9/x.tar.gz", &file)?;
    let ring = served.ring.to_string_lossy();
    let fetch = checkout.xtask(["fetch", "--release", "9.9.9", "--keyring", &ring]);
    let fetch = fetch.env("XDG_CACHE_HOME", served.cache.path()).env("NO_PROXY", "127.0.0.1");
    fetch.run()?.expect(3, &["upstream.toml has no signature for it"])?;

    // Without gpgv.
    let no_gpgv = TempDir::new()?;
    let output = served.fetch(&["--keyring", &ring]).env("PATH", no_gpgv.path()).run()?;
    output.expect(3, &["missing here: gpgv"])?;
    ensure!(served.cache.files()?.is_empty(), "left behind: {:?}", served.cache.files()?);
    Ok(())
}
