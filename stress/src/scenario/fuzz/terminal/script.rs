//! What does a terminal session of the fuzzer consist of? Output of the target, and input of the client.

use std::ops::Range;

use base64::{Engine, prelude::BASE64_STANDARD};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::super::script::{Script, random_numbers};
use crate::report::FuzzKind;

/// Maximum number of bytes that the target prints at once.
const MAX_OUTPUT: usize = 64 * 1024;

/// One thing that happens in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The target's program prints this.
    Print(Vec<u8>),
    /// The client sends these instructions.
    Send(Vec<Vec<String>>),
    /// Target and client wait until guacd has drawn a frame.
    Frame,
}

/// All that happens in a session, until it has to prove itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminalScript {
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// A step in the form in which it is saved: `print` or `send` is set, or neither for a frame.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedStep {
    /// What the target prints, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    print: Option<String>,
    /// The same as text, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    send: Vec<Vec<String>>,
}

/// A script in the form in which it is saved.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    terminal: Vec<SavedStep>,
}

impl TerminalScript {
    /// Reads a script that was saved. None if the text is not one.
    pub fn parse(json: &[u8]) -> Option<Self> {
        let saved: Saved = serde_json::from_slice(json).ok()?;
        let step = |step: SavedStep| {
            Some(match step.print {
                Some(output) => Step::Print(BASE64_STANDARD.decode(output).ok()?),
                None if step.send.is_empty() => Step::Frame,
                None => Step::Send(step.send),
            })
        };
        Some(Self { steps: saved.terminal.into_iter().map(step).collect::<Option<_>>()? })
    }
}

impl Script for TerminalScript {
    const KIND: FuzzKind = FuzzKind::Terminal;
    const INPUTS: u32 = 1;

    fn generate(seed: u64, numbers: Range<u32>) -> Self {
        let mut rng = random_numbers(seed, numbers.start);
        let mut writer = Writer { rng: &mut rng, out: Vec::new() };
        let mut steps = Vec::new();
        for _ in 0..writer.rng.usize(1..60) {
            steps.push(match writer.rng.u32(0..10) {
                0..7 => Step::Print(writer.output()),
                7 | 8 => Step::Send(input(writer.rng)),
                _ => Step::Frame,
            });
        }
        Self { steps }
    }

    fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let step = |step: &Step| {
            let (print, text, send) = match step {
                Step::Print(output) => (
                    Some(BASE64_STANDARD.encode(output)),
                    Some(output.escape_ascii().to_string()),
                    Vec::new(),
                ),
                Step::Send(instructions) => (None, None, instructions.clone()),
                Step::Frame => (None, None, Vec::new()),
            };
            SavedStep { print, text, send }
        };
        serde_json::to_vec_pretty(&Saved { terminal: self.steps.iter().map(step).collect() })
    }
}

