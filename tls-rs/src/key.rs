//! What the bits of a key mean.
//!
//! ```text
//! 64 bits   generation 32 | index 32
//! 32 bits   generation 12 | index 20
//! ```
//!
//! The index says which cell of the registry the key has. The generation counts how often keys of that cell have been
//! created and deleted. It is odd while a key is alive, so no key is 0, and no number is issued twice.
//!
//! The keys of the preload library have 31 bits, 11 of them for the generation.

use crate::config::KEY_BITS;

/// Bits of a key that hold its index.
pub(crate) const INDEX_BITS: u32 = if KEY_BITS == 64 { 32 } else { 20 };

/// The mask of those bits.
const INDEX_MASK: u32 = u32::MAX >> (32 - INDEX_BITS);

/// The highest index. The registry adds 32 to an index, and the sum must fit as well. Index 0 is never issued.
pub(crate) const LAST_INDEX: u32 = INDEX_MASK - 32;

/// The generation, an even one, at which a cell is retired.
pub(crate) const LAST_GENERATION: u32 = (u32::MAX >> (32 + INDEX_BITS - KEY_BITS)) - 1;

/// A number that is no key.
pub(crate) const NONE: usize = 1;

/// The difference between a key and the number with the next generation.
pub(crate) const GENERATION: usize = 1 << INDEX_BITS;

/// The key of cell `index` in its `generation`.
pub(crate) fn new(generation: u32, index: u32) -> usize {
    (generation as usize) << INDEX_BITS | index as usize
}

/// The generation in which `key` was created.
pub(crate) fn generation(key: usize) -> u32 {
    (key >> INDEX_BITS) as u32
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
                assert_eq!(key + 2 * GENERATION, new(generation + 2, index));
            }
        }
    }
}
