//! Small programs, the models. Loom runs each in every order of steps that the memory model allows. Run them with:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p tls-rs --release loom
//! ```
//!
//! `tests/loom.rs` shows that they catch the planted bugs of `bugs/`.

use core::array;
use core::ffi::c_void;
use std::collections::HashSet;
use std::vec::Vec;

use loom::sync::Arc;
use loom::thread;

use super::*;

loom::lazy_static! {
    /// A new one for each run of a model.
    pub(crate) static ref REGISTRY: Registry = Registry {
        first: array::from_fn(|_| PaddedCell::default()),
        buckets: array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
        fresh: AtomicU32::new(1),
        free: AtomicUsize::new(0),
    };
}

impl Drop for Registry {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // loom has ended already
        }
        for (bits, bucket) in (FIRST_BITS + 1..).zip(&mut self.buckets) {
            let cells = bucket.with_mut(|cells| *cells);
            if !cells.is_null() {
                // SAFETY: the run is over.
                unsafe { sync::free(cells, 1 << bits) };
            }
        }
    }
}

fn check(model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    builder.check(model);
}

/// Never called. The tests compare its address, so it must not be inlined.
#[inline(never)]
unsafe extern "C-unwind" fn first(value: *mut c_void) {
    assert!(value.is_null());
}

#[inline(never)]
unsafe extern "C-unwind" fn second(value: *mut c_void) {
    assert!(!value.is_null());
}

fn create(destructor: Destructor) -> usize {
    REGISTRY.take().unwrap().publish(Some(destructor))
}

/// Deletes a key, and gives its cell back for the next key.
fn delete(key: usize) -> Result<(), Errno> {
    REGISTRY.give_back(REGISTRY.delete(key)?.unwrap());
    Ok(())
}

fn address(destructor: Option<Destructor>) -> Option<usize> {
    destructor.map(|destructor| destructor as usize)
}

/// Each of them is alive, and no two have the same cell.
fn assert_keys(keys: &[usize]) {
    for key in keys {
        assert!(REGISTRY.live_cell(*key).is_some(), "{key:#x} is dead: {keys:x?}");
    }
    let indices: HashSet<_> = keys.iter().map(|key| key::index(*key)).collect();
    assert_eq!(indices.len(), keys.len(), "{keys:x?}");
}

/// Creates as many keys as there are cells before the first bucket, less `free`.
fn take_first_cells(free: usize) -> Vec<usize> {
    (1..FIRST_CELLS - free).map(|_| create(first)).collect()
}

#[test]
fn threads_that_need_a_bucket_share_it() {
    check(|| {
        take_first_cells(0);
        let other = thread::spawn(|| create(first));
        let mine = create(second);
        let other = other.join().unwrap();
        assert_keys(&[mine, other]);
        let destructor = |key| address(REGISTRY.live_cell(key).unwrap().destructor(key));
        assert_eq!(destructor(mine), address(Some(second)));
        assert_eq!(destructor(other), address(Some(first)));
    });
}

#[test]
fn threads_that_outgrow_the_first_cells_lose_none() {
    check(|| {
        let mut keys = take_first_cells(1);
        let other = thread::spawn(|| [create(first), create(first)]);
        keys.push(create(first));
        keys.extend(other.join().unwrap());
        assert_keys(&keys);
        assert_eq!(REGISTRY.fresh.load(Relaxed), 1 + keys.len() as u32);
    });
}

#[test]
fn a_cell_that_comes_back_to_the_free_list_is_not_taken_for_what_it_was() {
    check(|| {
        let keys = [create(first), create(first), create(first)];
        keys.iter().for_each(|key| delete(*key).unwrap());
        let other = thread::spawn(|| {
            let (top, below) = (create(first), create(first));
            delete(top).unwrap();
            below
        });
        let mine = create(first);
        let other = other.join().unwrap();
        assert_keys(&[mine, other, create(first), create(first)]);
    });
}

#[test]
fn of_three_threads_that_create_and_delete_none_gets_the_cell_of_another() {
    check(|| {
        let keys = [create(first), create(first)];
        let others = keys.map(|key| {
            thread::spawn(move || {
                delete(key).unwrap();
                create(second)
            })
        });
        let mine = create(first);
        let [one, two] = others.map(|other| other.join().unwrap());
        assert_keys(&[mine, one, two, create(first)]);
    });
}

#[test]
fn a_deleted_cell_passes_from_thread_to_thread() {
    check(|| {
        let (mine, others) = (create(first), create(first));
        let other = thread::spawn(move || {
            delete(others).unwrap();
            create(second)
        });
        delete(mine).unwrap();
        let later = create(second);
        let other = other.join().unwrap();
        assert_keys(&[later, other, create(first)]);
        assert_eq!(address(REGISTRY.live_cell(other).unwrap().destructor(other)), address(Some(second)));
    });
}

#[test]
fn of_threads_that_delete_the_same_key_one_succeeds() {
    check(|| {
        let key = create(first);
        let other = thread::spawn(move || delete(key).is_ok());
        let mine = delete(key).is_ok();
        assert!(mine ^ other.join().unwrap());
        assert_keys(&[create(first), create(first)]);
    });
}

#[test]
fn a_value_never_gets_the_destructor_of_a_later_key() {
    check(|| {
        let key = create(first);
        let cell = REGISTRY.live_cell(key).unwrap();
        let other = thread::spawn(move || {
            delete(key).unwrap();
            create(second)
        });
        // This is what `Table::take` does.
        if cell.is_live(key) {
            let destructor = address(cell.destructor(key));
            assert!(destructor.is_none() || destructor == address(Some(first)));
        }
        let later = other.join().unwrap();
        assert!(!cell.is_live(key));
        assert!(cell.destructor(key).is_none());
        assert_eq!(address(cell.destructor(later)), address(Some(second)));
    });
}

#[test]
fn a_value_never_gets_the_destructor_of_a_later_key_of_the_same_thread() {
    check(|| {
        let key = create(first);
        let cell = REGISTRY.live_cell(key).unwrap();
        // The thread keeps the cell of the deleted key as its spare, and creates the next key from it.
        let other = thread::spawn(move || REGISTRY.delete(key).unwrap().unwrap().publish(Some(second)));
        if cell.is_live(key) {
            let destructor = address(cell.destructor(key));
            assert!(destructor.is_none() || destructor == address(Some(first)));
        }
        let later = other.join().unwrap();
        assert!(!cell.is_live(key));
        assert_eq!(address(cell.destructor(later)), address(Some(second)));
    });
}

#[test]
fn a_value_never_gets_a_link_of_the_free_list_for_a_destructor() {
    check(|| {
        let (key, below) = (create(first), create(first));
        delete(below).unwrap();
        let cell = REGISTRY.live_cell(key).unwrap();
        let other = thread::spawn(move || delete(key).unwrap());
        let destructor = address(cell.destructor(key));
        assert!(destructor.is_none() || destructor == address(Some(first)));
        other.join().unwrap();
    });
}

#[test]
fn a_thread_that_finds_a_key_alive_finds_its_destructor() {
    check(|| {
        // A cell that has been used before, so that it contains another destructor.
        delete(create(first)).unwrap();
        let passed = Arc::new(AtomicUsize::new(0));
        let others = passed.clone();
        let other = thread::spawn(move || others.store(create(second), Relaxed));
        // Relaxed: however the thread learns of the key.
        let key = passed.load(Relaxed);
        if let Some(cell) = REGISTRY.live_cell(key) {
            assert_eq!(address(cell.destructor(key)), address(Some(second)));
        }
        other.join().unwrap();
    });
}
