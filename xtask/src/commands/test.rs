//! `cargo xtask test`: runs every check that CI runs, the cheapest first.

use anyhow::{Result, bail, ensure};
use duct::Expression;

use toolkit::build::{freerdp3, musl};
use toolkit::failure::Failure;
use toolkit::host::install;
use toolkit::host::tools::Need;
use toolkit::host::{layout, run};
use toolkit::source::fetch;
use toolkit::source::release::Release;
use toolkit::source::upkeep::upstream::Offers;
use toolkit::ui;

use crate::flags;

/// The packages whose tests are quick and need no guacd: the workspace's default members.
const PACKAGES: [&str; 10] = [
    "toolkit",
    "xtask",
    "guac-probe",
    "tls-rs",
    "planted-bugs",
    "guacd-uncapped-preload",
    "shared",
    "key-limit",
    "pretend-cores",
    "guac-stress",
];

/// Runs the checks. The first that fails ends the run.
pub fn run(flags: &flags::Test) -> Result<()> {
    let release = flags.release.load()?;
    if flags.musl {
        return musl::check(&release, &flags.setup.to_toolkit());
    }
    if flags.freerdp3 {
        return freerdp3::check(&release, &flags.setup.source.to_toolkit());
    }
    let needs: &[Need] = match flags.quick {
        true => &[Need::Tests],
        false => &[Need::Build, Need::Ssh, Need::Git, Need::Tests, Need::OpenSsh],
    };
    let optional = [Need::Optional, Need::Platforms, Need::Desktops, Need::Print, Need::Arch];
    install::preflight(needs, &optional, flags.setup.install)?;
    for component in ["fmt", "clippy"] {
        ensure!(
            run::version_line(&format!("cargo-{component}"), "--version").is_some(),
            Failure::Preflight(format!(
                "`cargo {component}` is missing: rustup component add rustfmt clippy"
            ))
        );
    }

    let offline = flags.setup.source.offline;
    cargo("format", &["fmt", "--all", "--check"], "cargo fmt --all", offline)?;
    let clippy = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    cargo("lints", &clippy, "cargo clippy --workspace --all-targets --fix", offline)?;
    // One by one: together, all would be compiled with the features that any of them needs, and xtask once more.
    for package in PACKAGES {
        let arguments = ["test", "--locked", "--package", package];
        cargo(package, &arguments, &format!("cargo test -p {package}"), offline)?;
    }
    if flags.quick {
        return Ok(());
    }
    loom(offline)?;
    if flags.all_releases {
        for other in Release::all()?.into_values().filter(|other| other.version != release.version) {
            if has_source(&other, flags)? {
                integration(&other, offline)?;
            } else {
                ui::warning(format!("NO SOURCE OF RELEASE {}: IT IS NOT TESTED", other.version));
            }
        }
    }
    if !has_source(&release, flags)? {
        ui::warning(format!("NO SOURCE OF RELEASE {}: TESTS THAT NEED IT ARE SKIPPED", release.version));
    }
    // Some tests are for that commit, whichever release is tested.
    let upstream = Offers::load(&[])?.release;
    if flags.setup.source.from.is_none() && !has_source(&upstream, flags)? {
        ui::warning(
            "NO SOURCE OF THE COMMIT THAT patches/upstream IS FOR: THE TESTS OF THESE PATCHES ARE SKIPPED",
        );
    }
    integration(&release, offline)
}

/// Whether the source of `release` is in the cache, or can be fetched into it. If not, prints the reason.
fn has_source(release: &Release, flags: &flags::Test) -> Result<bool> {
    let Err(error) = fetch::source(release, &flags.setup.source.to_toolkit()) else { return Ok(true) };
    run::check_interrupted()?;
    if flags.setup.source.from.is_some() {
        return Err(error);
    }
    ui::warning(format!("{error:#}"));
    Ok(false)
}

/// Runs the integration tests for `release`.
fn integration(release: &Release, offline: bool) -> Result<()> {
    let arguments = ["test", "--locked", "--package", "tests"];
    let command = layout::cargo(&arguments, offline).env("GUACD_RELEASE", &release.version);
    let title = format!("integration, release {}", release.version);
    show(&title, &arguments, command, &format!("GUACD_RELEASE={} cargo test -p tests", release.version))
}

/// Runs loom, which tries every interleaving of small programs on `tls-rs`'s registry.
fn loom(offline: bool) -> Result<()> {
    // In its own target directory: with other flags in the same one, cargo would compile everything again each time.
    let target = layout::target_dir().join("loom");
    let target = target.to_string_lossy();
    let arguments = ["test", "--locked", "--release", "--package", "tls-rs", "--target-dir", &target, "loom"];
    let command = layout::cargo(&arguments, offline).env("RUSTFLAGS", "--cfg loom");
    show("loom", &arguments, command, "RUSTFLAGS='--cfg loom' cargo test --release -p tls-rs loom")
}

fn cargo(title: &str, arguments: &[&str], remedy: &str, offline: bool) -> Result<()> {
    show(title, arguments, layout::cargo(arguments, offline), remedy)
}

/// Runs cargo on xtask's terminal, where the user sees its output. `remedy` is the command that repeats the check, or corrects
/// what it found.
fn show(title: &str, arguments: &[&str], command: Expression, remedy: &str) -> Result<()> {
    run::check_interrupted()?;
    ui::heading(format!("{title}: cargo {}", arguments.join(" ")));
    if !run::shown(command)? {
        bail!("{title} failed; to repeat or correct it: {remedy}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_default_member_of_the_workspace_is_tested() {
        let read = |path: &str| -> toml::Table {
            fs_err::read_to_string(layout::root().join(path)).unwrap().parse().unwrap()
        };
        let workspace = read("Cargo.toml");
        let members = workspace["workspace"]["default-members"].as_array().unwrap();
        let name = |member: &toml::Value| {
            let manifest = read(&format!("{}/Cargo.toml", member.as_str().unwrap()));
            manifest["package"]["name"].as_str().unwrap().to_owned()
        };
        let names: BTreeSet<String> = members.iter().map(name).collect();
        assert_eq!(names, PACKAGES.map(str::to_owned).into());
    }
}
