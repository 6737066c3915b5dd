//! What is the command line of guac-stress?

use clap::{Parser, Subcommand};

use super::{
    report,
    scenarios::{Flags, Program, ScenarioCommand, ScenarioFlags},
};
use crate::{
    guacd::flags::Guacds,
    plan::Plan,
    scenario::{Scenario, hold::Hold},
};

/// The command line of `guac-stress`.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(
    name = "guac-stress",
    version,
    args_conflicts_with_subcommands = true,
    about = "Opens many sessions through guacd at once, and counts those that are really alive",
    long_about = "Opens many sessions through guacd at once, holds them open together, and then types a fresh random word into \
        each of them. A session counts only when its word comes back. guacd's own answer, `ready`, proves nothing: guacd sends \
        it before it connects to the target.\n\nWithout a subcommand, guac-stress runs the scenario `hold`. `guac-stress help \
        SCENARIO` explains another one.",
    after_help = ScenarioFlags::<Guacds>::after_help()
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    hold: Flags<Hold, Guacds>,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
enum Command {
    #[command(flatten)]
    Scenario(ScenarioCommand<Guacds>),

    /// Show a report that was written with --json, as text or as a page
    #[command(after_help = report::AFTER_HELP)]
    Report(report::Show),

    /// Compare the reports of two builds of guacd, and find what got worse
    ///
    /// A figure got better or worse if the runs of the two builds differ by more than those of the same build do, and by more than
    /// the threshold. For that, each build needs several reports of the same load: at least three, better ten, and best made in
    /// turns. Variants are compared by name.
    #[command(after_help = report::COMPARE_AFTER_HELP)]
    Compare(report::Compare),

    /// Read a plan as JSON from standard input, and run it. For `cargo xtask stress`.
    #[command(hide = true)]
    Plan,
}

/// What guac-stress is asked to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// To load guacd, as the flags say.
    Run(Box<Plan>),
    /// To load guacd, as the plan on standard input says.
    ReadPlan,
    /// To show a report.
    Show(report::Show),
    /// To compare reports.
    Compare(report::Compare),
}

impl Cli {
    /// What the command line asks for.
    pub fn into_task(self) -> Task {
        let (scenario, load, guacds) = match self.command {
            Some(Command::Plan) => return Task::ReadPlan,
            Some(Command::Report(show)) => return Task::Show(show),
            Some(Command::Compare(compare)) => return Task::Compare(compare),
            Some(Command::Scenario(scenario)) => scenario.into_parts(),
            None => self.hold.into_parts(Scenario::Hold),
        };
        Task::Run(Box::new(Plan { scenario, load, guacds, command: Vec::new() }))
    }
}

