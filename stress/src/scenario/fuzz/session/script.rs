//! What is a session of the fuzzer sent? Instructions that guacd may not expect.

use std::ops::Range;

use base64::{Engine, prelude::BASE64_STANDARD};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::super::script::{Script, random_numbers};
use crate::{report::FuzzKind, wire::codec};

/// The inputs of one session, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionScript {
    /// Each is one instruction, or a few that belong together.
    pub inputs: Vec<Vec<u8>>,
}

/// A script in the form in which it is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// The inputs in base64.
    session: Vec<String>,
    /// The same as text, for people.
    #[serde(default)]
    text: Vec<String>,
}

impl SessionScript {
    /// Reads a script that was saved. None if the text is not one.
    pub fn parse(json: &[u8]) -> Option<Self> {
        let saved: Saved = serde_json::from_slice(json).ok()?;
        let inputs = saved.session.iter().map(|input| BASE64_STANDARD.decode(input));
        Some(Self { inputs: inputs.collect::<Result<_, _>>().ok()? })
    }
}

impl Script for SessionScript {
    const KIND: FuzzKind = FuzzKind::Session;
    const INPUTS: u32 = 100;

    fn generate(seed: u64, numbers: Range<u32>) -> Self {
        Self { inputs: numbers.map(|number| input(seed, number)).collect() }
    }

    fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(&Saved {
            session: self.inputs.iter().map(|input| BASE64_STANDARD.encode(input)).collect(),
            text: self.inputs.iter().map(|input| String::from_utf8_lossy(input).into_owned()).collect(),
        })
    }
}

/// The input of a seed and a number: one instruction, or a few that belong together.
fn input(seed: u64, number: u32) -> Vec<u8> {
    let mut rng = random_numbers(seed, number);
    let mut instructions = match rng.u32(0..100) {
        0..14 => vec![size(&mut rng)],
        14..32 => keys(&mut rng),
        32..52 => mouse(&mut rng),
        52..82 => stream(&mut rng),
        82..96 => vec![loose(&mut rng)],
        _ => vec![sync(&mut rng)],
    };
    if rng.u32(0..8) == 0 {
        mutate(&mut rng, &mut instructions);
    }
    let mut bytes = Vec::new();
    for instruction in &instructions {
        codec::encode(&mut bytes, &instruction.iter().map(String::as_str).collect::<Vec<_>>());
    }
    // Bytes that are no instruction rightly end a session.
    if rng.u32(0..500) == 0 {
        let at = rng.usize(0..bytes.len());
        bytes[at] = rng.u8(..);
    }
    bytes
}

fn size(rng: &mut Rng) -> Vec<String> {
    let length = |rng: &mut Rng| {
        if rng.u32(0..24) == 0 { number(rng) } else { rng.u32(1..2000).to_string() }
    };
    vec!["size".into(), length(rng), length(rng)]
}

fn keys(rng: &mut Rng) -> Vec<Vec<String>> {
    let keysym = match rng.u32(0..5) {
        0 => number(rng),
        1 => rng.u32(0xFF08..=0xFFFF).to_string(),
        2 => (0x0100_0000 + rng.u32(0..0x11_0000)).to_string(),
        _ => rng.u32(0x20..0x100).to_string(),
    };
    let key = |pressed: &str| vec!["key".into(), keysym.clone(), pressed.into()];
    match rng.u32(0..6) {
        0 => vec![key("1")],
        1 => vec![key("0")],
        2 => vec![key(&number(rng))],
        _ => vec![key("1"), key("0")],
    }
}

fn mouse(rng: &mut Rng) -> Vec<Vec<String>> {
    if rng.u32(0..8) == 0 {
        let touch = std::iter::once("touch".into()).chain((0..7).map(|_| number(rng)));
        return vec![touch.collect()];
    }
    // Clicks, drags and turns of the wheel, within the screen and without.
    let mask = if rng.u32(0..8) == 0 { number(rng) } else { (1 << rng.u32(0..5)).to_string() };
    (0..rng.usize(1..5))
        .map(|_| {
            let at = |rng: &mut Rng| {
                if rng.u32(0..6) == 0 { number(rng) } else { rng.u32(0..1200).to_string() }
            };
            let mask = if rng.bool() { mask.clone() } else { "0".into() };
            vec!["mouse".into(), at(rng), at(rng), mask]
        })
        .collect()
}

/// A stream from its beginning, and mostly to its end.
fn stream(rng: &mut Rng) -> Vec<Vec<String>> {
    let index = index(rng);
    let mimetype = pick(rng, &["text/plain", "application/octet-stream", "audio/L16;rate=44100", "x/y", ""]);
    let (open, text) = match rng.u32(0..16) {
        0..5 => (vec!["clipboard".into(), index.clone(), mimetype], text(rng)),
        5..10 => {
            let name = pick(rng, &["font-size", "font-size", "font-name", "color-scheme", "username", "x"]);
            let value = match name.as_str() {
                // A terminal has so many tiny characters that drawing them takes seconds.
                "font-size" if rng.u32(0..4) > 0 => rng.u32(8..40).to_string(),
                "font-size" => number(rng),
                "font-name" => pick(rng, &["monospace", "Sans", "", "%s", "No Such Font"]),
                _ => pick(
                    rng,
                    &[
                        "gray-black",
                        "black-white",
                        "foreground: rgb:1/2/3; background: color300;",
                        ";:;:",
                        ":",
                    ],
                ),
            };
            (vec!["argv".into(), index.clone(), mimetype, name], value)
        }
        10..12 => {
            let name = pick(rng, &["STDIN", "STDIN", "stdin", ""]);
            (vec!["pipe".into(), index.clone(), mimetype, name], text(rng))
        }
        12 | 13 => (vec!["file".into(), index.clone(), mimetype, "a/../b".into()], text(rng)),
        14 => (vec!["put".into(), number(rng), index.clone(), mimetype, "/a".into()], text(rng)),
        _ => (vec!["audio".into(), index.clone(), mimetype], text(rng)),
    };
    let mut all = vec![open];
    // Cut anywhere, within characters too.
    let pieces = rng.usize(1..4);
    let size = text.len().div_ceil(pieces).max(1);
    for piece in text.as_bytes().chunks(size) {
        all.push(vec!["blob".into(), index.clone(), BASE64_STANDARD.encode(piece)]);
    }
    if rng.u32(0..5) > 0 {
        all.push(vec!["end".into(), index]);
    }
    all
}

