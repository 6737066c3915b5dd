//! `guac-stress`: loads guacd with sessions, and counts those that are really alive.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, error::ErrorKind};
use guac_stress::{cli::Cli, guacd::pid_max::RaisedPidMax, plan::Plan, program, reaper, report::console};

fn main() -> ExitCode {
    let plan = Cli::parse().into_plan();
    plan.map_or_else(read_plan, |plan| Ok(Plan { command: std::env::args().collect(), ..plan }))
        .and_then(run)
        .unwrap_or_else(|error| {
            console::error(&error);
            ExitCode::FAILURE
        })
}

fn read_plan() -> Result<Plan> {
    serde_json::from_reader(std::io::stdin().lock()).context("read a plan from standard input")
}

fn run(plan: Plan) -> Result<ExitCode> {
    if let Err(wrong) = plan.check() {
        Cli::command().error(ErrorKind::ArgumentConflict, wrong).exit();
    }
    // The reaper and the worker put it back, whichever of them ends last.
    let raised = RaisedPidMax::for_plan(&plan);
    if let Some(raised) = &raised {
        console::raised(raised);
    }
    reaper::run(|scratch| program::run(&plan, scratch))
}