impl Program for Guacds {
    fn example(scenario: &str, flags: &str) -> String {
        format!("guac-stress {scenario} --prefix guacd=/opt/guacamole {flags}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        report::ScenarioName,
        values::{MAX_SESSIONS, Rate},
    };
    use clap::CommandFactory;
    use std::time::Duration;

    fn parse(args: &[&str]) -> Result<Plan, clap::Error> {
        let cli = Cli::try_parse_from([&["guac-stress"], args].concat())?;
        match cli.into_task() {
            Task::Run(plan) => Ok(*plan),
            task => panic!("{task:?}"),
        }
    }

    const SCENARIOS: [&str; 7] = ["hold", "burst", "churn", "soak", "chaos", "fuzz", "capacity"];

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_survives_json() {
        let common = [
            "--rate=2.5",
            "--timeout=3s",
            "--target=[::1]:2022",
            "--user=-me-",
            "--password-file=/p w",
            "--key-limit=128",
            "--key-limit-library=l.so",
            "--pretend-cores=64",
            "--pretend-cores-library=c.so",
            "--activity=video",
            "--preload=p.so",
            "--logs=/l",
            "--release=9.9.9",
            "--port=4823",
            "--json=out.json",
            "--html=out.html",
            "--min-proven=99%",
            "--max-silent=1",
            "--max-slowdown=1.5",
            "--max-shutdown=6s",
            "--prefix=stock=/x",
            "--prefix=patched=/y",
        ];
        for own in [
            &["hold", "--count=7", "--hold=1m 500ms"][..],
            &["burst", "--count=7", "--hold=1m 500ms"],
            &["churn", "--wave=3", "--settle=1s", "--max-leftover=2", "--max-memory-growth=3%", "--hold=1ms"],
            &["soak", "--prove-every=2s", "--max-memory-growth=3%"],
            &[
                "chaos",
                "--kill=12.5%",
                "--cut=0%",
                "--stall=1%",
                "--vanish=2%",
                "--within=4s",
                "--seed=18446744073709551615",
            ],
            &["fuzz", "--inputs=9", "--seed=1", "--max-crashes=4", "--max-leftover=2"],
            &["fuzz", "--replay=-r"],
            &[
                "capacity",
                "--hold=2s",
                "--count=9",
                "--step=2",
                "--cores=3",
                "--max-lag=1ms",
                "--min-frames=1.5%",
                "--min-capacity=2",
            ],
        ] {
            let plan = parse(&[own, &common].concat()).unwrap();
            let json = serde_json::to_string(&plan).unwrap();
            assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
        }
        let plan = parse(&["--guacd=localhost:4822", "--private-key-file=-k", "--protocol=mix"]).unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    }

    #[test]
    fn a_plan_with_a_value_that_no_flag_takes_is_refused() {
        let plan = parse(&["--guacd=localhost:4822", "--rate=2.5"]).unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        assert!(json.contains(r#""rate":"2.5""#), "{json}");
        assert!(serde_json::from_str::<Plan>(&json.replace(r#""rate":"2.5""#, r#""rate":"0""#)).is_err());
    }

    #[test]
    fn flags_without_a_scenario_are_those_of_hold() {
        let flags = ["--guacd=a:1", "--count=7", "--hold=1s"];
        assert_eq!(parse(&flags).unwrap(), parse(&[&["hold"], &flags[..]].concat()).unwrap());
        assert_eq!(parse(&["--guacd=a:1", "churn", "--guacd=a:1"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_flag_of_another_scenario_is_refused() {
        let own = [
            ("--wave=3", &["churn"][..]),
            ("--settle=1s", &["churn", "fuzz"]),
            ("--max-leftover=1", &["churn", "fuzz"]),
            ("--max-memory-growth=1%", &["churn", "soak"]),
            ("--prove-every=1s", &["soak"]),
            ("--kill=1%", &["chaos"]),
            ("--cut=1%", &["chaos"]),
            ("--stall=1%", &["chaos"]),
            ("--vanish=1%", &["chaos"]),
            ("--within=1s", &["chaos"]),
            ("--seed=1", &["chaos", "fuzz"]),
            ("--inputs=1", &["fuzz"]),
            ("--replay=file", &["fuzz"]),
            ("--max-crashes=1", &["fuzz"]),
            ("--hold=1h", &["hold", "burst", "churn", "soak", "chaos", "capacity"]),
            ("--step=2", &["capacity"]),
            ("--cores=1", &["capacity"]),
            ("--max-lag=1s", &["capacity"]),
            ("--min-frames=80%", &["capacity"]),
            ("--min-capacity=2", &["capacity"]),
        ];
        for (flag, scenarios) in own {
            for scenario in SCENARIOS {
                let parsed = parse(&[scenario, "--prefix=stock=/x", flag]);
                assert_eq!(parsed.is_ok(), scenarios.contains(&scenario), "{scenario} {flag}: {parsed:?}");
                assert!(parsed.is_ok() || parsed.unwrap_err().exit_code() == 2);
            }
        }
        assert_eq!(parse(&["--guacd=a:1", "--scenario=hold"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn refuses_counts_that_make_no_sense() {
        for count in ["0", "-1", "28001", "99999999999", "many", ""] {
            let error = parse(&["--guacd=a:1", &format!("--count={count}")]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("--count"), "{error}");
        }
        assert_eq!(parse(&["--guacd=a:1", "--count=28000"]).unwrap().scenario.size().sessions, MAX_SESSIONS);
    }

    #[test]
    fn refuses_times_and_rates_that_make_no_sense() {
        for bad in [
            "--hold=10",
            "--hold=-1s",
            "--hold=soon",
            "--timeout=0s",
            "--timeout=2days",
            "--rate=0",
            "--rate=-4",
            "--rate=NaN",
        ] {
            assert_eq!(parse(&["--guacd=a:1", bad]).expect_err(bad).exit_code(), 2);
        }
        assert!(parse(&["--guacd=a:1", "--hold=10"]).unwrap_err().to_string().contains("such as 10s"));
        assert_eq!(parse(&["--guacd=a:1", "--hold=0s"]).unwrap().scenario.size().hold, Duration::ZERO);
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        for bad in [
            &["--guacd=a:1", "--key-limit=128"][..],
            &["hold", "--guacd=a:1", "--key-limit=128"],
            &["--guacd=a:1", "--port=4822"],
            &["--guacd=a:1", "--prefix=stock=/x"],
            &["--prefix=stock"],
            &["--prefix==/x"],
            &["--prefix=stock=/x", "--key-limit-library=/x"],
            &["--guacd=a:1", "--key-limit-library=/x"],
            &["--guacd=a:1", "--pretend-cores=64"],
            &["--prefix=stock=/x", "--pretend-cores-library=/x"],
            &["fuzz", "--prefix=stock=/x", "--replay=file", "--inputs=3"],
            &[],
        ] {
            assert_eq!(parse(bad).expect_err(&format!("{bad:?}")).exit_code(), 2);
        }
    }

    #[test]
    fn defaults_follow_the_scenario() {
        let of = |flags: &[&str]| {
            let size = parse(&[flags, &["--prefix=stock=/x"]].concat()).unwrap().scenario.size();
            (size.sessions, size.rate.per_second(), size.hold.as_secs())
        };
        assert_eq!(of(&[]), (300, 8.0, 10));
        assert_eq!(of(&["hold"]), (300, 8.0, 10));
        assert_eq!(of(&["burst"]), (300, 200.0, 10));
        assert_eq!(of(&["churn"]), (1000, 8.0, 0));
        assert_eq!(of(&["soak"]), (100, 8.0, 600));
        assert_eq!(of(&["chaos"]), (100, 8.0, 10));
        assert_eq!(of(&["fuzz"]), (20, 8.0, 0));
        assert_eq!(of(&["capacity"]), (300, 4.0, 10));
        assert_eq!(of(&["burst", "--count=3", "--rate=1", "--hold=1s"]), (3, 1.0, 1));
        for scenario in SCENARIOS {
            let plan = parse(&[scenario, "--prefix=stock=/x"]).unwrap();
            assert!(plan.check().is_ok() || scenario == "capacity", "{scenario}");
            assert_eq!(plan.scenario.name().as_str(), scenario);
        }
        let Scenario::Churn(churn) = parse(&["churn", "--prefix=stock=/x"]).unwrap().scenario else {
            panic!("not churn")
        };
        assert_eq!((churn.wave, churn.settle.as_secs(), churn.rate), (100, 20, "8".parse::<Rate>().unwrap()));
        assert_eq!(parse(&["--prefix=stock=/x"]).unwrap().scenario.name(), ScenarioName::Hold);
    }

    #[test]
    fn refuses_what_a_scenario_cannot_do() {
        let check = |flags: &[&str]| parse(flags).unwrap().check().unwrap_err();
        assert!(check(&["chaos", "--guacd=a:1"]).contains("--guacd"));
        assert!(check(&["chaos", "--prefix=a=/x", "--target=openssh"]).contains("--cut 0%"));
        assert!(check(&["chaos", "--prefix=a=/x", "--kill=90%"]).contains("100%"));
        assert!(check(&["churn", "--prefix=a=/x", "--count=50"]).contains("--wave"));
        assert!(check(&["soak", "--prefix=a=/x", "--hold=1s"]).contains("--prove-every"));
        let capacity = |flags: &[&str]| check(&[&["capacity", "--protocol=vnc"], flags].concat());
        assert!(capacity(&["--prefix=a=/x", "--activity=type", "--count=3"]).contains("--step"));
        assert!(capacity(&["--prefix=a=/x"]).contains("--activity"));
        assert!(capacity(&["--guacd=a:1", "--activity=type", "--cores=2"]).contains("--cores"));
        assert!(parse(&["capacity", "--prefix=a=/x", "--hold=1s"]).unwrap_err().to_string().contains("2s"));
        assert!(check(&["--prefix=a=/x", "--activity=type", "--target=openssh"]).contains("--activity"));
        assert!(check(&["--prefix=a=/x", "--protocol=vnc", "--target=openssh"]).contains("--protocol"));
        assert!(check(&["--prefix=a=/x", "--protocol=rdp", "--target=openssh"]).contains("--protocol"));
        assert!(check(&["--prefix=a=/x", "--protocol=mix", "--target=box:22"]).contains("four servers"));
        for bad in ["--kill=101%", "--kill=-1", "--kill=some", "--max-slowdown=0"] {
            assert_eq!(parse(&["chaos", "--prefix=a=/x", bad]).expect_err(bad).exit_code(), 2);
        }
        assert_eq!(parse(&["havoc", "--guacd=a:1"]).expect_err("havoc").exit_code(), 2);
    }

    #[test]
    fn no_two_prefixes_share_a_name() {
        let check = |args: &[&str]| parse(args).unwrap().check();
        assert!(check(&["--prefix=stock=/x", "--prefix=patched=/x"]).is_ok());
        assert!(check(&["--prefix=stock=/x", "--prefix=stock=/y"]).unwrap_err().contains("stock"));
    }

    #[test]
    fn a_plan_has_a_guacd() {
        let mut plan = parse(&["--prefix=stock=/x"]).unwrap();
        plan.guacds.prefixes.clear();
        assert!(plan.check().unwrap_err().contains("--prefix"));
    }

    #[test]
    fn logs_are_accepted_and_of_no_effect_with_a_guacd_that_runs_already() {
        assert!(parse(&["--guacd=a:1", "--logs=/x"]).is_ok());
    }

    #[test]
    fn credentials_go_with_an_address_and_with_nothing_else() {
        let check = |args: &[&str]| parse(&[&["--guacd=a:1"], args].concat()).unwrap().check();
        assert!(check(&[]).is_ok());
        assert!(check(&["--target=box:22", "--user=me"]).is_ok());
        assert!(check(&["--target=box:22"]).unwrap_err().contains("--user"));
        assert!(check(&["--target=box:23", "--protocol=telnet"]).is_ok());
        assert!(check(&["--target=box:5900", "--protocol=vnc", "--password-file=x"]).is_ok());
        assert!(check(&["--target=box:3389", "--protocol=rdp", "--user=me", "--password-file=x"]).is_ok());
        let key = ["--target=box:5900", "--protocol=vnc", "--private-key-file=x"];
        assert!(check(&key).unwrap_err().contains("--password-file"));
        assert!(check(&["--user=me"]).unwrap_err().contains("embedded"));
        assert!(check(&["--target=openssh", "--password-file=x"]).unwrap_err().contains("--password-file"));
    }

    #[test]
    fn each_scenario_explains_itself() {
        for scenario in SCENARIOS {
            let help = Cli::try_parse_from(["guac-stress", scenario, "--help"]).unwrap_err().to_string();
            let examples = help.lines().filter(|line| line.starts_with("  guac-stress ")).collect::<Vec<_>>();
            assert_eq!(examples.len(), 2, "{help}");
            for example in examples {
                assert!(example.starts_with(&format!("  guac-stress {scenario} ")), "{example}");
                let plan = parse(&example.split_whitespace().skip(1).collect::<Vec<_>>()).expect(example);
                assert_eq!(plan.check(), Ok(()), "{example}");
            }
            assert!(help.contains("Exit codes: 0"), "{help}");
            assert_eq!(help.contains("--guacd <HOST:PORT>"), scenario != "chaos", "{help}");
        }
    }
}
