//! Which subcommands and flags are there? One subcommand per scenario, for guac-stress and for any other program that offers
//! them with its own flags next to them.

mod command;
pub mod report;
mod scenarios;

pub use command::{Cli, Task};
pub use scenarios::{Flags, Program, ScenarioCommand, ScenarioFlags};
