//! `cargo xtask matrix`: holds sessions through every release, and compares.

use std::path::Path;

use anyhow::{Context, Error, Result};
use guac_stress::report::{Run, StressReport};
use serde::Serialize;
use toolkit::build::guacd::{self, Options, Variant};
use toolkit::host::install;
use toolkit::host::tools::Need;
use toolkit::source::release::Release;
use toolkit::{stress, ui};

use crate::flags;

/// The number of pthread keys that a process has on musl.
const MUSL: u32 = 128;

/// How many sessions are enough to show what becomes of them with so few keys.
const WITH_MUSLS_KEYS: u32 = 300;

/// A guacd, and what became of the sessions through it.
#[derive(Serialize)]
struct Row {
    release: String,
    variant: &'static str,
    /// The limit of pthread keys for each process, unless it is libc's.
    key_limit: Option<u32>,
    sessions: u32,
    proven: u32,
    silent: u32,
    first_proof_p50_ms: Option<f64>,
    /// guacd's memory at the beginning of the hold, for each session that was open.
    memory_bytes_per_session: Option<u64>,
}

/// Loads each guacd in turn, and prints the table.
pub fn run(flags: &flags::Matrix) -> Result<()> {
    install::preflight(&[Need::Build, Need::Ssh], guacd::OPTIONAL_NEEDS, flags.setup.install)?;
    let releases = match &flags.release.release {
        Some(_) => vec![flags.release.load()?],
        None => Release::all()?.into_values().collect(),
    };
    let mut rows = Vec::new();
    for release in &releases {
        for variant in [Variant::Stock, Variant::Patched] {
            let prefix = guacd::build(release, variant, &flags.setup.to_toolkit(), &Options::default())?;
            for key_limit in [Some(MUSL), None] {
                let run = hold(release, variant, &prefix, key_limit, flags)?;
                rows.push(row(release, variant, key_limit, &run));
            }
        }
    }
    if flags.json {
        ui::result(serde_json::to_string_pretty(&rows)?);
    } else {
        ui::result("| release | variant | keys | proven | silent | first proof, p50 | memory per session |");
        ui::result("|---|---|---|---|---|---|---|");
        rows.iter().for_each(|row| ui::result(line(row)));
    }
    Ok(())
}

/// Holds sessions through a guacd. That some of them die is a result.
fn hold(
    release: &Release,
    variant: Variant,
    prefix: &Path,
    key_limit: Option<u32>,
    flags: &flags::Matrix,
) -> Result<Run> {
    let mut arguments = vec![
        format!("--prefix={}={}", variant.name(), prefix.display()),
        format!("--release={}", release.version),
        format!(
            "--count={}",
            if key_limit.is_some() { flags.count.min(WITH_MUSLS_KEYS) } else { flags.count }
        ),
        format!("--rate={}", flags.rate),
        format!("--hold={}", flags.hold),
    ];
    arguments.extend(key_limit.map(|limit| format!("--key-limit={limit}")));
    let json = stress::measure(&arguments, flags.setup.source.offline)?;
    let report = StressReport::parse(&mut serde_json::Deserializer::from_slice(&json)).map_err(Error::msg)?;
    report.runs.into_iter().next().context("the report has no run")
}

fn row(release: &Release, variant: Variant, key_limit: Option<u32>, run: &Run) -> Row {
    let usage = run.guacd.as_ref().and_then(|guacd| guacd.usage);
    let open = u64::from(run.established.max(1));
    Row {
        release: release.version.clone(),
        variant: variant.name(),
        key_limit,
        sessions: run.requested,
        proven: run.proven,
        silent: run.silent,
        first_proof_p50_ms: run.first_proof.map(|proof| proof.p50_ms),
        memory_bytes_per_session: usage.map(|usage| usage.memory_bytes / open),
    }
}

fn line(row: &Row) -> String {
    let keys = row.key_limit.map_or("libc's".into(), |limit| limit.to_string());
    let proof = row.first_proof_p50_ms.map_or("-".into(), |proof| format!("{proof:.0} ms"));
    let memory = row
        .memory_bytes_per_session
        .map_or("-".into(), |bytes| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)));
    format!(
        "| {} | {} | {keys} | {} of {} | {} | {proof} | {memory} |",
        row.release, row.variant, row.proven, row.sessions, row.silent
    )
}
