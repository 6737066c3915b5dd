//! guacd with TLS: its key and certificate, and clients.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::guacd::Guacd;
use super::user::instruction;

/// A private key and a certificate.
pub struct Certificate {
    dir: TempDir,
}

impl Certificate {
    pub fn new() -> Result<Certificate> {
        let certificate = Certificate { dir: TempDir::new()? };
        let mut openssl = Command::new("openssl");
        openssl.args("req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost".split(' '));
        openssl.arg("-keyout").arg(certificate.key()).arg("-out").arg(certificate.file());
        let made = openssl.output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(certificate)
    }

    /// The file of the key.
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    /// The file of the certificate.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("certificate")
    }

    /// The options that make guacd use them.
    pub fn options(&self) -> String {
        format!("-K {} -C {}", self.key().display(), self.file().display())
    }
}

/// A patched guacd that speaks TLS, and its key and certificate.
pub fn start_encrypted() -> Result<(Guacd, Certificate)> {
    let certificate = Certificate::new()?;
    Ok((Guacd::start_with("patched", ":", &certificate.options())?, certificate))
}

/// A client that uses TLS, and ends with this.
pub struct Encrypted {
    pub client: Child,
}

impl Encrypted {
    pub fn connect(guacd: &Guacd) -> Result<Encrypted> {
        let client = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{}", guacd.port)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Encrypted { client })
    }

    pub fn send(&mut self, parts: &[&str]) -> Result<()> {
        let input = self.client.stdin.as_mut().context("no input")?;
        Ok(input.write_all(instruction(parts).as_bytes())?)
    }

    /// Selects a protocol, and returns the number of its arguments.
    pub fn select(&mut self, protocol: &str) -> Result<usize> {
        self.send(&["select", protocol])?;
        let output = self.client.stdout.as_mut().context("no output")?;
        let mut heard = Vec::new();
        while !heard.ends_with(b";") {
            let mut byte = [0];
            output.read_exact(&mut byte).context("the connection ended")?;
            heard.push(byte[0]);
        }
        ensure!(heard.starts_with(b"4.args,"), "{}", String::from_utf8_lossy(&heard));
        Ok(heard.iter().filter(|byte| **byte == b',').count())
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
