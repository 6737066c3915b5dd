//! A fake guacd. It speaks as much of the protocol as a real one does to a terminal session, with a target behind it that opens
//! a pipe and echoes; and it fails on demand.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use guac_stress::wire::codec::{self, Decoder, Instruction};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// How the fake guacd serves a session. A session of a real one gives back every word that is typed into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// As a real one.
    Normal,
    /// As a real one, one byte at a time.
    CutAtEveryByte,
    /// As a real one, with text that has fewer code points than bytes.
    NonAscii,
    /// As a real one, between thousands of pictures.
    Flood,
    /// `ready`, and then pictures without end. What comes back is read.
    FloodForEver,
    /// `ready`, and then pictures without end. What comes back is never read.
    FloodAndNeverRead,
    /// As guacd before 1.6.0, whose arguments have no `timeout`.
    NoTimeout,
    /// As a real one, but the second word comes back late.
    Slow,
    /// Silence from the beginning.
    Silent,
    /// `ready`, and then silence.
    SilentAfterReady,
    /// A pipe, and then silence.
    SilentAfterPipe,
    /// Silence to the second word.
    SilentAfterFirstProof,
    /// Silence to the third word.
    SilentAfterSecondProof,
    /// `ready`, and then an error.
    ErrorAfterReady,
    /// An error while it is held.
    ErrorInHold,
    /// `disconnect` while it is held.
    DisconnectInHold,
    /// The end of the connection while it is held, without an instruction.
    CloseInHold,
    /// The second word comes back on the stream of a picture.
    EchoOnAnotherStream,
    /// The second word comes back on a pipe of another name.
    EchoOnAnotherPipe,
    /// The first word comes back once more.
    ReplayFirstWord,
    /// Half of the second word comes back.
    HalfOfTheWord,
    /// The second word comes back, in capitals.
    WordInCapitals,
    /// The second word comes back, and then the connection ends, before the other sessions have proven themselves.
    CloseAfterLastProof,
    /// The second word comes back, and the connection ends a moment later.
    CloseSoonAfterLastProof,
    /// Bytes that are not the protocol.
    Garbage,
    /// A web server.
    Http,
    /// An argument list without the names that are needed.
    NoHostname,
}

/// A guacd that listens.
pub struct Fake {
    pub address: SocketAddr,
    /// Set to true to end it.
    die: watch::Sender<bool>,
    /// How many sessions have given a first proof.
    pub established: Arc<AtomicU32>,
    /// How many have given a second one.
    pub proven: Arc<AtomicU32>,
    /// How many connections are open.
    pub open: Arc<AtomicU32>,
}

