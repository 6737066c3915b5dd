//! Is the repository itself in order?

use std::fs;

use anyhow::{Result, ensure};

use crate::support::{self, RELEASE, root, xtask};

crate::tests! {
    Nothing:
        every_patch_says_what_it_is_for_and_where_it_comes_from,
        every_command_has_help_that_names_its_exit_codes;
}

fn every_patch_says_what_it_is_for_and_where_it_comes_from() -> Result<()> {
    let dir = root().join("patches").join(RELEASE);
    let series = support::series()?;
    for (index, name) in series.iter().enumerate() {
        ensure!(name.starts_with(&format!("{:04}-", index + 1)), "{name} is out of order");
        let text = fs::read_to_string(dir.join(name))?;
        let header = text.split("\n---\n").next().unwrap_or_default();
        for field in ["Description: ", "Origin: ", "Forwarded: ", "Last-Update: "] {
            ensure!(header.lines().any(|line| line.starts_with(field)), "{name} has no {field}in its header");
        }
    }
    ensure!(!series.is_empty(), "the series is empty");
    Ok(())
}

fn every_command_has_help_that_names_its_exit_codes() -> Result<()> {
    let help = xtask(["--help"]).run()?;
    ensure!(help.code == 0 && help.stdout.contains("Exit codes: 0 done;"), "{}", help.stdout);
    for command in ["fetch", "build", "stress", "preload", "doctor", "test"] {
        ensure!(
            help.stdout.contains(&format!("\n  {command} ")),
            "{command} is not listed:\n{}",
            help.stdout
        );
        let own = xtask([command, "--help"]).run()?;
        ensure!(
            own.code == 0
                && own.stdout.contains(&format!("Usage: cargo xtask {command}"))
                && own.stdout.contains("Exit codes: "),
            "{}",
            own.stdout
        );
    }
    Ok(())
}
