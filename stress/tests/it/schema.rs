//! Does the JSON keep to its contract?

use guac_stress::report::{
    Bound, ByAge, Capacity, CapacityEnd, Check, Drawing, Failure, Fault, FaultKind, FirstAndLast, Fuzz,
    FuzzKind, Generator, Guacd, Histogram, Histograms, Host, Keys, Latency, Limit, MemoryKind, Moment, Phase,
    ProcessUse, Round, Run, SCHEMA_VERSION, Sample, ScenarioName, Shutdown, StressReport, Usage,
};
use serde_json::{Value, json};

fn schema() -> Value {
    serde_json::from_str(include_str!("../../schema/report.v2.json")).unwrap()
}

/// The schema, made strict: a field that it does not name is an error. Readers have to ignore such fields, but nothing may write
/// them.
fn strict(mut schema: Value) -> Value {
    fn close(value: &mut Value) {
        if let Value::Object(object) = value {
            if object.contains_key("properties") {
                object.insert("additionalProperties".into(), false.into());
            }
            object.values_mut().for_each(close);
        }
    }
    close(&mut schema);
    schema
}

/// Panics unless the JSON is what the schema says, and no more than that.
pub fn check(json: &Value) {
    let validator = jsonschema::validator_for(&strict(schema())).unwrap();
    let errors = validator
        .iter_errors(json)
        .map(|error| format!("{} at {}", error, error.instance_path()))
        .collect::<Vec<_>>();
    assert!(errors.is_empty(), "{errors:#?}\n{json:#}");
}

