//! `cargo xtask doctor`: lists the tools and libraries that are installed, and how to install the missing ones.

use anyhow::{Result, bail};
use serde::Serialize;
use shared::capacity::{self, Demand, Limit, SSH};
use toolkit::failure::Failure;
use toolkit::host::tools::{self, Finding, Need, OF_A_BUILD};
use toolkit::ui;

use crate::flags;

/// The sections of the list, by need.
const SECTIONS: [(&str, &[Need]); 5] = [
    ("To build guacd", &[Need::Build]),
    ("Protocols and features", &[Need::Ssh, Need::Optional]),
    (
        "Sources and tests",
        &[Need::Git, Need::Signature, Need::Tests, Need::Platforms, Need::Desktops, Need::Musl],
    ),
    ("Load tests with a real sshd", &[Need::OpenSsh]),
    ("Packages, Nix, and reproducible builds", &[Need::Package, Need::Nix, Need::Reproduce]),
];

#[derive(Serialize)]
struct Diagnosis<'a> {
    schema_version: u32,
    findings: &'a [Finding],
    limits: &'a [Limit],
    /// The command that installs what guacd is missing, if there is one for this distribution.
    install: Option<String>,
}

/// Prints the list.
pub fn run(flags: &flags::Doctor) -> Result<()> {
    let mut findings = tools::probe();
    let of_a_build = |need| OF_A_BUILD.contains(&need);
    if flags.install && tools::install(&findings, of_a_build)? {
        findings = tools::probe();
    }
    let missing = tools::missing_packages(&findings, of_a_build);
    let limits = capacity::limits(Demand { guacd: Some(SSH), has_sshd: false });
    let command = (!missing.is_empty()).then(|| tools::install_command(&missing)).flatten();
    if flags.json {
        let report = Diagnosis { schema_version: 2, findings: &findings, limits: &limits, install: command };
        ui::result(serde_json::to_string_pretty(&report)?);
    } else {
        print(&findings, &limits);
        if let Some(command) = command {
            ui::result(format!(
                "\nTo install what guacd is missing: {command}\n                              or: cargo xtask doctor --install"
            ));
        }
    }
    let unmet: Vec<&str> = tools::unmet(&findings, &[Need::Build]).map(|finding| finding.name).collect();
    if !unmet.is_empty() {
        bail!(Failure::Preflight(format!("guacd cannot be built here without {}", unmet.join(", "))));
    }
    Ok(())
}

fn print(findings: &[Finding], limits: &[Limit]) {
    for (title, needs) in SECTIONS {
        ui::result(title);
        for finding in findings.iter().filter(|finding| needs.contains(&finding.need)) {
            let version = finding.version.as_deref().unwrap_or("-");
            let remark = format!("{:<52} {}", version.chars().take(50).collect::<String>(), finding.unlocks);
            ui::check(finding.version.is_some(), finding.need == Need::Build, finding.name, remark);
        }
    }
    ui::result(
        "Limits of this machine, and how many SSH sessions of a stock guacd each allows (a patched one needs less)",
    );
    for Limit { name, source, available, sessions, .. } in limits {
        let what = format!("{name} ({source})");
        ui::result(format!("  {what:<45} {available:>14} {sessions:>9}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_listed_once() {
        for item in tools::probe() {
            let sections = SECTIONS.iter().filter(|(_, needs)| needs.contains(&item.need)).count();
            assert_eq!(sections, 1, "{}", item.name);
        }
    }
}
