//! How are missing tools and libraries installed? With the distribution's own command, which is shown first.

use anyhow::{Result, bail, ensure};

use crate::failure::Failure;
use crate::host::distribution::Distribution;
use crate::host::packaging::Packaging;
use crate::host::run::{self, WhenInterrupted};
use crate::host::tools::{self, Finding, Need};
use crate::host::{files, layout};
use crate::ui;

/// Checks that this machine has all tools and libraries for `needs`. With `may_install`, those that are missing for `needs` and
/// for `optional` are installed first. Returns what the machine has.
///
/// # Errors
///
/// [`Failure::Preflight`] when something for `needs` is missing.
pub fn preflight(needs: &[Need], optional: &[Need], may_install: bool) -> Result<Vec<Finding>> {
    let mut findings = tools::probe();
    let wanted = |finding: &Finding| needs.contains(&finding.need) || optional.contains(&finding.need);
    if may_install && install(&findings, wanted)? {
        findings = tools::probe();
    }
    ensure_met(&findings, needs, true)?;
    Ok(findings)
}

/// Checks that this machine has all tools and libraries for `needs`, and looks for no others.
///
/// # Errors
///
/// [`Failure::Preflight`] when one is missing.
pub fn require(needs: &[Need]) -> Result<()> {
    ensure_met(&tools::probe_for(|need| needs.contains(&need)), needs, false)
}

fn ensure_met(findings: &[Finding], needs: &[Need], has_flag: bool) -> Result<()> {
    let unmet: Vec<&str> = tools::unmet(findings, needs).map(|finding| finding.name).collect();
    if !unmet.is_empty() {
        let missing = Missing::of(findings, |finding| needs.contains(&finding.need));
        bail!(Failure::Preflight(format!(
            "missing here: {}\n{}",
            unmet.join(", "),
            missing.advice(has_flag)
        )));
    }
    Ok(())
}

/// The packages that provide what is missing.
#[derive(Debug, Default, PartialEq)]
pub struct Missing {
    /// The packages of this distribution; of Debian, if this one is not known.
    pub packages: Vec<String>,
    /// What the distribution has no package for, and what is known about it.
    pub by_hand: Vec<String>,
    /// The commands that install the packages, one after the other. Empty if there are none, or the distribution is not known.
    pub commands: Vec<String>,
}

impl Missing {
    /// What is missing of the findings that are `wanted`, on this distribution.
    pub fn of(findings: &[Finding], wanted: impl Fn(&Finding) -> bool) -> Missing {
        let is_root = rustix::process::geteuid().is_root();
        Missing::on(&Distribution::this(), findings, wanted, is_root, Packaging::knows)
    }

    fn on(
        distribution: &Distribution,
        findings: &[Finding],
        wanted: impl Fn(&Finding) -> bool,
        is_root: bool,
        exists: impl Fn(&Packaging, &str) -> bool,
    ) -> Missing {
        let packaging = Packaging::of(distribution);
        let debian = || Packaging::all().unwrap_or_default().remove("debian");
        let mut missing = Missing::default();
        let Some(names) = packaging.clone().or_else(debian) else { return missing };
        for Finding { name, kind, .. } in
            findings.iter().filter(|finding| finding.version.is_none() && wanted(finding))
        {
            match names
                .packages_for(*kind, name, |names, package| packaging.is_some() && exists(names, package))
            {
                Some(packages) => {
                    // Some packages provide several items.
                    let new: Vec<_> =
                        packages.into_iter().filter(|package| !missing.packages.contains(package)).collect();
                    missing.packages.extend(new);
                }
                None => {
                    let elsewhere = names.without.get(*name).map(|what| format!(": {what}"));
                    let text = format!("{name}, which {} has no package for", names.name);
                    missing.by_hand.push(text + &elsewhere.unwrap_or_default());
                }
            }
        }
        if let (Some(packaging), false) = (packaging, missing.packages.is_empty()) {
            let sudo = if is_root { "" } else { "sudo " };
            let install = format!("{sudo}{} {}", packaging.install, missing.packages.join(" "));
            missing.commands = packaging.update.map(|update| format!("{sudo}{update}")).into_iter().collect();
            missing.commands.push(install);
        }
        missing
    }

    /// The shell command that installs the packages, if there is one.
    pub fn command(&self) -> Option<String> {
        (!self.commands.is_empty()).then(|| self.commands.join(" && "))
    }

    /// How to get what is missing. `has_flag` says whether the command that is running has the flag --install.
    pub fn advice(&self, has_flag: bool) -> String {
        let mut lines = Vec::new();
        match self.command() {
            Some(command) => {
                lines.push(format!("install with: {command}"));
                if has_flag {
                    lines.push("          or: add --install to this command".to_owned());
                }
            }
            None if !self.packages.is_empty() => lines.push(format!(
                "install them with your distribution's package manager (on Debian: {})",
                self.packages.join(" ")
            )),
            None => {}
        }
        lines.extend(self.by_hand.iter().map(|item| format!("install by hand: {item}")));
        lines.join("\n")
    }
}

