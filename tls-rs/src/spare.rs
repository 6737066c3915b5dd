//! How a thread creates and deletes keys: the cell of a key that it has deleted stays with it as its spare, for the next
//! key that it creates.
//!
//! So a thread that creates and deletes keys in turn needs one atomic operation for each, and no other thread contends
//! for it. When the thread ends, the spare cell goes back to the registry.

use crate::exit;
use crate::registry::{FreeCell, REGISTRY};
use crate::root::Root;
use crate::sys::Errno;

/// Takes this thread's spare cell, if it has one.
#[inline]
pub(crate) fn take() -> Option<FreeCell> {
    Root::current().take_spare()
}

/// Deletes a key: from then on it is dead in every thread. Fails with `EINVAL` if it is not alive.
#[inline]
pub(crate) fn delete(key: usize) -> Result<(), Errno> {
    let Some(free) = REGISTRY.delete(key)? else { return Ok(()) };
    let root = Root::current();
    if root.has_spare() || !root.is_armed() || root.has_ended() {
        return keep_or_give_back(free);
    }
    root.keep_spare(free);
    Ok(())
}

/// Keeps the cell if the thread has no spare, and gives it back otherwise. Always succeeds.
#[cold]
#[inline(never)]
fn keep_or_give_back(free: FreeCell) -> Result<(), Errno> {
    let root = Root::current();
    // The cell must go back when the thread ends, so thread exit must be armed.
    if !root.has_spare() && !root.has_ended() && exit::arm(root).is_ok() {
        root.keep_spare(free);
    } else {
        REGISTRY.give_back(free);
    }
    Ok(())
}

/// Creates a key, for the tests.
#[cfg(test)]
pub(crate) fn create(destructor: Option<crate::sys::Destructor>) -> Result<usize, Errno> {
    Ok(take().map_or_else(|| REGISTRY.take(), Ok)?.publish(destructor))
}
