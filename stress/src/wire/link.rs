//! How does a client answer guacd? The client's side of the Guacamole protocol, without any socket: an instruction goes in;
//! answers and at most one [`Event`] come out.
//!
//! Only the bytes of one stream prove anything, and only after the nonce was typed: those of a pipe stream that the target's
//! program opened or, for VNC and RDP, of a clipboard stream that was opened since.

use base64::{Engine, prelude::BASE64_STANDARD};

use super::{
    codec::{self, Instruction},
    proof::Proof,
};
use crate::report::Phase;

/// The protocol version that is spoken.
const VERSION: &str = "VERSION_1_5_0";

/// Arguments that a session can do without. Before 1.6.0, guacd's `ssh` had no `timeout`.
const OPTIONAL: &[&str] = &["timeout"];

/// The keysym of the Enter key.
const ENTER: &str = "65293";

/// Where the targets mark the frames that they draw, in pixels: from the left, from the top, how wide, and how high. A terminal's
/// mark is a part of its first row.
pub const MARK_AREA: [u16; 4] = [64, 0, 128, MARK_SIDE];

/// The sides of a desktop's mark, which begins where the area does. It is one of the cells that guacd's display is divided into.
pub const MARK_SIDE: u16 = 64;

/// What guacd is to connect to: the arguments of its protocol, and where the target's program answers.
#[derive(Clone)]
pub struct Login {
    /// guacd's name of the protocol.
    pub protocol: &'static str,
    /// Arguments by name. guacd has to know them all, except `timeout`.
    pub arguments: Vec<(&'static str, String)>,
    /// Where what was typed comes back.
    pub echo: Echo,
    /// What has to be typed until the target answers: the command that starts its program or, for the clipboard, a word that
    /// comes back once the program runs.
    pub call: Option<String>,
}

/// Where what was typed comes back.
#[derive(Clone)]
pub enum Echo {
    /// On the pipe of this name, which the target's program opens in its terminal: once, or for each line.
    Pipe(String),
    /// On the clipboard, each time on a new stream.
    Clipboard {
        /// The width and the height of the target's screen, by which it is recognized. Where they are not known, the target
        /// has to be called.
        screen: Option<[String; 2]>,
    },
}

/// What an instruction means for the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// guacd has given the session an id. This proves nothing about the target.
    Ready(String),
    /// The target has answered: its program has opened its pipe, or its screen was drawn.
    TargetReady,
    /// What was typed last, a call or a nonce, has come back.
    Echoed,
}

/// The client's side of one session.
pub struct Link {
    login: Login,
    phase: Phase,
    /// Whether the target's screen was drawn.
    is_drawn: bool,
    /// The number of the pipe stream that the target's program opened, or of the latest clipboard stream.
    stream: Option<String>,
    proof: Proof,
    /// Whether the latest rectangle is where the targets mark their frames.
    is_marked: bool,
    /// The mark of the frame that is being received.
    mark: Option<u32>,
    /// The mark of the frame that was received last.
    received_mark: Option<u32>,
}

impl Link {
    /// A new session. Appends what it sends first.
    pub fn new(login: Login, out: &mut Vec<u8>) -> Self {
        codec::encode(out, &["select", login.protocol]);
        Self {
            login,
            phase: Phase::Handshake,
            is_drawn: false,
            stream: None,
            proof: Proof::default(),
            is_marked: false,
            mark: None,
            received_mark: None,
        }
    }

    /// How far the session has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Enters a phase that does not begin with an instruction.
    pub fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// Whether the target has to be called.
    pub fn has_call(&self) -> bool {
        self.login.call.is_some()
    }

    /// Calls the target, unless nothing was drawn yet: before the login, guacd drops what is typed.
    pub fn type_call(&mut self, out: &mut Vec<u8>) {
        let Some(call) = self.login.call.as_ref().filter(|_| self.is_drawn) else { return };
        type_line(call, out);
        if self.is_clipboard() {
            self.proof.expect(call);
        }
    }

