//! What the bits of a key mean.
//!
//! ```text
//! 64 bits   generation 32 | hash of the index 27 | 0 0 0 0 0
//! 32 bits   generation 12 | hash of the index 20
//! ```
//!
//! The index says which cell of the registry the key is, the generation how often that cell has been created
//! and deleted. Only an odd generation is alive, so no key is 0, and a key value is never issued twice.
//!
//! The hash is a bijection that is computed once, when the key is made: a lookup in a thread's table is
//! `key & mask`. The zero bits make that a number of bytes.

use crate::ffi::KEY_BITS;

/// Bits of a key that hold its index.
pub(crate) const INDEX_BITS: u32 = if KEY_BITS == 64 { 27 } else { 20 };

/// Zero bits at the bottom of a key.
pub(crate) const SHIFT: u32 = if KEY_BITS == 64 { 5 } else { 0 };

/// A mask of those.
pub(crate) const ZEROES: usize = (1 << SHIFT) - 1;

/// The highest index. Index 0 stands for "none" and is never issued.
pub(crate) const LAST_INDEX: u32 = (1 << INDEX_BITS) - 1;

/// The generation, an even one, at which a cell is used up.
pub(crate) const LAST_GENERATION: u32 = (u32::MAX >> (32 + INDEX_BITS + SHIFT - KEY_BITS)) - 1;

/// 2^INDEX_BITS divided by the golden ratio, made odd: neighbouring indices land far from each other.
const MULTIPLIER: u32 = (0x9E37_79B9 >> (32 - INDEX_BITS)) | 1;

/// MULTIPLIER times this is 1 modulo 2^32 (Newton's iteration: each step doubles the 3 bits that fit at first).
const INVERSE: u32 = {
    let mut inverse = MULTIPLIER;
    let mut bits = 3;
    while bits < 32 {
        inverse = inverse.wrapping_mul(2u32.wrapping_sub(MULTIPLIER.wrapping_mul(inverse)));
        bits *= 2;
    }
    inverse
};

/// The key of cell `index` in its `generation`.
pub(crate) fn new(generation: u32, index: u32) -> usize {
    // A product's best bits are its highest. Reversed, they are the ones that a mask keeps.
    let hash = (index.wrapping_mul(MULTIPLIER) << (32 - INDEX_BITS)).reverse_bits();
    (generation as usize) << (INDEX_BITS + SHIFT) | (hash as usize) << SHIFT
}

/// The generation in which `key` was created.
pub(crate) fn generation(key: usize) -> u32 {
    (key >> (INDEX_BITS + SHIFT)) as u32
}

/// The cell that `key` is made from. Any number has one, be it a key or not.
pub(crate) fn index(key: usize) -> u32 {
    let hash = (key >> SHIFT) as u32 & LAST_INDEX;
    (hash.reverse_bits() >> (32 - INDEX_BITS)).wrapping_mul(INVERSE) & LAST_INDEX
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_key_tells_its_index_and_generation() {
        for generation in [1, 3, LAST_GENERATION - 1] {
            for index in (0..100).chain([LAST_INDEX - 1, LAST_INDEX]) {
                let key = new(generation, index);
                assert_eq!((super::generation(key), super::index(key)), (generation, index));
                assert_eq!(key & ZEROES, 0);
            }
        }
    }

    #[test]
    fn neighbouring_keys_spread_over_the_inline_slots() {
        for first in (1..LAST_INDEX - 8).step_by(LAST_INDEX as usize / 100) {
            let mut homes: Vec<_> = (first..first + 8).map(|i| (new(1, i) >> SHIFT) & 15).collect();
            homes.sort_unstable();
            homes.dedup();
            assert!(homes.len() >= 7, "keys {first} to {} share homes: {homes:?}", first + 7);
        }
    }
}
