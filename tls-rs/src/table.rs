//! What one thread has stored: a hash table in which, as long as it is small, no two keys meet.
//!
//! A key's slot is found by one multiplication. Where two keys of a small table would get the same slot, another
//! multiplier is looked for with which they all get slots of their own, so `get` need not search, whatever the
//! keys. A thread with many keys has a table with open addressing and linear probing.
//!
//! Only its thread changes a table, but a signal handler may interrupt that at any instruction to call `get`.
//! So every change is made in an order in which each step leaves a table that reads right: an entry's key is
//! written last, and a table that gets another multiplier or other memory is copied and then exchanged with one
//! store.

use core::cell::Cell;
use core::ffi::c_void;
use core::iter;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicUsize, compiler_fence};

use crate::registry::{KeyCell, NOBODY, REGISTRY};
use crate::root::Root;
use crate::sys::{self, Destructor, EINVAL, ENOMEM, Errno};

/// Slots in a thread's first table, which is part of its root.
const INLINE_SLOTS: usize = 32;

/// As many keys as this never need another table than the first.
const INLINE_KEYS: usize = 12;

/// With more keys than this, some may meet. Of all multipliers, one in a hundred keeps 16 keys apart in 32 slots,
/// and as many do for 24 in 64.
const KEYS_APART: usize = 24;

/// No table with more slots than this keeps its keys apart.
const SLOTS_APART: usize = 64;

/// Multipliers to try before a table is found too small.
const TRIES: usize = 512;

/// The first multiplier: 2^64 divided by the golden ratio, which spreads neighbours best.
const FIRST_MULTIPLIER: usize = 0x9E37_79B9_7F4A_7C15_u64 as usize;

/// What takes a multiplier to the next. As it is odd, so are all of them. (Steele and Vigna, "Computationally easy,
/// spectrally good multipliers for congruential pseudorandom number generators".)
const NEXT_MULTIPLIER: usize = 0xD134_2543_DE82_EF95_u64 as usize;

/// The bits of the product that choose the slot are those from the middle on, which depend on the whole index. (With 32
/// bits there are 16 of them: more values than that in one thread are found, but slowly.)
const SHIFT: u32 = usize::BITS / 2 - size_of::<Slot>().ilog2();

/// In place of a key: never used. Ends a search.
const EMPTY: usize = 0;

/// The table of a thread without values: one slot, which stays empty.
pub(crate) static NO_TABLE: NoTable = NoTable(
    Header { multiplier: Cell::new(0), mask: Cell::new(0), used: Cell::new(0), used_bits: Cell::new(0) },
    Slot {
        key: AtomicUsize::new(EMPTY),
        value: AtomicPtr::new(ptr::null_mut()),
        cell: AtomicPtr::new((&raw const NOBODY).cast_mut()),
        _padding: 0,
    },
);

#[repr(C, align(32))]
pub(crate) struct NoTable(Header, Slot);

// SAFETY: nobody writes to it.
unsafe impl Sync for NoTable {}

/// The value of `key` in this thread, or NULL. Neither allocates nor locks; async-signal-safe.
#[inline]
pub(crate) fn get(key: usize) -> *mut c_void {
    match Root::current_table().at_home(key) {
        Some(slot) => slot.value.load(Relaxed),
        None => get_elsewhere(key),
    }
}

/// The value of a key that is not in its home.
#[cold]
#[inline(never)]
fn get_elsewhere(key: usize) -> *mut c_void {
    Root::current_table().find(key).map_or(ptr::null_mut(), |slot| slot.value.load(Relaxed))
}

/// Sets the value of `key` in this thread. Fails with `EINVAL` if the key is not alive and with `ENOMEM`,
/// which leaves all as it was.
#[inline]
pub(crate) fn set(key: usize, value: *mut c_void) -> Result<(), Errno> {
    match Root::current_table().at_home(key) {
        Some(slot) => {
            slot.value.store(value, Relaxed);
            Ok(())
        }
        None => set_elsewhere(key, value),
    }
}

