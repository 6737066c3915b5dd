//! What does guacd connect to? An SSH server with a program behind it that opens a pipe to us, and echoes.

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context, Result, bail};
use rustix::process::Pid;

use crate::{
    flags::{self, Load},
    link::Login,
    processes::SECRETS,
    program::Preflight,
    session::fresh_nonce,
};

mod embedded;
mod openssh;

/// A target that can be connected to. What was started for it ends when this is dropped.
pub enum Target {
    /// An SSH server in this process.
    Embedded(Login),
    /// An sshd of ours.
    OpenSsh(openssh::Sshd, Login),
    /// Somebody else's server.
    Address(Login),
}

impl Target {
    /// Starts what has to be started, with `scratch` for its temporary files. Call it from the main thread, and within the
    /// async runtime.
    ///
    /// # Errors
    ///
    /// When something is missing, or does not start.
    pub async fn start(load: &Load, scratch: &Path) -> Result<Self> {
        // Nobody else's program can open a pipe of this name by accident.
        let pipe = format!("guac-stress-{}", &fresh_nonce()[..12]);
        let login = |host: &str, port: u16, user: &str, secret: (&'static str, String)| {
            let arguments = vec![
                ("hostname", host.to_owned()),
                ("port", port.to_string()),
                ("username", user.to_owned()),
                secret,
                ("command", echo_program(&pipe)),
                ("timeout", load.timeout.as_secs().max(1).to_string()),
            ];
            Login { arguments, pipe: pipe.clone() }
        };
        let localhost = Ipv4Addr::LOCALHOST.to_string();
        match &load.target {
            flags::Target::Embedded => {
                let server =
                    embedded::start(pipe_opener(&pipe)).await.context("start the embedded SSH server")?;
                Ok(Self::Embedded(login(
                    &localhost,
                    server.port,
                    &server.user,
                    ("password", server.password),
                )))
            }
            flags::Target::OpenSsh => {
                let sshd = openssh::Sshd::start(scratch)?;
                let login =
                    login(&localhost, sshd.port(), sshd.user(), ("private-key", sshd.private_key().into()));
                Ok(Self::OpenSsh(sshd, login))
            }
            flags::Target::Address(address) => {
                let user = load.user.as_deref().unwrap_or_default();
                Ok(Self::Address(login(&address.host, address.port, user, secret(load)?)))
            }
        }
    }

    /// What sessions connect with.
    pub fn login(&self) -> &Login {
        match self {
            Self::Embedded(login) | Self::OpenSsh(_, login) | Self::Address(login) => login,
        }
    }

    /// The processes that were started for it.
    pub fn processes(&self) -> Vec<Pid> {
        match self {
            Self::OpenSsh(sshd, _) => vec![sshd.pid()],
            Self::Embedded(_) | Self::Address(_) => Vec::new(),
        }
    }
}

/// The password or the key of a target's user, never from the command line.
fn secret(load: &Load) -> Result<(&'static str, String)> {
    let file =
        |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    if let Some(path) = &load.private_key_file {
        return Ok(("private-key", file(path)?));
    }
    if let Some(path) = &load.password_file {
        return Ok(("password", file(path)?.trim_end_matches(['\r', '\n']).to_owned()));
    }
    if let Ok(key) = std::env::var(SECRETS[1]) {
        return Ok(("private-key", key));
    }
    if let Ok(password) = std::env::var(SECRETS[0]) {
        return Ok(("password", password));
    }
    bail!(Preflight(
        "the target needs a password or a key: give --password-file or --private-key-file, or set \
         GUAC_STRESS_PASSWORD or GUAC_STRESS_PRIVATE_KEY"
            .into()
    ))
}

/// What redirects a terminal's output into a pipe: Guacamole's own console code. Flag 2 sends each frame at once.
fn pipe_opener(pipe: &str) -> String {
    format!("\x1b]482202;2;{pipe}\x07")
}

/// A shell command that opens the pipe and then gives back each line. The terminal's own echo is off, so that what comes
/// back has been through the program.
fn echo_program(pipe: &str) -> String {
    format!(r"stty -echo && printf '\033]482202;2;{pipe}\007' && exec cat")
}
