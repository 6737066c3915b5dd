//! What one thread has stored: a hash table with open addressing and linear probing.
//!
//! Only its thread changes a table, but a signal handler may interrupt that at any instruction to call `get`.
//! So every change is made in an order in which each step leaves a table that reads right: an entry's key is
//! written last, and a table that has outgrown its memory is copied and then exchanged with one store.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicUsize, compiler_fence};

use crate::key;
use crate::registry::{KeyCell, REGISTRY};
use crate::root::Root;
use crate::sys::{self, Destructor, EINVAL, ENOMEM, Errno};

/// Slots in a thread's first table, which is part of its root.
const INLINE_SLOTS: usize = 16;

/// In place of a key: never used. Ends a search.
const EMPTY: usize = 0;
/// In place of a key: being filled. A number with generation 0, so no key.
const RESERVED: usize = 1;

/// What takes a hash to the next slot.
const NEXT: usize = 1 << key::SHIFT;

/// The value of `key` in this thread, or NULL. Neither allocates nor locks; async-signal-safe.
#[inline]
pub(crate) fn get(key: usize) -> *mut c_void {
    match find(Root::current(), key) {
        Some(slot) => slot.value.load(Relaxed),
        None => ptr::null_mut(),
    }
}

/// Sets the value of `key` in this thread. Fails with `EINVAL` if the key is not alive and with `ENOMEM`,
/// which leaves all as it was.
#[inline]
pub(crate) fn set(key: usize, value: *mut c_void) -> Result<(), Errno> {
    let root = Root::current();
    match find(root, key) {
        Some(slot) => {
            slot.value.store(value, Relaxed);
            Ok(())
        }
        None => insert(root, key, value),
    }
}

/// Takes the value of `key` out of this thread's table, if there is one that a destructor waits for.
pub(crate) fn take(root: &Root, key: usize) -> Option<(*mut c_void, Destructor)> {
    let slot = find(root, key)?;
    let destructor = slot.cell()?.destructor(key)?;
    let value = slot.value.load(Relaxed);
    if value.is_null() {
        return None;
    }
    slot.value.store(ptr::null_mut(), Relaxed);
    Some((value, destructor))
}

/// The slot of `key`, if this thread has one for it and `key` lives.
#[inline(always)]
fn find(root: &Root, key: usize) -> Option<&'static Slot> {
    let table = root.table()?;
    let mut hash = key;
    loop {
        let slot = table.slot(hash);
        let found = slot.key.load(Relaxed);
        if found == key {
            // The numbers 0 and 1 are found in slots that are empty or being filled. Those have no cell, or one
            // whose generation is past 0, so such numbers are not live.
            return if slot.cell()?.is_live(key) { Some(slot) } else { None };
        }
        if found == EMPTY {
            return None;
        }
        hash = hash.wrapping_add(NEXT);
    }
}

/// Sets the value of a key that this thread has no slot for.
#[cold]
#[inline(never)]
fn insert(root: &Root, key: usize, value: *mut c_void) -> Result<(), Errno> {
    let cell = REGISTRY.live_cell(key).ok_or(EINVAL)?;
    if value.is_null() {
        return Ok(()); // which it is already
    }
    if cell.destructor(key).is_some() {
        root.arm()?;
    }
    let table = match root.table() {
        Some(table) if table.has_room() => table,
        _ => grow(root)?,
    };
    table.add(key, value, cell);
    Ok(())
}

/// Moves this thread's live values to a table with room for more.
fn grow(root: &Root) -> Result<Table, Errno> {
    let old = root.table();
    let kept = old.map_or(0, |old| old.live_values().count());
    let slots = ((kept + 1) * 2).next_power_of_two().max(INLINE_SLOTS);

    let inline = root.inline();
    let new = if slots == INLINE_SLOTS && old != Some(inline) && !root.is_walked(inline) {
        inline.clear();
        inline
    } else {
        root.arm()?; // thread exit is to free it
        Table::allocate(slots).ok_or(ENOMEM)?
    };
    for (key, value, cell) in old.iter().flat_map(|old| old.live_values()) {
        new.add(key, value, cell);
    }

    compiler_fence(Release);
    root.set_table(Some(new));
    compiler_fence(Release);
    if let Some(old) = old {
        root.release(old);
    }
    Ok(new)
}

/// One entry. Empty when all zero.
#[repr(C)]
pub(crate) struct Slot {
    key: AtomicUsize,
    value: AtomicPtr<c_void>,
    cell: AtomicPtr<KeyCell>,
    _padding: usize,
}