/// Installs the packages for the missing items that are `wanted`, and shows the commands first. Returns whether there were any.
///
/// # Errors
///
/// [`Failure::Preflight`] on a distribution that is not known, or without root and sudo; any other when a command fails.
pub fn install(findings: &[Finding], wanted: impl Fn(&Finding) -> bool) -> Result<bool> {
    let missing = Missing::of(findings, &wanted);
    if missing.packages.is_empty() {
        return Ok(false);
    }
    ensure!(
        !missing.commands.is_empty(),
        Failure::Preflight(
            "--install does not know this distribution: `cargo xtask doctor` lists what to install".into()
        )
    );
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        // In the foreground, as sudo may ask for the password.
        let sudo = |arguments: &[&str]| {
            duct::cmd("sudo", arguments).unchecked().run().is_ok_and(|output| output.status.success())
        };
        ui::note(format!("to be run: {}", missing.commands.join(" && ")));
        let allowed = sudo(&["-n", "true"]) || sudo(&["-v"]);
        ensure!(
            allowed,
            Failure::Preflight("--install needs root or sudo: run as root, or install by hand".into())
        );
    }
    let log = layout::target_dir().join("guacd/install.log");
    files::begin_log(&log)?;
    let (update, mut install) = match &missing.commands[..] {
        [update, install] => (Some(update.clone()), install.clone()),
        commands => (None, commands.concat()),
    };
    let mut count = missing.packages.len();
    if let Some(update) = update {
        execute(&update, &log)?;
        // Only now does the distribution know which of the alternatives it has.
        let missing = Missing::of(findings, &wanted);
        count = missing.packages.len();
        install = missing.commands.last().cloned().unwrap_or(install);
    }
    execute(&install, &log)?;
    ui::note(format!("  {count} packages were installed"));
    Ok(true)
}

/// Shows a command and runs it, without questions.
fn execute(command: &str, log: &std::path::Path) -> Result<()> {
    ui::note(format!("  {command}"));
    let command = command.strip_prefix("sudo ").map_or_else(
        || format!("env DEBIAN_FRONTEND=noninteractive {command}"),
        |command| format!("sudo -n env DEBIAN_FRONTEND=noninteractive {command}"),
    );
    let mut words = command.split_whitespace();
    let program = words.next().unwrap_or_default();
    let step = ui::Step::start("install");
    run::logged(&step, &command, duct::cmd(program, words), log, WhenInterrupted::Finish)?;
    step.done("");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is missing on a machine that has nothing.
    fn missing(id: &str, needs: &[Need], is_root: bool) -> Missing {
        let mut findings = tools::probe_for(|need| needs.contains(&need));
        for finding in &mut findings {
            finding.version = None;
        }
        let distribution = Distribution { id: id.into(), ..Distribution::default() };
        Missing::on(&distribution, &findings, |_| true, is_root, |_, package| package.contains('3'))
    }

    #[test]
    fn each_distribution_has_its_own_command() {
        for (id, is_root, command) in [
            ("debian", true, "apt-get update && apt-get install -y --no-install-recommends gpgv"),
            ("ubuntu", false, "sudo apt-get update && sudo apt-get install -y --no-install-recommends gpgv"),
            ("arch", false, "sudo pacman -S --needed --noconfirm gnupg"),
            ("fedora", true, "dnf install -y gnupg2"),
            ("alpine", true, "apk add gpgv"),
            ("opensuse", false, "sudo zypper --non-interactive install --no-recommends gpg2"),
        ] {
            let missing = missing(id, &[Need::Signature], is_root);
            assert_eq!(missing.command().as_deref(), Some(command));
            assert!(
                missing.advice(true).contains("--install") && !missing.advice(false).contains("--install")
            );
        }
        let unknown = missing("nixos", &[Need::Signature], true);
        assert_eq!((unknown.command(), unknown.packages.len()), (None, 1));
        assert!(unknown.advice(true).contains("on Debian: gpgv"), "{}", unknown.advice(true));
    }

    #[test]
    fn a_package_is_named_once_and_what_has_none_is_named_too() {
        let arch = missing("arch", &[Need::Video, Need::Optional], true);
        assert_eq!(arch.packages.iter().filter(|package| *package == "ffmpeg").count(), 1, "{arch:?}");
        assert_eq!(arch.by_hand, ["libtelnet, which Arch Linux has no package for: the AUR has libtelnet"]);
        assert!(arch.advice(true).contains("install by hand: libtelnet"));
        assert!(missing("debian", &[Need::Optional], true).packages.contains(&"freerdp3-dev".to_owned()));
        assert_eq!(missing("debian", &[], true), Missing::default());
    }
}
