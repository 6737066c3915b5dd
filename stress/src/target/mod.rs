//! What does guacd connect to? A server with a program that gives back what is typed: over SSH and telnet on a pipe that the
//! program opens, over VNC and RDP on the clipboard.

use std::{net::Ipv4Addr, path::Path, sync::Arc};

use anyhow::{Context, Result};
use rustix::process::Pid;

use self::{connections::Connections, drawing::Film, echo::Echo as Program};
use crate::{
    guacd::processes::SECRETS,
    load::{flags::Load, meter::Meter},
    preflight::Preflight,
    values::{self, HostPort, Protocol},
    wire::{
        link::{Echo, Login},
        proof::fresh_nonce,
    },
};

pub mod connections;
mod drawing;
mod echo;
mod openssh;
mod rdp;
mod ssh;
mod telnet;
mod vnc;

/// The servers that guacd connects to. Those that were started here end when this is dropped.
pub struct Targets {
    logins: Vec<Login>,
    connections: Arc<Connections>,
    meter: Arc<Meter>,
    sshd: Option<openssh::Sshd>,
}

impl Targets {
    /// Starts the servers that have to be started, with `scratch` for their temporary files. `can_be_cut` says whether the
    /// connections to the embedded servers can be cut. Call it from the main thread, and within the async runtime.
    ///
    /// # Errors
    ///
    /// When something is missing, or does not start.
    pub async fn start(load: &Load, can_be_cut: bool, scratch: &Path) -> Result<Self> {
        let connections = Arc::new(Connections::new(can_be_cut));
        let mut target =
            Self { logins: Vec::new(), connections, meter: Arc::new(Meter::new(load.activity)), sshd: None };
        for &protocol in load.protocol.each() {
            let login = match protocol {
                Protocol::Telnet => target.telnet(load)?,
                Protocol::Vnc => target.vnc(load)?,
                Protocol::Rdp => target.rdp(load)?,
                Protocol::Ssh | Protocol::Mix => target.ssh(load, scratch)?,
            };
            target.logins.push(login);
        }
        Ok(target)
    }

    fn ssh(&mut self, load: &Load, scratch: &Path) -> Result<Login> {
        let pipe = new_pipe();
        let login = |host: &str, port: u16, user: &str, secret: (&'static str, String)| {
            let arguments = vec![
                ("hostname", host.to_owned()),
                ("port", port.to_string()),
                ("username", user.to_owned()),
                secret,
                ("command", echo_program(&pipe)),
                timeout(load),
            ];
            Login { protocol: Protocol::Ssh.as_str(), arguments, echo: Echo::Pipe(pipe.clone()), call: None }
        };
        let localhost = Ipv4Addr::LOCALHOST.to_string();
        match &load.target {
            values::Target::Embedded => {
                let server =
                    ssh::start(Program::new(&pipe), Film::of_terminal(&self.meter), &self.connections)
                        .context("start the embedded SSH server")?;
                Ok(login(&localhost, server.port, &server.user, ("password", server.password)))
            }
            values::Target::OpenSsh => {
                let sshd = openssh::Sshd::start(scratch)?;
                let login =
                    login(&localhost, sshd.port(), sshd.user(), ("private-key", sshd.private_key().into()));
                self.sshd = Some(sshd);
                Ok(login)
            }
            values::Target::Address(address) => {
                let user = load.user.as_deref().unwrap_or_default();
                Ok(login(&address.host, address.port, user, secret(load)?))
            }
        }
    }

    fn telnet(&self, load: &Load) -> Result<Login> {
        let pipe = new_pipe();
        let (mut arguments, call) = match &load.target {
            values::Target::Address(address) => {
                let mut arguments = running(load, address)?;
                arguments.push(("login-success-regex", PROMPT.into()));
                arguments.push(("login-failure-regex", REFUSAL.into()));
                (arguments, Some(echo_program(&pipe)))
            }
            _ => {
                let port =
                    telnet::start(Program::new(&pipe), Film::of_terminal(&self.meter), &self.connections)?;
                (embedded(port), None)
            }
        };
        arguments.push(timeout(load));
        Ok(Login { protocol: Protocol::Telnet.as_str(), arguments, echo: Echo::Pipe(pipe), call })
    }

    fn vnc(&self, load: &Load) -> Result<Login> {
        let (arguments, screen, call) = match &load.target {
            values::Target::Address(address) => {
                (running(load, address)?, None, Some("guac-stress".to_owned()))
            }
            _ => {
                let arguments = embedded(vnc::start(&self.meter, &self.connections)?);
                (arguments, Some(vnc::SIZE.map(|length| length.to_string())), None)
            }
        };
        Ok(Login { protocol: Protocol::Vnc.as_str(), arguments, echo: Echo::Clipboard { screen }, call })
    }

