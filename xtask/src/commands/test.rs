//! `cargo xtask test`: is the project sound? Every check that CI makes, in the order of what it costs.

use anyhow::{Result, bail, ensure};
use duct::Expression;

use toolkit::failure::Failure;
use toolkit::host::tools::{self, Need};
use toolkit::host::{layout, run};
use toolkit::source::fetch;
use toolkit::ui;

use crate::flags;

/// Runs the checks, and stops at the first that fails.
pub fn run(flags: &flags::Test) -> Result<()> {
    let release = flags.release.load()?;
    let needs: &[Need] = match flags.quick {
        true => &[Need::Tests],
        false => &[Need::Build, Need::Ssh, Need::Git, Need::Tests, Need::OpenSsh],
    };
    tools::preflight(needs, &[Need::Optional, Need::Platforms], flags.setup.install)?;
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
    // Package by package: together they would be compiled with each other's features, and xtask all over again.
    for package in [
        "toolkit",
        "xtask",
        "guac-probe",
        "tls-rs",
        "planted-bugs",
        "guacd-uncapped-preload",
        "key-limit",
        "guac-stress",
    ] {
        let arguments = ["test", "--locked", "--package", package];
        cargo(package, &arguments, &format!("cargo test -p {package}"), offline)?;
    }
    if flags.quick {
        return Ok(());
    }
    loom(offline)?;
    if let Err(error) = fetch::source(&release, &flags.setup.source.access()) {
        run::check_interrupted()?;
        if flags.setup.source.from.is_some() {
            return Err(error);
        }
        ui::warning(format!("NO SOURCE: THE TESTS THAT NEED IT ARE SKIPPED\n{error:#}"));
    }
    let arguments = ["test", "--locked", "--package", "tests"];
    let command = layout::cargo(&arguments, offline).env("GUACD_RELEASE", &release.version);
    show(
        "integration",
        &arguments,
        command,
        &format!("GUACD_RELEASE={} cargo test -p tests", release.version),
    )
}

/// Has loom try every interleaving of `tls-rs`'s registry, and shows that it would notice bugs.
fn loom(offline: bool) -> Result<()> {
    // A directory of its own: other flags would have everything compiled again, here and back.
    let target = layout::target_dir().join("loom");
    let target = target.to_string_lossy();
    let arguments = ["test", "--locked", "--release", "--package", "tls-rs", "--target-dir", &target, "loom"];
    let command = layout::cargo(&arguments, offline).env("RUSTFLAGS", "--cfg loom");
    show("loom", &arguments, command, "RUSTFLAGS='--cfg loom' cargo test --release -p tls-rs loom")
}

fn cargo(title: &str, arguments: &[&str], mend: &str, offline: bool) -> Result<()> {
    show(title, arguments, layout::cargo(arguments, offline), mend)
}

/// Runs cargo with our terminal: the tests' own reports are what the user wants to see.
fn show(title: &str, arguments: &[&str], command: Expression, mend: &str) -> Result<()> {
    run::check_interrupted()?;
    ui::heading(format!("{title}: cargo {}", arguments.join(" ")));
    let output = command
        .stdin_null()
        .unchecked()
        .before_spawn(|command| {
            run::end_with_parent(command);
            Ok(())
        })
        .run()?;
    run::check_interrupted()?;
    if !output.status.success() {
        bail!("{title} failed; to see it alone, or to mend it: {mend}");
    }
    Ok(())
}
