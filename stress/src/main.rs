//! `guac-stress`: loads guacd with sessions, and counts those that are really alive.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, error::ErrorKind};
use guac_stress::{
    cli::{Cli, Task},
    guacd::pid_max::RaisedPidMax,
    plan::Plan,
    program, reaper,
    report::console,
    reports,
};

fn main() -> ExitCode {
    let done = match Cli::parse().into_task() {
        Task::Run(plan) => run(Plan { command: std::env::args().collect(), ..*plan }),
        Task::ReadPlan => read_plan().and_then(run),
        Task::Show(show) => reports::show(&show),
        Task::Compare(compare) => reports::compare(&compare),
    };
    done.unwrap_or_else(|error| {
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
