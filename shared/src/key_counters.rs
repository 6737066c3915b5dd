//! What has the key-limit library counted? It keeps its counters in a file of three 32-bit words, which all processes with the
//! same settings share.

use std::{io, io::Read, path::Path};

/// The size of the file, in bytes. The library counts nothing in a file that is shorter.
pub const SIZE: usize = 12;

/// The counters of a process and its descendants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyCounters {
    /// The most pthread keys that any process had at once.
    pub most_in_a_process: u32,
    /// How many times a process was refused a key.
    pub refusals: u32,
    /// Whether any process has loaded the library. The loader only warns about a library that it cannot load.
    pub is_loaded: bool,
}

impl KeyCounters {
    /// Reads the counters. They are up to date, as the library maps the same pages.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is shorter than [`SIZE`].
    pub fn read(file: &Path) -> io::Result<Self> {
        let mut bytes = [0; SIZE];
        fs_err::File::open(file)?.read_exact(&mut bytes)?;
        let word = |index: usize| bytes[4 * index..][..4].try_into().map_or(0, u32::from_ne_bytes);
        Ok(Self { most_in_a_process: word(0), refusals: word(1), is_loaded: word(2) != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_three_words_and_refuses_fewer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let words = [128_u32, 7, 1].map(u32::to_ne_bytes).concat();
        fs_err::write(file.path(), &words).unwrap();
        let counters = KeyCounters { most_in_a_process: 128, refusals: 7, is_loaded: true };
        assert_eq!(KeyCounters::read(file.path()).unwrap(), counters);
        fs_err::write(file.path(), &words[..SIZE - 1]).unwrap();
        assert!(KeyCounters::read(file.path()).is_err());
    }
}