    fn rdp(&self, load: &Load) -> Result<Login> {
        let (mut arguments, screen, call) = match &load.target {
            values::Target::Address(address) => {
                (running(load, address)?, None, Some("guac-stress".to_owned()))
            }
            _ => {
                let mut arguments = embedded(rdp::start(&self.meter, &self.connections)?);
                arguments.push(("security", "tls".into()));
                // The server asks for neither, but FreeRDP 3 does.
                arguments.extend(["username", "password"].map(|name| (name, "guac-stress".to_owned())));
                (arguments, Some(rdp::SIZE.map(|length| length.to_string())), None)
            }
        };
        // Nobody vouches for a certificate, and nobody listens. Drives and printing are off by default.
        arguments.extend(["ignore-cert", "disable-audio"].map(|name| (name, "true".to_owned())));
        arguments.push(timeout(load));
        Ok(Login { protocol: Protocol::Rdp.as_str(), arguments, echo: Echo::Clipboard { screen }, call })
    }

    /// What counts the frames that they draw.
    pub fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// What sessions connect with, in turn.
    pub fn logins(&self) -> &[Login] {
        &self.logins
    }

    /// The connections to the servers within this process.
    pub fn connections(&self) -> Arc<Connections> {
        Arc::clone(&self.connections)
    }

    /// The processes that were started for it.
    pub fn processes(&self) -> Vec<Pid> {
        self.sshd.iter().map(openssh::Sshd::pid).collect()
    }
}

/// The end of a shell's prompt, colours aside.
const PROMPT: &str = "[$#%>]( |\x1b\\[[0-9;]*m)*$";

/// A telnet server's answer to a wrong password.
const REFUSAL: &str = "[Ll]ogin incorrect";

/// What guacd needs to connect to a server within this process.
fn embedded(port: u16) -> Vec<(&'static str, String)> {
    vec![("hostname", Ipv4Addr::LOCALHOST.to_string()), ("port", port.to_string())]
}

/// What guacd needs to connect to a server that runs already, and to log in.
fn running(load: &Load, address: &HostPort) -> Result<Vec<(&'static str, String)>> {
    let mut arguments = vec![("hostname", address.host.clone()), ("port", address.port.to_string())];
    arguments.extend(load.user.clone().map(|user| ("username", user)));
    arguments.extend(password(load)?.map(|password| ("password", password)));
    Ok(arguments)
}

/// A name for a pipe that no other program chooses by accident.
fn new_pipe() -> String {
    format!("guac-stress-{}", &fresh_nonce()[..12])
}

fn timeout(load: &Load) -> (&'static str, String) {
    ("timeout", load.timeout.as_secs().max(1).to_string())
}

/// The key or the password of a target's user, never from the command line. A file takes precedence over the environment.
fn secret(load: &Load) -> Result<(&'static str, String)> {
    let key = match (&load.private_key_file, &load.password_file) {
        (Some(path), _) => Some(fs_err::read_to_string(path)?),
        (None, Some(_)) => None,
        (None, None) => std::env::var(SECRETS[1]).ok(),
    };
    if let Some(key) = key {
        return Ok(("private-key", key));
    }
    let password = password(load)?.ok_or_else(|| {
        Preflight(
            "the target needs a password or a key: give --password-file or --private-key-file, or set \
             GUAC_STRESS_PASSWORD or GUAC_STRESS_PRIVATE_KEY"
                .into(),
        )
    })?;
    Ok(("password", password))
}

fn password(load: &Load) -> Result<Option<String>> {
    let Some(path) = &load.password_file else {
        return Ok(std::env::var(SECRETS[0]).ok());
    };
    Ok(Some(fs_err::read_to_string(path)?.trim_end_matches(['\r', '\n']).to_owned()))
}

/// A shell command that redirects the terminal's output into the pipe, by Guacamole's own console code, and then gives back each
/// line. Flag 2 sends each frame at once. The terminal's own echo is off, so that what comes back has been through the program.
/// The pipe is opened again, since guacd 1.5 sends a user nothing in the first 250 ms.
fn echo_program(pipe: &str) -> String {
    let open = format!(r"printf '\033]482202;2;{pipe}\007'");
    format!(
        r#"exec sh -c "stty -echo && {open} && {{ for again in 1 2 3; do sleep 0.3; {open}; done & }} && exec cat""#
    )
}
