//! Programs as bytes, for the fuzzer. Any bytes are a program, and similar bytes are similar programs: a step is one byte
//! for the operation and one for each of its numbers.

use super::program::{Kind, Step};

/// The most steps of a forked child.
const STEPS_OF_CHILD: usize = 12;

pub fn decode(bytes: &[u8]) -> Vec<Step> {
    let mut bytes = bytes.iter().copied();
    let mut steps = Vec::new();
    while bytes.len() > 0 {
        steps.push(step(&mut bytes, true));
    }
    steps
}

fn step(bytes: &mut impl ExactSizeIterator<Item = u8>, may_fork: bool) -> Step {
    // If the bytes end in the middle of a step, zeroes follow.
    let mut next = || usize::from(bytes.next().unwrap_or(0));
    let (what, thread) = (next() % 16, next());
    match what {
        0..=2 => Step::Create { thread, kind: kind(next()), count: count(next()) },
        3 | 4 => Step::Delete { thread, key: next(), count: count(next()) },
        5..=8 => Step::Set { thread, key: next(), count: count(next()), null: what == 8 },
        9 | 10 => Step::Get { thread, key: next(), count: count(next()) },
        11 => Step::UseNumber { thread, number: (0..8).fold(0, |number, _| number << 8 | next()) },
        12 => Step::Start,
        13 | 14 => Step::End { thread },
        _ => {
            let length = if may_fork { next() % (STEPS_OF_CHILD + 1) } else { 0 };
            Step::Fork { thread, steps: (0..length).map(|_| step(bytes, false)).collect() }
        }
    }
}

fn kind(byte: usize) -> Kind {
    let number = (byte / 6) as u32;
    match byte % 6 {
        0 => Kind::None,
        1 => Kind::Nothing,
        2 => Kind::SetAgain(1 + number % 5),
        3 => Kind::SetOther,
        4 => Kind::DeleteKey,
        _ => Kind::Create(1 + number % 9),
    }
}

/// A count from 1 to 64, mostly 1.
fn count(byte: usize) -> usize {
    byte.saturating_sub(191).max(1)
}