/// Sets the value of a key that is not in its home.
#[cold]
#[inline(never)]
fn set_elsewhere(key: usize, value: *mut c_void) -> Result<(), Errno> {
    let table = Root::current_table();
    if table == Table::none() {
        return set_first(key, value);
    }
    if let Some(slot) = table.find(key) {
        slot.value.store(value, Relaxed);
        return Ok(());
    }
    let root = Root::current();
    let Some(cell) = cell_for(root, key, value)? else { return Ok(()) };
    let table = if table.has_place_for(key) { table } else { remake(root, table, key)? };
    table.add(key, value, cell);
    Ok(())
}

/// Sets the first value of a thread. Most threads have no more than this, so it is quick.
fn set_first(key: usize, value: *mut c_void) -> Result<(), Errno> {
    let root = Root::current();
    let Some(cell) = cell_for(root, key, value)? else { return Ok(()) };
    let inline = root.inline();
    inline.reset(FIRST_MULTIPLIER);
    let slot = inline.home(key);
    slot.fill(key, value, cell);
    inline.note_used(slot);
    Root::exchange_table(inline);
    Ok(())
}

/// The cell for a new entry, whose destructor, if there is one, is sure to be called. None if there is to be no entry.
#[inline]
fn cell_for(root: &Root, key: usize, value: *mut c_void) -> Result<Option<&'static KeyCell>, Errno> {
    let cell = REGISTRY.live_cell(key).ok_or(EINVAL)?;
    if value.is_null() {
        return Ok(None); // which it is already
    }
    if cell.destructor(key).is_some() {
        root.arm()?;
    }
    Ok(Some(cell))
}

/// Takes the value of `key` out of this thread's table, if there is one that a destructor waits for.
pub(crate) fn take(key: usize) -> Option<(*mut c_void, Destructor)> {
    let slot = Root::current_table().find(key)?;
    let destructor = slot.cell()?.destructor(key)?;
    let value = slot.value.load(Relaxed);
    if value.is_null() {
        return None;
    }
    slot.value.store(ptr::null_mut(), Relaxed);
    Some((value, destructor))
}

/// Moves this thread's values to where there is a place for `key`, too.
#[cold]
#[inline(never)]
fn remake(root: &Root, old: Table, key: usize) -> Result<Table, Errno> {
    // NULL is worth a slot, as it may be followed by another value, but not worth memory.
    let with_nulls = old.live().count() < old.room();
    let kept = |table: Table| table.live().filter(move |(_, value, _)| with_nulls || !value.is_null());
    let count = kept(old).count() + 1;
    let mut slots = (count * 2).next_power_of_two().max(INLINE_SLOTS);
    let mut multiplier = old.header().multiplier.get();
    if count <= KEYS_APART {
        let mut keys = [key; KEYS_APART];
        // Counted again, as other threads delete keys meanwhile.
        let others = keys.iter_mut().skip(1).zip(kept(old)).map(|(place, (key, ..))| *place = key).count();
        let keys = keys.get(..=others).unwrap_or_default();
        let largest = if count <= INLINE_KEYS { slots } else { SLOTS_APART };
        let sizes =
            iter::successors(Some(slots), |slots| Some(slots * 2)).take_while(|slots| *slots <= largest);
        let apart = sizes.filter_map(|slots| Some((slots, multiplier_for(keys, slots, multiplier)?))).next();
        match apart {
            Some(apart) => (slots, multiplier) = apart,
            None if old.has_room() => return Ok(old),
            None => {}
        }
    }

    let inline = root.inline();
    if slots == INLINE_SLOTS && !root.is_walked(inline) {
        let mut copy = MaybeUninit::uninit();
        let mut from = old;
        if old == inline {
            from = InlineTable::copy(&mut copy, old);
            Root::exchange_table(from);
        }
        inline.reset(multiplier);
        kept(from).for_each(|(key, value, cell)| inline.add(key, value, cell));
        Root::exchange_table(inline);
        if old != inline {
            root.release(old);
        }
        return Ok(inline);
    }

    // Thread exit is to free it.
    let allocated = root.arm().and_then(|()| Table::allocate(slots, multiplier).ok_or(ENOMEM));
    match allocated {
        Ok(new) => {
            kept(old).for_each(|(key, value, cell)| new.add(key, value, cell));
            Root::exchange_table(new);
            root.release(old);
            Ok(new)
        }
        Err(_) if old.used() + 1 < old.len() => Ok(old), // slower, with one slot left at which searches end
        Err(error) => Err(error),
    }
}

