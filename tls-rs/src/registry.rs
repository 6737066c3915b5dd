//! Which keys exist: one registry for the process, lock-free, so that a forked child never inherits a lock.
//!
//! Each key has a cell. The first 32 cells lie in the registry, the others in buckets of 64, 128, ... cells. A bucket is
//! allocated when it is first needed, and is never moved or freed, so readers need no protection from reclamation. The
//! free cells form a Treiber stack, the free list. Its head is the `key` of the top cell: index and generation. A
//! generation never comes back, so a head that looks unchanged is unchanged. That solves the ABA problem without a tag.

use core::mem;
use core::ptr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::key;
use crate::sync::{self, AtomicPtr, AtomicU32, AtomicUsize};
use crate::sys::{Destructor, EAGAIN, EINVAL, ENOMEM, Errno};

#[cfg(all(test, loom))]
#[path = "registry/loom_models.rs"] // relative to this file, which two crates compile
mod loom_models;

/// The keys of this process.
#[cfg(not(all(test, loom)))]
pub(crate) static REGISTRY: Registry = Registry::new();

/// What the process knows of one key. Zeroes are a valid cell, one that was never used.
#[repr(C)]
#[cfg_attr(all(test, loom), derive(Default))]
pub(crate) struct KeyCell {
    /// The key while it is alive, and the number with the next generation while there is none.
    key: AtomicUsize,
    /// While the key is alive: its `Option<Destructor>`. While the cell is on the free list: the `key` of the cell below
    /// it, or 0.
    destructor: AtomicPtr<()>,
}

