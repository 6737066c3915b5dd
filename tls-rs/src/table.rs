//! The values of one thread: a hash table that has hardly any collisions as long as it is small.
//!
//! Five bits of a key say which slot is its home, where the search for it begins. It is one of the first 32 slots, in a
//! larger table too: so the mask is a constant, and `get` need not load it. If two keys would share a home, the table looks
//! at five other bits, which `shift` chooses. For neighbours and for any other sequence there are bits that tell up to 24
//! keys apart, and for 12 random keys nine times in ten. (A shift takes one cycle. The multiplication of most hash tables
//! takes three, for which a `get` that follows another would have to wait.) Open addressing with linear probing finds the
//! keys that are not at home, nearly always where it begins.
//!
//! Only its thread changes a table, but a signal handler may interrupt that at any instruction and call `get`. So each
//! single step of a change leaves a table that reads right: an entry's key is written last, and a table that gets
//! another shift or other memory is copied, then replaced with one store. `lookup.rs` and `root.rs` do the latter.

use core::cell::Cell;
use core::ffi::c_void;
use core::iter;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, compiler_fence};

use crate::config::KEY_BITS;
use crate::key;
use crate::registry::{KeyCell, NO_KEY};
use crate::sys::{self, Destructor};

/// Slots of the inline table, a thread's first, which is part of its root.
pub(crate) const INLINE_SLOTS: usize = 32;

/// How many slots can be the home of a key, in a table of any size. A constant saves `get` a load.
const HOMES: usize = INLINE_SLOTS;

/// Which bits of a key choose its home before it is shifted: not the lowest, so that they are an offset in bytes.
const HOME_MASK: usize = mask(HOMES);

/// A new table looks at the highest bits of keys: those that the hash of their index spreads best.
pub(crate) const FIRST_SHIFT: u32 = KEY_BITS + HOME_MASK.leading_zeros() - usize::BITS;

/// With this shift, the first slot is the home of every key.
const NO_SHIFT: u32 = usize::BITS - 1;

/// A search begins at a slot that the bits of the product with 2^64 / golden ratio choose, from the middle on: these depend on
/// the whole index. (A product of 32 bits leaves 16 of them: the search for a value gets slow in a thread with more than
/// 2^16 values.)
const MULTIPLIER: usize = 0x9E37_79B9_7F4A_7C15_u64 as usize;
const PRODUCT_SHIFT: u32 = usize::BITS / 2 - size_of::<Slot>().ilog2();

/// The `key` of a slot that was never used. Ends a search.
const EMPTY: usize = 0;

/// The table of a thread without values: one slot, which stays empty. Also that of a thread whose table is being replaced.
pub(crate) static NO_TABLE: NoTable = NoTable::new();

/// The table of a thread whose table is being replaced, and in which a signal handler has set a value meanwhile.
static OUTDATED: NoTable = NoTable::new();

#[repr(C, align(32))]
pub(crate) struct NoTable(Header, Slot);

impl NoTable {
    const fn new() -> NoTable {
        NoTable(
            Header {
                shift: AtomicU32::new(NO_SHIFT),
                used_bits: Cell::new(0),
                mask: Cell::new(0),
                used: Cell::new(0),
            },
            Slot {
                key: AtomicUsize::new(EMPTY),
                value: AtomicPtr::new(ptr::null_mut()),
                cell: AtomicPtr::new((&raw const NO_KEY).cast_mut()),
                queued: Cell::new(0),
            },
        )
    }
}

// SAFETY: nobody writes to it.
unsafe impl Sync for NoTable {}