/// A multiplier that gives each of the keys a home of its own, if one is found.
fn multiplier_for(keys: &[usize], slots: usize, first: usize) -> Option<usize> {
    let next = |multiplier: &usize| Some(multiplier.wrapping_mul(NEXT_MULTIPLIER));
    iter::successors(Some(first), next).take(TRIES).find(|multiplier| {
        let mut taken = 0_u64;
        keys.iter().all(|key| {
            let home = 1 << (offset(*key, *multiplier, mask(slots)) / size_of::<Slot>());
            let is_free = taken & home == 0;
            taken |= home;
            is_free
        })
    })
}

/// Where the search for a key begins, in bytes from the first slot.
#[inline(always)]
fn offset(key: usize, multiplier: usize, mask: usize) -> usize {
    key.wrapping_mul(multiplier) >> SHIFT & mask
}

/// What makes an offset of any number, in a table with so many slots.
fn mask(slots: usize) -> usize {
    (slots - 1) * size_of::<Slot>()
}

/// One entry. All zero is an empty slot.
#[repr(C)]
pub(crate) struct Slot {
    key: AtomicUsize,
    value: AtomicPtr<c_void>,
    cell: AtomicPtr<KeyCell>,
    _padding: usize,
}

impl Slot {
    fn cell(&self) -> Option<&'static KeyCell> {
        // SAFETY: NULL or what `fill` wrote, which is a `&'static KeyCell`.
        unsafe { self.cell.load(Relaxed).as_ref() }
    }

    /// Whether `key`, which is the number in this slot, is a live key.
    fn is_live(&self, key: usize) -> bool {
        self.cell().is_some_and(|cell| cell.is_live(key))
    }

    /// Whether there is no entry, or that of a key which has been deleted.
    fn is_free(&self) -> bool {
        let key = self.key.load(Relaxed);
        key == EMPTY || !self.is_live(key)
    }

    /// Makes an entry in a slot that is free.
    fn fill(&self, key: usize, value: *mut c_void, cell: &'static KeyCell) {
        // Until the last step this is no entry: neither the cell that was there nor this one is that of the number
        // that was there.
        self.value.store(value, Relaxed);
        self.cell.store(ptr::from_ref(cell).cast_mut(), Relaxed);
        compiler_fence(Release);
        self.key.store(key, Relaxed);
    }
}

/// What a table's slots follow in memory. As large as a slot.
///
/// No signal handler finds it changed: `get` reads `multiplier` and `mask`, and they stay what they are for as long as the
/// table is the thread's.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct Header {
    /// Which slots are not empty, if there are no more slots than bits: a thread's first value and its end need not look at the
    /// others. Apart from `used`, or compilers clear both by a call of memset.
    used_bits: Cell<usize>,
    /// See `offset`.
    multiplier: Cell<usize>,
    /// See `mask`.
    mask: Cell<usize>,
    /// How many slots are not empty.
    used: Cell<usize>,
}

/// The table in a thread's root: a header and its slots. Aligned so that no slot lies in two cache lines.
#[repr(C, align(32))]
pub(crate) struct InlineTable(Header, [Slot; INLINE_SLOTS]);

impl InlineTable {
    pub(crate) fn table(&self) -> Table {
        Table(NonNull::from(self).cast())
    }

