//! Does the benchmark measure what it says, and does it fail a design that is slow?

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{root, xtask};

crate::tests! {
    Nothing:
        a_design_that_is_slow_misses_the_limits,
        a_file_that_cannot_be_written_is_refused_at_once;
    Source:
        everything_is_measured_and_written_down;
}

fn everything_is_measured_and_written_down() -> Result<()> {
    let dir = TempDir::new()?;
    let (json, chart) = (dir.path().join("report.json"), dir.path().join("chart.svg"));
    let arguments = ["bench".as_ref(), "--quick".as_ref(), "--json".as_ref(), json.as_os_str()];
    let output = xtask(arguments.into_iter().chain(["--chart".as_ref(), chart.as_os_str()])).run()?;
    output.expect(0, &[])?;
    for row in ["get, two threads", "create + delete", "guac_error", "libguac.so grows by"] {
        ensure!(output.stdout.contains(row), "{row} is not in the table:\n{}", output.stdout);
    }
    ensure!(std::fs::read_to_string(chart)?.starts_with("<svg "), "the chart is no SVG picture");

    let report: Value = serde_json::from_slice(&std::fs::read(json)?)?;
    let schema = std::fs::read(root().join("bench/schema/report.v2.json"))?;
    let validator = jsonschema::validator_for(&serde_json::from_slice(&schema)?)?;
    let errors: Vec<_> = validator.iter_errors(&report).map(|error| error.to_string()).collect();
    ensure!(errors.is_empty(), "{errors:#?}");

    let cases = report["cases"].as_array().context("there are no cases")?;
    for live in [1, 100, 10_000, 1_000_000] {
        for used in [1, 4, 12, 16].into_iter().filter(|used| *used <= live) {
            for keys in
                ["contiguous", "strided", "unlucky", "worst"].into_iter().take(if used == 1 { 1 } else { 4 })
            {
                for operation in ["get", "dependent_get", "set", "pair", "memory"] {
                    let is_it = |case: &&Value| {
                        case["operation"] == operation
                            && case["live"] == live
                            && case["used"] == used
                            && case["keys"] == keys
                    };
                    ensure!(cases.iter().any(|case| is_it(&case)), "{operation} of {used} of {live}, {keys}");
                }
            }
        }
    }
    // These do not depend on time.
    let mut exact = vec!["heap per thread", "libguac.so grows by", "symbols other than libguac's"];
    if cfg!(target_arch = "x86_64") {
        exact.extend(["get, instructions", "get, loads", "first value, instructions"]);
    } else {
        ensure!(report["not_counted"].is_string(), "nothing says why no instructions were counted");
    }
    let thresholds = report["thresholds"].as_array().context("nothing was judged")?;
    for what in exact {
        let of_it = thresholds
            .iter()
            .filter(|threshold| threshold["what"].as_str().is_some_and(|w| w.starts_with(what)));
        ensure!(
            of_it.clone().count() > 0 && of_it.clone().all(|one| one["verdict"] == "met"),
            "{what}: {thresholds:#?}"
        );
    }
    Ok(())
}

fn a_design_that_is_slow_misses_the_limits() -> Result<()> {
    let output = xtask(["bench", "--quick", "--keys-only", "--check", "--judge", "mutex-array"]).run()?;
    output.expect(5, &["mutex_array missed: ", "heap per thread"])?;
    for what in ["get ", "set ", "rwlock's four calls "] {
        let mut lines = output.stdout.lines().skip_while(|line| !line.starts_with("limits"));
        let line = lines.find(|line| line.starts_with(what)).context("a limit is not in the table")?;
        // On a processor that the limits were not measured on, a time does not count.
        ensure!(line.ends_with("MISSED") || line.ends_with("not measured on this processor"), "{line}");
    }
    Ok(())
}

fn a_file_that_cannot_be_written_is_refused_at_once() -> Result<()> {
    xtask(["bench", "--keys-only", "--json", "/nowhere/report.json"]).run()?.expect(1, &["/nowhere"])
}