/// The shift with which the most keys are at home, and of the others the most are where the search for them begins.
/// `current` unless another is better.
pub(crate) fn shift_for(keys: impl Iterator<Item = usize> + Clone, current: u32) -> u32 {
    let rank = |shift: u32| {
        let home = |key| bit(home_offset(key, shift));
        let homes = keys.clone().fold(0, |homes, key| homes | home(key));
        let (mut seen, mut taken) = (0, homes);
        for key in keys.clone() {
            if seen & home(key) != 0 {
                taken |= bit(offset(key, HOME_MASK));
            }
            seen |= home(key);
        }
        (homes.count_ones(), taken.count_ones())
    };
    let mut best = (rank(current), current);
    for shift in (0..=FIRST_SHIFT).rev() {
        let found = rank(shift);
        if found > best.0 {
            best = (found, shift);
        }
    }
    best.1
}

/// A key's home, in bytes from the first slot.
#[inline(always)]
fn home_offset(key: usize, shift: u32) -> usize {
    key.wrapping_shr(shift) & HOME_MASK
}

/// The bit of one of the first 32 slots.
fn bit(offset: usize) -> u32 {
    1 << (offset / size_of::<Slot>())
}

/// Where to search for a key that is not at home, in a table of any size, in bytes from the first slot.
fn offset(key: usize, mask: usize) -> usize {
    key.wrapping_mul(MULTIPLIER) >> PRODUCT_SHIFT & mask
}

/// The mask that makes an offset of a number, in a table with so many slots.
const fn mask(slots: usize) -> usize {
    (slots - 1) * size_of::<Slot>()
}

/// The entry of a live key: the key, its value and its cell.
pub(crate) type Entry = (usize, *mut c_void, &'static KeyCell);

/// One entry. All zero is an empty slot.
#[repr(C)]
pub(crate) struct Slot {
    key: AtomicUsize,
    value: AtomicPtr<c_void>,
    cell: AtomicPtr<KeyCell>,
    /// Room for one key of the queue, see `Table::push`. It has nothing to do with the entry.
    queued: Cell<usize>,
}

impl Slot {
    /// The entry's value.
    #[inline(always)]
    pub(crate) fn value(&self) -> *mut c_void {
        self.value.load(Relaxed)
    }

    /// Replaces the entry's value.
    #[inline(always)]
    pub(crate) fn set_value(&self, value: *mut c_void) {
        self.value.store(value, Relaxed);
    }

    /// Where the entry's value is.
    #[inline(always)]
    pub(crate) fn location(&self) -> *mut *mut c_void {
        self.value.as_ptr()
    }

    fn cell(&self) -> Option<&'static KeyCell> {
        // SAFETY: NULL, or a `&'static KeyCell` that `fill` wrote.
        unsafe { self.cell.load(Relaxed).as_ref() }
    }

    /// Whether `key`, which is the number in this slot, is a live key.
    fn is_live(&self, key: usize) -> bool {
        self.cell().is_some_and(|cell| cell.is_live(key))
    }

    /// Whether there is no entry, or one whose key has been deleted.
    fn is_free(&self) -> bool {
        let key = self.key.load(Relaxed);
        key == EMPTY || !self.is_live(key)
    }

    /// Writes an entry into a slot that is free.
    pub(crate) fn fill(&self, key: usize, value: *mut c_void, cell: &'static KeyCell) {
        // Until the last step this reads as no entry: the old key is alive neither in the old cell nor in the new one.
        self.value.store(value, Relaxed);
        self.cell.store(ptr::from_ref(cell).cast_mut(), Relaxed);
        compiler_fence(Release);
        self.key.store(key, Relaxed);
    }
}

/// The start of a table in memory. Its slots follow. As large as a slot.
///
/// Of a key that is at home, `get` reads `shift` only, which is first because it takes a byte less to load. A signal handler
/// never finds `shift` and `mask` half changed: they change only while the thread uses another table.
#[repr(C)]
pub(crate) struct Header {
    /// See `home_offset`.
    shift: AtomicU32,
    /// Which slots are not empty, if there are no more slots than bits, so that a thread's first value and its end need
    /// not read the others. Not next to `used`: compilers would clear both with a call of memset.
    used_bits: Cell<usize>,
    /// See `mask`.
    mask: Cell<usize>,
    /// How many slots are not empty.
    used: Cell<usize>,
}