impl Slot {
    #[inline]
    fn cell(&self) -> Option<&'static KeyCell> {
        // SAFETY: NULL or what `fill` wrote, which is a `&'static KeyCell`.
        unsafe { self.cell.load(Relaxed).as_ref() }
    }

    /// Whether the slot holds an entry whose key has been deleted.
    fn is_dead(&self) -> bool {
        self.cell().is_some_and(|cell| !cell.is_live(self.key.load(Relaxed)))
    }

    fn fill(&self, key: usize, value: *mut c_void, cell: &'static KeyCell) {
        self.key.store(RESERVED, Relaxed);
        compiler_fence(Release);
        self.value.store(value, Relaxed);
        self.cell.store(ptr::from_ref(cell).cast_mut(), Relaxed);
        compiler_fence(Release);
        self.key.store(key, Relaxed);
    }
}

/// What a table's slots follow in memory. As large as a slot.
#[repr(C)]
pub(crate) struct Header {
    /// The bits of a key that say where its search begins: slots less one, shifted as a key's hash is.
    mask: AtomicUsize,
    /// Slots that are not empty.
    used: AtomicUsize,
    _padding: [usize; 2],
}

/// The table in a thread's root: a header and its slots. Aligned so that no slot lies in two cache lines.
#[repr(C, align(32))]
pub(crate) struct InlineTable(Header, [Slot; INLINE_SLOTS]);

impl InlineTable {
    pub(crate) fn table(&self) -> Table {
        Table(NonNull::from(self).cast())
    }
}

/// A table: a header and the slots behind it. At least one slot is empty, so every search ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Table(NonNull<Header>);

impl Table {
    /// Allocates an empty table.
    fn allocate(slots: usize) -> Option<Table> {
        const { assert!(size_of::<Header>() == size_of::<Slot>()) };
        // SAFETY: calloc may be called at any time, see `sync::allocate_zeroed`. Its zeroes are empty slots.
        let header = unsafe { sys::calloc(slots + 1, size_of::<Slot>()) }.cast::<Header>();
        let table = Table(NonNull::new(header)?);
        table.header().mask.store((slots - 1) << key::SHIFT, Relaxed);
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

    /// # Safety
    ///
    /// `header` must be NULL or come from `into_raw`, and the table must not have been freed.
    #[inline]
    pub(crate) unsafe fn from_raw(header: *mut Header) -> Option<Table> {
        NonNull::new(header).map(Table)
    }

    pub(crate) fn into_raw(table: Option<Table>) -> *mut Header {
        table.map_or(ptr::null_mut(), |table| table.0.as_ptr())
    }

    #[inline]
    fn header(self) -> &'static Header {
        // SAFETY: a Table is made of a header that lives, and nobody uses it after `free`.
        unsafe { self.0.as_ref() }
    }

