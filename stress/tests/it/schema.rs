//! Does the JSON keep to its contract?

use guac_stress::report::{
    Failure, Guacd, Keys, Latency, MemoryKind, Phase, Report, Run, SCHEMA_VERSION, Usage,
};
use serde_json::{Value, json};

fn schema() -> Value {
    serde_json::from_str(include_str!("../../schema/report.v1.json")).unwrap()
}

/// The schema, closed: what it does not name is an error. Readers may not be so strict, but the writer has to be.
fn closed(mut schema: Value) -> Value {
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
    let validator = jsonschema::validator_for(&closed(schema())).unwrap();
    let errors = validator
        .iter_errors(json)
        .map(|error| format!("{} at {}", error, error.instance_path()))
        .collect::<Vec<_>>();
    assert!(errors.is_empty(), "{errors:#?}\n{json:#}");
}

fn full() -> Report {
    let latency = Some(Latency { p50_ms: 1.5, p95_ms: 2.0, p99_ms: 3.0, max_ms: 3.25 });
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
        release: Some("1.6.0".into()),
        variant: "stock".into(),
        target: "embedded".into(),
        key_limit: Some(128),
        requested: 70,
        started: 70,
        established: 58,
        peak_alive: 58,
        proven: 58,
        failures: phases.map(|phase| failure(phase, Some("ERROR: no"))).into(),
        first_proof: latency,
        last_proof: latency,
        guacd: Some(Guacd {
            log_file: "/tmp/guacd.log".into(),
            died: Some("was killed by signal 9".into()),
            last_lines: vec!["guacd[1]: INFO: bye".into()],
            keys: Some(Keys { limit: 128, most_in_a_process: 128, refusals: 12 }),
            preload: Some("/opt/libguacd_uncapped.so".into()),
            usage: Some(Usage {
                parent_descriptors: 184,
                parent_threads: 177,
                children: 59,
                memory_bytes: 800_000_000,
                memory_kind: MemoryKind::Pss,
            }),
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
        key_limit: None,
        failures: vec![failure(Phase::Login, None)],
        first_proof: None,
        last_proof: None,
        guacd: None,
        ..run.clone()
    };
    Report {
        schema_version: SCHEMA_VERSION,
        started_at_unix_seconds: 1_750_000_000,
        interrupted: false,
        passed: false,
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
    assert_eq!(Report::parse(&mut serde_json::Deserializer::from_str(&json)).unwrap(), report);
}

#[test]
fn a_report_of_another_version_is_refused_and_unknown_fields_are_passed_over() {
    let mut json = serde_json::to_value(full()).unwrap();
    json["news"] = json!("of a later guac-stress");
    assert_eq!(Report::parse(json.clone()).unwrap(), full());
    json["schema_version"] = json!(2);
    assert!(Report::parse(json).unwrap_err().contains("version 2"));
}

#[test]
fn a_report_from_before_a_field_was_added_is_read() {
    let mut json = serde_json::to_value(full()).unwrap();
    assert!(json["runs"][0]["guacd"].as_object_mut().unwrap().remove("preload").is_some());
    check(&json);
    assert_eq!(Report::parse(json).unwrap().runs[0].guacd.as_ref().unwrap().preload, None);
}

#[test]
fn the_schema_finds_what_is_wrong() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let good = serde_json::to_value(full()).unwrap();
    assert!(validator.is_valid(&good));
    for (pointer, wrong) in [
        ("/schema_version", json!(2)),
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
fn stock_beside_others_is_not_judged() {
    let mut runs = full().runs;
    let judged = |runs: &[Run]| Report::judged(runs).map(|run| run.variant.clone()).collect::<Vec<_>>();
    assert_eq!(judged(&runs), ["stock", "stock"]);
    runs[1].variant = "patched".into();
    assert_eq!(judged(&runs), ["patched"]);
}
