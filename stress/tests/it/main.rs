//! Does the load generator tell live sessions from dead ones? It runs against a fake guacd, which fails on demand: as real ones
//! do, and in some ways in which no real one ever did.

mod engine;
mod fake;
mod program;
mod schema;

use clap::Parser;
use guac_stress::{
    cli::{Cli, Task},
    plan::Plan,
};

/// The plan of a command line.
fn plan<T: Into<std::ffi::OsString> + Clone>(words: impl IntoIterator<Item = T>) -> Plan {
    match Cli::parse_from(words).into_task() {
        Task::Run(plan) => *plan,
        task => panic!("{task:?}"),
    }
}

/// The flags, after those defaults that they do not override.
fn with_defaults(flags: &[&str], defaults: &[&str]) -> Vec<String> {
    let name = |flag: &str| flag.split('=').next().map(str::to_owned);
    let given = |default: &str| flags.iter().any(|flag| name(flag) == name(default));
    let defaults = defaults.iter().filter(|default| !given(default));
    defaults.chain(flags).map(|&flag| flag.to_owned()).collect()
}
