//! `cargo xtask doctor`: lists the tools and libraries that are installed, what a guacd that is built with them has, and how to
//! install the missing ones.

use anyhow::{Result, bail};
use serde::Serialize;
use shared::capacity::{self, Demand, Limit, SSH};
use toolkit::failure::Failure;
use toolkit::host::distribution::Distribution;
use toolkit::host::features::{self, FEATURES, Feature};
use toolkit::host::install::{self, Missing};
use toolkit::host::packaging::{Packaging, Verified};
use toolkit::host::ssh_keys::SshKeys;
use toolkit::host::tools::{self, Finding, Need, OF_A_BUILD};
use toolkit::ui;

use crate::flags;

/// The sections of the list, by need.
const SECTIONS: [(&str, &[Need]); 5] = [
    ("To build guacd", &[Need::Build]),
    ("Protocols and features", &[Need::Ssh, Need::Optional, Need::Print, Need::Video]),
    (
        "Sources and tests",
        &[Need::Git, Need::Signature, Need::Tests, Need::Platforms, Need::Desktops, Need::Musl, Need::Arch],
    ),
    ("Load tests with a real sshd", &[Need::OpenSsh]),
    ("Packages, Nix, and reproducible builds", &[Need::Package, Need::Deb, Need::Nix, Need::Reproduce]),
];

#[derive(Serialize)]
struct Diagnosis<'a> {
    schema_version: u32,
    findings: &'a [Finding],
    features: Vec<Built>,
    /// What the libssh2 at hand can use. `None` without it.
    ssh_keys: Option<&'a SshKeys>,
    limits: &'a [Limit],
    /// The command that installs what guacd is missing, if there is one for this distribution.
    install: Option<String>,
    /// What guacd is missing and the distribution has no package for.
    by_hand: Vec<String>,
}

/// Whether a guacd that is built here has a feature.
#[derive(Serialize)]
struct Built {
    name: &'static str,
    #[serde(skip)]
    title: &'static str,
    /// What is missing for it. Nothing, if it is built in.
    lacks: Vec<&'static str>,
}

/// Prints the list.
pub fn run(flags: &flags::Doctor) -> Result<()> {
    let needs = [&OF_A_BUILD[..], &features::needs(&flags.required.features)].concat();
    let wanted = |finding: &Finding| needs.contains(&finding.need);
    let of_needs = || tools::probe_for(|need| needs.contains(&need));
    if flags.dry_run {
        let missing = Missing::of(&of_needs(), wanted);
        ui::result(match missing.command() {
            Some(command) => command,
            None if missing.packages.is_empty() => {
                "nothing is missing that guacd and what is required of it need".to_owned()
            }
            None => missing.advice(false),
        });
        return Ok(());
    }
    if flags.install {
        install::install(&of_needs(), wanted)?;
    }
    let findings = tools::probe();
    let missing = Missing::of(&findings, wanted);
    let limits = capacity::limits(Demand { guacd: Some(SSH), has_sshd: false });
    let features: Vec<Built> = FEATURES
        .iter()
        .map(|one| Built { name: one.name, title: one.title, lacks: one.lacks(&findings) })
        .collect();
    let ssh_keys = SshKeys::of_libssh2().ok();
    if flags.json {
        let report = Diagnosis {
            schema_version: 3,
            findings: &findings,
            features,
            ssh_keys: ssh_keys.as_ref(),
            limits: &limits,
            install: missing.command(),
            by_hand: missing.by_hand,
        };
        ui::result(serde_json::to_string_pretty(&report)?);
    } else {
        print(&findings, &limits);
        print_features(&features, &flags.required.features, ssh_keys.as_ref());
        print_install(&missing);
    }
    check(&findings, &flags.required.features)
}

/// Fails if guacd cannot be built here, or would lack what is required.
fn check(findings: &[Finding], require: &[&Feature]) -> Result<()> {
    let unmet: Vec<&str> = tools::unmet(findings, &[Need::Build]).map(|finding| finding.name).collect();
    if !unmet.is_empty() {
        bail!(Failure::Preflight(format!("guacd cannot be built here without {}", unmet.join(", "))));
    }
    let lacking: Vec<String> = require
        .iter()
        .map(|feature| (feature.title, feature.lacks(findings)))
        .filter(|(_, lacks)| !lacks.is_empty())
        .map(|(title, lacks)| format!("{title} takes {}", lacks.join(", ")))
        .collect();
    if !lacking.is_empty() {
        let wanted = |finding: &Finding| require.iter().any(|feature| feature.takes(finding));
        bail!(Failure::Preflight(format!(
            "required, but missing here: {}\n{}",
            lacking.join("; "),
            Missing::of(findings, wanted).advice(true)
        )));
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

fn print_features(features: &[Built], require: &[&Feature], ssh_keys: Option<&SshKeys>) {
    ui::result("What a guacd that is built here has");
    for Built { name, title, lacks } in features {
        let required = require.iter().any(|feature| feature.name == *name);
        let remark = match lacks.is_empty() {
            true => String::new(),
            false if required => format!("for want of {}", lacks.join(", ")),
            false => format!("for want of {}; --require {name} makes this an error", lacks.join(", ")),
        };
        ui::check(lacks.is_empty(), required, title, remark);
    }
    if let Some(keys) = ssh_keys {
        ui::result(format!("SSH keys that libssh2 {} can use", keys.libssh2));
        for sentence in keys.sentences() {
            ui::result(format!("  {sentence}"));
        }
    }
}

fn print_install(missing: &Missing) {
    if let Some(command) = missing.command() {
        ui::result(format!(
            "\nTo install what guacd is missing: {command}\n                              or: cargo xtask doctor --install"
        ));
        if let Some(packaging) = Packaging::of(&Distribution::this()) {
            if packaging.verified != Verified::Run {
                ui::result(format!(
                    "(The names of packages for {} were not tried. They are from: {}, {}.)",
                    packaging.name, packaging.source, packaging.date
                ));
            }
        }
    }
    for item in &missing.by_hand {
        ui::result(format!("To be installed by hand: {item}"));
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
