//! What is a malformed handshake?
//!
//! None has as many arguments to `connect` as a protocol needs (28 at least), however it is mutated. So guacd never
//! connects to anything because of one.

use std::{fs, ops::Range, path::Path};

use anyhow::Result;
use base64::{Engine, prelude::BASE64_STANDARD};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::super::script::{Script, random_numbers};
use crate::{
    preflight::Preflight,
    report::FuzzKind,
    wire::codec::{MAX_CHARS, MAX_ELEMENTS},
};

/// What is sent over one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// The bytes, in pieces that are sent one after another with a short pause.
    pub pieces: Vec<Vec<u8>>,
    /// What the client does then.
    pub ending: Ending,
}

/// What the client does after it has sent everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It closes its sending side, and waits for guacd to close the connection.
    HalfClose,
    /// It closes the connection.
    Close,
    /// It resets the connection.
    Reset,
    /// It waits for guacd to give up.
    Wait,
}

impl Handshake {
    /// Reads a handshake that was saved.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn load(file: &Path) -> Result<Self> {
        let wrong = |why: String| {
            Preflight(format!(
                "{} has no input to replay: {why}; give a file that fuzz has saved",
                file.display()
            ))
        };
        let json = fs::read(file).map_err(|error| wrong(error.to_string()))?;
        let saved: Saved = serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?;
        let pieces = saved.pieces.iter().map(|piece| BASE64_STANDARD.decode(piece));
        let pieces = pieces.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
        Ok(Self { pieces, ending: saved.ending })
    }
}

impl Script for Handshake {
    const KIND: FuzzKind = FuzzKind::Handshake;
    const INPUTS: u32 = 1;

    fn generate(seed: u64, numbers: Range<u32>) -> Self {
        let mut rng = random_numbers(seed, numbers.start);
        let bytes = bytes(&mut rng);
        let ending = match rng.u32(0..1000) {
            0..200 => Ending::HalfClose,
            200..700 => Ending::Close,
            700..999 => Ending::Reset,
            _ => Ending::Wait,
        };
        Self { pieces: cut(&mut rng, bytes), ending }
    }

    fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let text = self.pieces.iter().map(|piece| String::from_utf8_lossy(piece).into_owned());
        serde_json::to_vec_pretty(&Saved {
            pieces: self.pieces.iter().map(|piece| BASE64_STANDARD.encode(piece)).collect(),
            ending: self.ending,
            text: text.collect(),
        })
    }
}

/// A handshake in the form in which it is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// The pieces in base64.
    pieces: Vec<String>,
    ending: Ending,
    /// The same as text, for people.
    #[serde(default)]
    text: Vec<String>,
}

/// Bytes that mostly begin like a handshake.
fn bytes(rng: &mut Rng) -> Vec<u8> {
    match rng.u32(0..100) {
        0..4 => return random_bytes(rng, 512),
        4..6 => return b"GET / HTTP/1.1\r\nHost: guacd\r\n\r\n".to_vec(),
        // The beginning of TLS.
        6..8 => return [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &random_bytes(rng, 300)].concat(),
        _ => {}
    }
    let mut instructions = handshake(rng);
    for _ in 0..rng.u32(0..3) {
        mutate_instructions(rng, &mut instructions);
    }
    let mut bytes = Vec::new();
    for instruction in &instructions {
        write(rng, &mut bytes, instruction);
    }
    for _ in 0..rng.u32(0..3) {
        mutate_bytes(rng, &mut bytes);
    }
    // The maximum number of elements, and one more. Nothing is cut off afterwards, so that the number stays.
    if rng.u32(0..20) == 0 {
        let connect = vec![String::new(); MAX_ELEMENTS - rng.usize(1..3)];
        write(rng, &mut bytes, &[vec!["connect".into()], connect, vec![String::new()]].concat());
    }
    bytes
}

/// A well-formed handshake, except for the arguments of `connect`.
fn handshake(rng: &mut Rng) -> Vec<Vec<String>> {
    let instruction =
        |elements: &[&str]| elements.iter().map(|&element| element.to_owned()).collect::<Vec<_>>();
    let protocol = ["ssh", "ssh", "telnet", "vnc", "rdp", "kubernetes"][rng.usize(0..6)];
    let connect = [&["connect", "VERSION_1_5_0"][..], &[""; 5][..rng.usize(0..6)]].concat();
    vec![
        instruction(&["select", protocol]),
        instruction(&["size", "800", "600", "96"]),
        instruction(&["audio", "audio/L16"]),
        instruction(&["video"]),
        instruction(&["image", "image/png", "image/webp"]),
        instruction(&["timezone", "Europe/Zürich"]),
        instruction(&["name", "żółw 🐢"]),
        instruction(&connect),
    ]
}

fn mutate_instructions(rng: &mut Rng, all: &mut Vec<Vec<String>>) {
    if all.is_empty() {
        return;
    }
    let at = rng.usize(0..all.len());
    match rng.u32(0..10) {
        0 => {
            all.remove(at);
        }
        1 => all.insert(at, all[at].clone()),
        2 => {
            let other = rng.usize(0..all.len());
            all.swap(at, other);
        }
        // Fewer arguments than there should be.
        3 | 4 => {
            let length = rng.usize(1..=all[at].len());
            all[at].truncate(length);
        }
        // More of them, but not so many that `connect` could be valid.
        5 => {
            for _ in 0..rng.usize(1..5) {
                let value = odd_value(rng);
                all[at].push(value);
            }
        }
        6 | 7 => {
            let element = rng.usize(0..all[at].len());
            all[at][element] = odd_value(rng);
        }
        8 => all.truncate(at),
        _ => {
            let opcode = ["nop", "sync", "key", "ack", "blob", "disconnect", "connect", "select", "size"];
            let opcode = opcode[rng.usize(0..opcode.len())].to_owned();
            let value = odd_value(rng);
            all.insert(at, vec![opcode, value]);
        }
    }
}

