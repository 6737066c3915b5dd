//! How are Guacamole instructions written and read? `LENGTH.VALUE,LENGTH.VALUE;`, where LENGTH counts Unicode code
//! points, and not bytes.

use std::fmt;

/// Maximum number of elements of an instruction, its opcode included: `GUAC_INSTRUCTION_MAX_ELEMENTS`.
pub const MAX_ELEMENTS: usize = 128;

/// Maximum number of code points of an instruction: `GUAC_INSTRUCTION_MAX_LENGTH`.
pub const MAX_CHARS: usize = 8192;

/// Appends an instruction to what is to be sent.
pub fn encode(out: &mut Vec<u8>, elements: &[&str]) {
    for (i, element) in elements.iter().enumerate() {
        let separator = if i == 0 { "" } else { "," };
        out.extend_from_slice(format!("{separator}{}.{element}", element.chars().count()).as_bytes());
    }
    out.push(b';');
}

/// An instruction: an opcode, and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    elements: Vec<String>,
}

impl Instruction {
    /// What to do.
    pub fn opcode(&self) -> &str {
        &self.elements[0]
    }

    /// What to do it with.
    pub fn args(&self) -> &[String] {
        &self.elements[1..]
    }

    /// An argument by its position, "" where there is none.
    pub fn arg(&self, index: usize) -> &str {
        self.elements.get(index + 1).map_or("", String::as_str)
    }
}

/// Bytes that are not the Guacamole protocol. A stream cannot be read any further after one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// A length that is not a number, or is missing.
    Length,
    /// An element that does not end where its length says.
    Terminator,
    /// An element that is not UTF-8.
    Utf8,
    /// More than [`MAX_ELEMENTS`].
    Elements,
    /// More than [`MAX_CHARS`].
    Chars,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "malformed instruction: an element without its length",
            Self::Terminator => "malformed instruction: an element that does not end where its length says",
            Self::Utf8 => "malformed instruction: text that is not UTF-8",
            Self::Elements => "malformed instruction: more than 128 elements",
            Self::Chars => "malformed instruction: more than 8192 characters",
        })
    }
}

impl std::error::Error for Malformed {}

/// Reads instructions out of bytes that arrive in pieces, cut anywhere.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes that have arrived. The first `read` of them were read already.
    input: Vec<u8>,
    read: usize,
    /// The instruction that is being read.
    elements: Vec<String>,
    chars: usize,
    at: Position,
}

/// Where in an element the decoder stands.
#[derive(Debug, Clone)]
enum Position {
    Length { value: usize, has_digits: bool },
    Value { left: usize, bytes: Vec<u8> },
}

impl Default for Position {
    fn default() -> Self {
        Self::Length { value: 0, has_digits: false }
    }
}