/// The table in a thread's root: a header and its slots. Aligned so that no slot crosses a cache line.
#[repr(C, align(32))]
pub(crate) struct InlineTable(Header, [Slot; INLINE_SLOTS]);

impl InlineTable {
    pub(crate) fn table(&self) -> Table {
        Table(NonNull::from(self).cast())
    }

    /// Copies the inline table `from`.
    pub(crate) fn copy(to: &mut MaybeUninit<InlineTable>, from: Table) -> Table {
        let header = NonNull::from(to).cast::<Header>();
        // SAFETY: there is room for a header and for as many slots as the inline table has.
        unsafe {
            header.write(Header {
                shift: AtomicU32::new(from.shift()),
                used_bits: from.header().used_bits.clone(),
                mask: from.header().mask.clone(),
                used: from.header().used.clone(),
            });
            // Slot by slot: memcpy would be one more function that libc must have.
            for i in 0..INLINE_SLOTS {
                let slot = from.slot(i * size_of::<Slot>());
                header.add(1).cast::<Slot>().add(i).write(Slot {
                    key: AtomicUsize::new(slot.key.load(Relaxed)),
                    value: AtomicPtr::new(slot.value.load(Relaxed)),
                    cell: AtomicPtr::new(slot.cell.load(Relaxed)),
                    queued: Cell::new(0),
                });
            }
        }
        Table(header)
    }
}

/// A table: a header and the slots behind it. At least one slot is empty, so every search ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Table(NonNull<Header>);

impl Table {
    /// Allocates an empty table. None if memory runs out.
    pub(crate) fn allocate(slots: usize, shift: u32) -> Option<Table> {
        const { assert!(size_of::<Header>() == size_of::<Slot>()) };
        // SAFETY: calloc may be called at any time, see `sync::allocate_zeroed`. Its zeroes are empty slots.
        let header = unsafe { sys::calloc(slots + 1, size_of::<Slot>()) }.cast::<Header>();
        let table = Table(NonNull::new(header)?);
        table.header().shift.store(shift, Relaxed);
        table.header().mask.set(mask(slots));
        table.slot(0).cell.store((&raw const NO_KEY).cast_mut(), Relaxed);
        Some(table)
    }

    /// Frees a table.
    ///
    /// # Safety
    ///
    /// It must come from `allocate`, and must not be used again.
    pub(crate) unsafe fn free(self) {
        // SAFETY: the caller's promise.
        unsafe { sys::free(self.0.as_ptr().cast()) };
    }

    /// The table of a thread without values.
    pub(crate) fn none() -> Table {
        Table(NonNull::from(&NO_TABLE).cast())
    }

    /// In place of a table that is being replaced, if a signal handler has set a value in it meanwhile.
    pub(crate) fn outdated() -> Table {
        Table(NonNull::from(&OUTDATED).cast())
    }

    /// Whether this is `none` or `outdated`.
    pub(crate) fn is_none(self) -> bool {
        self.len() == 1
    }

