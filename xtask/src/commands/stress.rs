//! `cargo xtask stress`: builds what is missing, and hands the rest to `guac-stress`.

use anyhow::{Result, bail};
use guac_stress::flags::Target;
use toolkit::build::guacd::{self, Options};
use toolkit::build::{manifest, preload};
use toolkit::failure::Failure;
use toolkit::host::tools::{self, Need};
use toolkit::stress;

use crate::flags;

/// Of what AddressSanitizer looks for, not: what is still there when a process ends; that upstream's plugins share a static
/// library; and threads that leave with pthread_exit, whose stacks it misreads when it takes back its alternate one.
const ASAN_OPTIONS: &str = "detect_leaks=0:detect_odr_violation=0:use_sigaltstack=0";

/// Runs the load that the flags describe.
pub fn run(flags: &flags::Stress) -> Result<()> {
    let mut arguments = flags.load.to_args();
    if flags.preload {
        let library = preload::build(None, flags.setup.source.offline)?;
        arguments.push(format!("--preload={}", library.display()).into());
    }
    if flags.load.guacd.is_none() {
        let mut needs = vec![Need::Build, Need::Ssh];
        if flags.load.target == Target::OpenSsh {
            needs.push(Need::OpenSsh);
        }
        tools::preflight(&needs, guacd::PROTOCOLS, flags.setup.install)?;
        let release = flags.release.load()?;
        let sanitizers: &[&str] = if flags.sanitize { &guacd::SANITIZERS } else { &[] };
        let configure_args: Vec<_> = sanitizers.iter().map(|argument| (*argument).to_owned()).collect();
        let options = Options { configure_args: &configure_args, ..Options::default() };
        arguments.push(format!("--release={}", release.version).into());
        for &variant in flags.variant.list() {
            let prefix = guacd::build(&release, variant, &flags.setup.options(), &options)?;
            let built = manifest::protocols(&prefix)?;
            let mut wanted = flags.load.protocol.each().iter().map(|protocol| protocol.as_str());
            if let Some(missing) = wanted.find(|wanted| !built.iter().any(|protocol| protocol == wanted)) {
                bail!(Failure::Preflight(format!(
                    "{} was built without {missing}, which the sessions speak: `cargo xtask doctor` says what it needs",
                    prefix.display()
                )));
            }
            arguments.push(format!("--prefix={}={}", variant.name(), prefix.display()).into());
        }
    }
    let mut command = stress::command(arguments, flags.setup.source.offline)?;
    if flags.sanitize {
        let users = std::env::var("ASAN_OPTIONS").unwrap_or_default();
        command.env("ASAN_OPTIONS", format!("{ASAN_OPTIONS}:{users}"));
    }
    stress::hand_over(command)
}