impl Decoder {
    /// Adds bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.drain(..self.read);
        self.read = 0;
        self.input.extend_from_slice(bytes);
    }

    /// The next whole instruction. None until more bytes have arrived.
    ///
    /// # Errors
    ///
    /// [`Malformed`], after which nothing more can be read.
    pub fn instruction(&mut self) -> Result<Option<Instruction>, Malformed> {
        while let Some(&byte) = self.input.get(self.read) {
            if let Position::Value { left, bytes } = &mut self.at {
                // Most of what guacd sends are long values in ASCII.
                let rest = &self.input[self.read..];
                let ascii = rest.iter().take(*left).take_while(|byte| byte.is_ascii()).count();
                if ascii > 0 {
                    bytes.extend_from_slice(&rest[..ascii]);
                    *left -= ascii;
                    self.read += ascii;
                    continue;
                }
            }
            self.read += 1;
            if self.step(byte)? {
                self.chars = 0;
                return Ok(Some(Instruction { elements: std::mem::take(&mut self.elements) }));
            }
        }
        Ok(None)
    }

    /// Reads one byte. Returns whether it ended an instruction.
    fn step(&mut self, byte: u8) -> Result<bool, Malformed> {
        match &mut self.at {
            Position::Length { value, has_digits } => match byte {
                b'0'..=b'9' => {
                    *value = *value * 10 + usize::from(byte - b'0');
                    *has_digits = true;
                    if self.chars + *value > MAX_CHARS {
                        return Err(Malformed::Chars);
                    }
                }
                b'.' if *has_digits => {
                    if self.elements.len() == MAX_ELEMENTS {
                        return Err(Malformed::Elements);
                    }
                    self.chars += *value;
                    self.at = Position::Value { left: *value, bytes: Vec::new() };
                }
                _ => return Err(Malformed::Length),
            },
            // A byte of the form 10xxxxxx continues a code point that was counted at its first byte.
            Position::Value { bytes, .. } if byte & 0xC0 == 0x80 => {
                bytes.push(byte);
                // Without a bound, continuations of nothing would fill the memory.
                if bytes.len() > 4 * MAX_CHARS {
                    return Err(Malformed::Utf8);
                }
            }
            Position::Value { left: 0, bytes } => {
                let element = String::from_utf8(std::mem::take(bytes)).map_err(|_| Malformed::Utf8)?;
                self.elements.push(element);
                self.at = Position::default();
                match byte {
                    b';' => return Ok(true),
                    b',' => {}
                    _ => return Err(Malformed::Terminator),
                }
            }
            Position::Value { left, bytes } => {
                *left -= 1;
                bytes.push(byte);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<Vec<Vec<String>>, Malformed> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        let mut all = Vec::new();
        while let Some(instruction) = decoder.instruction()? {
            all.push(instruction.elements);
        }
        Ok(all)
    }

    #[test]
    fn lengths_count_code_points_and_not_bytes() {
        let mut out = Vec::new();
        encode(&mut out, &["name", "żółw 🐢", ""]);
        assert_eq!(out, "4.name,6.żółw 🐢,0.;".as_bytes());
        assert_eq!(decode(&out).unwrap(), [["name", "żółw 🐢", ""]]);
        assert_eq!(
            decode("4.name,13.żółw 🐢,0.;".as_bytes()),
            Ok(vec![]),
            "a byte count must not be taken for an end"
        );
    }

    #[test]
    fn instructions_may_be_cut_at_every_byte() {
        let mut stream = Vec::new();
        encode(&mut stream, &["sync", "12345"]);
        encode(&mut stream, &["name", "żółw 🐢;,9.x", ""]);
        encode(&mut stream, &["nop"]);
        let whole = decode(&stream).unwrap();
        assert_eq!(whole.len(), 3);
        for cut in 0..=stream.len() {
            let mut decoder = Decoder::default();
            let mut all = Vec::new();
            for piece in [&stream[..cut], &stream[cut..]] {
                decoder.push(piece);
                while let Some(instruction) = decoder.instruction().unwrap() {
                    all.push(instruction.elements);
                }
            }
            assert_eq!(all, whole, "cut at {cut}");
        }
    }

    #[test]
    fn refuses_what_is_not_the_protocol() {
        assert_eq!(decode(b"x"), Err(Malformed::Length));
        assert_eq!(decode(b".a;"), Err(Malformed::Length));
        assert_eq!(decode(b"-1.a;"), Err(Malformed::Length));
        assert_eq!(decode(b"1.ab;"), Err(Malformed::Terminator));
        assert_eq!(decode(b"HTTP/1.1 400"), Err(Malformed::Length));
        assert_eq!(decode(b"1.\xff;"), Err(Malformed::Utf8));
        assert_eq!(decode(b"0.\x80;"), Err(Malformed::Utf8));
        assert_eq!(decode(&[b"1.".as_slice(), &[0x80; 5 * MAX_CHARS]].concat()), Err(Malformed::Utf8));
    }

    #[test]
    fn takes_the_largest_instruction_and_refuses_the_next_larger() {
        let mut out = Vec::new();
        encode(&mut out, &[&"é".repeat(MAX_CHARS)]);
        assert_eq!(decode(&out).unwrap().len(), 1);
        assert_eq!(decode(b"8193."), Err(Malformed::Chars));
        assert_eq!(decode(b"99999999999999999999999999"), Err(Malformed::Chars));
        assert_eq!(decode(&[b"8000.".as_slice(), &[b'a'; 8000], b",193."].concat()), Err(Malformed::Chars));

        let mut out = Vec::new();
        encode(&mut out, &["1"; MAX_ELEMENTS]);
        assert_eq!(decode(&out).unwrap()[0].len(), MAX_ELEMENTS);
        let mut out = Vec::new();
        encode(&mut out, &["1"; MAX_ELEMENTS + 1]);
        assert_eq!(decode(&out), Err(Malformed::Elements));
    }

    #[test]
    fn a_flood_is_read_in_bounded_memory() {
        let mut decoder = Decoder::default();
        let mut piece = Vec::new();
        for _ in 0..1000 {
            encode(&mut piece, &["sync", "1"]);
        }
        let mut count = 0;
        for _ in 0..100 {
            decoder.push(&piece);
            while decoder.instruction().unwrap().is_some() {
                count += 1;
            }
        }
        assert_eq!(count, 100_000);
        assert!(decoder.input.capacity() <= 4 * piece.len());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            elements in prop::collection::vec(".{0,40}", 1..20),
            cuts in prop::collection::vec(1usize..7, 1..5),
        ) {
            let mut bytes = Vec::new();
            encode(&mut bytes, &elements.iter().map(String::as_str).collect::<Vec<_>>());
            let mut decoder = Decoder::default();
            let mut all = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                decoder.push(piece);
                while let Some(instruction) = decoder.instruction().unwrap() {
                    all.push(instruction.elements);
                }
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(all, vec![elements]);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