    /// The slot at or after `hash`, which may be a key: the search for a key begins in its slot.
    #[inline]
    fn slot(self, hash: usize) -> &'static Slot {
        let position = hash & self.header().mask.load(Relaxed);
        // A key's zero bits make the position a number of bytes where there are such bits.
        let bytes = position * (size_of::<Slot>() >> key::SHIFT);
        // SAFETY: the slots follow the header, as many as the mask says.
        unsafe { self.0.byte_add(size_of::<Header>() + bytes).cast::<Slot>().as_ref() }
    }

    /// Whether another slot may be used: a quarter stays empty, so that searches stay short.
    fn has_room(self) -> bool {
        self.header().used.load(Relaxed) < self.len() / 4 * 3
    }

    fn len(self) -> usize {
        (self.header().mask.load(Relaxed) >> key::SHIFT) + 1
    }

    /// All slots, in the order of their positions.
    fn slots(self) -> impl Iterator<Item = &'static Slot> {
        (0..self.len()).map(move |position| self.slot(position << key::SHIFT))
    }

    /// Adds an entry for a key that has none, in the first slot that is empty or dead.
    fn add(self, key: usize, value: *mut c_void, cell: &'static KeyCell) {
        let mut hash = key;
        loop {
            let slot = self.slot(hash);
            let empty = slot.key.load(Relaxed) == EMPTY;
            if empty {
                let used = &self.header().used;
                used.store(used.load(Relaxed) + 1, Relaxed);
            }
            if empty || slot.is_dead() {
                return slot.fill(key, value, cell);
            }
            hash = hash.wrapping_add(NEXT);
        }
    }

    /// The keys that have a slot now, and those that get one behind the point that the iteration has reached.
    pub(crate) fn keys(self) -> impl Iterator<Item = usize> {
        self.slots().map(|slot| slot.key.load(Relaxed)).filter(|key| *key != EMPTY)
    }

    /// The entries that are worth keeping.
    fn live_values(self) -> impl Iterator<Item = (usize, *mut c_void, &'static KeyCell)> {
        self.slots().filter_map(|slot| {
            let (key, value) = (slot.key.load(Relaxed), slot.value.load(Relaxed));
            let cell = slot.cell().filter(|cell| key != EMPTY && cell.is_live(key) && !value.is_null())?;
            Some((key, value, cell))
        })
    }

    /// Empties the inline table, which may hold what was left there when it was outgrown.
    fn clear(self) {
        let header = self.header();
        header.mask.store((INLINE_SLOTS - 1) << key::SHIFT, Relaxed);
        if header.used.load(Relaxed) != 0 {
            self.slots().for_each(|slot| slot.key.store(EMPTY, Relaxed));
            header.used.store(0, Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashMap;
    use std::thread;
    use std::vec::Vec;

    use super::*;

    /// A value made of a small number.
    fn value(number: usize) -> *mut c_void {
        ptr::without_provenance_mut(number)
    }

    fn new_key() -> usize {
        REGISTRY.create(None).unwrap()
    }

    fn delete(key: usize) {
        REGISTRY.delete(key).unwrap();
    }

    /// Runs `test` in a thread of its own, whose table is new.
    fn in_a_thread(test: impl FnOnce() + Send + 'static) {
        thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_thread_with_few_values_needs_no_other_memory() {
        in_a_thread(|| {
            let root = Root::current();
            let keys: Vec<_> = (0..INLINE_SLOTS / 4 * 3).map(|_| new_key()).collect();
            assert!(root.table().is_none());
            for key in &keys {
                set(*key, value(1)).unwrap();
                assert!(root.table() == Some(root.inline()));
            }
            let one_more = new_key();
            set(one_more, value(1)).unwrap();
            assert!(root.table() != Some(root.inline()));
            keys.into_iter().chain([one_more]).for_each(delete);
        });
    }

    #[test]
    fn a_null_value_takes_no_slot() {
        in_a_thread(|| {
            let key = new_key();
            set(key, ptr::null_mut()).unwrap();
            assert!(Root::current().table().is_none());
            delete(key);
            assert_eq!(set(key, ptr::null_mut()), Err(EINVAL));
        });
    }

    #[test]
    fn a_table_does_not_grow_because_of_deleted_keys() {
        in_a_thread(|| {
            let kept: Vec<_> = (0..5).map(|_| new_key()).collect();
            kept.iter().for_each(|key| set(*key, value(1)).unwrap());
            for _ in 0..if cfg!(miri) { 50 } else { 1000 } {
                // Several at a time, so that their slots are not the same each time.
                let keys: Vec<_> = (0..3).map(|_| new_key()).collect();
                keys.iter().for_each(|key| set(*key, value(2)).unwrap());
                keys.into_iter().for_each(delete);
                assert_eq!(Root::current().table().unwrap().len(), INLINE_SLOTS);
            }
            kept.iter().for_each(|key| assert_eq!(get(*key), value(1)));
            kept.into_iter().for_each(delete);
        });
    }

    #[test]
    fn a_table_shrinks_when_most_values_are_gone() {
        in_a_thread(|| {
            let keys: Vec<_> = (0..500).map(|_| new_key()).collect();
            keys.iter().for_each(|key| set(*key, value(1)).unwrap());
            assert_eq!(Root::current().table().unwrap().len(), 1024);
            keys.iter().for_each(|key| set(*key, ptr::null_mut()).unwrap());
            let more: Vec<_> = (0..500).map(|_| new_key()).collect();
            for key in &more {
                set(*key, value(1)).unwrap();
                set(*key, ptr::null_mut()).unwrap();
            }
            assert_eq!(Root::current().table().unwrap().len(), INLINE_SLOTS);
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
            for step in 1..if cfg!(miri) { 1300 } else { 300_000 } {
                // The number of keys goes up and down, past several sizes of the table.
                let aim = [3, 200, 12, 40][step / 300 % 4];
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