    /// Makes a copy of the inline table.
    fn copy(to: &mut MaybeUninit<InlineTable>, from: Table) -> Table {
        let header = NonNull::from(to).cast::<Header>();
        // SAFETY: there is room for a header and for as many slots as the inline table has.
        unsafe {
            header.write(from.header().clone());
            // One by one: a call of memcpy would be another thing that libc has to have.
            for i in 0..INLINE_SLOTS {
                let slot = from.slot(i * size_of::<Slot>());
                header.add(1).cast::<Slot>().add(i).write(Slot {
                    key: AtomicUsize::new(slot.key.load(Relaxed)),
                    value: AtomicPtr::new(slot.value.load(Relaxed)),
                    cell: AtomicPtr::new(slot.cell.load(Relaxed)),
                    _padding: 0,
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
    /// Allocates an empty table.
    fn allocate(slots: usize, multiplier: usize) -> Option<Table> {
        const { assert!(size_of::<Header>() == size_of::<Slot>()) };
        // SAFETY: calloc may be called at any time, see `sync::allocate_zeroed`. Its zeroes are empty slots.
        let header = unsafe { sys::calloc(slots + 1, size_of::<Slot>()) }.cast::<Header>();
        let table = Table(NonNull::new(header)?);
        table.header().multiplier.set(multiplier);
        table.header().mask.set(mask(slots));
        table.slot(0).cell.store((&raw const NOBODY).cast_mut(), Relaxed);
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
        // SAFETY: a Table is made of a header that lives, and nobody uses it after `free`.
        unsafe { self.0.as_ref() }
    }

    /// Where the search for a key begins.
    #[inline]
    fn home_offset(self, key: usize) -> usize {
        offset(key, self.header().multiplier.get(), self.header().mask.get())
    }

    /// The slot of `key`, if this is where the search for it begins, and `key` lives.
    #[inline(always)]
    fn at_home(self, key: usize) -> Option<&'static Slot> {
        let slot = self.home(key);
        if slot.key.load(Relaxed) != key {
            return None;
        }
        // SAFETY: an entry has a cell. The only other number in a slot is 0, and a search for that begins in the first
        // slot, which always has a cell.
        let cell = unsafe { &*slot.cell.load(Relaxed) };
        cell.is_live(key).then_some(slot)
    }

    /// The slot in which the search for a key begins.
    #[inline]
    fn home(self, key: usize) -> &'static Slot {
        self.slot(self.home_offset(key))
    }

    /// The slot at an offset, which must be within the mask.
    #[inline]
    fn slot(self, offset: usize) -> &'static Slot {
        // SAFETY: the slots follow the header, as many as the mask says.
        unsafe { self.0.byte_add(size_of::<Header>() + offset).cast::<Slot>().as_ref() }
    }

    /// The offsets at which a key may be, in the order in which they are tried.
    fn search(self, key: usize) -> impl Iterator<Item = &'static Slot> {
        let mask = self.header().mask.get();
        let next = move |offset: &usize| Some((offset + size_of::<Slot>()) & mask);
        iter::successors(Some(self.home_offset(key)), next).map(move |offset| self.slot(offset))
    }

    /// The slot of `key`, if there is one and `key` lives.
    fn find(self, key: usize) -> Option<&'static Slot> {
        let ends_search = |slot: &&Slot| [EMPTY, key].contains(&slot.key.load(Relaxed));
        let slot = self.search(key).find(ends_search)?;
        (slot.key.load(Relaxed) == key && slot.is_live(key)).then_some(slot)
    }

    /// How many slots may be used: a quarter stays empty, so that searches stay short.
    fn room(self) -> usize {
        self.len() / 4 * 3
    }

    /// Whether another slot may be used.
    fn has_room(self) -> bool {
        self.used() < self.room()
    }

    /// Whether `key` may be added as things are.
    fn has_place_for(self, key: usize) -> bool {
        self.has_room() && (self.home(key).is_free() || self.used() >= KEYS_APART)
    }

    fn used(self) -> usize {
        self.header().used.get()
    }

    fn len(self) -> usize {
        self.header().mask.get() / size_of::<Slot>() + 1
    }