    /// Types a nonce and Enter. What came before no longer counts.
    pub fn type_nonce(&mut self, nonce: &str, out: &mut Vec<u8>) {
        type_line(nonce, out);
        self.proof.expect(nonce);
    }

    /// The mark (0xRRGGBB) of the frame that has been received since the last call, if it has one.
    pub fn take_mark(&mut self) -> Option<u32> {
        self.received_mark.take()
    }

    /// Handles an instruction, and appends the answers to `out`.
    ///
    /// # Errors
    ///
    /// Why the session is dead.
    pub fn receive(&mut self, instruction: &Instruction, out: &mut Vec<u8>) -> Result<Option<Event>, String> {
        match instruction.opcode() {
            "args" if self.phase == Phase::Handshake => self.answer_args(instruction.args(), out)?,
            "ready" if self.phase == Phase::Handshake => {
                self.phase = Phase::Login;
                return Ok(Some(Event::Ready(instruction.arg(0).into())));
            }
            "sync" => {
                self.is_drawn |= self.phase == Phase::Login;
                self.received_mark = self.mark.take();
                codec::encode(out, &["sync", instruction.arg(0)]);
            }
            "rect" => self.is_marked = is_mark(instruction.args()),
            "cfill" if self.is_marked => {
                self.is_marked = false;
                let colour = [2, 3, 4].map(|channel| instruction.arg(channel).parse::<u8>().ok());
                if let [Some(red), Some(green), Some(blue)] = colour {
                    self.mark = Some(u32::from_be_bytes([0, red, green, blue]));
                }
            }
            "pipe" if self.phase != Phase::Handshake && self.is_awaited_pipe(instruction) => {
                self.stream = Some(instruction.arg(0).into());
                self.proof.restart();
                codec::encode(out, &["ack", instruction.arg(0), "OK", "0"]);
                return Ok((self.phase == Phase::Login).then_some(Event::TargetReady));
            }
            "size" if self.phase == Phase::Login && self.is_screen(instruction) => {
                return Ok(Some(Event::TargetReady));
            }
            "clipboard" if self.is_clipboard() => {
                self.stream = Some(instruction.arg(0).into());
                self.proof.restart();
                codec::encode(out, &["ack", instruction.arg(0), "OK", "0"]);
            }
            "blob" if self.is_stream(instruction.arg(0)) => {
                codec::encode(out, &["ack", instruction.arg(0), "OK", "0"]);
                let bytes = BASE64_STANDARD
                    .decode(instruction.arg(1))
                    .map_err(|_| "malformed instruction: a blob that is not base64".to_owned())?;
                return Ok(self.proof.hear(&bytes).then_some(Event::Echoed));
            }
            "end" if self.is_stream(instruction.arg(0)) => self.stream = None,
            // guacd chooses the numbers of streams. A new stream with the number of the pipe would make its blobs count as echo.
            "img" | "audio" | "video" | "file" | "clipboard" | "argv" | "pipe"
                if self.is_stream(instruction.arg(0)) =>
            {
                return Err(format!(
                    "guacd opened another stream ({}) over the echo's",
                    instruction.opcode()
                ));
            }
            "required" => return Err(format!("guacd asks for the {}", instruction.args().join(" and the "))),
            "error" => return Err(describe_error(instruction.arg(1), instruction.arg(0))),
            "disconnect" => return Err("guacd disconnected the session".into()),
            _ => {}
        }
        Ok(None)
    }