/// What a client does with a terminal: it resizes and scrolls it, selects text, and types.
fn input(rng: &mut Rng) -> Vec<Vec<String>> {
    let instruction =
        |elements: &[&str]| elements.iter().map(|&element| element.to_owned()).collect::<Vec<_>>();
    let key = |keysym: u32, pressed: bool| {
        instruction(&["key", &keysym.to_string(), if pressed { "1" } else { "0" }])
    };
    let mouse = |x: u32, y: u32, mask: u32| {
        instruction(&["mouse", &x.to_string(), &y.to_string(), &mask.to_string()])
    };
    const SHIFT: u32 = 0xFFE1;
    match rng.u32(0..9) {
        0..3 => {
            let lengths = [1, 17, 20, 40, 100, 200, 300, 600, 800, 1024, 1920, 4000];
            let mut length =
                || if rng.bool() { lengths[rng.usize(0..lengths.len())] } else { rng.u32(1..1400) };
            let (width, height) = (length(), length());
            vec![instruction(&["size", &width.to_string(), &height.to_string()])]
        }
        // Page up and page down, held with shift.
        3 | 4 => {
            let page = 0xFF55 + rng.u32(0..2);
            let mut all = vec![key(SHIFT, true)];
            all.extend((0..rng.usize(1..8)).map(|_| key(page, true)));
            all.push(key(SHIFT, false));
            all
        }
        // Select by dragging, or a word by two clicks, or a row by three.
        5 | 6 => {
            let mut at = || (rng.u32(0..1100), rng.u32(0..800));
            let (from, to) = (at(), at());
            let clicks = rng.usize(1..4);
            let mut all = Vec::new();
            for _ in 0..clicks {
                all.extend([mouse(from.0, from.1, 1), mouse(from.0, from.1, 0)]);
            }
            if clicks == 1 {
                all.splice(1.., [mouse(to.0, to.1, 1), mouse(to.0, to.1, 0)]);
            }
            all
        }
        // The wheel, and buttons that paste.
        7 => {
            let (x, y, mask) = (rng.u32(0..1100), rng.u32(0..800), 1 << rng.u32(0..5));
            vec![mouse(x, y, mask), mouse(x, y, 0)]
        }
        _ => {
            let keysym = match rng.u32(0..3) {
                0 => rng.u32(0x20..0x7F),
                1 => rng.u32(0xFF00..=0xFFFF),
                _ => 0x0100_0000 + rng.u32(0..0x11_0000),
            };
            vec![key(keysym, true), key(keysym, false)]
        }
    }
}

/// Writes what a program prints.
struct Writer<'a> {
    rng: &'a mut Rng,
    out: Vec<u8>,
}