impl KeyCell {
    #[cfg(not(all(test, loom)))]
    const fn new(key: usize) -> KeyCell {
        KeyCell { key: AtomicUsize::new(key), destructor: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Whether `key`, which must be one of this cell's keys, has not been deleted yet.
    #[inline]
    pub(crate) fn is_live(&self, key: usize) -> bool {
        // Relaxed: a caller that knows of the key's creation or deletion has synchronised with it.
        self.key.load(Relaxed) == key
    }

    /// The destructor of `key`, if the key is alive and has one.
    pub(crate) fn destructor(&self, key: usize) -> Option<Destructor> {
        // A seqlock, whose sequence is the generation. Acquire: a thread that reads what was written after the key was
        // deleted also sees the later generation.
        let destructor = self.destructor.load(Acquire);
        if !self.is_live(key) {
            return None;
        }
        // SAFETY: both types are a pointer or NULL. While a key is alive, the cell holds the `Option<Destructor>` that
        // `publish` has written.
        unsafe { mem::transmute::<*mut (), Option<Destructor>>(destructor) }
    }
}

/// A cell that never has a key.
#[cfg(not(all(test, loom)))]
pub(crate) static NO_KEY: KeyCell = KeyCell::new(key::NONE);

/// A cell without a key, which its owner alone may use.
pub(crate) struct FreeCell(pub(crate) &'static KeyCell);

impl FreeCell {
    /// Creates a key from the cell. No thread has a value for it.
    #[inline]
    pub(crate) fn publish(self, destructor: Option<Destructor>) -> usize {
        let FreeCell(cell) = self;
        // Release: see `KeyCell::destructor`.
        cell.destructor.store(destructor.map_or(ptr::null_mut(), |f| f as *mut ()), Release);
        let key = key::next(cell.key.load(Relaxed));
        // A store would do. But the key may be deleted soon, and that exchange would have to wait for the store.
        cell.key.swap(key, Release);
        key
    }
}

/// How many cells lie in the registry itself: more than most processes need. Each has its own cache line.
const FIRST_CELLS: usize = 1 << FIRST_BITS;
const FIRST_BITS: u32 = 5;

/// A cell that has a cache line to itself.
#[cfg_attr(all(test, loom), derive(Default))]
#[repr(align(64))]
struct PaddedCell(KeyCell);

/// How many buckets there can be. The first has twice `FIRST_CELLS`, each other twice as many cells as the one before.
const BUCKETS: usize = (key::INDEX_BITS - FIRST_BITS - 1) as usize;

/// See the module's documentation.
pub(crate) struct Registry {
    first: [PaddedCell; FIRST_CELLS],
    buckets: [AtomicPtr<KeyCell>; BUCKETS],
    /// The lowest index that was never used.
    fresh: AtomicU32,
    /// The `key` of the cell on top of the free list, or 0.
    free: AtomicUsize,
}

impl Registry {
    #[cfg(not(all(test, loom)))]
    const fn new() -> Self {
        Registry {
            first: [const { PaddedCell(KeyCell::new(0)) }; FIRST_CELLS],
            buckets: [const { AtomicPtr::new(ptr::null_mut()) }; BUCKETS],
            fresh: AtomicU32::new(1),
            free: AtomicUsize::new(0),
        }
    }

    /// A cell for a new key, for a thread without a spare cell. Fails with `EAGAIN` if all indices are in use, and with
    /// `ENOMEM`.
    #[cold]
    #[inline(never)]
    pub(crate) fn take(&'static self) -> Result<FreeCell, Errno> {
        match self.pop() {
            Some(free) => Ok(free),
            None => self.take_fresh(),
        }
    }

    /// Deletes a key: from then on it is dead in every thread. Fails with `EINVAL` if it is not alive.
    ///
    /// Returns the cell, unless its generations are used up. The caller must give it back, or create another key from it.
    #[inline]
    pub(crate) fn delete(&'static self, key: usize) -> Result<Option<FreeCell>, Errno> {
        let cell = self.cell_of(key).ok_or(EINVAL)?;
        let dead = key::next(key);
        // Of two threads that delete the same key, one succeeds. Acquire: the cell's next destructor is written after the
        // key's own, however the thread has learned of the key. (Loom cannot show that: it keeps writes in the order in
        // which they run.) Release: a thread that finds the key dead sees what was done before.
        cell.key.compare_exchange(key, dead, AcqRel, Relaxed).map_err(|_| EINVAL)?;
        Ok((key::generation(dead) < key::LAST_GENERATION).then_some(FreeCell(cell)))
    }

    /// An index above those of all keys that the calling thread knows of.
    #[cfg(not(all(test, loom)))]
    pub(crate) fn end(&self) -> u32 {
        self.fresh.load(Relaxed)
    }

    /// The cell of `key`, if the key is alive.
    pub(crate) fn live_cell(&'static self, key: usize) -> Option<&'static KeyCell> {
        // Acquire: however the thread has learned of the key, it sees the key's destructor from now on.
        self.cell_of(key).filter(|cell| cell.key.load(Acquire) == key)
    }

    /// The cell that `key` has if it is alive.
    #[inline]
    fn cell_of(&'static self, key: usize) -> Option<&'static KeyCell> {
        if key::is_odd(key) { self.cell(key::index(key)) } else { None }
    }

    /// The cell of `index`, if its bucket exists.
    #[inline]
    fn cell(&'static self, index: u32) -> Option<&'static KeyCell> {
        match self.first.get(index as usize) {
            Some(PaddedCell(cell)) => Some(cell),
            None => self.later_cell(index),
        }
    }

    /// The cell of `index`, which is not one of the first, if its bucket exists.
    fn later_cell(&'static self, index: u32) -> Option<&'static KeyCell> {
        let place = Place::of(index);
        let bucket = self.buckets.get(place.bucket)?.load(Acquire);
        if bucket.is_null() {
            return None;
        }
        // SAFETY: a published bucket is never freed, and `place.cell` is less than the number of its cells.
        Some(unsafe { &*bucket.add(place.cell) })
    }

    /// Takes a cell off the free list.
    fn pop(&'static self) -> Option<FreeCell> {
        let mut head = self.free.load(Acquire);
        loop {
            if head == 0 {
                return None;
            }
            let cell = self.cell(key::index(head))?;
            // If another thread takes this cell meanwhile, `below` may be anything. But then the head has changed for
            // good, and the exchange fails.
            let below = cell.destructor.load(Relaxed).addr();
            match self.free.compare_exchange_weak(head, below, Acquire, Acquire) {
                Ok(_) => return Some(FreeCell(cell)),
                Err(now) => head = now,
            }
        }
    }

    /// Puts a cell onto the free list.
    #[cold]
    #[inline(never)]
    pub(crate) fn give_back(&'static self, FreeCell(cell): FreeCell) {
        let above = cell.key.load(Relaxed);
        let mut head = self.free.load(Relaxed);
        loop {
            // Release: see `KeyCell::destructor`.
            cell.destructor.store(ptr::without_provenance_mut(head), Release);
            // Release: a thread that pops the cell sees its generation and the link to the cell below.
            match self.free.compare_exchange_weak(head, above, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes a cell that was never used.
    fn take_fresh(&'static self) -> Result<FreeCell, Errno> {
        let mut index = self.fresh.load(Relaxed);
        loop {
            if index > key::LAST_INDEX {
                return Err(EAGAIN);
            }
            // The memory comes first, so that no index is lost if there is none.
            let cell = match self.cell(index) {
                Some(cell) => cell,
                None => self.add_bucket(index)?,
            };
            match self.fresh.compare_exchange_weak(index, index + 1, Relaxed, Relaxed) {
                Ok(_) => {
                    cell.key.store(key::new(0, index), Relaxed);
                    return Ok(FreeCell(cell));
                }
                Err(now) => index = now,
            }
        }
    }

    /// Allocates the bucket that `index` is in, and returns its cell.
    #[cold]
    fn add_bucket(&'static self, index: u32) -> Result<&'static KeyCell, Errno> {
        let place = Place::of(index);
        let bucket = self.buckets.get(place.bucket).ok_or(EAGAIN)?;
        sync::uncancelled(|| Self::allocate_bucket(bucket, place.bits))?;
        self.cell(index).ok_or(ENOMEM)
    }

    /// Allocates a bucket of `1 << bits` cells, unless another thread is faster.
    fn allocate_bucket(bucket: &AtomicPtr<KeyCell>, bits: u32) -> Result<(), Errno> {
        let cells = sync::allocate_zeroed::<KeyCell>(1 << bits);
        if cells.is_null() {
            return Err(ENOMEM);
        }
        // Release: the zeroes that calloc wrote are published as well.
        if bucket.compare_exchange(ptr::null_mut(), cells, AcqRel, Acquire).is_err() {
            // SAFETY: another thread was faster, so no other thread knows of this bucket.
            unsafe { sync::free(cells, 1 << bits) };
        }
        Ok(())
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
    /// The place of a cell that is in a bucket.
    fn of(index: u32) -> Place {
        // The position of the highest bit of this sum says which bucket it is.
        let shifted = index as usize + FIRST_CELLS;
        let bits = shifted.ilog2();
        let offset = shifted ^ (1 << bits);
        // Consecutive indices lie 64 bytes apart. Otherwise two threads that create keys in turn would share cache lines.
        let cell = (offset << 2 | offset >> (bits - 2)) & ((1 << bits) - 1);
        Place { bucket: (bits - FIRST_BITS - 1) as usize, bits, cell }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::thread;
    use std::vec::Vec;

    use super::*;

    impl Registry {
        fn create(&'static self, destructor: Option<Destructor>) -> Result<usize, Errno> {
            Ok(self.take()?.publish(destructor))
        }

        fn delete_and_give_back(&'static self, key: usize) -> Result<(), Errno> {
            self.delete(key)?.into_iter().for_each(|free| self.give_back(free));
            Ok(())
        }
    }

    const ROUNDS: usize = if cfg!(miri) { 30 } else { 20_000 };

    #[test]
    fn a_deleted_key_is_dead_for_ever() {
        static REGISTRY: Registry = Registry::new();
        let mut dead = Vec::new();
        for _ in 0..ROUNDS / 10 {
            let key = REGISTRY.create(None).unwrap();
            assert!(REGISTRY.live_cell(key).is_some());
            assert_eq!(REGISTRY.delete_and_give_back(key), Ok(()));
            dead.push(key);
        }
        let alive = REGISTRY.create(None).unwrap();
        for key in dead {
            assert_ne!(key, alive);
            assert!(REGISTRY.live_cell(key).is_none());
            assert_eq!(REGISTRY.delete_and_give_back(key), Err(EINVAL));
        }
        assert!(REGISTRY.live_cell(alive).is_some());
    }

    #[test]
    fn the_generation_of_a_dead_cell_makes_no_key() {
        static REGISTRY: Registry = Registry::new();
        let key = REGISTRY.create(None).unwrap();
        assert_eq!(REGISTRY.delete_and_give_back(key), Ok(()));
        let number = key::new(key::generation(key) + 1, key::index(key));
        assert!(REGISTRY.live_cell(number).is_none());
        assert_eq!(REGISTRY.delete_and_give_back(number), Err(EINVAL));
    }

    #[test]
    fn deleted_cells_are_used_again() {
        static REGISTRY: Registry = Registry::new();
        for _ in 0..3 {
            let keys: Vec<_> = (0..100).map(|_| REGISTRY.create(None).unwrap()).collect();
            keys.iter().for_each(|key| assert_eq!(REGISTRY.delete_and_give_back(*key), Ok(())));
            assert_eq!(REGISTRY.fresh.load(Relaxed), 101);
        }
    }

    #[test]
    fn a_cell_that_has_no_generation_left_is_retired() {
        static REGISTRY: Registry = Registry::new();
        let first = REGISTRY.create(None).unwrap();
        let cell = REGISTRY.live_cell(first).unwrap();
        assert_eq!(REGISTRY.delete_and_give_back(first), Ok(()));

        // The state after so many keys that the cell has one generation left. The free list holds its generation, too.
        let nearly_used_up = key::new(key::LAST_GENERATION - 2, key::index(first));
        cell.key.store(nearly_used_up, Relaxed);
        REGISTRY.free.store(nearly_used_up, Relaxed);
        let last = REGISTRY.create(None).unwrap();
        assert_eq!(last, key::new(key::LAST_GENERATION - 1, key::index(first)));
        assert_eq!(REGISTRY.delete_and_give_back(last), Ok(()));

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
        assert_eq!(REGISTRY.delete_and_give_back(key), Ok(()));
        assert!(REGISTRY.create(None).is_ok());
        assert_eq!(REGISTRY.create(None), Err(EAGAIN));
    }

    #[test]
    fn a_key_has_its_own_destructor_and_not_that_of_a_later_one() {
        unsafe extern "C-unwind" fn set_to_one(value: *mut core::ffi::c_void) {
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

        assert_eq!(REGISTRY.delete_and_give_back(key), Ok(()));
        assert!(cell.destructor(key).is_none());
        let later = REGISTRY.create(None).unwrap();
        assert!(ptr::eq(REGISTRY.live_cell(later).unwrap(), cell));
        assert!(cell.destructor(later).is_none());
    }

    #[test]
    fn every_index_has_a_cell_of_its_own() {
        let last = if cfg!(miri) { 100 } else { 100_000 };
        let mut places = HashSet::new();
        for index in FIRST_CELLS as u32..last {
            let place = Place::of(index);
            assert!(place.cell < 1 << place.bits && place.bits == place.bucket as u32 + FIRST_BITS + 1);
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
                            let _ = REGISTRY.delete_and_give_back(*key);
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
        // Repeated, as both threads may run on one core at first.
        for _ in 0..20 {
            let keys: Vec<_> = (0..ROUNDS / 20).map(|_| REGISTRY.create(None).unwrap()).collect();
            // The threads wait for each other at each key. Otherwise one would always be ahead.
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
                    deleted += usize::from(REGISTRY.delete_and_give_back(*key).is_ok());
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
