//! Which charts does a report have? Each has one line for each run, in the order of the runs.

use maud::{Markup, html};

use super::{
    super::model::{Histogram, Run, Sample},
    chart::{Chart, Line, Unit},
};

/// All charts for which there are numbers.
pub fn all(runs: &[Run]) -> Markup {
    let samples = |run: &Run| run.guacd.as_ref().map(|guacd| guacd.samples.clone()).unwrap_or_default();
    let over_time = |heading, caption, y, value: fn(&Sample) -> Option<f64>| {
        let points = |run: &Run| {
            samples(run).iter().filter_map(|sample| Some((sample.at_seconds, value(sample)?))).collect()
        };
        chart(runs, heading, caption, Unit::Seconds, y, points)
    };
    let distribution = |heading, caption, histogram: fn(&Run) -> Option<&Histogram>| {
        chart(runs, heading, caption, Unit::LogMilliseconds, Unit::Percent, |run| {
            histogram(run).map(shares).unwrap_or_default()
        })
    };
    let charts = [
        chart(
            runs,
            "Sessions open",
            "Sessions over time, from the first one's start",
            Unit::Seconds,
            Unit::Number,
            |run| run.timeline.iter().map(|moment| (moment.at_seconds, moment.alive.into())).collect(),
        ),
        distribution("Time to first proof", "Share of the sessions that needed at most so long", |run| {
            run.histograms.first_proof.as_ref()
        }),
        distribution("Time of the last proof", "Share of the sessions that needed at most so long", |run| {
            run.histograms.last_proof.as_ref()
        }),
        distribution("Lag", "Share of the frames that reached their client at most so late", |run| {
            run.histograms.lag.as_ref()
        }),
        chart(runs, "Lag by sessions", "p95 of each step", Unit::Number, Unit::Number, |run| {
            let lag = |round: &super::super::model::Round| {
                Some((f64::from(round.sessions), round.drawing?.lag?.p95_ms))
            };
            if run.capacity.is_some() { run.rounds.iter().filter_map(lag).collect() } else { Vec::new() }
        }),
        over_time("Memory", "All of guacd's processes, over time", Unit::Bytes, |sample| {
            sample.memory_bytes.map(|bytes| bytes as f64)
        }),
        over_time("File descriptors", "Of guacd's parent process, over time", Unit::Number, |sample| {
            Some(sample.parent_descriptors.into())
        }),
        over_time("Tasks", "Threads of all of guacd's processes, over time", Unit::Number, |sample| {
            Some(sample.tasks.into())
        }),
        chart(
            runs,
            "Processor time",
            "Processors that guacd keeps busy, over time",
            Unit::Seconds,
            Unit::Number,
            |run| busy(&samples(run)),
        ),
    ];
    let charts = charts.iter().filter_map(Chart::draw).collect::<Vec<_>>();
    html! {
        @if !charts.is_empty() {
            section aria-labelledby="charts" {
                h2 #charts { "Charts" }
                div.charts { @for chart in charts { (chart) } }
            }
        }
    }
}

fn chart(
    runs: &[Run],
    heading: &'static str,
    caption: &'static str,
    x: Unit,
    y: Unit,
    points: impl Fn(&Run) -> Vec<(f64, f64)>,
) -> Chart {
    let line = |run: &Run| Line { name: run.variant.clone(), points: points(run) };
    Chart { heading, caption, x, y, lines: runs.iter().map(line).collect() }
}

/// Which share of the times, in percent, is at most so long, in milliseconds.
fn shares(histogram: &Histogram) -> Vec<(f64, f64)> {
    let all = histogram.buckets.iter().map(|bucket| bucket.1).sum::<u64>() as f64;
    let mut sum = 0;
    let share = |&(micros, count): &(u64, u64)| {
        sum += count;
        (micros as f64 / 1000.0, sum as f64 * 100.0 / all)
    };
    histogram.buckets.iter().map(share).collect()
}

/// How many processors are busy, between each two samples.
fn busy(samples: &[Sample]) -> Vec<(f64, f64)> {
    let cpu = |sample: &Sample| sample.parent_cpu_seconds + sample.children_cpu_seconds;
    let pairs = samples.windows(2).map(|pair| {
        let (before, after) = (&pair[0], &pair[1]);
        (after.at_seconds, (cpu(after) - cpu(before)).max(0.0) / (after.at_seconds - before.at_seconds))
    });
    pairs.collect()
}