impl Writer<'_> {
    /// A few sequences, sometimes damaged.
    fn output(&mut self) -> Vec<u8> {
        self.out.clear();
        for _ in 0..self.rng.usize(1..16) {
            self.sequence();
        }
        if self.rng.u32(0..4) == 0 {
            for _ in 0..self.rng.usize(1..6) {
                self.damage();
            }
        }
        self.out.truncate(MAX_OUTPUT);
        std::mem::take(&mut self.out)
    }

    fn sequence(&mut self) {
        match self.rng.u32(0..22) {
            0..7 => self.control_sequence(),
            7 => self.mode(),
            // A scrolling region, and a place.
            8 | 9 => {
                let last = if self.rng.bool() { 'r' } else { 'H' };
                let (first, second) = (self.number(), self.number());
                self.write(format!("\x1b[{first};{second}{last}"));
            }
            10 => self.known_string(),
            11 => {
                let operation = self.number();
                self.write(format!("\x1b]{operation};"));
                self.text();
                self.end_of_string();
            }
            // DCS, PM, APC, SOS, and the title of screen(1).
            12 => {
                let first = self.one_of(b"P^_Xk");
                self.out.extend([0x1B, first]);
                self.text();
                self.end_of_string();
            }
            // The alignment test, and its neighbours.
            13 => {
                let last = if self.rng.u32(0..3) > 0 { b'8' } else { self.one_of(b"0123456789") };
                self.out.extend([0x1B, b'#', last]);
            }
            // Character sets.
            14 => {
                let (set, name) = (self.one_of(b"()*+-./%# "), self.one_of(b"B0UKAG@8F"));
                self.out.extend([0x1B, set, name]);
                if self.rng.bool() {
                    let shift = self.one_of(b"\x0E\x0F");
                    self.out.push(shift);
                }
            }
            15 => {
                let last = self.rng.u8(0x20..0x7F);
                self.out.extend([0x1B, last]);
            }
            16 => {
                for _ in 0..self.rng.usize(0..12) {
                    let control = self.one_of(b"\x07\x08\t\n\x0B\x0C\r\x05\x0E\x0F\x18\x1A");
                    self.out.push(control);
                }
            }
            17 => {
                let rows = self.rng.usize(0..60);
                self.out.resize(self.out.len() + rows, b'\n');
            }
            18 => {
                let last = if self.rng.bool() { 'h' } else { 'l' };
                self.write(format!("\x1b[4{last}"));
                self.text();
            }
            19 => {
                for _ in 0..self.rng.usize(0..80) {
                    self.out.push(self.rng.u8(..));
                }
            }
            _ => self.text(),
        }
    }

    /// CSI, with any number of any parameters.
    fn control_sequence(&mut self) {
        self.write("\x1b[");
        if self.rng.u32(0..4) == 0 {
            let prefix = self.one_of(b"?>=<:");
            self.out.push(prefix);
        }
        let parameters = if self.rng.u32(0..30) == 0 { self.rng.usize(1..40) } else { self.rng.usize(1..4) };
        for index in 0..parameters {
            let number = self.number();
            self.write(if index == 0 { number } else { format!(";{number}") });
        }
        if self.rng.u32(0..15) == 0 {
            self.out.push(self.rng.u8(0x20..0x30));
        }
        let last = if self.rng.u32(0..10) > 0 {
            self.one_of(b"@ABCDEFGHIJKLMPSTXZ`abcdefghilmnpqrstu]^{|}~")
        } else {
            self.rng.u8(0x40..0x7F)
        };
        self.out.push(last);
    }

    /// The alternate screen, 132 columns, insertion, and so on.
    fn mode(&mut self) {
        let modes = [47, 1047, 1048, 1049, 25, 1, 4, 20, 3, 6, 7, 2004, 1000, 5];
        let mode = modes[self.rng.usize(0..modes.len())];
        let prefix = if self.rng.u32(0..6) > 0 { "?" } else { "" };
        let last = if self.rng.bool() { 'h' } else { 'l' };
        self.write(format!("\x1b[{prefix}{mode}{last}"));
    }

    /// OSC with an operation that guacd knows, or that programs use often.
    fn known_string(&mut self) {
        match self.rng.u32(0..9) {
            0 => self.write("\x1b]482200;"),
            1 => self.write("\x1b]482201;"),
            2 => {
                let flags = self.rng.u32(0..4);
                self.write(format!("\x1b]482202;{flags};"));
            }
            3 => self.write("\x1b]482203;"),
            4 => {
                let rows = self.number();
                self.write(format!("\x1b]482204;{rows}"));
            }
            5 => self.write("\x1b]2;"),
            6 => {
                let index = self.number();
                let color = ["rgb:ff/00/7f", "rgb:f/0/7", "red", "?", ""][self.rng.usize(0..5)];
                self.write(format!("\x1b]4;{index};{color}"));
            }
            7 => self.write("\x1b]52;c;"),
            _ => self.write("\x1b]8;;"),
        }
        if self.rng.u32(0..40) == 0 {
            for _ in 0..self.rng.usize(0..8000) {
                self.out.push(self.rng.u8(0x20..0x7F));
            }
        } else if self.rng.bool() {
            self.text();
        }
        self.end_of_string();
    }

    fn end_of_string(&mut self) {
        let ends: [&[u8]; 6] = [b"\x07", b"\x9C", b"", b"\x18", b"\x1b\\", b"\x1b\\"];
        let end = ends[self.rng.usize(0..ends.len())];
        self.out.extend(end);
    }

    /// A parameter: missing, small, near the size of a terminal, or absurd.
    fn number(&mut self) -> String {
        match self.rng.u32(0..12) {
            0 => String::new(),
            1 => "0".into(),
            2 | 3 => self.rng.u32(0..4).to_string(),
            4 => self.rng.u32(0..30).to_string(),
            5 => self.rng.u32(0..200).to_string(),
            6 => self.rng.u32(1020..1030).to_string(),
            7 => "2147483647".into(),
            8 => "4294967295".into(),
            9 => "99999999999999999999".into(),
            10 => self.rng.u32(..).to_string(),
            _ => self.rng.u32(1..10).to_string(),
        }
    }

    /// Letters, among them wide ones, combining ones, and bytes that are not UTF-8.
    fn text(&mut self) {
        let length = if self.rng.u32(0..10) == 0 { 400 } else { 20 };
        for _ in 0..self.rng.usize(0..length) {
            let letter = match self.rng.u32(0..12) {
                0 => self.rng.char('\u{4E00}'..'\u{9FFF}'),
                1 => self.rng.char('\u{300}'..'\u{36F}'),
                2 => self.rng.char('\u{1F300}'..'\u{1F6FF}'),
                3 => self.rng.char('\u{200B}'..'\u{200F}'),
                4 => self.rng.char(..),
                5 => {
                    self.out.push(self.rng.u8(..));
                    continue;
                }
                _ => self.rng.char(' '..='~'),
            };
            self.out.extend(letter.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    fn damage(&mut self) {
        if self.out.is_empty() {
            return;
        }
        let at = self.rng.usize(0..self.out.len());
        match self.rng.u32(0..4) {
            0 => self.out[at] = self.rng.u8(..),
            1 => self.out[at] ^= 1 << self.rng.u32(0..8),
            2 => {
                self.out.remove(at);
            }
            // A piece of it, once more somewhere else.
            _ => {
                let end = self.out.len().min(at + self.rng.usize(0..30));
                let piece = self.out[at..end].to_vec();
                let to = self.rng.usize(0..=self.out.len());
                self.out.splice(to..to, piece);
            }
        }
    }

    fn write(&mut self, text: impl AsRef<str>) {
        self.out.extend(text.as_ref().as_bytes());
    }

    fn one_of(&mut self, bytes: &[u8]) -> u8 {
        bytes[self.rng.usize(0..bytes.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generate(seed: u64, number: u32) -> TerminalScript {
        TerminalScript::generate(seed, number..number + 1)
    }

    #[test]
    fn a_script_follows_from_its_seed_and_number() {
        assert_eq!(generate(7, 3), generate(7, 3));
        assert_ne!(generate(7, 3), generate(7, 4));
        assert_ne!(generate(7, 3), generate(8, 3));
    }

    #[test]
    fn a_script_is_read_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..200 {
            let script = generate(1, number);
            let file = script.save(dir.path(), "script.json").unwrap();
            assert_eq!(TerminalScript::parse(&fs_err::read(file).unwrap()), Some(script));
        }
        assert_eq!(TerminalScript::parse(b"{}"), None);
        assert_eq!(TerminalScript::parse(br#"{"pieces": [], "ending": "close"}"#), None);
    }

    #[test]
    fn scripts_have_all_kinds_of_output_and_input() {
        let scripts = (0..300).map(|number| generate(2, number)).collect::<Vec<_>>();
        let steps = || scripts.iter().flat_map(|script| &script.steps);
        let outputs: Vec<&[u8]> = steps()
            .filter_map(|step| match step {
                Step::Print(output) => Some(&output[..]),
                _ => None,
            })
            .collect();
        let sequences: [&[u8]; 11] = [
            b"\x1b#8",
            b"\x1bP",
            b"\x1b^",
            b"\x1b_",
            b"\x1bX",
            b"\x1b]482202;",
            b"\x1b]4;",
            b"\x1b[?1049h",
            b"\x1b[?3h",
            b"\x1b[4h",
            b";99999999999999999999",
        ];
        for sequence in sequences {
            let is_in = |output: &&[u8]| output.windows(sequence.len()).any(|window| window == sequence);
            assert!(outputs.iter().any(is_in), "{}", sequence.escape_ascii());
        }
        assert!(outputs.iter().any(|output| String::from_utf8(output.to_vec()).is_err()));
        let opcodes: std::collections::BTreeSet<&str> = steps()
            .filter_map(|step| match step {
                Step::Send(instructions) => Some(instructions),
                _ => None,
            })
            .flatten()
            .map(|instruction| instruction[0].as_str())
            .collect();
        assert_eq!(Vec::from_iter(opcodes), ["key", "mouse", "size"]);
    }
}
