//! How do a scenario's flags, those of every scenario, and a program's own become a command line?

use clap::{Args, Subcommand};

use crate::{
    load::flags::Load,
    scenario::{Scenario, burst, capacity, chaos, churn, fuzz, hold, soak},
};

/// A program that offers scenarios, by the flags that it adds to each of them.
pub trait Program: Args {
    /// Exit codes that only this program has, each with a semicolon after it.
    const EXIT_CODES: &str = "";

    /// A command line that runs a scenario with these flags.
    fn example(scenario: &str, flags: &str) -> String;
}

/// A scenario, or flags of `hold` where no scenario is named.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ScenarioFlags<P: Program> {
    /// The scenario.
    #[command(subcommand)]
    pub scenario: Option<ScenarioCommand<P>>,

    /// The flags of `hold`, where no scenario is named.
    #[command(flatten)]
    pub hold: Flags<hold::Hold, P>,
}

/// The flags of one scenario.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Flags<S: Args, P: Program> {
    /// The scenario's own.
    #[command(flatten)]
    pub scenario: S,

    /// Those of the program.
    #[command(flatten)]
    pub program: P,

    /// Those of every scenario.
    #[command(flatten)]
    pub load: Load,
}

/// The scenarios.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum ScenarioCommand<P: Program> {
    /// Hold sessions open together, then make each prove itself (the default)
    ///
    /// Opens sessions at a steady rate, holds them open together, and then types a fresh random word into each of them. A
    /// session counts only when its word comes back.
    #[command(after_help = after_help::<P>("hold", hold::EXAMPLES))]
    Hold(Box<Flags<hold::Hold, P>>),

    /// Open sessions faster than guacd may keep up with
    ///
    /// Opens sessions at the given rate whether guacd keeps up or not, holds them open together, and then makes each prove
    /// itself.
    #[command(after_help = after_help::<P>("burst", burst::EXAMPLES))]
    Burst(Box<Flags<burst::Burst, P>>),

    /// Open, prove and close sessions in waves, and check that guacd releases what they used
    ///
    /// After the last wave guacd must have no more descriptors, threads, processes, pthread keys and memory than before.
    #[command(after_help = after_help::<P>("churn", churn::EXAMPLES))]
    Churn(Box<Flags<churn::Churn, P>>),

    /// Hold sessions for long, and make each prove itself again and again
    ///
    /// A session must give back every word that is typed into it, and guacd's memory must not grow.
    #[command(after_help = after_help::<P>("soak", soak::EXAMPLES))]
    Soak(Box<Flags<soak::Soak, P>>),

    /// Disrupt some sessions on purpose, and make all others prove themselves
    ///
    /// Kills processes of guacd, cuts connections to the target, and lets clients stall or vanish, at random. Each of these
    /// sessions must end as it should, and no other session may suffer. guacd is started for the run: there is no --guacd.
    #[command(after_help = after_help::<P>("chaos", chaos::EXAMPLES), mut_arg("guacd", |guacd| guacd.hide(true)))]
    Chaos(Box<Flags<chaos::Chaos, P>>),

    /// Send malformed input while sessions are held open
    ///
    /// The sessions must prove themselves afterwards, no process of guacd may crash, and guacd must release what the
    /// inputs used. Inputs after which something was wrong are saved, and can be sent again.
    #[command(after_help = after_help::<P>("fuzz", fuzz::EXAMPLES))]
    Fuzz(Box<Flags<fuzz::Fuzz, P>>),

    /// Find how many sessions guacd can serve before frames are late or lost
    ///
    /// Opens sessions step by step. In each step all of them are held, what the targets draw is measured, and each session has
    /// to prove itself. The run ends with the first step in which frames are late, a client receives too few, or a session does
    /// not prove itself. guacd has processors that the generator does not use. The result is for the desktops of the embedded
    /// targets, and for clients that need no time to draw.
    #[command(after_help = after_help::<P>("capacity", capacity::EXAMPLES), mut_arg("min_proven", |arg| arg.hide(true)))]
    Capacity(Box<Flags<capacity::Capacity, P>>),
}

fn after_help<P: Program>(scenario: &str, examples: [&str; 2]) -> String {
    let [first, second] = examples.map(|flags| P::example(scenario, flags));
    format!(
        "Examples:\n  {first}\n  {second}\n\nExit codes: 0 all checks passed; 5 a threshold was missed; 2 usage; 3 something \
         is missing that the run needs; {}130 interrupted; 1 any other failure. If the variant `stock` is loaded along with \
         others, only the others decide.",
        P::EXIT_CODES
    )
}

impl<P: Program> ScenarioFlags<P> {
    /// The end of the help without a scenario: examples of `hold`, and the exit codes.
    pub fn after_help() -> String {
        after_help::<P>("hold", hold::EXAMPLES)
    }

    /// The scenario, the load, and the flags of the program.
    pub fn into_parts(self) -> (Scenario, Load, P) {
        match self.scenario {
            Some(scenario) => scenario.into_parts(),
            None => self.hold.into_parts(Scenario::Hold),
        }
    }
}

impl<S: Args, P: Program> Flags<S, P> {
    pub(super) fn into_parts(self, scenario: impl FnOnce(S) -> Scenario) -> (Scenario, Load, P) {
        (scenario(self.scenario), self.load, self.program)
    }
}

impl<P: Program> ScenarioCommand<P> {
    /// The scenario, the load, and the flags of the program.
    pub fn into_parts(self) -> (Scenario, Load, P) {
        match self {
            Self::Hold(flags) => flags.into_parts(Scenario::Hold),
            Self::Burst(flags) => flags.into_parts(Scenario::Burst),
            Self::Churn(flags) => flags.into_parts(Scenario::Churn),
            Self::Soak(flags) => flags.into_parts(Scenario::Soak),
            Self::Chaos(flags) => flags.into_parts(Scenario::Chaos),
            Self::Fuzz(flags) => flags.into_parts(Scenario::Fuzz),
            Self::Capacity(flags) => flags.into_parts(Scenario::Capacity),
        }
    }
}
