//! Random programs of threads, forks, keys and values: are the library's results those of pthread keys? And those that
//! POSIX requires where pthread keys cannot be compared (dead keys, numbers that are no keys, more keys than libc has)?

#![cfg(not(miri))]

mod program;

use std::array;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use program::{Kind, Side, Step};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::None),
        Just(Kind::Nothing),
        (1..6_u32).prop_map(Kind::SetAgain),
        Just(Kind::SetOther),
        Just(Kind::DeleteKey),
        (1..10_u32).prop_map(Kind::Create),
    ]
}

fn step_without_fork() -> impl Strategy<Value = Step> {
    let any = any::<usize>;
    let count = || prop_oneof![3 => Just(1), 1 => 1..60_usize];
    prop_oneof![
        4 => (any(), kind(), count()).prop_map(|(thread, kind, count)| Step::Create { thread, kind, count }),
        2 => (any(), any(), count()).prop_map(|(thread, key, count)| Step::Delete { thread, key, count }),
        6 => (any(), any(), count(), prop::bool::weighted(0.2))
            .prop_map(|(thread, key, count, null)| Step::Set { thread, key, count, null }),
        6 => (any(), any(), count()).prop_map(|(thread, key, count)| Step::Get { thread, key, count }),
        1 => (any(), prop_oneof![any(), 0..100_usize])
            .prop_map(|(thread, number)| Step::UseNumber { thread, number }),
        2 => Just(Step::Start),
        2 => any().prop_map(|thread| Step::End { thread }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fork = (any::<usize>(), prop::collection::vec(step_without_fork(), 1..20))
        .prop_map(|(thread, steps)| Step::Fork { thread, steps });
    prop::collection::vec(prop_oneof![15 => step_without_fork(), 1 => fork], 1..60)
}

/// A thread that creates and deletes keys until this is dropped.
struct Noise(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Noise {
    fn start() -> Noise {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Relaxed) {
                let keys: [_; 20] = array::from_fn(|_| Side::Ours.create(None).unwrap());
                keys.iter().for_each(|key| assert_eq!(Side::Ours.set(*key, ptr::dangling()), 0));
                keys.iter().for_each(|key| assert_eq!(Side::Ours.delete(*key), 0));
            }
        });
        Noise(stop, Some(thread))
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
        let ended = self.1.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    })]

    // The only test here. Another test might start and end threads during a fork. Then a new thread of the child might get
    // glibc's record of one of those, with pthread values whose destructors have not been called.
    #[test]
    fn a_program_cannot_tell_the_keys_from_posix_ones(program in steps(), noise in prop::bool::weighted(0.2)) {
        let _noise = noise.then(Noise::start);
        program::run(&program).map_err(TestCaseError::fail)?;
    }
}