/// An instruction about a stream or an object that may not exist.
fn loose(rng: &mut Rng) -> Vec<String> {
    let index = index(rng);
    match rng.u32(0..6) {
        0 | 1 => vec!["ack".into(), index, "OK".into(), number(rng)],
        2 => vec!["blob".into(), index, pick(rng, &["", "YQ==", "====", "a", "é", "%%%%", "YWJj\u{1}"])],
        3 => vec!["end".into(), index],
        4 => vec!["get".into(), number(rng), "/".into()],
        _ => vec!["nop".into(), index],
    }
}

/// A timestamp of the past. guacd rightly ends a session that sends one of the future.
fn sync(rng: &mut Rng) -> Vec<String> {
    vec!["sync".into(), pick(rng, &["0", "-1", "", "x", "1", "-9223372036854775809", "1000"])]
}

fn mutate(rng: &mut Rng, all: &mut Vec<Vec<String>>) {
    let at = rng.usize(0..all.len());
    match rng.u32(0..6) {
        // Fewer arguments than there should be.
        0 | 1 => {
            let length = rng.usize(1..=all[at].len());
            all[at].truncate(length);
        }
        2 => {
            let value = number(rng);
            all[at].push(value);
        }
        3 => {
            let element = rng.usize(0..all[at].len());
            all[at][element] = number(rng);
        }
        4 => all.insert(at, all[at].clone()),
        _ => all.truncate(at + 1),
    }
}

/// Numbers at the limits of integer types and buffers, and text that is no number.
fn number(rng: &mut Rng) -> String {
    const NUMBERS: &[&str] = &[
        "0",
        "1",
        "-1",
        "2",
        "63",
        "64",
        "127",
        "128",
        "255",
        "256",
        "1023",
        "1024",
        "1025",
        "4096",
        "8191",
        "8192",
        "32767",
        "32768",
        "65535",
        "65536",
        "16777216",
        "2147483647",
        "2147483648",
        "-2147483648",
        "4294967295",
        "4294967296",
        "9223372036854775807",
        "-9223372036854775808",
        "99999999999999999999",
        "1e9",
        "NaN",
        "inf",
        "0.5",
        "",
        " 7",
        "+7",
        "0x10",
        "-",
        "é",
    ];
    match rng.u32(0..4) {
        0 => rng.i32(-100..10_000).to_string(),
        _ => pick(rng, NUMBERS),
    }
}

/// The index of a stream, mostly of one that may exist.
fn index(rng: &mut Rng) -> String {
    match rng.u32(0..10) {
        0 => number(rng),
        1 => rng.u32(0..70).to_string(),
        _ => rng.u32(0..4).to_string(),
    }
}

/// Text of up to what a blob can have, with characters of every length.
fn text(rng: &mut Rng) -> String {
    let length = if rng.u32(0..10) == 0 { rng.usize(0..1500) } else { rng.usize(0..20) };
    let character = |_| match rng.u32(0..10) {
        0 => rng.char(..),
        1 => pick(rng, &["\r", "\n", "\t", "\u{1b}", "\0"]).chars().next().unwrap_or(' '),
        _ => rng.char(' '..='~'),
    };
    (0..length).map(character).collect()
}

fn pick(rng: &mut Rng, values: &[&str]) -> String {
    values[rng.usize(0..values.len())].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::Decoder;
    use std::collections::BTreeSet;

    #[test]
    fn an_input_follows_from_its_seed_and_number() {
        assert_eq!(input(7, 3), input(7, 3));
        let inputs = (0..1000).map(|number| input(7, number)).collect::<BTreeSet<_>>();
        assert!(inputs.len() > 900, "only {} differ", inputs.len());
    }

    #[test]
    fn a_script_is_read_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let script = SessionScript::generate(1, 0..200);
        let file = script.save(dir.path(), "script.json").unwrap();
        assert_eq!(SessionScript::parse(&fs_err::read(file).unwrap()), Some(script));
        assert_eq!(SessionScript::parse(br#"{"pieces": [], "ending": "close"}"#), None);
    }

    #[test]
    fn inputs_have_every_instruction_and_few_are_malformed() {
        let mut opcodes = BTreeSet::new();
        let mut malformed = 0;
        for number in 0..20_000 {
            let mut decoder = Decoder::default();
            decoder.push(&input(2, number));
            loop {
                match decoder.instruction() {
                    Ok(Some(instruction)) => drop(opcodes.insert(instruction.opcode().to_owned())),
                    Ok(None) => break,
                    Err(_) => {
                        malformed += 1;
                        break;
                    }
                }
            }
        }
        for opcode in [
            "size",
            "key",
            "mouse",
            "touch",
            "clipboard",
            "argv",
            "put",
            "get",
            "ack",
            "blob",
            "end",
            "pipe",
            "file",
            "audio",
            "sync",
            "nop",
        ] {
            assert!(opcodes.contains(opcode), "no {opcode}");
        }
        assert!((1..200).contains(&malformed), "{malformed} of 20000 are malformed");
    }
}