fn full() -> StressReport {
    let times = Latency { p50_ms: 1.5, p95_ms: 2.0, p99_ms: 3.0, max_ms: 3.25 };
    let latency = Some(times);
    let histogram = Some(Histogram { buckets: vec![(1500, 20), (3251, 1)] });
    let usage = Some(Usage {
        parent_descriptors: 184,
        parent_threads: 177,
        children: 59,
        tasks: 700,
        memory_bytes: 800_000_000,
        memory_kind: MemoryKind::Pss,
    });
    let keys = Some(Keys { limit: 128, most_in_a_process: 128, refusals: 12 });
    let process = ProcessUse { session: 3, descriptors: 12, threads: 9, pss_bytes: Some(13_000_000) };
    let drawing = Some(Drawing {
        sessions: 58,
        seconds: 10.0,
        asked_per_second: 10.0,
        drawn_per_second: 9.5,
        received_per_second: 9.0,
        fewest_per_second: 8.0,
        lag: latency,
        bytes_per_second: 200_000.0,
        cpu_ms_per_second: Some(54.0),
        cpu_ms_per_frame: Some(6.0),
        generator_cpu_ms_per_second: Some(9.0),
    });
    let failure = |phase, log: Option<&str>| Failure {
        phase,
        reason: "silence".into(),
        log: log.map(str::to_owned),
        count: 1,
        sessions: vec![7],
    };
    let phases =
        [Phase::Connect, Phase::Handshake, Phase::Login, Phase::FirstProof, Phase::Hold, Phase::LastProof];
    let run = Run {
        release: Some("9.9.9".into()),
        variant: "stock".into(),
        scenario: ScenarioName::Hold,
        protocol: "ssh".into(),
        target: "embedded".into(),
        began_at_unix_ms: 1_750_000_000_123,
        activity: "scroll".into(),
        seed: Some(u64::MAX),
        key_limit: Some(128),
        pretend_cores: Some(64),
        requested: 70,
        started: 70,
        established: 58,
        peak_alive: 58,
        proven: 58,
        silent: 2,
        checks: [Bound::AtLeast, Bound::AtMost]
            .map(|bound| Check::new("proven", bound, 70.0, Some(58.0), "sessions"))
            .into(),
        failures: phases.map(|phase| failure(phase, Some("ERROR: no"))).into(),
        first_proof: latency,
        first_proof_by_age: Some(ByAge { sessions: 29, first: times, last: times }),
        last_proof: latency,
        histograms: Histograms {
            first_proof: histogram.clone(),
            first_proof_of_first: histogram.clone(),
            first_proof_of_last: histogram.clone(),
            last_proof: histogram.clone(),
            lag: histogram,
        },
        timeline: vec![Moment { at_seconds: 1.0, started: 60, alive: 50, proven: 0, failed: 4 }],
        rounds: vec![Round {
            at_seconds: 3.5,
            sessions: 58,
            proven: 58,
            proof: latency,
            settled_seconds: Some(0.5),
            usage,
            drawing,
        }],
        drawing,
        capacity: Some(Capacity {
            sessions: 12,
            cores: Some(1),
            sessions_per_core: Some(12.0),
            sessions_per_gib: Some(90.5),
            ended_by: CapacityEnd::Lag,
            reason: "frames that were late".into(),
        }),
        faults: FaultKind::ALL
            .map(|kind| Fault {
                kind,
                sessions: 3,
                ended: 2,
                slowest_seconds: Some(0.1),
                within_seconds: 5.0,
            })
            .into(),
        fuzz: Some(Fuzz {
            kind: FuzzKind::Terminal,
            inputs: 15,
            errors: 1,
            ready: 2,
            closed: 3,
            abandoned: 4,
            unanswered: 5,
            crashes: Some(6),
            saved: vec!["/tmp/fuzz-terminal-1-2.json".into()],
        }),
        generator: Some(Generator { cpu_seconds: 1.5, max_rss_bytes: 10_000_000 }),
        guacd: Some(Guacd {
            log_file: "/tmp/guacd.log".into(),
            manifest: Some(json!({ "release": "9.9.9", "patches": [] })),
            died: Some("was killed by signal 9".into()),
            last_lines: vec!["guacd[1]: INFO: bye".into()],
            keys,
            keys_after_first_round: keys,
            preload: Some("/opt/libguacd_uncapped.so".into()),
            usage,
            usage_before: usage,
            usage_after: usage,
            processes: Some(FirstAndLast { first: process, last: ProcessUse { pss_bytes: None, ..process } }),
            idle_cpu_ms_per_second: Some(0.75),
            shutdown: Some(Shutdown { processes: 60, seconds: 5.0, left: 3 }),
            samples: vec![Sample {
                at_seconds: 1.0,
                sessions: 58,
                parent_descriptors: 184,
                parent_threads: 177,
                children: 59,
                tasks: 700,
                memory_bytes: Some(800_000_000),
                parent_cpu_seconds: 0.5,
                children_cpu_seconds: 1.5,
            }],
        }),
        rate_per_second: 8.0,
        hold_seconds: 10.0,
        timeout_seconds: 30.0,
        ramp_seconds: 6.9,
        total_seconds: 17.5,
        interrupted: false,
    };
    let bare = Run {
        release: None,
        seed: None,
        key_limit: None,
        checks: vec![Check::new("growth of memory", Bound::AtMost, 5.0, None, "%")],
        failures: vec![failure(Phase::Login, None)],
        first_proof: None,
        first_proof_by_age: None,
        last_proof: None,
        histograms: Histograms::default(),
        timeline: Vec::new(),
        rounds: Vec::new(),
        faults: Vec::new(),
        fuzz: None,
        generator: None,
        guacd: None,
        ..run.clone()
    };
    StressReport {
        schema_version: SCHEMA_VERSION,
        started_at_unix_seconds: 1_750_000_000,
        interrupted: false,
        passed: false,
        command: vec!["guac-stress".into(), "--count=70".into()],
        plan: Some(json!({ "scenario": { "hold": {} } })),
        host: Some(Host {
            system: "Debian GNU/Linux 12 (bookworm)".into(),
            kernel: "6.1.0".into(),
            processor: "Some processor".into(),
            processors: 2,
            memory_bytes: 24_000_000_000,
        }),
        machine: vec![Limit {
            name: "memory".into(),
            source: "MemAvailable".into(),
            available: 24_000_000_000,
            per_session: 14.5e6,
            sessions: 1655,
        }],
        runs: vec![run, bare],
    }
}

