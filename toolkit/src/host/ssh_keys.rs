//! Which SSH keys can guacd use? Those of the libssh2 at hand: a small program in C asks it.

use anyhow::{Context, Result, ensure};
use fs_err as fs;
use serde::Serialize;
use tempfile::TempDir;

use crate::host::{run, tools};

const PROGRAM: &str = include_str!("ssh_keys.c");

/// What libssh2 can use.
#[derive(Debug, PartialEq, Serialize)]
pub struct SshKeys {
    /// Its version.
    pub libssh2: String,
    /// The types of the keys of servers, by their names in the SSH protocol. A user's key has one of these types, too: libssh2
    /// has the same code for both.
    pub types: Vec<String>,
    /// Whether it signs with SHA-2 when a user logs in with an RSA key. OpenSSH has refused SHA-1 since 8.8.
    pub users_rsa_sha2: bool,
}

impl SshKeys {
    /// Asks the libssh2 that guacd would be built with.
    ///
    /// # Errors
    ///
    /// When there is none, or no C compiler.
    pub fn of_libssh2() -> Result<SshKeys> {
        let pkg_config = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
        let flags = run::read("pkg-config", duct::cmd!(pkg_config, "--cflags", "--libs", "libssh2"))?;
        let dir = TempDir::new()?;
        let (source, program) = (dir.path().join("ssh_keys.c"), dir.path().join("ssh_keys"));
        fs::write(&source, PROGRAM)?;
        let compiler = tools::c_compiler();
        let mut words = compiler.split_whitespace().map(str::to_owned);
        let name = words.next().context("CC is empty")?;
        let own = [source, "-o".into(), program.clone()].map(|path| path.to_string_lossy().into_owned());
        let all = words.chain(own).chain(flags.split_whitespace().map(str::to_owned));
        run::read("the C compiler", duct::cmd(name, all))?;
        SshKeys::parse(&run::read("the question to libssh2", duct::cmd!(program))?)
    }

    fn parse(text: &str) -> Result<SshKeys> {
        let facts: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
        let values = |key: &'static str| {
            facts.iter().filter(move |(name, _)| *name == key).map(|(_, value)| (*value).to_owned())
        };
        let types: Vec<String> = values("host-key").collect();
        ensure!(!types.is_empty(), "libssh2 names no types of keys");
        Ok(SshKeys {
            libssh2: values("version").next().unwrap_or_default(),
            types,
            users_rsa_sha2: values("user-rsa").any(|hash| hash == "sha2"),
        })
    }

    fn has(&self, name: &str) -> bool {
        self.types.iter().any(|known| known == name)
    }

    /// What that means, in one sentence a line.
    pub fn sentences(&self) -> Vec<String> {
        let ecdsa: Vec<&str> = self
            .types
            .iter()
            .filter_map(|name| name.strip_prefix("ecdsa-sha2-nistp"))
            .filter(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
            .collect();
        let servers_rsa_sha2 = self.has("rsa-sha2-256") || self.has("rsa-sha2-512");
        let has_rsa = servers_rsa_sha2 || self.has("ssh-rsa");
        let mut types = Vec::new();
        if self.has("ssh-ed25519") {
            types.push("ed25519".to_owned());
        }
        if !ecdsa.is_empty() {
            types.push(format!("ecdsa ({} bits)", ecdsa.join(", ")));
        }
        if has_rsa {
            types.push("rsa".to_owned());
        }
        let mut sentences = vec![format!("{}: keys of servers and of users", types.join(", "))];
        if !self.has("ssh-ed25519") {
            sentences.push(
                "No ed25519: sessions to servers, and with keys of users, that have no other type fail."
                    .into(),
            );
        }
        if has_rsa && !servers_rsa_sha2 {
            sentences.push(
                "A server whose only key is rsa is refused, if it is OpenSSH 8.8 or newer: this libssh2 knows rsa with SHA-1 \
                 alone."
                    .into(),
            );
        }
        if has_rsa && !self.users_rsa_sha2 {
            sentences.push(
                "A user's rsa key is refused by OpenSSH 8.8 and newer: this libssh2 signs with SHA-1. Give users ed25519 or \
                 ecdsa keys, or use libssh2 1.11."
                    .into(),
            );
        }
        sentences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "version 1.10.0\nhost-key ecdsa-sha2-nistp256\nhost-key ecdsa-sha2-nistp384\n\
                       host-key ecdsa-sha2-nistp256-cert-v01@openssh.com\nhost-key ssh-ed25519\nhost-key ssh-rsa\n";

    #[test]
    fn an_old_libssh2_has_rsa_with_sha_1_alone() {
        let sentences = SshKeys::parse(OLD).unwrap().sentences();
        assert_eq!(sentences[0], "ed25519, ecdsa (256, 384 bits), rsa: keys of servers and of users");
        assert_eq!(sentences.len(), 3);
        assert!(sentences[1].contains("only key is rsa") && sentences[2].contains("A user's rsa key"));
    }

    #[test]
    fn a_new_libssh2_needs_no_warning_and_one_without_ed25519_does() {
        let new = format!("{OLD}host-key rsa-sha2-512\nhost-key rsa-sha2-256\nuser-rsa sha2\n");
        assert_eq!(SshKeys::parse(&new).unwrap().sentences().len(), 1);
        let other = new.replace("host-key ssh-ed25519\n", "");
        let sentences = SshKeys::parse(&other).unwrap().sentences();
        assert!(sentences.len() == 2 && sentences[1].contains("No ed25519"), "{sentences:?}");
        assert!(SshKeys::parse("version 1.10.0\n").is_err());
    }

    #[test]
    fn the_libssh2_at_hand_answers() {
        if duct::cmd!("pkg-config", "--exists", "libssh2").stderr_null().run().is_err() {
            return; // guacd is built without SSH here.
        }
        let keys = SshKeys::of_libssh2().unwrap();
        let version = duct::cmd!("pkg-config", "--modversion", "libssh2").read().unwrap();
        assert!(keys.libssh2.starts_with(&version) && keys.has("ssh-ed25519"), "{keys:?}");
    }
}