/// A value that a parser may not expect.
fn odd_value(rng: &mut Rng) -> String {
    let values = [
        "",
        "-1",
        "0",
        "2147483648",
        "-2147483649",
        "99999999999999999999",
        "1e9",
        "NaN",
        "../../../etc/passwd",
        "$00000000-0000-0000-0000-000000000000",
        "$",
        "VERSION_9_9_9",
        "VERSION_",
        "%s%n%s%n",
        "a.b,c;d",
        "\\u{0}",
        "\\0",
        "🐢🐢🐢",
        "image/png",
    ];
    match rng.usize(0..values.len() + 2) {
        long if long == values.len() => "x".repeat(rng.usize(1..MAX_CHARS)),
        text if text > values.len() => (0..rng.usize(0..40)).map(|_| rng.char(..)).collect(),
        index => values[index].to_owned(),
    }
}

/// Writes an instruction, mostly as the protocol demands.
fn write(rng: &mut Rng, out: &mut Vec<u8>, elements: &[String]) {
    let odd = rng.u32(0..30) == 0;
    for (index, element) in elements.iter().enumerate() {
        let right = element.chars().count();
        let length = match rng.u32(0..8) {
            0 if odd => "-1".into(),
            1 if odd => String::new(),
            2 if odd => format!("{}", right + 1),
            3 if odd => format!("{}", right.saturating_sub(1)),
            4 if odd => format!("000{right}"),
            5 if odd => "99999999999".into(),
            6 if odd => format!("{}", MAX_CHARS + 1),
            // Bytes in place of code points.
            7 if odd => element.len().to_string(),
            _ => right.to_string(),
        };
        out.extend_from_slice(format!("{}{length}.{element}", if index == 0 { "" } else { "," }).as_bytes());
    }
    out.push(b';');
}

fn mutate_bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.usize(0..bytes.len());
    match rng.u32(0..6) {
        0 => bytes[at] = rng.u8(..),
        1 => {
            bytes.remove(at);
        }
        2 => bytes.insert(at, rng.u8(..)),
        3 => bytes.truncate(at),
        4 => bytes.extend(random_bytes(rng, 64)),
        // Not UTF-8, and zeros.
        _ => {
            let value = [0x00, 0x80, 0xC0, 0xFF, b';', b',', b'.'][rng.usize(0..7)];
            bytes[at] = value;
        }
    }
}

fn random_bytes(rng: &mut Rng, most: usize) -> Vec<u8> {
    (0..rng.usize(0..most)).map(|_| rng.u8(..)).collect()
}

/// Cuts some handshakes into pieces. Most are sent in one.
fn cut(rng: &mut Rng, bytes: Vec<u8>) -> Vec<Vec<u8>> {
    let pieces = if rng.u32(0..5) == 0 { rng.usize(2..6) } else { 1 };
    let size = bytes.len().div_ceil(pieces).max(1);
    bytes.chunks(size).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::Decoder;
    use std::collections::BTreeSet;

    fn generate(seed: u64, number: u32) -> Handshake {
        Handshake::generate(seed, number..number + 1)
    }

    #[test]
    fn a_handshake_follows_from_its_seed_and_number() {
        assert_eq!(generate(7, 3), generate(7, 3));
        let handshakes = (0..100).map(|number| generate(7, number).pieces).collect::<BTreeSet<_>>();
        assert!(handshakes.len() > 90, "only {} differ", handshakes.len());
        assert_ne!(generate(7, 3), generate(8, 3));
    }

    #[test]
    fn a_handshake_is_read_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..200 {
            let handshake = generate(1, number);
            let file = handshake.save(dir.path(), "handshake.json").unwrap();
            assert_eq!(Handshake::load(&file).unwrap(), handshake);
        }
        fs::write(dir.path().join("other"), "{}").unwrap();
        assert!(Handshake::load(&dir.path().join("other")).unwrap_err().is::<Preflight>());
    }

    #[test]
    fn handshakes_are_of_every_kind_and_none_connects_to_anything() {
        let mut endings = Vec::new();
        let (mut well_formed, mut malformed, mut starved) = (0, 0, 0);
        for number in 0..50_000 {
            let handshake = generate(2, number);
            if !endings.contains(&handshake.ending) {
                endings.push(handshake.ending);
            }
            let mut decoder = Decoder::default();
            decoder.push(&handshake.pieces.concat());
            loop {
                match decoder.instruction() {
                    Ok(Some(instruction)) => {
                        well_formed += 1;
                        let args = instruction.args().len();
                        starved += u32::from(instruction.opcode() == "size" && args < 2);
                        let few_or_many = !(28..=100).contains(&args);
                        assert!(instruction.opcode() != "connect" || few_or_many, "number {number}: {args}");
                    }
                    Ok(None) => break,
                    Err(_) => {
                        malformed += 1;
                        break;
                    }
                }
            }
        }
        assert_eq!(endings.len(), 4);
        assert!(
            well_formed > 100_000 && malformed > 1000 && starved > 100,
            "{well_formed} {malformed} {starved}"
        );
    }
}