    /// Answers with our values, in the order in which guacd names its arguments: which names come depends on its release.
    fn answer_args(&self, names: &[String], out: &mut Vec<u8>) -> Result<(), String> {
        let known = |name: &str| names.iter().any(|known| known == name);
        let mut needed = self.login.arguments.iter().filter(|(name, _)| !OPTIONAL.contains(name));
        if let Some((name, _)) = needed.find(|(name, _)| !known(name)) {
            let protocol = self.login.protocol;
            return Err(format!("this guacd's {protocol} has no argument named {name}"));
        }
        let value = |name: &String| {
            if name.starts_with("VERSION_") {
                return VERSION;
            }
            let mut ours = self.login.arguments.iter();
            ours.find(|(ours, _)| ours == name).map_or("", |(_, value)| value.as_str())
        };
        let connect = std::iter::once("connect").chain(names.iter().map(value)).collect::<Vec<_>>();
        codec::encode(out, &["size", "800", "600", "96"]);
        codec::encode(out, &["audio"]);
        codec::encode(out, &["video"]);
        // As browsers do.
        codec::encode(out, &["image", "image/jpeg", "image/png", "image/webp"]);
        codec::encode(out, &connect);
        Ok(())
    }

    fn is_stream(&self, stream: &str) -> bool {
        self.stream.as_deref() == Some(stream)
    }

    fn is_clipboard(&self) -> bool {
        matches!(self.login.echo, Echo::Clipboard { .. })
    }

    fn is_screen(&self, size: &Instruction) -> bool {
        let [layer, lengths @ ..] = size.args() else { return false };
        matches!(&self.login.echo, Echo::Clipboard { screen: Some(screen) } if layer == "0" && lengths == screen)
    }

    fn is_awaited_pipe(&self, pipe: &Instruction) -> bool {
        matches!(&self.login.echo, Echo::Pipe(name) if pipe.arg(2) == name) && self.stream.is_none()
    }
}

/// Whether a rectangle, of this layer, place and size, is where the targets mark their frames.
fn is_mark(rectangle: &[String]) -> bool {
    let mut numbers = rectangle.iter().map(|number| number.parse::<u16>());
    let mut next = || numbers.next().and_then(Result::ok);
    // Buffers have negative numbers.
    let (Some(_layer), Some(x), Some(y)) = (next(), next(), next()) else { return false };
    let (Some(width), Some(height)) = (next(), next()) else { return false };
    let [left, top, all_width, all_height] = MARK_AREA;
    x >= left
        && y >= top
        && x.saturating_add(width) <= left + all_width
        && y.saturating_add(height) <= top + all_height
}

/// Types ASCII and Enter: the keysyms of its characters are their codes.
fn type_line(line: &str, out: &mut Vec<u8>) {
    for key in line.chars().map(|c| u32::from(c).to_string()).chain([ENTER.into()]) {
        codec::encode(out, &["key", &key, "1"]);
        codec::encode(out, &["key", &key, "0"]);
    }
}

