//! Is the repository itself in order?

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tempfile::TempDir;
use toolkit::source::release::Release;

use crate::support::processes::Descendants;
use crate::support::{root, xtask};

crate::tests! {
    Nothing:
        every_command_has_help_that_names_its_exit_codes,
        interrupted_tests_leave_no_process,
        the_image_is_a_drop_in_for_the_official_one,
        the_image_repeats_no_pin_patch_or_flag;
}

fn interrupted_tests_leave_no_process() -> Result<()> {
    let dir = TempDir::new()?;
    // It does as cargo does with tests that have started something.
    let cargo = dir.path().join("cargo");
    fs::write(&cargo, "#!/bin/sh\nsleep 60 & wait\n")?;
    fs::set_permissions(&cargo, Permissions::from_mode(0o755))?;
    let started = Descendants::since_now()?;
    let mut tests = xtask(["test", "--quick"]).env("CARGO", &cargo).start()?;
    tests.wait_until("a test", || started.called(Some("sleep")).is_ok_and(|found| !found.is_empty()))?;
    let since = Instant::now();
    tests.interrupt()?.expect(130, &["interrupted"])?;
    ensure!(since.elapsed() < Duration::from_secs(30), "they end when they have done all");
    started.ensure_gone()
}

fn every_command_has_help_that_names_its_exit_codes() -> Result<()> {
    let help = xtask(["--help"]).run()?;
    ensure!(help.code == 0 && help.stdout.contains("Exit codes: 0 done;"), "{}", help.stdout);
    for command in [
        "fetch",
        "build",
        "stress",
        "bench",
        "preload",
        "image",
        "package",
        "nix",
        "reproduce",
        "doctor",
        "test",
        "prove",
    ] {
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

fn the_image_is_a_drop_in_for_the_official_one() -> Result<()> {
    let dockerfile = fs::read_to_string(root().join("Dockerfile"))?;
    // What the official image of 1.6.0 promises to its users.
    for promise in [
        "LC_ALL=C.UTF-8",
        "LD_LIBRARY_PATH=/opt/guacamole/lib\n",
        "USER 1000:1000\n",
        "EXPOSE 4822\n",
        "ENTRYPOINT [\"/opt/guacamole/entrypoint.sh\"]\n",
        "ca-certificates ghostscript netcat-openbsd;",
        "HEALTHCHECK ",
        "STOPSIGNAL SIGTERM\n",
    ] {
        ensure!(dockerfile.contains(promise), "the Dockerfile lacks {promise:?}");
    }
    // An entrypoint that prints its command instead of running it.
    let entrypoint = fs::read_to_string(root().join("packaging/entrypoint.sh"))?.replace("exec ", "echo ");
    for (environment, arguments, command) in [
        (None, "", "/opt/guacamole/sbin/guacd -f -b 0.0.0.0 -L info"),
        (Some(("GUACD_LOG_LEVEL", "debug")), "", "/opt/guacamole/sbin/guacd -f -b 0.0.0.0 -L debug"),
        (Some(("LOG_LEVEL", "trace")), "-l 99", "/opt/guacamole/sbin/guacd -f -b 0.0.0.0 -L trace -l 99"),
    ] {
        let mut shell = Command::new("sh");
        shell.args(["-c", &entrypoint, "sh"]).args(arguments.split_whitespace());
        shell.env_remove("LOG_LEVEL").env_remove("GUACD_LOG_LEVEL").envs(environment);
        let said = String::from_utf8(shell.output()?.stdout)?;
        ensure!(said.trim_end() == command, "{said:?} instead of {command:?}");
    }
    Ok(())
}

fn the_image_repeats_no_pin_patch_or_flag() -> Result<()> {
    let dockerfile = fs::read_to_string(root().join("Dockerfile"))?;
    let compose = fs::read_to_string(root().join("compose.yaml"))?;
    let release = Release::load(None)?.version;
    let defaults = |name: &str| -> Vec<&str> {
        dockerfile.lines().filter_map(|line| line.strip_prefix(&format!("ARG {name}="))).collect()
    };
    // The default release is xtask's, and its time is in the manifest.
    for name in ["RELEASE", "SOURCE_DATE_EPOCH"] {
        ensure!(dockerfile.contains(&format!("ARG {name}\n")), "the Dockerfile lacks ARG {name}");
        ensure!(defaults(name).is_empty(), "{name}: {:?}", defaults(name));
    }
    ensure!(!dockerfile.contains(&release), "the Dockerfile names the release");
    ensure!(
        compose.contains(&format!("image: guacd-uncapped:{release}\n")),
        "compose.yaml names another release"
    );
    for stage in ["FROM ${BASE} AS build\n", "FROM ${BASE}\n"] {
        ensure!(dockerfile.matches(stage).count() == 1, "the Dockerfile lacks the stage {stage:?}");
    }
    // Neither pins, nor patches, nor flags, nor libraries: those are for upstream.toml, patches/ and xtask.
    let upstream = fs::read_to_string(root().join("upstream.toml"))?;
    let epochs = upstream.lines().filter_map(|line| line.strip_prefix("epoch = "));
    let pins = upstream.split('"').filter(|text| text.len() >= 40).chain(epochs);
    for elsewhere in pins.chain(["-D_FORTIFY", "-fstack", "relro", "configure", ".patch", "-dev "]) {
        let excused = dockerfile.replace("libc6-dev", "");
        ensure!(!excused.contains(elsewhere), "the Dockerfile repeats {elsewhere:?}");
    }
    Ok(())
}
