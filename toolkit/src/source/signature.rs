//! Has one of the keys in a key ring signed a file? gpgv says it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fs_err as fs;
use tempfile::TempDir;

use crate::host::install;
use crate::host::tools::Need;

/// The largest signature that is accepted, in bytes. Apache's have 833.
pub const LARGEST: u64 = 64 << 10;

/// The first and the last line of a key in text, of which Apache's KEYS has many, with other text between them.
const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";

/// Keys, as gpgv reads them.
pub struct Keyring {
    dir: TempDir,
    /// The file that they were read from.
    from: PathBuf,
}

impl Keyring {
    /// Reads the keys in a file: a key ring of GnuPG, or text with keys in it, as Apache's KEYS.
    ///
    /// # Errors
    ///
    /// [`crate::failure::Failure::Preflight`] without gpgv; any other when the file holds no keys.
    pub fn read(path: &Path) -> Result<Keyring> {
        install::require(&[Need::Signature])?;
        let bytes = fs::read(path)?;
        let keys = match std::str::from_utf8(&bytes) {
            Ok(text) if text.contains(BEGIN) => dearmor(text)?,
            _ => bytes,
        };
        // Each packet of OpenPGP begins with a byte whose first bit is set.
        let has_keys = keys.first().is_some_and(|first| first & 0x80 != 0);
        ensure!(has_keys, "{} holds no OpenPGP keys: give a key ring, or Apache's KEYS", path.display());
        let dir = TempDir::new()?;
        fs::write(dir.path().join("keys.gpg"), keys)?;
        Ok(Keyring { dir, from: path.to_owned() })
    }

    /// Checks the signature of a file. Returns the fingerprint of the key that made it.
    ///
    /// # Errors
    ///
    /// When no key in the ring made it, or one that has expired or was revoked.
    pub fn check(&self, signature: &Path, file: &Path) -> Result<String> {
        let dir = self.dir.path();
        let keys = dir.join("keys.gpg");
        let output = duct::cmd!(
            "gpgv",
            "--homedir",
            dir,
            "--keyring",
            keys,
            "--status-fd",
            "1",
            "--",
            signature,
            file
        )
        .env("LC_ALL", "C.UTF-8")
        .stdin_null()
        .stdout_capture()
        .stderr_capture()
        .unchecked()
        .run()
        .context("cannot run gpgv")?;
        let status = String::from_utf8_lossy(&output.stdout);
        match verdict(&status) {
            Ok(fingerprint) if output.status.success() => Ok(fingerprint),
            Ok(_) => bail!("gpgv does not accept its signature: {}", said(&output.stderr)),
            Err(what) => bail!(
                "its signature is refused, by the keys in {}: {what}; gpgv says: {}",
                self.from.display(),
                said(&output.stderr)
            ),
        }
    }
}

/// The fingerprint of the key in gpgv's status lines, or what is wrong with the signature. gpgv alone would accept keys that have
/// expired or were revoked.
fn verdict(status: &str) -> Result<String, &'static str> {
    let line = |keyword: &str| {
        status.lines().find_map(|line| {
            let mut words = line.strip_prefix("[GNUPG:] ")?.split(' ');
            (words.next()? == keyword).then(|| words.next().unwrap_or_default().to_owned())
        })
    };
    for (keyword, what) in [
        ("BADSIG", "the file or the signature was changed"),
        ("EXPKEYSIG", "the key has expired: get a ring in which it was renewed"),
        ("REVKEYSIG", "the key was revoked"),
        ("EXPSIG", "the signature has expired"),
        ("NO_PUBKEY", "the key that made it is not among them"),
        ("ERRSIG", "it cannot be checked"),
    ] {
        if line(keyword).is_some() {
            return Err(what);
        }
    }
    match (line("GOODSIG"), line("VALIDSIG")) {
        (Some(_), Some(fingerprint)) => Ok(fingerprint),
        _ => Err("it is no signature"),
    }
}

/// What a program said, in one line.
fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The keys in a text, in binary form, one after the other. gpgv does not read them as text.
fn dearmor(text: &str) -> Result<Vec<u8>> {
    let mut keys = Vec::new();
    for block in text.split(BEGIN).skip(1) {
        let block = block.split(END).next().unwrap_or_default();
        // A blank line ends the headers. The last line, with the checksum, begins with `=`.
        let lines = block.lines().map(str::trim).skip(1).skip_while(|line| !line.is_empty());
        let base64: String = lines.filter(|line| !line.starts_with('=')).collect();
        keys.extend(STANDARD.decode(base64).context("a key in the ring is damaged")?);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_text_are_read_each_with_or_without_headers() {
        let text = format!(
            "pub rsa4096 2020\n{BEGIN}\nVersion: x\nComment: y\n\nmDME\nAAEC\n=abcd\n{END}\n\nsome text\n{BEGIN}\n\nmQ==\n=efgh\n{END}\n"
        );
        assert_eq!(dearmor(&text).unwrap(), [0x98, 0x33, 0x04, 0, 1, 2, 0x99]);
        assert!(dearmor(&text.replace("mDME", "m~~E")).is_err());
    }

    #[test]
    fn only_a_good_signature_of_a_valid_key_is_accepted() {
        let good = "[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 12AB Name\n[GNUPG:] VALIDSIG FFFF 2026-01-01 0\n";
        assert_eq!(verdict(good).unwrap(), "FFFF");
        for (status, words) in [
            ("", "no signature"),
            ("[GNUPG:] GOODSIG 12AB Name\n", "no signature"),
            ("[GNUPG:] VALIDSIG FFFF\n", "no signature"),
            ("[GNUPG:] EXPKEYSIG 12AB Name\n[GNUPG:] VALIDSIG FFFF\n", "expired"),
            ("[GNUPG:] REVKEYSIG 12AB Name\n[GNUPG:] VALIDSIG FFFF\n", "revoked"),
            ("[GNUPG:] ERRSIG 12AB 1 8 00 0 9\n[GNUPG:] NO_PUBKEY 12AB\n", "not among them"),
            (&format!("{good}[GNUPG:] BADSIG 12AB Name\n"), "changed"),
        ] {
            assert!(verdict(status).unwrap_err().contains(words), "{status}");
        }
    }
}
