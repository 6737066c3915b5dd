//! `cargo xtask stress`: builds what is missing, and gives `guac-stress` a plan of the run.

use anyhow::{Result, bail};
use clap::CommandFactory;
use clap::error::ErrorKind;
use guac_stress::cli::ScenarioFlags;
use guac_stress::guacd::flags::Guacds;
use guac_stress::load::flags::Load;
use guac_stress::plan::Plan;
use guac_stress::values::{Prefix, Target};
use toolkit::build::guacd::{self, Options};
use toolkit::build::{manifest, preload};
use toolkit::failure::Failure;
use toolkit::host::install;
use toolkit::host::tools::Need;
use toolkit::stress;

use crate::flags;

/// AddressSanitizer reports neither leaks nor symbols that are defined twice: upstream's plugins share a static library. It
/// uses no alternate signal stacks: when it removes that of a thread that ends with pthread_exit, it misreads the thread's
/// stack.
const ASAN_OPTIONS: &str = "detect_leaks=0:detect_odr_violation=0:use_sigaltstack=0";

/// Runs the load that the flags describe.
pub fn run(flags: ScenarioFlags<flags::Stress>) -> Result<()> {
    let (scenario, load, flags) = flags.into_parts();
    if let Err(wrong) = scenario.check(&load).and_then(|()| load.check()) {
        flags::Cli::command().error(ErrorKind::ArgumentConflict, wrong).exit();
    }
    let offline = flags.setup.source.offline;
    let mut guacds = Guacds { logs: Some(stress::logs()?), ..Guacds::default() };
    if flags.preload {
        guacds.preload = Some(preload::build(None, offline)?);
    }
    if load.guacd.is_none() {
        build(&load, &flags, &mut guacds)?;
    }
    let mut command = stress::command(offline)?;
    if flags.sanitize {
        let users = std::env::var("ASAN_OPTIONS").unwrap_or_default();
        command.env("ASAN_OPTIONS", format!("{ASAN_OPTIONS}:{users}"));
    }
    stress::run_plan(command, &Plan { scenario, load, guacds, command: std::env::args().collect() })
}

/// Builds the guacds to load.
fn build(load: &Load, flags: &flags::Stress, guacds: &mut Guacds) -> Result<()> {
    let mut needs = vec![Need::Build, Need::Ssh];
    if load.target == Target::OpenSsh {
        needs.push(Need::OpenSsh);
    }
    install::preflight(&needs, guacd::OPTIONAL_NEEDS, flags.setup.install)?;
    let release = flags.release.load()?;
    let sanitizers: &[&str] = if flags.sanitize { &guacd::SANITIZERS } else { &[] };
    let configure_args: Vec<_> = sanitizers.iter().map(|argument| (*argument).to_owned()).collect();
    let options = Options { configure_args: &configure_args, ..Options::default() };
    for &variant in flags.variant.list() {
        let dir = guacd::build(&release, variant, &flags.setup.to_toolkit(), &options)?;
        let built = manifest::protocols(&dir)?;
        let mut wanted = load.protocol.each().iter().map(|protocol| protocol.as_str());
        if let Some(missing) = wanted.find(|wanted| !built.iter().any(|protocol| protocol == wanted)) {
            bail!(Failure::Preflight(format!(
                "{} was built without {missing}, which the sessions use: `cargo xtask doctor` says what it needs",
                dir.display()
            )));
        }
        guacds.prefixes.push(Prefix { variant: variant.name().into(), dir });
    }
    guacds.release = Some(release.version);
    Ok(())
}
