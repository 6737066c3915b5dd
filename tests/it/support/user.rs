//! A user's end of a connection to guacd.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use guac_stress::wire::codec::Decoder;

use super::SOON;

/// A user's end of a connection to guacd.
pub struct User {
    pub stream: TcpStream,
    pub heard: String,
    /// How many arguments the protocol has, its version included.
    pub arguments: usize,
    /// Their names, in order, without the version.
    pub names: Vec<String>,
    /// The width and the height of their screen, as they name it in the handshake.
    pub size: [&'static str; 2],
    /// The formats of sound that they play, as they name them in the handshake.
    pub audio: &'static [&'static str],
}

impl User {
    pub fn connect(port: u16) -> Result<User> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        // The instructions of a handshake are small, and sent one by one.
        stream.set_nodelay(true)?;
        let (size, audio) = (["800", "600"], &[][..]);
        Ok(User { stream, heard: String::new(), arguments: 0, names: Vec::new(), size, audio })
    }

    /// A user who has selected a protocol or a connection, and got its arguments.
    pub fn select(port: u16, selected: &str) -> Result<User> {
        let mut user = User::connect(port)?;
        user.send(&["select", selected])?;
        let args = user.expect("4.args,")?;
        user.names = args
            .trim_end_matches(';')
            .split(',')
            .skip(2)
            .filter_map(|name| Some(name.split_once('.')?.1.to_owned()))
            .collect();
        user.arguments = user.names.len() + 1;
        Ok(user)
    }

    pub fn send(&mut self, parts: &[&str]) -> Result<()> {
        Ok(self.stream.write_all(instruction(parts).as_bytes())?)
    }

    /// Sends the rest of the handshake, and returns the ID of the connection.
    pub fn finish_handshake(&mut self) -> Result<String> {
        self.connect_ssh("127.0.0.1", "1")?;
        self.expect_id()
    }

    /// The ID of the connection, once guacd tells it.
    pub fn expect_id(&mut self) -> Result<String> {
        let ready = self.expect("5.ready,")?;
        let id = ready.split_once('$').and_then(|(_, id)| id.split_once(';')).context("no ID")?.0;
        Ok(format!("${id}"))
    }

    /// Sends the rest of the handshake of a connection with SSH, whose first arguments are a host and a port.
    pub fn connect_ssh(&mut self, host: &str, port: &str) -> Result<()> {
        self.handshake(&[host, "", port, "user", "password"])
    }

    /// Sends the rest of the handshake, with the first of the arguments.
    pub fn handshake(&mut self, arguments: &[&str]) -> Result<()> {
        let mut connect = [&["connect", "VERSION_1_5_0"], arguments].concat();
        connect.resize(self.arguments + 1, "");
        self.send(&["size", self.size[0], self.size[1], "96"])?;
        self.send(&[&["audio"], self.audio].concat())?;
        self.send(&["video"])?;
        self.send(&["image", "image/png"])?;
        self.send(&connect)
    }

    /// Sends the rest of the handshake, with the arguments of these names. The others are empty.
    pub fn handshake_with(&mut self, arguments: &[(&str, &str)]) -> Result<()> {
        for (name, _) in arguments {
            ensure!(self.names.iter().any(|known| known == name), "no argument is called {name}");
        }
        let value =
            |name: &String| arguments.iter().find(|(wanted, _)| wanted == name).map_or("", |pair| pair.1);
        let values: Vec<&str> = self.names.iter().map(value).collect();
        self.handshake(&values)
    }

    /// The arguments that limit connecting to a second, and the limit. In releases whose protocol has no argument for it, the limit is
    /// half a minute.
    pub fn shortest_timeout(&self) -> (&'static [(&'static str, &'static str)], Duration) {
        match self.names.iter().any(|name| name == "timeout") {
            true => (&[("timeout", "1")], Duration::from_secs(1)),
            false => (&[], Duration::from_secs(30)),
        }
    }

    /// Waits for an instruction with these words, and returns all that was heard up to its end. What follows is kept.
    pub fn expect(&mut self, words: &str) -> Result<String> {
        self.expect_one_of(&[words])?;
        let end = self.end_of(words).context("it was heard")?;
        let rest = self.heard.split_off(end);
        Ok(std::mem::replace(&mut self.heard, rest))
    }

    /// Waits for an instruction with any of these words, and returns which it was.
    pub fn expect_one_of(&mut self, words: &[&str]) -> Result<usize> {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(found) = words.iter().position(|words| self.end_of(words).is_some()) {
                return Ok(found);
            }
            ensure!(Instant::now() < deadline, "{words:?} was not heard, but {:?}", self.heard);
            ensure!(self.hear()?, "the connection ended before {words:?}, after {:?}", self.heard);
        }
    }

    /// Where the first instruction with these words ends, if it was heard.
    fn end_of(&self, words: &str) -> Option<usize> {
        let start = self.heard.find(words)? + words.len();
        let length = if words.ends_with(';') { 0 } else { self.heard[start..].find(';')? + 1 };
        Some(start + length)
    }

    /// Reads until the end of the connection.
    pub fn read_to_end(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while self.hear().unwrap_or_default() {
            ensure!(Instant::now() < deadline, "the connection is still open");
        }
        Ok(())
    }

    /// Reads for a while, and tells guacd now and then that the user is there.
    pub fn listen(&mut self, time: Duration) -> Result<()> {
        let since = Instant::now();
        let mut told = Duration::ZERO;
        while since.elapsed() < time {
            ensure!(self.hear()?, "the connection ended");
            if since.elapsed() >= told {
                self.send(&["nop"])?;
                told += Duration::from_secs(4);
            }
        }
        Ok(())
    }

    /// Takes what was heard apart into instructions.
    pub fn instructions(&self) -> Result<Vec<Vec<String>>> {
        Instructions::default().take(self.heard.as_bytes())
    }

    /// Reads what is there, and returns whether there can be more.
    pub fn hear(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

pub fn instruction(parts: &[&str]) -> String {
    let parts: Vec<String> = parts.iter().map(|part| format!("{}.{part}", part.chars().count())).collect();
    format!("{};", parts.join(","))
}

/// The instructions that send so many `x` on stream 1. Each blob has 6,000 of them, as many as clients put into one.
pub fn blobs(length: usize) -> Vec<String> {
    let text = vec![b'x'; length];
    text.chunks(6000).map(|part| instruction(&["blob", "1", &STANDARD.encode(part)])).collect()
}

/// The instructions that put so many `x` into the clipboard.
pub fn clipboard(length: usize) -> String {
    let blobs = blobs(length).concat();
    format!("{}{blobs}{}", instruction(&["clipboard", "1", "text/plain"]), instruction(&["end", "1"]))
}

/// Takes a stream apart into instructions, and finds those that are torn.
#[derive(Default)]
pub struct Instructions(Decoder);

impl Instructions {
    pub fn take(&mut self, bytes: &[u8]) -> Result<Vec<Vec<String>>> {
        self.0.push(bytes);
        let mut instructions = Vec::new();
        while let Some(instruction) = self.0.instruction()? {
            let opcode = instruction.opcode();
            ensure!(opcode.bytes().all(|byte| byte.is_ascii_lowercase()), "torn: {opcode:?} is no opcode");
            instructions.push([&[opcode.to_owned()], instruction.args()].concat());
        }
        Ok(instructions)
    }
}
