//! Which keys exist: one registry for the process, lock-free, so that a forked child never inherits a lock.
//!
//! A key is a cell. Cells lie in buckets of 32, 64, 128, ... that are allocated when they are first needed and
//! never move or go, so a reader needs no protection from reclamation. Deleted cells form a stack (Treiber's):
//! its head names the top cell and that cell's generation. A generation never comes back, so a head that looks
//! unchanged is unchanged: the ABA problem needs no tag of its own.

use core::mem;
use core::ptr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::key;
use crate::sync::{self, AtomicPtr, AtomicU32, AtomicUsize};
use crate::sys::{Destructor, EAGAIN, EINVAL, ENOMEM, Errno};

#[cfg(all(test, loom))]
#[path = "registry/loom_models.rs"] // from here, in whichever crate this file is
mod loom_models;
#[cfg(all(test, loom))]
pub(crate) use loom_models::REGISTRY;

/// The keys of this process.
#[cfg(not(all(test, loom)))]
pub(crate) static REGISTRY: Registry = Registry::new();

/// One key. All zero is a valid cell: one that was never created.
#[repr(C)]
#[cfg_attr(all(test, loom), derive(Default))]
pub(crate) struct KeyCell {
    /// Odd while the key lives. Only ever grows.
    generation: AtomicU32,
    /// While the cell is on the free list: the index below it, or 0.
    next: AtomicU32,
    /// While the key lives: its `Option<Destructor>`.
    destructor: AtomicPtr<()>,
}

impl KeyCell {
    /// Whether `key`, which must be one of this cell's keys, has not been deleted yet.
    #[inline]
    pub(crate) fn is_live(&self, key: usize) -> bool {
        // Relaxed: a caller that knows of the deletion, or of the creation, has synchronised with it.
        self.generation.load(Relaxed) == key::generation(key)
    }

    /// The destructor of `key`, if `key` lives and has one.
    pub(crate) fn destructor(&self, key: usize) -> Option<Destructor> {
        // A seqlock with the generation as its sequence. Acquire: whoever reads the destructor of a later key
        // also sees that the generation has moved on.
        let destructor = self.destructor.load(Acquire);
        if !self.is_live(key) {
            return None;
        }
        // SAFETY: both are pointers or NULL, and the cell only ever holds what `create` made of an
        // `Option<Destructor>`, or the zero that it was born with.
        unsafe { mem::transmute::<*mut (), Option<Destructor>>(destructor) }
    }
}

const FIRST_BUCKET_BITS: u32 = 5;
const BUCKETS: usize = (key::INDEX_BITS + 1 - FIRST_BUCKET_BITS) as usize;

/// See the module's documentation.
pub(crate) struct Registry {
    buckets: [AtomicPtr<KeyCell>; BUCKETS],
    /// The lowest index that was never used.
    fresh: AtomicU32,
    /// `generation << INDEX_BITS | index` of the cell on top of the free list, or 0.
    free: AtomicUsize,
}

impl Registry {
    #[cfg(not(all(test, loom)))]
    const fn new() -> Self {
        Registry {
            buckets: [const { AtomicPtr::new(ptr::null_mut()) }; BUCKETS],
            fresh: AtomicU32::new(1),
            free: AtomicUsize::new(0),
        }
    }

    /// Makes a key that no thread has a value for. Fails with `EAGAIN` when all indices are in use, and with
    /// `ENOMEM`.
    pub(crate) fn create(&'static self, destructor: Option<Destructor>) -> Result<usize, Errno> {
        let (index, cell) = match self.pop() {
            Some(reused) => reused,
            None => self.take_fresh()?,
        };
        // The cell is nobody else's until its generation is odd.
        // Release: see `KeyCell::destructor`.
        cell.destructor.store(destructor.map_or(ptr::null_mut(), |f| f as *mut ()), Release);
        let generation = cell.generation.load(Relaxed) + 1;
        cell.generation.store(generation, Release);
        Ok(key::new(generation, index))
    }