impl Fake {
    /// Listens on a free port. Each connection is served by the next of the behaviours, and normally after the last of them.
    pub async fn start(behaviours: &[Behaviour]) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), behaviours)
    }

    /// Listens on a socket.
    pub fn on(listener: TcpListener, behaviours: &[Behaviour]) -> Self {
        let address = listener.local_addr().unwrap();
        let (die, dead) = watch::channel(false);
        let established = Arc::new(AtomicU32::new(0));
        let proven = Arc::new(AtomicU32::new(0));
        let behaviours = behaviours.to_vec();
        let open = Arc::new(AtomicU32::new(0));
        let counts = [Arc::clone(&established), Arc::clone(&proven)];
        let now_open = Arc::clone(&open);
        tokio::spawn(async move {
            let mut behaviours = behaviours.into_iter();
            let mut until_dead = dead.clone();
            loop {
                let accepted = tokio::select! {
                    _ = until_dead.wait_for(|dead| *dead) => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { return };
                let (behaviour, mut dead, counts) =
                    (behaviours.next().unwrap_or(Behaviour::Normal), dead.clone(), counts.clone());
                let open = Arc::clone(&now_open);
                tokio::spawn(async move {
                    open.fetch_add(1, Ordering::SeqCst);
                    tokio::select! {
                        _ = dead.wait_for(|dead| *dead) => {}
                        _ = serve(stream, behaviour, &counts) => {}
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, die, established, proven, open }
    }

    /// Ends all connections, and listens no more.
    pub fn die(&self) {
        self.die.send_replace(true);
    }
}

struct Served {
    stream: TcpStream,
    decoder: Decoder,
    behaviour: Behaviour,
}

/// Serves a session from its beginning to its end. None when the client is gone.
async fn serve(stream: TcpStream, behaviour: Behaviour, counts: &[Arc<AtomicU32>; 2]) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut at = Served { stream, decoder: Decoder::default(), behaviour };
    let select = at.next().await?;
    if (select.opcode(), select.args()) != ("select", &["ssh".to_owned()][..]) {
        return None;
    }
    match behaviour {
        Behaviour::Silent => return at.be_silent().await,
        Behaviour::Garbage => return at.write(b"\x00\xff\x13garbage").await,
        Behaviour::Http => return at.write(b"HTTP/1.1 400 Bad Request\r\n\r\n").await,
        Behaviour::NoHostname => {
            return at.send(&["args", "VERSION_1_5_0", "port", "username", "password"]).await;
        }
        _ => {}
    }
    let names = [
        "VERSION_1_5_0",
        "hostname",
        "host-key",
        "port",
        "timeout",
        "username",
        "password",
        "żółw",
        "private-key",
        "command",
    ];
    let names = names
        .into_iter()
        .filter(|&name| behaviour != Behaviour::NoTimeout || name != "timeout")
        .collect::<Vec<_>>();
    at.send(&[&["args"], &names[..]].concat()).await?;

    let connect = loop {
        let instruction = at.next().await?;
        match instruction.opcode() {
            "size" if instruction.args().len() == 3 => {}
            "audio" | "video" | "image" => {}
            "connect" => break instruction,
            _ => return None,
        }
    };
    if connect.args().len() != names.len() || connect.arg(0) != "VERSION_1_5_0" {
        return at.send(&["error", "Aborted. See logs.", "512"]).await;
    }
    let command = connect.arg(names.iter().position(|&name| name == "command")?).to_owned();
    let pipe = command.split("482202;2;").nth(1)?.split('\\').next()?;

    at.send(&["ready", "$00000000-fake"]).await?;
    match behaviour {
        Behaviour::SilentAfterReady => return at.be_silent().await,
        Behaviour::FloodForEver | Behaviour::FloodAndNeverRead => return at.flood().await,
        Behaviour::ErrorAfterReady => return at.send(&["error", "Aborted. See logs.", "515"]).await,
        _ => {}
    }
    if behaviour == Behaviour::NonAscii {
        at.send(&["name", "żółw 🐢 5.hello,"]).await?;
    }
    at.picture("1").await?;
    at.send(&["pipe", "2", "text/plain", pipe]).await?;
    // Like a real one, it sends nothing on a stream until it was acknowledged.
    loop {
        let instruction = at.next().await?;
        if instruction.opcode() == "ack" && instruction.arg(0) == "2" {
            assert_eq!(instruction.arg(2), "0");
            break;
        }
    }
    if behaviour == Behaviour::SilentAfterPipe {
        return at.be_silent().await;
    }

    let first = at.typed_line().await?;
    at.blob("2", &format!("{first}\r\n")).await?;
    counts[0].fetch_add(1, Ordering::SeqCst);
    match behaviour {
        Behaviour::ErrorInHold => return at.send(&["error", "Aborted. See logs.", "512"]).await,
        Behaviour::DisconnectInHold => return at.send(&["disconnect"]).await,
        Behaviour::CloseInHold => return None,
        Behaviour::SilentAfterFirstProof => return at.be_silent().await,
        _ => {}
    }

    let second = at.typed_line().await?;
    assert_ne!(first, second);
    match behaviour {
        Behaviour::EchoOnAnotherStream => {
            at.send(&["img", "3", "14", "0", "image/png", "0", "0"]).await?;
            at.blob("3", &second).await?;
        }
        Behaviour::EchoOnAnotherPipe => {
            at.send(&["pipe", "3", "text/plain", "another"]).await?;
            at.blob("3", &second).await?;
        }
        Behaviour::ReplayFirstWord => at.blob("2", &first).await?,
        Behaviour::HalfOfTheWord => at.blob("2", &second[..16]).await?,
        Behaviour::WordInCapitals => {
            at.blob("2", &second.to_uppercase().replace(|c: char| c.is_ascii_digit(), "X")).await?
        }
        Behaviour::CloseAfterLastProof => {
            at.blob("2", &second).await?;
            return None;
        }
        Behaviour::Slow => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            at.blob("2", &second).await?;
        }
        Behaviour::Flood => {
            for _ in 0..5000 {
                at.picture("1").await?;
            }
            at.blob("2", &second).await?;
        }
        _ => {
            // In pieces, as a terminal may have it.
            at.blob("2", &second[..5]).await?;
            at.picture("1").await?;
            at.blob("2", &second[5..]).await?;
        }
    }
    counts[1].fetch_add(1, Ordering::SeqCst);
    if behaviour == Behaviour::CloseSoonAfterLastProof {
        tokio::time::sleep(Duration::from_millis(50)).await;
        return None;
    }
    if behaviour == Behaviour::SilentAfterSecondProof {
        return at.be_silent().await;
    }
    loop {
        let word = at.typed_line().await?;
        at.blob("2", &word).await?;
    }
}

impl Served {
    async fn write(&mut self, bytes: &[u8]) -> Option<()> {
        if self.behaviour == Behaviour::CutAtEveryByte {
            for byte in bytes.chunks(1) {
                self.stream.write_all(byte).await.ok()?;
                tokio::task::yield_now().await;
            }
            return Some(());
        }
        self.stream.write_all(bytes).await.ok()
    }

    async fn send(&mut self, elements: &[&str]) -> Option<()> {
        let mut bytes = Vec::new();
        codec::encode(&mut bytes, elements);
        self.write(&bytes).await
    }

    async fn blob(&mut self, stream: &str, text: &str) -> Option<()> {
        self.send(&["blob", stream, &BASE64_STANDARD.encode(text)]).await
    }

    /// What a terminal draws.
    async fn picture(&mut self, stream: &str) -> Option<()> {
        self.send(&["img", stream, "14", "0", "image/png", "0", "0"]).await?;
        self.blob(stream, "not really a picture").await?;
        self.send(&["end", stream]).await?;
        self.send(&["sync", "123456", "1"]).await
    }

    async fn next(&mut self) -> Option<Instruction> {
        loop {
            if let Some(instruction) = self.decoder.instruction().ok()? {
                return Some(instruction);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer).await {
                Ok(length) if length > 0 => self.decoder.push(&buffer[..length]),
                _ => return None,
            }
        }
    }

    /// What is typed, up to Enter.
    async fn typed_line(&mut self) -> Option<String> {
        let mut line = String::new();
        loop {
            let instruction = self.next().await?;
            if instruction.opcode() == "key" && instruction.arg(1) == "1" {
                match instruction.arg(0).parse().ok()? {
                    65293 => return Some(line),
                    keysym => line.push(char::from_u32(keysym)?),
                }
            }
        }
    }

    /// Sends frames that need an answer, as long as the client is connected.
    async fn flood(self) -> Option<()> {
        let mut frames = Vec::new();
        while frames.len() < 256 * 1024 {
            codec::encode(&mut frames, &["sync", "123456", "1"]);
        }
        let (mut read, mut write) = self.stream.into_split();
        let reads = async {
            let mut buffer = vec![0; 64 * 1024];
            while self.behaviour == Behaviour::FloodForEver && read.read(&mut buffer).await.ok()? > 0 {}
            std::future::pending::<Option<()>>().await
        };
        let writes = async {
            loop {
                write.write_all(&frames).await.ok()?;
            }
        };
        tokio::select! {
            end = reads => end,
            end = writes => end,
        }
    }

    /// Reads, and answers nothing. The connection stays open, as that of a dead child process of stock does.
    async fn be_silent(&mut self) -> Option<()> {
        loop {
            self.next().await?;
        }
    }
}
