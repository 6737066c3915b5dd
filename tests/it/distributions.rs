//! `cargo xtask doctor`, and the packages that it knows: does it say what a guacd will lack, and how to get it?

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use toolkit::host::packaging::Packaging;
use toolkit::host::tools::Kind;

use crate::support::guacd::Guacd;
use crate::support::sshd::{ED25519, Sshd};
use crate::support::{self, SMALL, SOON, Xtask, shell, wait_until, xtask};

crate::tests! {
    Nothing:
        a_guacd_that_will_lack_a_protocol_is_announced_or_refused,
        bootstrap_installs_a_compiler_with_the_package_manager_that_is_there;
    AptLists:
        every_package_for_debian_exists;
    SourceAndSshd:
        doctor_is_right_about_the_keys_of_users;
    Mount:
        other_distributions_install_with_their_own_command;
    Minutes:
        what_configure_leaves_out_is_refused_before_make;
}

/// Programs that come first in PATH, and a pkg-config that does not know some libraries.
struct Machine {
    dir: TempDir,
}

impl Machine {
    fn without(modules: &[&str]) -> Result<Machine> {
        let machine = Machine { dir: TempDir::new()? };
        let cases: String = modules.iter().map(|module| format!("*' {module}'*) exit 1;; ")).collect();
        machine
            .program("pkg-config-without", &format!("case \" $*\" in {cases}esac\nexec pkg-config \"$@\""))?;
        Ok(machine)
    }

    fn program(&self, name: &str, script: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        Ok(path)
    }

    fn xtask(&self, arguments: &[&str]) -> Xtask {
        xtask(arguments).env("PKG_CONFIG", self.dir.path().join("pkg-config-without"))
    }
}

fn a_guacd_that_will_lack_a_protocol_is_announced_or_refused() -> Result<()> {
    let machine = Machine::without(&["freerdp2", "freerdp3", "libavcodec"])?;
    let doctor = machine.xtask(&["doctor"]).run()?;
    doctor.expect(0, &[])?;
    for words in [
        "What a guacd that is built here has",
        "RDP                  for want of freerdp; --require rdp makes this an error",
        "To install what guacd is missing: ",
        "keys of servers and of users",
    ] {
        ensure!(doctor.stdout.contains(words), "{words:?} is not in:\n{}", doctor.stdout);
    }
    let report: Value = serde_json::from_str(&machine.xtask(&["doctor", "--json"]).run()?.stdout)?;
    let lacks = |name: &str| {
        let features = report["features"].as_array()?;
        Some(features.iter().find(|feature| feature["name"] == name)?["lacks"].clone())
    };
    ensure!(report["schema_version"] == 3, "{report:#}");
    ensure!(lacks("rdp") == Some(Value::from(vec!["freerdp"])), "{report:#}");
    ensure!(lacks("ssh") == Some(Value::Array(Vec::new())), "{report:#}");
    ensure!(report["ssh_keys"]["types"].as_array().is_some_and(|types| !types.is_empty()), "{report:#}");

    for (arguments, words) in [
        (
            &["doctor", "--require", "rdp"][..],
            &["required, but missing here: RDP takes freerdp", "freerdp"][..],
        ),
        (&["doctor", "--require", "ssh,guacenc"], &["guacenc takes libavcodec"]),
        (&["build", "--require", "vnc,rdp"], &["required, but missing here: RDP takes freerdp"]),
        (&["doctor", "--require", "print"], &["printing over RDP takes freerdp"]),
    ] {
        let target = TempDir::new()?;
        let output = machine.xtask(arguments).env("CARGO_TARGET_DIR", target.path()).run()?;
        output.expect(3, words).with_context(|| format!("{arguments:?}"))?;
        ensure!(fs::read_dir(target.path())?.next().is_none(), "{arguments:?}: something was built");
    }
    machine.xtask(&["doctor", "--require", "ssh,vnc"]).run()?.expect(0, &[])?;
    machine.xtask(&["doctor", "--require", "rpd"]).run()?.expect(2, &["possible values: ssh, telnet"])?;

    // Without --require, it is a warning. Nothing can be built there, so it is the only thing that is said.
    let build = |arguments: &[&str]| {
        machine.xtask(&[&["build"], arguments].concat()).env("CARGO_TARGET_DIR", "/proc/target").run()
    };
    let warning = "this guacd will have no RDP, as freerdp is missing";
    build(&[])?.expect(1, &[warning, "--require rdp"])?;
    let left_out = build(&[&["--"], SMALL].concat())?;
    ensure!(!left_out.stderr.contains(warning), "{}", left_out.stderr);
    Ok(())
}