    /// Deletes a key: from here on it is dead in every thread. Fails with `EINVAL` when it is not alive.
    pub(crate) fn delete(&'static self, key: usize) -> Result<(), Errno> {
        let cell = self.live_cell(key).ok_or(EINVAL)?;
        let generation = key::generation(key);
        // Of two threads that delete the same key, one succeeds.
        cell.generation.compare_exchange(generation, generation + 1, AcqRel, Relaxed).map_err(|_| EINVAL)?;
        if generation + 1 < key::LAST_GENERATION {
            self.push(key::index(key), cell);
        }
        Ok(())
    }

    /// The cell of `key`, if it is a live key.
    pub(crate) fn live_cell(&'static self, key: usize) -> Option<&'static KeyCell> {
        let (generation, index) = (key::generation(key), key::index(key));
        if generation % 2 == 0 || key & key::ZEROES != 0 {
            return None;
        }
        // Acquire: however the thread has learned of the key, from here on it sees the key's destructor.
        self.cell(index).filter(|cell| cell.generation.load(Acquire) == generation)
    }

    /// The cell of `index`, if its bucket exists.
    fn cell(&'static self, index: u32) -> Option<&'static KeyCell> {
        let place = Place::of(index);
        let bucket = self.buckets.get(place.bucket)?.load(Acquire);
        if bucket.is_null() {
            return None;
        }
        // SAFETY: a bucket that has been published holds more cells than `place.cell` and is never freed.
        Some(unsafe { &*bucket.add(place.cell) })
    }

    /// Takes a cell off the free list.
    fn pop(&'static self) -> Option<(u32, &'static KeyCell)> {
        let mut head = self.free.load(Acquire);
        loop {
            let index = head as u32 & key::LAST_INDEX;
            if index == 0 {
                return None;
            }
            let cell = self.cell(index)?;
            // If another thread takes this cell in between, then `below` may be nonsense. The head has
            // changed for good in that case, and the exchange fails.
            let below = self.head_for(cell.next.load(Relaxed));
            match self.free.compare_exchange_weak(head, below, Acquire, Acquire) {
                Ok(_) => return Some((index, cell)),
                Err(now) => head = now,
            }
        }
    }

    /// Puts a cell that has just been deleted onto the free list.
    fn push(&'static self, index: u32, cell: &KeyCell) {
        let above = self.head_for(index);
        let mut head = self.free.load(Relaxed);
        loop {
            cell.next.store(head as u32 & key::LAST_INDEX, Relaxed);
            // Release: who pops the cell sees its generation and what it points to.
            match self.free.compare_exchange_weak(head, above, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// The head for a free list with cell `index` on top; 0 for 0.
    fn head_for(&'static self, index: u32) -> usize {
        match self.cell(index) {
            Some(cell) if index != 0 => {
                (cell.generation.load(Relaxed) as usize) << key::INDEX_BITS | index as usize
            }
            _ => 0,
        }
    }

    /// Takes a cell that was never used.
    fn take_fresh(&'static self) -> Result<(u32, &'static KeyCell), Errno> {
        let mut index = self.fresh.load(Relaxed);
        loop {
            if index > key::LAST_INDEX {
                return Err(EAGAIN);
            }
            // The memory first: if there is none, then no index is lost.
            let cell = match self.cell(index) {
                Some(cell) => cell,
                None => self.add_bucket(index)?,
            };
            match self.fresh.compare_exchange_weak(index, index + 1, Relaxed, Relaxed) {
                Ok(_) => return Ok((index, cell)),
                Err(now) => index = now,
            }
        }
    }

    /// Allocates the bucket that `index` is in, and returns its cell.
    #[cold]
    fn add_bucket(&'static self, index: u32) -> Result<&'static KeyCell, Errno> {
        let place = Place::of(index);
        let bucket = self.buckets.get(place.bucket).ok_or(EAGAIN)?;
        let cells = sync::allocate_zeroed::<KeyCell>(1 << place.bits);
        if cells.is_null() {
            return Err(ENOMEM);
        }
        // Release: the zeroes that calloc wrote are published too.
        if bucket.compare_exchange(ptr::null_mut(), cells, AcqRel, Acquire).is_err() {
            // SAFETY: another thread was faster, so nobody has seen ours.
            unsafe { sync::free(cells, 1 << place.bits) };
        }
        self.cell(index).ok_or(ENOMEM)
    }
}

/// Where a cell lies.
struct Place {
    bucket: usize,
    /// The bucket has `1 << bits` cells.
    bits: u32,
    cell: usize,
}

impl Place {
    fn of(index: u32) -> Place {
        // Bucket 0 begins at 32, so that the highest bit says which bucket it is.
        let shifted = index + (1 << FIRST_BUCKET_BITS);
        let bits = u32::BITS - 1 - shifted.leading_zeros();
        let offset = shifted ^ (1 << bits);
        // Neighbours lie 64 bytes apart: two threads that make keys in turn would otherwise share cache lines.
        let cell = (offset << 2 | offset >> (bits - 2)) & ((1 << bits) - 1);
        Place { bucket: (bits - FIRST_BUCKET_BITS) as usize, bits, cell: cell as usize }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::thread;
    use std::vec::Vec;

    use super::*;

    const ROUNDS: usize = if cfg!(miri) { 50 } else { 20_000 };

    #[test]
    fn a_deleted_key_is_dead_for_ever() {
        static REGISTRY: Registry = Registry::new();
        let mut dead = Vec::new();
        for _ in 0..ROUNDS / 10 {
            let key = REGISTRY.create(None).unwrap();
            assert!(REGISTRY.live_cell(key).is_some());
            assert_eq!(REGISTRY.delete(key), Ok(()));
            dead.push(key);
        }
        let alive = REGISTRY.create(None).unwrap();
        for key in dead {
            assert_ne!(key, alive);
            assert!(REGISTRY.live_cell(key).is_none());
            assert_eq!(REGISTRY.delete(key), Err(EINVAL));
        }
        assert!(REGISTRY.live_cell(alive).is_some());
    }

    #[test]
    fn the_generation_of_a_dead_cell_makes_no_key() {
        static REGISTRY: Registry = Registry::new();
        let key = REGISTRY.create(None).unwrap();
        assert_eq!(REGISTRY.delete(key), Ok(()));
        let number = key::new(key::generation(key) + 1, key::index(key));
        assert!(REGISTRY.live_cell(number).is_none());
        assert_eq!(REGISTRY.delete(number), Err(EINVAL));
    }

    #[test]
    fn deleted_cells_are_used_again() {
        static REGISTRY: Registry = Registry::new();
        for _ in 0..3 {
            let keys: Vec<_> = (0..100).map(|_| REGISTRY.create(None).unwrap()).collect();
            keys.iter().for_each(|key| assert_eq!(REGISTRY.delete(*key), Ok(())));
            assert_eq!(REGISTRY.fresh.load(Relaxed), 101);
        }
    }

    #[test]
    fn a_cell_that_has_no_generation_left_is_retired() {
        static REGISTRY: Registry = Registry::new();
        let first = REGISTRY.create(None).unwrap();
        let cell = REGISTRY.live_cell(first).unwrap();
        assert_eq!(REGISTRY.delete(first), Ok(()));

        // As if it had been created and deleted until one life was left. The free list knows its generation.
        cell.generation.store(key::LAST_GENERATION - 2, Relaxed);
        REGISTRY.free.store(REGISTRY.head_for(key::index(first)), Relaxed);
        let last = REGISTRY.create(None).unwrap();
        assert_eq!(last, key::new(key::LAST_GENERATION - 1, key::index(first)));
        assert_eq!(REGISTRY.delete(last), Ok(()));

        let other = REGISTRY.create(None).unwrap();
        assert_ne!(key::index(other), key::index(first));
        assert!(REGISTRY.live_cell(last).is_none());
    }

    #[test]
    fn when_all_cells_are_in_use_there_is_no_other_key() {
        static REGISTRY: Registry = Registry::new();
        let key = REGISTRY.create(None).unwrap();
        REGISTRY.fresh.store(key::LAST_INDEX + 1, Relaxed);
        assert_eq!(REGISTRY.create(None), Err(EAGAIN));
        assert_eq!(REGISTRY.delete(key), Ok(()));
        assert!(REGISTRY.create(None).is_ok());
        assert_eq!(REGISTRY.create(None), Err(EAGAIN));
    }

    #[test]
    fn a_key_has_its_own_destructor_and_not_that_of_a_later_one() {
        unsafe extern "C" fn set_to_one(value: *mut core::ffi::c_void) {
            // SAFETY: the test passes a number.
            unsafe { value.cast::<u32>().write(1) };
        }
        static REGISTRY: Registry = Registry::new();
        let key = REGISTRY.create(Some(set_to_one)).unwrap();
        let cell = REGISTRY.live_cell(key).unwrap();
        let mut number = 0_u32;
        // SAFETY: a number is what it asks for.
        unsafe { cell.destructor(key).unwrap()(ptr::from_mut(&mut number).cast()) };
        assert_eq!(number, 1);

        assert_eq!(REGISTRY.delete(key), Ok(()));
        assert!(cell.destructor(key).is_none());
        let later = REGISTRY.create(None).unwrap();
        assert!(ptr::eq(REGISTRY.live_cell(later).unwrap(), cell));
        assert!(cell.destructor(later).is_none());
    }

    #[test]
    fn every_index_has_a_cell_of_its_own() {
        let last = if cfg!(miri) { 500 } else { 100_000 };
        let mut places = HashSet::new();
        for index in 0..last {
            let place = Place::of(index);
            assert!(place.cell < 1 << place.bits && place.bits == place.bucket as u32 + FIRST_BUCKET_BITS);
            assert!(places.insert((place.bucket, place.cell)), "index {index}");
        }
        assert!(Place::of(key::LAST_INDEX).bucket < BUCKETS);
    }

    #[test]
    fn no_two_threads_get_the_same_key() {
        static REGISTRY: Registry = Registry::new();
        let all = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    for round in 0..ROUNDS {
                        mine.push(REGISTRY.create(None).unwrap());
                        // Some live on for a while, so that the free list has some depth.
                        for key in [mine[round], mine[round / 2 * 2]].iter().take(round % 3) {
                            let _ = REGISTRY.delete(*key);
                        }
                    }
                    all.lock().unwrap().append(&mut mine);
                });
            }
        });
        let all = all.into_inner().unwrap();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 4 * ROUNDS);
        let live: Vec<_> = all.iter().filter(|key| REGISTRY.live_cell(**key).is_some()).collect();
        assert_eq!(live.iter().map(|key| key::index(**key)).collect::<HashSet<_>>().len(), live.len());
    }

    #[test]
    fn of_threads_that_delete_the_same_key_one_succeeds() {
        static REGISTRY: Registry = Registry::new();
        // Often anew, for the two threads may have been given one core.
        for _ in 0..20 {
            let keys: Vec<_> = (0..ROUNDS / 20).map(|_| REGISTRY.create(None).unwrap()).collect();
            // Both come to each key at the same time, or one would always be ahead.
            let arrived = AtomicUsize::new(0);
            let delete_all = || {
                let mut deleted = 0;
                for (i, key) in keys.iter().enumerate() {
                    arrived.fetch_add(1, Relaxed);
                    for spins in 1.. {
                        if arrived.load(Relaxed) >= 2 * (i + 1) {
                            break;
                        }
                        if spins % 1000 == 0 {
                            thread::yield_now();
                        }
                    }
                    deleted += usize::from(REGISTRY.delete(*key).is_ok());
                }
                deleted
            };
            let deleted = thread::scope(|scope| {
                let other = scope.spawn(delete_all);
                delete_all() + other.join().unwrap()
            });
            assert_eq!(deleted, keys.len());
        }
    }
}
