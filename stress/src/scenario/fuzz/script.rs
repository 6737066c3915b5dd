//! What does the fuzzer play? Scripts, each of which follows from a seed and its number alone, so that it can be played again; or
//! one script that an earlier run has saved.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::Result;
use fastrand::Rng;

use crate::report::FuzzKind;

/// What is played in one go: a malformed handshake, a terminal session, or the instructions that one session is sent.
pub trait Script: Clone + Send + Sync + 'static {
    /// What its inputs are.
    const KIND: FuzzKind;

    /// How many inputs a script has. The last one of a run may have fewer.
    const INPUTS: u32;

    /// The script with the inputs of these numbers.
    fn generate(seed: u64, numbers: Range<u32>) -> Self;

    /// The script as it is saved.
    ///
    /// # Errors
    ///
    /// When it cannot be written as JSON.
    fn to_json(&self) -> serde_json::Result<Vec<u8>>;

    /// Saves the script in a directory, for `--replay`.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    fn save(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let file = dir.join(name);
        fs_err::write(&file, self.to_json()?)?;
        Ok(file)
    }
}

/// Which scripts are played.
pub enum Scripts<S> {
    /// As many as these inputs fill, generated from a seed.
    Generated {
        /// The seed.
        seed: u64,
        /// How many inputs all scripts have together.
        inputs: u32,
    },
    /// One that an earlier run has saved.
    Replayed(S),
}

impl<S: Script> Scripts<S> {
    /// How many scripts there are.
    pub fn count(&self) -> u32 {
        match self {
            Self::Generated { inputs, .. } => inputs.div_ceil(S::INPUTS),
            Self::Replayed(_) => 1,
        }
    }

    /// A script by its number.
    pub fn script(&self, number: u32) -> S {
        match self {
            Self::Generated { seed, inputs } => {
                let first = number * S::INPUTS;
                S::generate(*seed, first..(first + S::INPUTS).min(*inputs))
            }
            Self::Replayed(script) => script.clone(),
        }
    }

    /// The name of the file that a script is saved to.
    pub fn file_name(&self, number: u32) -> String {
        let kind = S::KIND.as_str();
        match self {
            Self::Generated { seed, .. } => format!("fuzz-{kind}-{seed}-{number}.json"),
            Self::Replayed(_) => format!("fuzz-{kind}-replayed.json"),
        }
    }
}

/// The random numbers for the input of a seed and a number.
pub fn random_numbers(seed: u64, number: u32) -> Rng {
    // Neighbouring seeds and numbers must not give similar inputs.
    Rng::with_seed(seed ^ u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Numbers(Range<u32>);

    impl Script for Numbers {
        const KIND: FuzzKind = FuzzKind::Session;
        const INPUTS: u32 = 100;

        fn generate(_: u64, numbers: Range<u32>) -> Self {
            Self(numbers)
        }

        fn to_json(&self) -> serde_json::Result<Vec<u8>> {
            serde_json::to_vec(&self.0)
        }
    }

    #[test]
    fn scripts_have_all_inputs_and_no_more() {
        let scripts = Scripts::<Numbers>::Generated { seed: 7, inputs: 250 };
        let all = (0..scripts.count()).map(|number| scripts.script(number)).collect::<Vec<_>>();
        assert_eq!(all, [Numbers(0..100), Numbers(100..200), Numbers(200..250)]);
        assert_eq!(scripts.file_name(2), "fuzz-session-7-2.json");
        let replayed = Scripts::Replayed(Numbers(3..4));
        assert_eq!((replayed.count(), replayed.script(0)), (1, Numbers(3..4)));
    }
}