fn what_configure_leaves_out_is_refused_before_make() -> Result<()> {
    let target = TempDir::new()?;
    let arguments = ["build", "--variant", "stock", "--require", "ssh,rdp", "--", "--without-rdp"];
    let output = xtask(arguments).env("CARGO_TARGET_DIR", target.path()).run()?;
    output.expect(3, &["configure leaves out RDP, which is required", "config.log"])?;
    ensure!(
        !output.stderr.contains("leaves out SSH") && !output.stderr.contains("make "),
        "{}",
        output.stderr
    );
    Ok(())
}

/// Whether apt knows which packages there are.
pub fn has_apt_lists() -> bool {
    Packaging::all().is_ok_and(|all| all["debian"].knows("make"))
}

/// Those of the packages that apt does not know.
fn unknown<'a>(packages: impl IntoIterator<Item = &'a str>) -> Result<BTreeSet<&'a str>> {
    let packages: BTreeSet<&str> = packages.into_iter().collect();
    let output = Command::new("apt-cache").args(["show", "--no-all-versions"]).args(&packages).output()?;
    let text = String::from_utf8(output.stdout)?;
    let known: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("Package: ")).collect();
    ensure!(known.contains("make"), "apt-cache shows nothing: {}", String::from_utf8_lossy(&output.stderr));
    Ok(packages.into_iter().filter(|package| !known.contains(package)).collect())
}

fn every_package_for_debian_exists() -> Result<()> {
    let all = Packaging::all()?;
    let debian = &all["debian"];
    // One of FreeRDP's alternatives is there, and the other one is another release's.
    let named: Vec<&str> = debian.packages().filter(|package| !package.starts_with("freerdp")).collect();
    ensure!(named.len() > 50, "{} packages", named.len());
    let unknown_ones = unknown(named.iter().copied())?;
    ensure!(unknown_ones.is_empty(), "Debian has no {unknown_ones:?}");
    let planted = unknown(named.iter().copied().chain(["libcario2-dev"]))?;
    ensure!(planted == BTreeSet::from(["libcario2-dev"]), "{planted:?}");
    for pair in [["freerdp2-dev", "freerdp3-dev"], ["freerdp2-shadow-x11", "freerdp3-shadow-x11"]] {
        ensure!(debian.packages().filter(|package| pair.contains(package)).count() == 2, "{pair:?}");
        ensure!(pair.iter().any(|package| debian.knows(package)), "Debian has none of {pair:?}");
    }
    ensure!(!debian.knows("libcario2-dev"), "apt-cache shows what does not exist");
    Ok(())
}

/// Runs xtask with another `/etc/os-release`.
fn as_distribution(os_release: &Path, machine: &Machine, arguments: &str) -> Result<support::Output> {
    let (xtask, dir) = (support::target_dir().join("debug/xtask"), machine.dir.path());
    let commands = format!(
        "mount --bind {} \"$(readlink -f /etc/os-release)\" && PATH={}:$PATH exec {} {arguments}",
        os_release.display(),
        dir.display(),
        xtask.display()
    );
    let target = TempDir::new_in(dir)?;
    shell(&format!("exec unshare --mount --propagation private sh -euc '{commands}'"))
        .env("PKG_CONFIG", dir.join("pkg-config-without"))
        .env("CARGO_TARGET_DIR", target.path())
        .run()
}

fn other_distributions_install_with_their_own_command() -> Result<()> {
    let machine = Machine::without(&["freerdp2", "freerdp3", "libtelnet"])?;
    let log = machine.dir.path().join("log");
    for manager in ["apt-get", "pacman", "dnf", "apk", "zypper", "apt-cache"] {
        // It has every package but FreeRDP 2, and says so.
        let script = format!(
            "case \"$*\" in *freerdp2*) exit 1;; esac\necho {manager} \"$@\" | tee -a {}",
            log.display()
        );
        machine.program(manager, &script)?;
    }
    let os_release = machine.dir.path().join("os-release");
    for (text, command, by_hand) in [
        ("ID=debian", "apt-get install -y --no-install-recommends freerdp3-dev libtelnet-dev", None),
        (
            "ID=linuxmint\nID_LIKE=\"ubuntu debian\"",
            "apt-get install -y --no-install-recommends freerdp3-dev libtelnet-dev",
            None,
        ),
        ("ID=manjaro\nID_LIKE=arch", "pacman -S --needed --noconfirm freerdp", Some("Arch Linux")),
        ("ID=fedora", "dnf install -y freerdp-devel libtelnet-devel", None),
        ("ID=alpine", "apk add freerdp-dev", Some("Alpine Linux")),
        (
            "ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"",
            "zypper --non-interactive install --no-recommends freerdp-devel libtelnet-devel",
            None,
        ),
    ] {
        let _ = fs::remove_file(&log);
        fs::write(&os_release, format!("{text}\n"))?;
        let dry = as_distribution(&os_release, &machine, "doctor --install --dry-run")?;
        dry.expect(0, &[])?;
        ensure!(dry.stdout.trim_end().ends_with(command), "{text}: {:?}", dry.stdout);
        let ran = |log: &Path| fs::read_to_string(log).unwrap_or_default();
        ensure!(
            !ran(&log).contains(" install ") && !ran(&log).contains(" add "),
            "{text}: a dry run ran {}",
            ran(&log)
        );

        // The command is shown, and run.
        let output = as_distribution(&os_release, &machine, "doctor --install")?;
        output.expect(0, &[command])?;
        ensure!(ran(&log).lines().any(|line| line == command), "{text}: it ran {}", ran(&log));
        let named = by_hand
            .map(|name| format!("To be installed by hand: libtelnet, which {name} has no package for: "));
        if let Some(named) = named {
            ensure!(output.stdout.contains(&named), "{text}: {}", output.stdout);
        }
    }
    fs::write(&os_release, "ID=unheard-of\n")?;
    let refused = as_distribution(&os_release, &machine, "doctor --install")?;
    refused.expect(3, &["--install does not know this distribution"])?;
    let doctor = as_distribution(&os_release, &machine, "doctor --require rdp")?;
    doctor.expect(3, &["RDP takes freerdp", "on Debian: freerdp2-dev"])
}

