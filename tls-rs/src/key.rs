//! What the bits of a key mean.
//!
//! ```text
//! 64 bits   generation + spread 32 | index 32
//! 32 bits   generation + spread 12 | index 20
//! ```
//!
//! The index says which cell of the registry the key has. The generation counts how often keys of that cell have been
//! created and deleted. It is odd while a key is alive, so no number is issued twice. Index 0 is never issued, so no key
//! is 0.
//!
//! The spread is a hash of the index. It is added, so the two numbers can be told apart, and the next generation is one
//! addition away. With it, the bits of keys differ in many ways: a thread's table looks at those that tell its keys apart.
//!
//! The keys of the preload library have 31 bits, 11 of them for generation and spread.

use crate::config::KEY_BITS;

/// Bits of a key that hold its index.
pub(crate) const INDEX_BITS: u32 = if KEY_BITS == 64 { 32 } else { 20 };

/// The mask of those bits.
const INDEX_MASK: u32 = u32::MAX >> (32 - INDEX_BITS);

/// The highest index. The registry adds 32 to an index, and the sum must fit as well.
pub(crate) const LAST_INDEX: u32 = INDEX_MASK - 32;

/// The generation, an even one, at which a cell is retired.
pub(crate) const LAST_GENERATION: u32 = (u32::MAX >> (32 + INDEX_BITS - KEY_BITS)) - 1;

/// A number that is no key.
pub(crate) const NONE: usize = 1;

/// The lowest bit of the generation, which is that of the sum as well, as a spread is even.
const GENERATION: usize = 1 << INDEX_BITS;

/// Times the index, this is the spread: as many bits of the golden ratio as there are, so that neighbours differ most. Even.
const SPREAD: u32 = ((0x9E37_79B9_u32 >> (32 + INDEX_BITS - KEY_BITS)) + 1) & !1;

/// The key of cell `index` in its `generation`.
pub(crate) fn new(generation: u32, index: u32) -> usize {
    let sum = generation.wrapping_add(index.wrapping_mul(SPREAD)) as usize;
    (sum << INDEX_BITS | index as usize) & (usize::MAX >> (usize::BITS - KEY_BITS))
}

/// The number of the same cell with the next generation.
pub(crate) fn next(key: usize) -> usize {
    key.wrapping_add(GENERATION) & (usize::MAX >> (usize::BITS - KEY_BITS))
}

/// Whether the generation is odd, as that of each key is.
pub(crate) fn is_odd(key: usize) -> bool {
    key & GENERATION != 0
}

/// The generation in which `key` was created.
pub(crate) fn generation(key: usize) -> u32 {
    let sum = (key >> INDEX_BITS) as u32;
    sum.wrapping_sub(index(key).wrapping_mul(SPREAD)) & (u32::MAX >> (32 + INDEX_BITS - KEY_BITS))
}

/// The index of the cell that `key` has.
pub(crate) fn index(key: usize) -> u32 {
    key as u32 & INDEX_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_its_index_and_generation() {
        for generation in [1, 3, LAST_GENERATION - 1] {
            for index in (0..100).chain([LAST_INDEX - 1, LAST_INDEX]) {
                let key = new(generation, index);
                assert_eq!((super::generation(key), super::index(key)), (generation, index));
                assert!(is_odd(key) && !is_odd(next(key)));
                assert_eq!(next(key), new(generation + 1, index));
                assert_eq!((super::generation(next(key)), super::index(next(key))), (generation + 1, index));
            }
        }
    }
}
