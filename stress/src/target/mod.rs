//! What does guacd connect to? A server with a program behind it that gives back what is typed: over SSH and telnet on a pipe
//! that it opens to us, over VNC on the clipboard.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use rustix::process::Pid;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::{
    cli::{self, HostPort, Load, Protocol},
    guacd::processes::SECRETS,
    load::session::fresh_nonce,
    program::Preflight,
    report::Scenario,
    wire::link::{Echo, Login},
};

mod openssh;
mod ssh;
mod telnet;
mod vnc;

/// Targets that can be connected to. What was started for them ends when this is dropped.
pub struct Target {
    logins: Vec<Login>,
    connections: Arc<Connections>,
    sshd: Option<openssh::Sshd>,
}

impl Target {
    /// Starts what has to be started, with `scratch` for its temporary files. Call it from the main thread, and within the
    /// async runtime.
    ///
    /// # Errors
    ///
    /// When something is missing, or does not start.
    pub async fn start(load: &Load, scratch: &Path) -> Result<Self> {
        let connections = Arc::new(Connections::new(load.scenario == Scenario::Chaos));
        let mut target = Self { logins: Vec::new(), connections, sshd: None };
        for &protocol in load.protocol.each() {
            let login = match protocol {
                Protocol::Telnet => target.telnet(load)?,
                Protocol::Vnc => target.vnc(load)?,
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
            Login { protocol: Protocol::Ssh, arguments, echo: Echo::Pipe(pipe.clone()), call: None }
        };
        let localhost = Ipv4Addr::LOCALHOST.to_string();
        match &load.target {
            cli::Target::Embedded => {
                let server = ssh::start(pipe_opener(&pipe), &self.connections)
                    .context("start the embedded SSH server")?;
                Ok(login(&localhost, server.port, &server.user, ("password", server.password)))
            }
            cli::Target::OpenSsh => {
                let sshd = openssh::Sshd::start(scratch)?;
                let login =
                    login(&localhost, sshd.port(), sshd.user(), ("private-key", sshd.private_key().into()));
                self.sshd = Some(sshd);
                Ok(login)
            }
            cli::Target::Address(address) => {
                let user = load.user.as_deref().unwrap_or_default();
                Ok(login(&address.host, address.port, user, secret(load)?))
            }
        }
    }

    fn telnet(&self, load: &Load) -> Result<Login> {
        let pipe = new_pipe();
        let (mut arguments, call) = match &load.target {
            cli::Target::Address(address) => {
                let mut arguments = there(load, address)?;
                arguments.push(("login-success-regex", PROMPT.into()));
                arguments.push(("login-failure-regex", REFUSAL.into()));
                (arguments, Some(echo_program(&pipe)))
            }
            _ => (here(telnet::start(pipe_opener(&pipe), &self.connections)?), None),
        };
        arguments.push(timeout(load));
        Ok(Login { protocol: Protocol::Telnet, arguments, echo: Echo::Pipe(pipe), call })
    }

    fn vnc(&self, load: &Load) -> Result<Login> {
        let (arguments, screen, call) = match &load.target {
            cli::Target::Address(address) => (there(load, address)?, None, Some("guac-stress".to_owned())),
            _ => {
                let arguments = here(vnc::start(&self.connections)?);
                (arguments, Some(vnc::SIZE.map(|length| length.to_string())), None)
            }
        };
        Ok(Login { protocol: Protocol::Vnc, arguments, echo: Echo::Clipboard { screen }, call })
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

/// What the line of a shell that waits for a command ends in, colours aside.
const PROMPT: &str = "[$#%>]( |\x1b\\[[0-9;]*m)*$";

/// What a telnet server says to a wrong password.
const REFUSAL: &str = "[Ll]ogin incorrect";

/// What guacd needs to connect to a server within this process.
fn here(port: u16) -> Vec<(&'static str, String)> {
    vec![("hostname", Ipv4Addr::LOCALHOST.to_string()), ("port", port.to_string())]
}

/// What guacd needs to connect to a server that is there already, and to log in if it has to.
fn there(load: &Load, address: &HostPort) -> Result<Vec<(&'static str, String)>> {
    let mut arguments = vec![("hostname", address.host.clone()), ("port", address.port.to_string())];
    arguments.extend(load.user.clone().map(|user| ("username", user)));
    arguments.extend(password(load)?.map(|password| ("password", password)));
    Ok(arguments)
}

/// Nobody else's program can open a pipe of this name by accident.
fn new_pipe() -> String {
    format!("guac-stress-{}", &fresh_nonce()[..12])
}

fn timeout(load: &Load) -> (&'static str, String) {
    ("timeout", load.timeout.as_secs().max(1).to_string())
}

/// The connections to the servers within this process, for as long as they are open.
pub struct Connections {
    ports: Mutex<Vec<u16>>,
    /// By their port at guacd's end. None where nobody is going to cut any, as each takes a descriptor.
    open: Option<Mutex<HashMap<u16, OwnedFd>>>,
}

impl Connections {
    fn new(can_be_cut: bool) -> Self {
        Self { ports: Mutex::default(), open: can_be_cut.then(Mutex::default) }
    }

    /// The ports of the servers.
    pub fn ports(&self) -> Vec<u16> {
        lock(&self.ports).clone()
    }

    /// Ends the connection from this port, if there is one.
    pub fn cut(&self, port: u16) {
        if let Some(fd) = self.open.as_ref().and_then(|open| lock(open).remove(&port)) {
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
        }
    }

    /// Keeps a connection, so that it can be cut until it ends by itself.
    fn keep(&self, stream: &TcpStream, peer: SocketAddr) {
        use std::os::fd::AsFd;
        if let (Some(open), Ok(fd)) = (&self.open, stream.as_fd().try_clone_to_owned()) {
            lock(open).insert(peer.port(), fd);
        }
    }

    fn forget(&self, peer: SocketAddr) {
        if let Some(open) = &self.open {
            lock(open).remove(&peer.port());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens on a free port, which it gives, and serves all who come, each in a task of its own. One who is gone again, or
/// for whom there was no descriptor left, is no reason to stop.
fn listen<F>(
    host: Ipv4Addr,
    connections: &Arc<Connections>,
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> Result<u16>
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let socket = TcpSocket::new_v4()?;
    socket.bind((host, 0).into()).with_context(|| format!("find a free port on {host}"))?;
    let listener: TcpListener = socket.listen(4096).with_context(|| format!("listen on {host}"))?;
    let port = listener.local_addr()?.port();
    lock(&connections.ports).push(port);
    let connections = Arc::clone(connections);
    tokio::spawn(async move {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                // Without descriptors, the next try fails at once as well.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                continue;
            };
            // What is typed is small, and has to come back at once.
            let _ = stream.set_nodelay(true);
            connections.keep(&stream, peer);
            let session = serve(stream);
            let connections = Arc::clone(&connections);
            tokio::spawn(async move {
                // However it ends: it is guacd's session that is judged.
                let _ = session.await;
                connections.forget(peer);
            });
        }
    });
    Ok(port)
}

/// The key or the password of a target's user, never from the command line. What is given in a file goes before what is in
/// the environment.
fn secret(load: &Load) -> Result<(&'static str, String)> {
    let key = match (&load.private_key_file, &load.password_file) {
        (Some(path), _) => Some(read(path)?),
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
    Ok(Some(read(path)?.trim_end_matches(['\r', '\n']).to_owned()))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
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