fn bootstrap_installs_a_compiler_with_the_package_manager_that_is_there() -> Result<()> {
    let all = Packaging::all()?;
    for id in ["debian", "arch", "fedora", "alpine", "opensuse"] {
        let table = &all[id];
        // Nothing else is in PATH, no compiler above all.
        let machine = Machine::without(&[])?;
        let dir = machine.dir.path();
        for tool in ["sh", "dirname", "sed", "id", "env"] {
            let found = shell(&format!("command -v {tool}")).run()?.stdout;
            symlink(found.trim(), dir.join(tool))?;
        }
        machine.program("sudo", "exec \"$@\"")?;
        machine.program("cargo", "[ \"$1\" = --version ] && echo cargo 1.99.0 || echo cargo \"$@\"")?;
        let manager = table.install.split(' ').next().unwrap_or_default();
        machine.program(manager, &format!("echo {manager} \"$@\" >>{}", dir.join("log").display()))?;
        let run = |arguments: &str| {
            let command = format!("PATH={} exec ./bootstrap.sh doctor {arguments}", dir.display());
            shell(&command).run()
        };
        run("")?.expect(3, &["a C compiler is missing", "add --install"])?;
        ensure!(!dir.join("log").exists(), "{id}: it was installed unasked");
        let output = run("--install")?;
        output.expect(0, &[])?;
        ensure!(output.stdout.trim() == "cargo xtask doctor --install", "{id}: {}", output.stdout);
        let packages = table.packages_for(Kind::Program, "cc", |_, _| true).context("no compiler")?;
        let expected = format!("{} {}", table.install, packages.join(" "));
        let ran = fs::read_to_string(dir.join("log"))?.replace(" -qq", "");
        ensure!(ran.lines().last() == Some(&expected), "{id}: it ran {ran:?} instead of {expected:?}");
    }
    Ok(())
}

fn doctor_is_right_about_the_keys_of_users() -> Result<()> {
    let report: Value = serde_json::from_str(&xtask(["doctor", "--json"]).run()?.stdout)?;
    let keys = &report["ssh_keys"];
    let has = |name: &str| keys["types"].as_array().is_some_and(|types| types.iter().any(|one| one == name));
    let cases: [(&str, &[&str], bool); 3] = [
        ("ed25519", ED25519, has("ssh-ed25519")),
        ("ecdsa", &["-t", "ecdsa", "-b", "384"], has("ecdsa-sha2-nistp384")),
        ("rsa", &["-t", "rsa", "-b", "2048"], keys["users_rsa_sha2"] == true),
    ];
    ensure!(cases.iter().any(|(.., works)| *works), "doctor knows no key that works: {keys}");
    let sshd = Sshd::start(&cases.map(|(name, options, _)| (name, options)))?;
    for (name, _, works) in cases {
        let guacd = Guacd::start("patched")?;
        let mut user = guacd.user("ssh")?;
        sshd.log_in(&mut user, &sshd.key(name)?, &[])?;
        let ends = ["Public key authentication failed", "SSH connection successful"];
        let log = || guacd.log().unwrap_or_default();
        wait_until(name, SOON, || ends.iter().any(|end| log().contains(end)))?;
        ensure!(log().contains(ends[usize::from(works)]), "{name}: doctor says {works}\n{}", log());
    }
    Ok(())
}
