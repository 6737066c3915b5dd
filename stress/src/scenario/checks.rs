//! Which checks decide in every scenario, and which do several scenarios share?

use crate::{
    load::flags::Thresholds,
    report::{
        Bound::{AtLeast, AtMost},
        Check, Guacd, Round, Run, Usage,
    },
    values::Percent,
};

/// How many sessions are proven, and how many failed in silence.
pub fn sessions(thresholds: &Thresholds, run: &Run) -> [Check; 2] {
    let asked = run.requested - run.disrupted();
    let needed = (f64::from(asked) * thresholds.min_proven.value() / 100.0).ceil();
    [
        Check::new("proven", AtLeast, needed, Some(run.proven.into()), "sessions"),
        Check::new("silent", AtMost, thresholds.max_silent.into(), Some(run.silent.into()), "sessions"),
    ]
}

/// The thresholds that are checked only when they are given: slowdown and shutdown.
pub fn optional(thresholds: &Thresholds, run: &Run) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(max) = thresholds.max_slowdown {
        let ratio = run.first_proof_by_age.map(|ages| ages.last.p50_ms / ages.first.p50_ms);
        checks.push(Check::new("slowdown of the first proof", AtMost, max, ratio, "times"));
    }
    if let Some(max) = thresholds.max_shutdown {
        let shutdown = run.guacd.as_ref().and_then(|guacd| guacd.shutdown);
        let seconds = shutdown.map(|end| end.seconds);
        let mut check = Check::new("shutdown after SIGTERM", AtMost, max.as_secs_f64(), seconds, "s");
        check.passed &= shutdown.is_some_and(|end| end.left == 0);
        checks.push(check);
    }
    checks
}

/// How many descriptors, threads and processes there are after the run that there were not before.
pub fn leftover(max: u32, before: Option<Usage>, after: Option<Usage>) -> [Check; 3] {
    let more = |of: fn(&Usage) -> u32| {
        before.zip(after).map(|(before, after)| f64::from(of(&after).saturating_sub(of(&before))))
    };
    let check = |name, more, unit| Check::new(name, AtMost, max.into(), more, unit);
    [
        check("leftover descriptors", more(|usage| usage.parent_descriptors), "descriptors"),
        check("leftover threads", more(|usage| usage.parent_threads), "threads"),
        check("leftover processes", more(|usage| usage.children), "processes"),
    ]
}

/// By how much the maximum number of pthread keys in a process has grown since the first wave. None where keys are not counted.
pub fn leftover_keys(max: u32, guacd: &Guacd) -> Option<Check> {
    let (last, first) = guacd.keys.zip(guacd.keys_after_first_round)?;
    let more = last.most_in_a_process.saturating_sub(first.most_in_a_process);
    Some(Check::new("leftover pthread keys", AtMost, max.into(), Some(more.into()), "keys"))
}

/// By how much guacd's memory has grown.
pub fn memory_growth(max: Percent, rounds: &[Round]) -> Check {
    Check::new("growth of memory", AtMost, max.value(), growth(rounds), "%")
}

/// By how much guacd's memory has grown, in percent: from the median of the first fifth of the rounds to that of the last
/// fifth, because malloc and the kernel make it swing by several percent from one round to the next.
fn growth(rounds: &[Round]) -> Option<f64> {
    let fifth = rounds.len().div_ceil(5);
    let (first, last) = (rounds.get(..fifth)?, rounds.get(rounds.len().checked_sub(fifth)?.max(fifth)..)?);
    let memory = |rounds: &[Round]| {
        let mut bytes = rounds.iter().filter_map(|round| Some(round.usage?.memory_bytes)).collect::<Vec<_>>();
        bytes.sort_unstable();
        bytes.get(bytes.len() / 2).map(|&bytes| bytes as f64)
    };
    Some((memory(last)? / memory(first)? - 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::MemoryKind;

    fn rounds(memory: impl IntoIterator<Item = u64>) -> Vec<Round> {
        let usage = |memory_bytes| Usage {
            parent_descriptors: 10,
            parent_threads: 1,
            children: 1,
            tasks: 2,
            memory_bytes,
            memory_kind: MemoryKind::Pss,
        };
        let round = |bytes| Round {
            at_seconds: 0.0,
            sessions: 1,
            proven: 1,
            proof: None,
            settled_seconds: None,
            usage: Some(usage(bytes)),
            drawing: None,
        };
        memory.into_iter().map(round).collect()
    }

    #[test]
    fn memory_that_swings_has_not_grown_and_memory_that_leaks_has() {
        let swings = |wave: u64| 1000 + [0, 70, 20, 50, 10][wave as usize % 5];
        assert_eq!(growth(&rounds((0..50).map(swings))), Some(0.0));
        let leaks = growth(&rounds((0..50).map(|wave| swings(wave) + 2 * wave))).unwrap();
        assert!((7.0..9.0).contains(&leaks), "{leaks}");
        assert_eq!(growth(&rounds([1000, 1100])), growth(&rounds([1000, 1200, 1100])));
        assert_eq!(growth(&rounds([1000])), None);
        assert_eq!(growth(&[]), None);
    }
}
