//! From a key to this thread's value: `get` and `set`.
//!
//! Both read the key's home slot. If the value is there, that is all. Everything else is in separate functions, which are
//! marked `#[cold]`. They begin with the slot that comes next, as a thread with many values has most of them there.

use core::ffi::c_void;
use core::iter;
use core::mem::MaybeUninit;
use core::ptr;

use crate::exit;
use crate::registry::{KeyCell, REGISTRY};
use crate::root::Root;
use crate::sync;
use crate::sys::{EINVAL, ENOMEM, Errno};
use crate::table::{FIRST_SHIFT, INLINE_SLOTS, InlineTable, Slot, Table, shift_for};

/// The value of `key` in this thread, or NULL. Neither allocates nor locks; async-signal-safe.
#[inline]
pub(crate) fn get(key: usize) -> *mut c_void {
    match Root::current_table().at_home(key) {
        Some(slot) => slot.value(),
        None => get_slow(key),
    }
}

/// The value of a key that is not in its home slot.
#[cold]
#[inline(never)]
fn get_slow(key: usize) -> *mut c_void {
    match Root::current_table().away_from_home(key) {
        Some(slot) => slot.value(),
        None => get_by_search(key),
    }
}

/// The value of a key that has to be searched for.
#[cold]
#[inline(never)]
fn get_by_search(key: usize) -> *mut c_void {
    Root::current().table().find(key).map_or(ptr::null_mut(), Slot::value)
}

/// The location of this thread's value of `key`, until the thread sets a value of another key, or a destructor is called.
/// NULL if the thread has set none, or thread exit has dropped the table, or the key is not alive.
#[inline]
#[allow(dead_code)] // not part of the preload library
pub(crate) fn slot(key: usize) -> *mut *mut c_void {
    match Root::current_table().at_home(key) {
        Some(slot) => slot.location(),
        None => slot_slow(key),
    }
}

/// The location of the value of a key that is not in its home slot.
#[cold]
#[inline(never)]
fn slot_slow(key: usize) -> *mut *mut c_void {
    Root::current_table().find(key).map_or(ptr::null_mut(), Slot::location)
}

/// Sets the value of `key` in this thread. Fails with `EINVAL` if the key is not alive, and with `ENOMEM`. No value has
/// changed then.
#[inline]
pub(crate) fn set(key: usize, value: *mut c_void) -> Result<(), Errno> {
    match Root::current_table().at_home(key) {
        Some(slot) => {
            slot.set_value(value);
            Ok(())
        }
        None => set_slow(key, value),
    }
}

/// Sets the value of a key that is not in its home slot.
#[cold]
#[inline(never)]
fn set_slow(key: usize, value: *mut c_void) -> Result<(), Errno> {
    match Root::current_table().away_from_home(key) {
        Some(slot) => {
            slot.set_value(value);
            Ok(())
        }
        None => set_by_search(key, value),
    }
}

/// Sets the value of a key that has to be searched for, or added.
#[cold]
#[inline(never)]
fn set_by_search(key: usize, value: *mut c_void) -> Result<(), Errno> {
    let root = Root::current();
    if root.is_changing() {
        return set_within_change(root, key, value);
    }
    root.set_changing(Some(Root::current_table()));
    let result = change(root, key, value);
    root.set_changing(None);
    result
}

/// Sets a value in a signal handler that has interrupted `set_by_search`, or thread exit. POSIX does not allow that, and it
/// cannot add a key.
fn set_within_change(root: &Root, key: usize, value: *mut c_void) -> Result<(), Errno> {
    match root.table().find(key) {
        Some(slot) => {
            slot.set_value(value);
            root.set_outdated();
        }
        None if REGISTRY.live_cell(key).is_none() => return Err(EINVAL),
        None if value.is_null() => {}
        None => return Err(ENOMEM),
    }
    Ok(())
}

/// Sets a value when nothing else changes the thread's table.
fn change(root: &Root, key: usize, value: *mut c_void) -> Result<(), Errno> {
    let table = Root::current_table();
    if table == Table::none() {
        return set_first(root, key, value);
    }
    if let Some(slot) = table.find(key) {
        slot.set_value(value);
        return Ok(());
    }
    let Some(cell) = cell_for(root, key, value)? else { return Ok(()) };
    let table = match table.has_place_for(key) {
        true => table,
        false => sync::uncancelled(|| rebuild(root, table, key))?,
    };
    table.add(key, value, cell);
    exit::queue(root, key);
    Ok(())
}

/// Sets the first value of a thread. Most threads have no other, so this must be quick.
fn set_first(root: &Root, key: usize, value: *mut c_void) -> Result<(), Errno> {
    let Some(cell) = cell_for(root, key, value)? else { return Ok(()) };
    let inline = root.inline();
    inline.reset(FIRST_SHIFT);
    let slot = inline.home(key);
    slot.fill(key, value, cell);
    inline.note_used(slot);
    Root::exchange_table(inline);
    exit::queue(root, key);
    Ok(())
}