/// An `error` instruction in words. The codes are Guacamole's own.
fn describe_error(code: &str, message: &str) -> String {
    let meaning = match code {
        "512" => "server error",
        "513" => "server busy",
        "514" => "upstream timeout",
        "515" => "upstream error",
        "516" => "resource not found",
        "517" => "resource conflict",
        "518" => "resource closed",
        "519" => "target not found",
        "520" => "target unavailable",
        "768" => "bad request",
        "769" => "unauthorized",
        "771" => "forbidden",
        "776" => "client timeout",
        "797" => "too many clients",
        _ => "error of an unknown kind",
    };
    format!("guacd answered with error {code}, {meaning}: {message}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::Decoder;

    fn instructions(bytes: &[u8]) -> Vec<Instruction> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        std::iter::from_fn(|| decoder.instruction().unwrap()).collect()
    }

    fn instruction(elements: &[&str]) -> Instruction {
        let mut bytes = Vec::new();
        codec::encode(&mut bytes, elements);
        instructions(&bytes).remove(0)
    }

    fn login() -> Login {
        Login {
            protocol: "ssh",
            arguments: vec![("hostname", "box".into()), ("port", "22".into())],
            echo: Echo::Pipe("proof".into()),
            call: None,
        }
    }

    /// A session whose pipe is stream 7, and which waits for the nonce `0123abcd`.
    fn waiting() -> Link {
        let out = &mut Vec::new();
        let mut link = Link::new(login(), out);
        link.receive(&instruction(&["args", "VERSION_1_5_0", "hostname", "port"]), out).unwrap();
        assert_eq!(link.receive(&instruction(&["ready", "$id"]), out), Ok(Some(Event::Ready("$id".into()))));
        let pipe = instruction(&["pipe", "7", "text/plain", "proof"]);
        assert_eq!(link.receive(&pipe, out), Ok(Some(Event::TargetReady)));
        link.type_nonce("0123abcd", out);
        link
    }

    fn blob(stream: &str, text: &str) -> Instruction {
        instruction(&["blob", stream, &BASE64_STANDARD.encode(text)])
    }

    #[test]
    fn arguments_are_mapped_by_name() {
        let out = &mut Vec::new();
        let mut link = Link::new(login(), out);
        out.clear();
        let args = ["args", "VERSION_1_5_0", "scrollback", "port", "hostname", "żółw"];
        link.receive(&instruction(&args), out).unwrap();
        let connect = instructions(out).pop().unwrap();
        assert_eq!(connect.opcode(), "connect");
        assert_eq!(connect.args(), ["VERSION_1_5_0", "", "22", "box", ""]);
    }

    #[test]
    fn an_argument_that_guacd_does_not_know_is_an_error() {
        let mut link = Link::new(login(), &mut Vec::new());
        let error =
            link.receive(&instruction(&["args", "VERSION_1_5_0", "hostname"]), &mut Vec::new()).unwrap_err();
        assert_eq!(error, "this guacd's ssh has no argument named port");
    }

    #[test]
    fn a_guacd_without_a_timeout_of_its_own_is_not_given_any() {
        let mut login = login();
        login.arguments.push(("timeout", "30".into()));
        let out = &mut Vec::new();
        let mut link = Link::new(login, out);
        link.receive(&instruction(&["args", "VERSION_1_5_0", "hostname", "port"]), out).unwrap();
        assert_eq!(instructions(out).pop().unwrap().args(), ["VERSION_1_5_0", "box", "22"]);
    }

    #[test]
    fn types_a_nonce_as_keys_that_are_pressed_and_released() {
        let out = &mut Vec::new();
        let mut link = Link::new(login(), out);
        out.clear();
        link.type_nonce("a1", out);
        assert_eq!(out, b"3.key,2.97,1.1;3.key,2.97,1.0;3.key,2.49,1.1;3.key,2.49,1.0;3.key,5.65293,1.1;3.key,5.65293,1.0;");
    }

    #[test]
    fn counts_a_nonce_that_comes_back_in_pieces() {
        let mut link = waiting();
        let out = &mut Vec::new();
        assert_eq!(link.receive(&blob("7", "noise 0123"), out), Ok(None));
        assert_eq!(link.receive(&blob("7", "ab"), out), Ok(None));
        assert_eq!(link.receive(&blob("7", "cd\r\n"), out), Ok(Some(Event::Echoed)));
        assert_eq!(instructions(out).iter().map(|ack| ack.opcode()).collect::<Vec<_>>(), ["ack"; 3]);
    }

    #[test]
    fn counts_a_nonce_once() {
        let mut link = waiting();
        assert_eq!(link.receive(&blob("7", "0123abcd"), &mut Vec::new()), Ok(Some(Event::Echoed)));
        assert_eq!(link.receive(&blob("7", "0123abcd"), &mut Vec::new()), Ok(None));
    }

    #[test]
    fn does_not_count_a_nonce_on_another_stream() {
        let mut link = waiting();
        let out = &mut Vec::new();
        assert_eq!(
            link.receive(&instruction(&["img", "8", "14", "0", "image/png", "0", "0"]), out),
            Ok(None)
        );
        assert_eq!(link.receive(&blob("8", "0123abcd"), out), Ok(None));
        assert_eq!(link.receive(&instruction(&["pipe", "9", "text/plain", "other"]), out), Ok(None));
        assert_eq!(link.receive(&blob("9", "0123abcd"), out), Ok(None));
        assert_eq!(link.receive(&instruction(&["pipe", "10", "text/plain", "proof"]), out), Ok(None));
        assert_eq!(link.receive(&blob("10", "0123abcd"), out), Ok(None));
    }

    #[test]
    fn does_not_count_what_came_before_it_was_typed() {
        let mut link = waiting();
        let out = &mut Vec::new();
        link.receive(&blob("7", "0123abcd"), out).unwrap();
        assert_eq!(link.receive(&blob("7", "feedbeef"), out), Ok(None));
        assert_eq!(link.receive(&blob("7", "feed"), out), Ok(None));
        link.type_nonce("feedbeef", out);
        assert_eq!(link.receive(&blob("7", "beef"), out), Ok(None), "its first half came too early");
        assert_eq!(link.receive(&blob("7", "0123abcd"), out), Ok(None), "that was the nonce before");
        assert_eq!(link.receive(&blob("7", "feedbeef"), out), Ok(Some(Event::Echoed)));
    }

    #[test]
    fn a_stream_that_opens_over_the_pipe_kills_the_session() {
        for opcode in ["img", "argv", "pipe", "clipboard"] {
            assert!(
                waiting().receive(&instruction(&[opcode, "7", "x", "proof"]), &mut Vec::new()).is_err(),
                "{opcode}"
            );
        }
    }

    #[test]
    fn a_pipe_may_be_opened_anew_for_each_line() {
        let mut link = waiting();
        let out = &mut Vec::new();
        assert_eq!(link.receive(&blob("7", "0123"), out), Ok(None));
        assert_eq!(link.receive(&instruction(&["end", "7"]), out), Ok(None));
        assert_eq!(link.receive(&blob("7", "0123abcd"), out), Ok(None), "it is closed");
        link.enter(Phase::FirstProof);
        for (text, event) in [("abcd", None), ("0123abcd", Some(Event::Echoed))] {
            let pipe = instruction(&["pipe", "9", "text/plain", "proof"]);
            assert_eq!(link.receive(&pipe, out), Ok(None));
            assert_eq!(link.receive(&blob("9", text), out), Ok(event), "{text}");
            assert_eq!(link.receive(&instruction(&["end", "9"]), out), Ok(None));
        }
    }

    #[test]
    fn a_frame_is_shown_once_all_of_it_has_come() {
        let mut link = waiting();
        let out = &mut Vec::new();
        let mut receive = |elements: &[&str]| {
            link.receive(&instruction(elements), out).unwrap();
            link.take_mark()
        };
        let sync = ["sync", "1", "1"];
        assert_eq!(receive(&["rect", "0", "64", "0", "64", "64"]), None);
        assert_eq!(receive(&["cfill", "14", "0", "161", "2", "3", "255"]), None);
        assert_eq!(receive(&sync), Some(0x00a1_0203));
        assert_eq!(receive(&sync), None);
        for elsewhere in
            [["0", "0", "0", "800", "600"], ["-1", "64", "0", "64", "64"], ["0", "64", "8", "64", "64"]]
        {
            receive(&[&["rect"], &elsewhere[..]].concat());
            receive(&["cfill", "14", "0", "161", "2", "3", "255"]);
            assert_eq!(receive(&sync), None, "{elsewhere:?}");
        }
        receive(&["cfill", "14", "0", "161", "2", "3", "255"]);
        assert_eq!(receive(&sync), None, "it fills nothing");
    }

    #[test]
    fn a_clipboard_counts_only_where_it_is_the_echo_and_only_as_it_was_opened() {
        let out = &mut Vec::new();
        let echo = Echo::Clipboard { screen: Some(["803".into(), "601".into()]) };
        let login = Login { protocol: "vnc", arguments: Vec::new(), echo, call: None };
        let mut link = Link::new(login, out);
        link.receive(&instruction(&["args", "VERSION_1_5_0"]), out).unwrap();
        link.receive(&instruction(&["ready", "$id"]), out).unwrap();
        assert_eq!(link.receive(&instruction(&["size", "0", "800", "600"]), out), Ok(None));
        let screen = instruction(&["size", "0", "803", "601"]);
        assert_eq!(link.receive(&screen, out), Ok(Some(Event::TargetReady)));
        let picture = instruction(&["img", "3", "14", "0", "image/png", "0", "0"]);
        assert_eq!(link.receive(&picture, out), Ok(None));
        link.enter(Phase::FirstProof);
        link.type_nonce("0123abcd", out);
        assert_eq!(link.receive(&blob("3", "0123abcd"), out), Ok(None), "a picture is no clipboard");
        for (text, event) in [("0123", None), ("abcd", None), ("0123abcd", Some(Event::Echoed))] {
            link.receive(&instruction(&["clipboard", "5", "text/plain"]), out).unwrap();
            assert_eq!(link.receive(&blob("5", text), out), Ok(event), "{text}");
            assert_eq!(link.receive(&instruction(&["end", "5"]), out), Ok(None));
        }
        assert_eq!(waiting().receive(&instruction(&["clipboard", "8", "text/plain"]), out), Ok(None));
    }

    #[test]
    fn a_call_is_answered_when_it_comes_back_on_the_clipboard() {
        let out = &mut Vec::new();
        let echo = Echo::Clipboard { screen: None };
        let login = Login { protocol: "vnc", arguments: Vec::new(), echo, call: Some("hey".into()) };
        let mut link = Link::new(login, out);
        link.receive(&instruction(&["args", "VERSION_1_5_0"]), out).unwrap();
        link.receive(&instruction(&["ready", "$id"]), out).unwrap();
        assert_eq!(link.receive(&instruction(&["size", "0", "803", "601"]), out), Ok(None));
        out.clear();
        link.type_call(out);
        assert!(out.is_empty(), "the target was called before it was drawn");
        link.receive(&instruction(&["sync", "1234567", "1"]), out).unwrap();
        out.clear();
        link.type_call(out);
        assert_eq!(instructions(out)[0].args(), ["104", "1"]);
        for (text, event) in [("ey", None), ("hey", Some(Event::Echoed)), ("hey", None)] {
            link.receive(&instruction(&["clipboard", "5", "text/plain"]), out).unwrap();
            assert_eq!(link.receive(&blob("5", text), out), Ok(event), "{text}");
        }
    }

    #[test]
    fn errors_and_disconnects_kill_the_session() {
        let error = waiting().receive(&instruction(&["error", "Aborted. See logs.", "515"]), &mut Vec::new());
        assert_eq!(error, Err("guacd answered with error 515, upstream error: Aborted. See logs.".into()));
        assert!(waiting().receive(&instruction(&["disconnect"]), &mut Vec::new()).is_err());
        assert!(waiting().receive(&instruction(&["required", "password"]), &mut Vec::new()).is_err());
    }

    #[test]
    fn a_pipe_that_opens_before_the_session_is_ready_is_ignored() {
        let out = &mut Vec::new();
        let mut link = Link::new(login(), out);
        assert_eq!(link.receive(&instruction(&["pipe", "7", "text/plain", "proof"]), out), Ok(None));
    }

    #[test]
    fn a_second_ready_is_ignored() {
        assert_eq!(waiting().receive(&instruction(&["ready", "$other"]), &mut Vec::new()), Ok(None));
    }

    #[test]
    fn answers_sync_with_its_own_timestamp() {
        let out = &mut Vec::new();
        waiting().receive(&instruction(&["sync", "1234567", "3"]), out).unwrap();
        assert_eq!(out, b"4.sync,7.1234567;");
    }
}