#[test]
fn every_report_is_what_the_schema_says() {
    check(&serde_json::to_value(full()).unwrap());
}

#[test]
fn a_report_is_read_as_it_was_written() {
    let report = full();
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(StressReport::parse(&mut serde_json::Deserializer::from_str(&json)).unwrap(), report);
}

#[test]
fn a_report_of_another_version_is_refused_and_unknown_fields_are_ignored() {
    let mut json = serde_json::to_value(full()).unwrap();
    json["news"] = json!("of a later guac-stress");
    assert_eq!(StressReport::parse(json.clone()).unwrap(), full());
    json["schema_version"] = json!(1);
    assert!(StressReport::parse(json).unwrap_err().contains("version 1"));
}

#[test]
fn a_report_from_before_a_field_was_added_is_read() {
    let mut json = serde_json::to_value(full()).unwrap();
    assert!(json["runs"][0]["guacd"].as_object_mut().unwrap().remove("preload").is_some());
    check(&json);
    assert_eq!(StressReport::parse(json).unwrap().runs[0].guacd.as_ref().unwrap().preload, None);
}

#[test]
fn the_schema_finds_what_is_wrong() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let good = serde_json::to_value(full()).unwrap();
    assert!(validator.is_valid(&good));
    for (pointer, wrong) in [
        ("/schema_version", json!(1)),
        ("/runs/0/proven", json!(-1)),
        ("/runs/0/failures/0/phase", json!("somewhere")),
        ("/runs/0/guacd/usage/memory_bytes", json!("much")),
        ("/runs/1/variant", json!(null)),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = wrong;
        assert!(!validator.is_valid(&bad), "{pointer}");
    }
}

#[test]
fn a_report_from_before_there_were_scenarios_is_read() {
    let mut json = serde_json::to_value(full()).unwrap();
    json.as_object_mut().unwrap().remove("machine");
    for run in json["runs"].as_array_mut().unwrap() {
        let run = run.as_object_mut().unwrap();
        for new in [
            "scenario",
            "protocol",
            "seed",
            "silent",
            "checks",
            "first_proof_by_age",
            "rounds",
            "faults",
            "fuzz",
            "generator",
        ] {
            run.remove(new).unwrap();
        }
    }
    let report = StressReport::parse(json).unwrap();
    assert_eq!((report.runs[0].scenario, report.runs[0].protocol.as_str()), (ScenarioName::Hold, "ssh"));
}

#[test]
fn what_was_not_measured_does_not_pass() {
    assert!(Check::new("x", Bound::AtMost, 5.0, Some(5.0), "s").passed);
    assert!(!Check::new("x", Bound::AtMost, 5.0, Some(5.1), "s").passed);
    assert!(Check::new("x", Bound::AtLeast, 5.0, Some(5.0), "s").passed);
    assert!(!Check::new("x", Bound::AtLeast, 5.0, Some(4.0), "s").passed);
    assert!(!Check::new("x", Bound::AtMost, 5.0, None, "s").passed);
    let mut run = full().runs.remove(0);
    run.checks.clear();
    assert!(!run.passed(), "nothing was checked");
}

#[test]
fn stock_is_not_judged_if_others_are_loaded_too() {
    let mut runs = full().runs;
    let judged = |runs: &[Run]| StressReport::judged(runs).map(|run| run.variant.clone()).collect::<Vec<_>>();
    assert_eq!(judged(&runs), ["stock", "stock"]);
    runs[1].variant = "patched".into();
    assert_eq!(judged(&runs), ["patched"]);
}