    /// Notes that a slot is not empty any more.
    fn note_used(self, slot: &'static Slot) {
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

    /// The slots that are not empty, in the order of their positions, including those that cease to be while this
    /// has not come to them yet.
    fn used_slots(self) -> impl Iterator<Item = &'static Slot> {
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

    /// Adds an entry for a key that has none, in the first slot that is empty or dead.
    fn add(self, key: usize, value: *mut c_void, cell: &'static KeyCell) {
        if let Some(slot) = self.search(key).find(|slot| slot.is_free()) {
            if slot.key.load(Relaxed) == EMPTY {
                self.note_used(slot);
            }
            slot.fill(key, value, cell);
        }
    }

    /// The keys that have a slot now, and those that get one behind the point that the iteration has reached.
    pub(crate) fn keys(self) -> impl Iterator<Item = usize> {
        self.used_slots().map(|slot| slot.key.load(Relaxed))
    }

    /// The entries of live keys.
    fn live(self) -> impl Iterator<Item = (usize, *mut c_void, &'static KeyCell)> {
        self.used_slots().filter_map(|slot| {
            let key = slot.key.load(Relaxed);
            let cell = slot.cell().filter(|cell| cell.is_live(key))?;
            Some((key, slot.value.load(Relaxed), cell))
        })
    }

    /// Empties the inline table, which may hold what was left there when it was outgrown.
    fn reset(self, multiplier: usize) {
        let header = self.header();
        if self.used() != 0 {
            self.used_slots().for_each(|slot| slot.key.store(EMPTY, Relaxed));
            header.used.set(0);
            header.used_bits.set(0);
        }
        header.multiplier.set(multiplier);
        header.mask.set(mask(INLINE_SLOTS));
        self.slot(0).cell.store((&raw const NOBODY).cast_mut(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::thread;
    use std::vec::Vec;

    use super::*;
    use crate::spare;

    /// A value made of a small number.
    fn value(number: usize) -> *mut c_void {
        ptr::without_provenance_mut(number)
    }

    fn new_key() -> usize {
        spare::create(None).unwrap()
    }

    fn delete(key: usize) {
        spare::delete(key).unwrap();
    }

    /// Runs `test` in a thread of its own, whose table is new.
    fn in_a_thread(test: impl FnOnce() + Send + 'static) {
        thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_thread_with_few_values_needs_no_other_memory() {
        in_a_thread(|| {
            let root = Root::current();
            let keys: Vec<_> = (0..INLINE_KEYS).map(|_| new_key()).collect();
            assert!(Root::current_table() == Table::none());
            for key in &keys {
                set(*key, value(1)).unwrap();
                assert!(Root::current_table() == root.inline());
            }
            let more: Vec<_> = (0..INLINE_SLOTS).map(|_| new_key()).collect();
            more.iter().for_each(|key| set(*key, value(1)).unwrap());
            assert!(Root::current_table() != root.inline());
            keys.into_iter().chain(more).for_each(delete);
        });
    }

    #[test]
    fn whatever_the_keys_of_a_small_table_each_is_at_home() {
        let all: Vec<_> = (0..if cfg!(miri) { 60 } else { 20_000 }).map(|_| new_key()).collect();
        // Neighbours, strides, and keys that would all have had one home.
        let mut choices: Vec<Vec<_>> =
            [1, 2, 7, 16, 24].map(|step| all.iter().copied().step_by(step).take(16).collect()).into();
        let home = |key: usize| offset(key, FIRST_MULTIPLIER, mask(INLINE_SLOTS));
        choices
            .push(all.iter().copied().filter(|key| home(*key) == home(all[0])).take(INLINE_KEYS).collect());
        for keys in choices {
            in_a_thread(move || {
                for (count, key) in keys.iter().enumerate() {
                    set(*key, value(1)).unwrap();
                    let table = Root::current_table();
                    assert!(keys[..=count].iter().all(|key| table.at_home(*key).is_some()), "{keys:x?}");
                }
            });
        }
        all.into_iter().for_each(delete);
    }

    #[test]
    fn numbers_that_are_no_keys_have_no_value() {
        in_a_thread(|| {
            let numbers = [0, 1, crate::key::NONE, 2, usize::MAX];
            let nothing = |numbers: &[usize]| numbers.iter().all(|number| get(*number).is_null());
            assert!(nothing(&numbers));
            assert!(numbers.iter().all(|number| set(*number, value(1)) == Err(EINVAL)));
            let keys: Vec<_> = (0..if cfg!(miri) { 14 } else { 100 }).map(|_| new_key()).collect();
            for key in &keys {
                set(*key, value(1)).unwrap();
                assert!(nothing(&numbers));
                assert!(numbers.iter().all(|number| set(*number, value(1)) == Err(EINVAL)));
            }
            keys.into_iter().for_each(delete);
        });
    }

    #[test]
    fn a_null_value_takes_no_slot() {
        in_a_thread(|| {
            let key = new_key();
            set(key, ptr::null_mut()).unwrap();
            assert!(Root::current_table() == Table::none());
            delete(key);
            assert_eq!(set(key, ptr::null_mut()), Err(EINVAL));
        });
    }

    #[test]
    fn a_table_does_not_grow_because_of_deleted_keys() {
        in_a_thread(|| {
            let kept: Vec<_> = (0..5).map(|_| new_key()).collect();
            kept.iter().for_each(|key| set(*key, value(1)).unwrap());
            for _ in 0..if cfg!(miri) { 8 } else { 1000 } {
                // Several at a time, so that their slots are not the same each time.
                let keys: Vec<_> = (0..3).map(|_| new_key()).collect();
                keys.iter().for_each(|key| set(*key, value(2)).unwrap());
                keys.into_iter().for_each(delete);
                assert_eq!(Root::current_table().len(), INLINE_SLOTS);
            }
            kept.iter().for_each(|key| assert_eq!(get(*key), value(1)));
            kept.into_iter().for_each(delete);
        });
    }

    #[test]
    fn a_table_shrinks_when_most_values_are_gone() {
        const MANY: usize = if cfg!(miri) { 49 } else { 500 };
        in_a_thread(|| {
            let keys: Vec<_> = (0..MANY).map(|_| new_key()).collect();
            keys.iter().for_each(|key| set(*key, value(1)).unwrap());
            assert_eq!(Root::current_table().len(), (MANY * 2).next_power_of_two());
            keys.iter().for_each(|key| set(*key, ptr::null_mut()).unwrap());
            let more: Vec<_> = (0..MANY).map(|_| new_key()).collect();
            for key in &more {
                set(*key, value(1)).unwrap();
                set(*key, ptr::null_mut()).unwrap();
            }
            assert!(Root::current_table().len() <= SLOTS_APART);
            keys.into_iter().chain(more).for_each(delete);
        });
    }

    #[test]
    fn a_table_answers_as_a_map_does() {
        in_a_thread(|| {
            let mut random = 1_u32;
            let mut below = move |limit: usize| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (random >> 8) as usize % limit
            };
            let mut map = HashMap::new();
            let (mut live, mut dead) = (Vec::new(), Vec::new());
            const STEPS: usize = if cfg!(miri) { 200 } else { 300_000 };
            const STEPS_PER_AIM: usize = if cfg!(miri) { 50 } else { 300 };
            for step in 1..STEPS {
                // The number of keys goes up and down, past several sizes of the table.
                let aim = [3, 200, 12, 40][step / STEPS_PER_AIM % 4];
                match below(8) {
                    0 if live.len() < aim => live.push(new_key()),
                    1 if live.len() > aim / 2 => {
                        let key = live.swap_remove(below(live.len()));
                        delete(key);
                        map.remove(&key);
                        dead.push(key);
                    }
                    2 if !dead.is_empty() => {
                        let key = dead[below(dead.len())];
                        assert!(get(key).is_null());
                        assert_eq!(set(key, value(1)), Err(EINVAL));
                    }
                    3 if !live.is_empty() => {
                        let key = live[below(live.len())];
                        set(key, ptr::null_mut()).unwrap();
                        map.remove(&key);
                    }
                    4 | 5 if !live.is_empty() => {
                        let key = live[below(live.len())];
                        set(key, value(step)).unwrap();
                        map.insert(key, step);
                    }
                    _ if !live.is_empty() => {
                        let key = live[below(live.len())];
                        assert_eq!(get(key), value(map.get(&key).copied().unwrap_or(0)), "step {step}");
                    }
                    _ => {}
                }
            }
            live.into_iter().for_each(delete);
        });
    }
}
