//! Creating and deleting keys, as a thread does it: the cell of a key that it has deleted stays with it, for the next
//! key that it creates.
//!
//! A thread that creates and deletes keys in turn so needs one atomic operation for each, and none that other
//! threads contend for. When the thread ends, the cell goes back to the registry.

use core::cell::Cell;

use crate::registry::{FreeCell, KeyCell, REGISTRY};
use crate::root::Root;
use crate::sys::Errno;

/// A thread's free cell, if it has one. All zero is none.
pub(crate) struct Spare(Cell<Option<&'static KeyCell>>);

impl Spare {
    /// Gives the cell back to the registry.
    pub(crate) fn give_back(&self) {
        if let Some(cell) = self.0.take() {
            REGISTRY.give_back(FreeCell(cell));
        }
    }
}

/// This thread's free cell, if it has one.
#[inline]
pub(crate) fn take() -> Option<FreeCell> {
    Root::current().spare.0.take().map(FreeCell)
}

/// Deletes a key: from here on it is dead in every thread. Fails with `EINVAL` when it is not alive.
#[inline]
pub(crate) fn delete(key: usize) -> Result<(), Errno> {
    let Some(free) = REGISTRY.delete(key)? else { return Ok(()) };
    let root = Root::current();
    if root.spare.0.get().is_some() || !root.is_armed() || root.has_ended() {
        return keep_or_give_back(free);
    }
    root.spare.0.set(Some(free.0));
    Ok(())
}

/// Keeps the cell if the thread has none, and gives it back otherwise. Always succeeds.
#[cold]
#[inline(never)]
fn keep_or_give_back(free: FreeCell) -> Result<(), Errno> {
    let root = Root::current();
    // Only a thread whose end is heard of can give the cell back then.
    if root.spare.0.get().is_none() && !root.has_ended() && root.arm().is_ok() {
        root.spare.0.set(Some(free.0));
    } else {
        REGISTRY.give_back(free);
    }
    Ok(())
}

/// Makes a key, for the tests.
#[cfg(test)]
pub(crate) fn create(destructor: Option<crate::sys::Destructor>) -> Result<usize, Errno> {
    Ok(take().map_or_else(|| REGISTRY.take(), Ok)?.publish(destructor))
}