/// The cell for a new entry, once libc is sure to call thread exit if the key has a destructor. None if `value` is NULL:
/// the key reads NULL without an entry.
#[inline]
fn cell_for(root: &Root, key: usize, value: *mut c_void) -> Result<Option<&'static KeyCell>, Errno> {
    let cell = REGISTRY.live_cell(key).ok_or(EINVAL)?;
    if value.is_null() {
        return Ok(None);
    }
    if cell.destructor(key).is_some() {
        exit::arm(root)?;
    }
    Ok(Some(cell))
}

/// Moves this thread's values to a table that has room for `key`, too: the same with another shift, or a larger or smaller
/// one.
#[cold]
#[inline(never)]
fn rebuild(root: &Root, old: Table, key: usize) -> Result<Table, Errno> {
    // An entry with NULL is kept, as another value may follow it, but memory is not allocated for it.
    let with_nulls = old.live().count() < old.room();
    let kept = |table: Table| table.live().filter(move |(_, value, _)| with_nulls || !value.is_null());
    let count = kept(old).count() + 1;
    let slots = (count * 2).next_power_of_two().max(INLINE_SLOTS);
    let mut shift = old.shift();
    if slots == INLINE_SLOTS {
        shift = shift_for(kept(old).map(|(key, ..)| key).chain(iter::once(key)), shift);
        if shift == old.shift() && old.has_room() && old.is_home_shared(key) {
            return Ok(old);
        }
    }

    let inline = root.inline();
    if slots == INLINE_SLOTS {
        let mut copy = MaybeUninit::uninit();
        let mut from = old;
        if old == inline {
            from = InlineTable::copy(&mut copy, old);
            root.replace_table(old, from, || from.copy_values(old));
        }
        root.replace_table(from, inline, || {
            inline.reset(shift);
            inline.add_all(kept(from));
        });
        if old != inline {
            root.release(old);
        }
        exit::queue_all(root);
        return Ok(inline);
    }

    // Thread exit must free it, so it is armed first.
    let allocated = exit::arm(root).and_then(|()| Table::allocate(slots, shift).ok_or(ENOMEM));
    match allocated {
        Ok(new) => {
            root.replace_table(old, new, || new.add_all(kept(old)));
            root.release(old);
            exit::queue_all(root);
            Ok(new)
        }
        Err(_) if old.used() + 1 < old.len() => Ok(old), // slower; a search still ends at the one empty slot
        Err(error) => Err(error),
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

    /// Runs `test` in a new thread, which has no values yet.
    fn in_a_thread(test: impl FnOnce() + Send + 'static) {
        thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_thread_with_few_values_needs_no_other_memory() {
        in_a_thread(|| {
            let root = Root::current();
            let keys: Vec<_> = (0..INLINE_SLOTS / 2).map(|_| new_key()).collect();
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
    fn keys_that_share_a_home_at_first_are_told_apart() {
        let all: Vec<_> = (0..if cfg!(miri) { 60 } else { 1000 }).map(|_| new_key()).collect();
        let is_alike = |key: usize| shift_for([key, all[0]].into_iter(), FIRST_SHIFT) != FIRST_SHIFT;
        let alike: Vec<_> = all[1..].iter().copied().filter(|key| is_alike(*key)).take(20).collect();
        assert!(!alike.is_empty());
        for key in alike {
            let first = all[0];
            in_a_thread(move || {
                set(first, value(1)).unwrap();
                set(key, value(2)).unwrap();
                let table = Root::current_table();
                assert!(table.at_home(first).is_some() && table.at_home(key).is_some());
                assert_eq!((get(first), get(key)), (value(1), value(2)));
            });
        }
        all.into_iter().for_each(delete);
    }

    #[test]
    fn any_keys_can_be_in_a_small_table() {
        let all: Vec<_> = (0..if cfg!(miri) { 60 } else { 20_000 }).map(|_| new_key()).collect();
        let mut random = 1_usize;
        let mut choose = |_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            all[(random >> 33) % all.len()]
        };
        for _ in 0..if cfg!(miri) { 1 } else { 50 } {
            let mut keys: Vec<_> = (0..24).map(&mut choose).collect();
            keys.sort_unstable();
            keys.dedup();
            in_a_thread(move || {
                for (count, key) in keys.iter().enumerate() {
                    set(*key, value(count + 1)).unwrap();
                    let set = &keys[..=count];
                    assert!(set.iter().enumerate().all(|(count, key)| get(*key) == value(count + 1)));
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
            assert!(Root::current_table().len() <= 2 * INLINE_SLOTS);
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