    /// # Safety
    ///
    /// `header` must come from `into_raw`, and the table must not have been freed.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(header: *mut Header) -> Table {
        // SAFETY: the caller's promise.
        Table(unsafe { NonNull::new_unchecked(header) })
    }

    pub(crate) fn into_raw(self) -> *mut Header {
        self.0.as_ptr()
    }

    #[inline]
    fn header(self) -> &'static Header {
        // SAFETY: a Table is made from a header that is alive, and is not used after `free`.
        unsafe { self.0.as_ref() }
    }

    /// The slot of `key`, if it is the key's home and the key is alive.
    #[inline(always)]
    pub(crate) fn at_home(self, key: usize) -> Option<&'static Slot> {
        Self::live_in(self.home(key), key)
    }

    /// The slot of `key`, if the search for keys that are not at home begins there, and the key is alive.
    #[inline]
    pub(crate) fn away_from_home(self, key: usize) -> Option<&'static Slot> {
        Self::live_in(self.slot(offset(key, self.header().mask.get())), key)
    }

    /// The slot, one of the two above, if it has `key` and the key is alive.
    #[inline(always)]
    fn live_in(slot: &'static Slot, key: usize) -> Option<&'static Slot> {
        if slot.key.load(Relaxed) != key {
            return None;
        }
        // SAFETY: an entry has a cell. The only other number in a slot is 0, which leads to the first slot, and that always
        // has a cell.
        let cell = unsafe { &*slot.cell.load(Relaxed) };
        cell.is_live(key).then_some(slot)
    }

    /// The slot where the search for a key begins.
    #[inline(always)]
    pub(crate) fn home(self, key: usize) -> &'static Slot {
        self.slot(home_offset(key, self.shift()))
    }

    /// The slot at an offset, which must be within the mask.
    #[inline]
    fn slot(self, offset: usize) -> &'static Slot {
        // SAFETY: the slots follow the header, as many as the mask says.
        unsafe { self.0.byte_add(size_of::<Header>() + offset).cast::<Slot>().as_ref() }
    }

    /// The slots where a key may be, in the order in which they are tried: its home, and then all slots.
    fn search(self, key: usize) -> impl Iterator<Item = &'static Slot> {
        let mask = self.header().mask.get();
        let next = move |offset: &usize| Some((offset + size_of::<Slot>()) & mask);
        let others = iter::successors(Some(offset(key, mask)), next);
        let others = others.map(move |offset| self.slot(offset));
        iter::once(self.home(key)).chain(others)
    }

    /// The slot of `key`, if there is one and the key is alive.
    pub(crate) fn find(self, key: usize) -> Option<&'static Slot> {
        let ends_search = |slot: &&Slot| [EMPTY, key].contains(&slot.key.load(Relaxed));
        let slot = self.search(key).find(ends_search)?;
        (slot.key.load(Relaxed) == key && slot.is_live(key)).then_some(slot)
    }

    /// Adds a key to the queue, which has `count` keys, fewer than there are slots. The slots have room for it, so that
    /// thread exit needs no memory. It is a binary heap.
    pub(crate) fn push(self, count: usize, key: usize) {
        let mut at = count;
        while at > 0 {
            let above = self.queued((at - 1) / 2).get();
            if key::index(above) <= key::index(key) {
                break;
            }
            self.queued(at).set(above);
            at = (at - 1) / 2;
        }
        self.queued(at).set(key);
    }

    /// Removes the key with the lowest index from the queue, which has `left` more keys.
    pub(crate) fn pop(self, left: usize) -> usize {
        let lowest = self.queued(0).get();
        let last = self.queued(left).get();
        let mut at = 0;
        while 2 * at + 1 < left {
            let index = |at| key::index(self.queued(at).get());
            let (first, second) = (2 * at + 1, 2 * at + 2);
            let below = if second < left && index(second) < index(first) { second } else { first };
            if key::index(last) <= index(below) {
                break;
            }
            self.queued(at).set(self.queued(below).get());
            at = below;
        }
        self.queued(at).set(last);
        lowest
    }

    /// The place in the queue, of which there are as many as slots.
    fn queued(self, at: usize) -> &'static Cell<usize> {
        &self.slot(at * size_of::<Slot>()).queued
    }

    /// Takes the value of `key` out of the table, with the destructor that waits for it, if there is one.
    pub(crate) fn take(self, key: usize) -> Option<(*mut c_void, Destructor)> {
        let slot = self.find(key)?;
        let destructor = slot.cell()?.destructor(key)?;
        let value = slot.value();
        if value.is_null() {
            return None;
        }
        slot.set_value(ptr::null_mut());
        Some((value, destructor))
    }

    /// How many slots may be used: a quarter stays empty, so that searches stay short.
    pub(crate) fn room(self) -> usize {
        self.len() / 4 * 3
    }

    /// Whether another slot may be used.
    pub(crate) fn has_room(self) -> bool {
        self.used() < self.room()
    }

    /// Whether `key` can be added without another shift or more slots. Few keys shall each be at home.
    pub(crate) fn has_place_for(self, key: usize) -> bool {
        self.has_room() && (self.home(key).is_free() || self.len() > HOMES)
    }

    /// Whether the home of `key`, which is not free, is that of the key there, too.
    pub(crate) fn is_home_shared(self, key: usize) -> bool {
        let slot = self.home(key);
        ptr::eq(self.home(slot.key.load(Relaxed)), slot)
    }

    /// How many slots are not empty.
    pub(crate) fn used(self) -> usize {
        self.header().used.get()
    }

    /// How many slots there are.
    pub(crate) fn len(self) -> usize {
        self.header().mask.get() / size_of::<Slot>() + 1
    }

    /// Which bits of a key choose its home.
    #[inline(always)]
    pub(crate) fn shift(self) -> u32 {
        self.header().shift.load(Relaxed)
    }

    /// Records that a slot is no longer empty.
    pub(crate) fn note_used(self, slot: &'static Slot) {
        let header = self.header();
        header.used.set(self.used() + 1);
        if self.has_bits() {
            let offset = ptr::from_ref(slot).addr() - ptr::from_ref(self.slot(0)).addr();
            header.used_bits.set(header.used_bits.get() | 1 << (offset / size_of::<Slot>()));
        }
    }

    /// Whether `used_bits` says which slots are used.
    fn has_bits(self) -> bool {
        self.len() <= usize::BITS as usize
    }

    /// The slots that are not empty.
    fn used_slots(self) -> impl Iterator<Item = &'static Slot> + Clone {
        let slot_at = move |i: usize| self.slot(i * size_of::<Slot>());
        let mut next = 0;
        iter::from_fn(move || {
            let found = if self.has_bits() {
                let ahead =
                    u32::try_from(next).ok().and_then(|next| self.header().used_bits.get().checked_shr(next));
                ahead.filter(|ahead| *ahead != 0).map(|ahead| next + ahead.trailing_zeros() as usize)
            } else {
                (next..self.len()).find(|i| slot_at(*i).key.load(Relaxed) != EMPTY)
            }?;
            next = found + 1;
            Some(slot_at(found))
        })
    }

    /// Adds the entries of live keys, none of which is here. Those whose homes are free come first, so that none is away
    /// from home because another is.
    pub(crate) fn add_all(self, entries: impl Iterator<Item = Entry> + Clone) {
        for is_first in [true, false] {
            for (key, value, cell) in entries.clone() {
                let home = self.home(key);
                let is_due = if is_first { home.is_free() } else { home.key.load(Relaxed) != key };
                if is_due {
                    self.add(key, value, cell);
                }
            }
        }
    }

    /// Adds an entry for a key that has none, in the first slot that is empty or whose key is dead.
    #[inline(never)] // once for each key and thread, from several places
    pub(crate) fn add(self, key: usize, value: *mut c_void, cell: &'static KeyCell) {
        if let Some(slot) = self.search(key).find(|slot| slot.is_free()) {
            if slot.key.load(Relaxed) == EMPTY {
                self.note_used(slot);
            }
            slot.fill(key, value, cell);
        }
    }

    /// Sets the values of the table `from`, most of which have an entry here.
    pub(crate) fn copy_values(self, from: Table) {
        for (key, value, cell) in from.live() {
            match self.find(key) {
                Some(slot) => slot.set_value(value),
                None if value.is_null() => {}
                None => self.add(key, value, cell),
            }
        }
    }

    /// Whether any slot has a value other than NULL.
    pub(crate) fn has_values(self) -> bool {
        self.used_slots().any(|slot| !slot.value().is_null())
    }

    /// The keys that have a slot.
    pub(crate) fn keys(self) -> impl Iterator<Item = usize> {
        self.used_slots().map(|slot| slot.key.load(Relaxed))
    }

    /// The entries of live keys.
    pub(crate) fn live(self) -> impl Iterator<Item = Entry> + Clone {
        self.used_slots().filter_map(|slot| {
            let key = slot.key.load(Relaxed);
            let cell = slot.cell().filter(|cell| cell.is_live(key))?;
            Some((key, slot.value.load(Relaxed), cell))
        })
    }

    /// Empties the inline table, which may hold old entries from before the thread outgrew it.
    pub(crate) fn reset(self, shift: u32) {
        let header = self.header();
        if self.used() != 0 {
            self.used_slots().for_each(|slot| slot.key.store(EMPTY, Relaxed));
            header.used.set(0);
            header.used_bits.set(0);
        }
        header.shift.store(shift, Relaxed);
        header.mask.set(mask(INLINE_SLOTS));
        self.slot(0).cell.store((&raw const NO_KEY).cast_mut(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use core::mem;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn each_key_of_a_sequence_has_its_own_home() {
        let few = if cfg!(miri) { 3 } else { 100 };
        for step in (1..=few).chain([128, 1000, 4096]) {
            for generation in [1, 3, 12_345] {
                let sequence = (0..24).map(|i| key::new(generation, 1 + i * step));
                let shift = shift_for(sequence.clone(), FIRST_SHIFT);
                let mut homes = [false; HOMES];
                for key in sequence {
                    let home = home_offset(key, shift) / size_of::<Slot>();
                    assert!(!mem::replace(&mut homes[home], true), "{step}: {home}");
                }
            }
        }
    }

    #[test]
    fn the_first_home_of_neighbours_is_their_own() {
        let neighbours = (1..=20).map(|index| key::new(1, index));
        assert_eq!(shift_for(neighbours, FIRST_SHIFT), FIRST_SHIFT);
    }

    /// So many random keys, the same each time.
    fn random_keys(count: usize, random: &mut u32) -> Vec<usize> {
        let mut next = || {
            *random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            key::new(1, 1 + (*random >> 8) % 1_000_000)
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn most_of_few_keys_are_at_home() {
        let mut random = 1;
        for (count, at_home) in [(8, 7), (12, 10), (16, 13), (24, 16)] {
            for _ in 0..if cfg!(miri) { 1 } else { 1000 } {
                let keys = random_keys(count, &mut random);
                let shift = shift_for(keys.iter().copied(), FIRST_SHIFT);
                let homes = keys.iter().fold(0_u32, |homes, key| homes | bit(home_offset(*key, shift)));
                assert!(homes.count_ones() >= at_home, "{} of {keys:x?}", homes.count_ones());
            }
        }
    }

    #[test]
    fn keys_that_are_not_at_home_are_where_the_search_for_them_begins() {
        let mut random = 1;
        let needs_search = |keys: &Vec<usize>| {
            let shift = shift_for(keys.iter().copied(), FIRST_SHIFT);
            let mut taken = keys.iter().fold(0_u32, |taken, key| taken | bit(home_offset(*key, shift)));
            let mut at_home = 0;
            keys.iter().any(|key| {
                let home = bit(home_offset(*key, shift));
                let next = if at_home & home == 0 { 0 } else { bit(offset(*key, HOME_MASK)) };
                at_home |= home;
                let is_taken = taken & next != 0;
                taken |= next;
                is_taken
            })
        };
        let sets = (0..if cfg!(miri) { 1 } else { 1000 }).map(|_| random_keys(12, &mut random));
        let searched = sets.filter(needs_search).count();
        assert!(searched <= 10, "{searched}");
    }

    #[test]
    fn without_a_table_every_number_leads_to_the_same_slot() {
        for number in [0, 1, key::NONE, key::new(1, 1), usize::MAX] {
            assert!(ptr::eq(Table::none().home(number), Table::none().slot(0)));
        }
    }
}
