//! `cargo xtask nix`: what does it say when it fails? And are the flags that the flake repeats those of xtask?
//!
//! `cargo xtask nix --stand-in --check` is the test that builds.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use toolkit::build::tls_rs;
use toolkit::stress::PACKAGES;

use crate::support::checkout::Checkout;
use crate::support::{self, Xtask, root, xtask};

crate::tests! {
    Nothing:
        without_nix_it_says_what_to_install,
        a_nix_without_flakes_is_refused,
        what_nix_misses_is_reported_with_advice,
        outside_of_a_git_checkout_it_says_so,
        cargos_flags_are_those_of_the_toolkit,
        the_lock_file_locks_what_the_flake_names;
    Source:
        configures_flags_are_those_of_the_toolkit;
}

fn without_nix_it_says_what_to_install() -> Result<()> {
    let nix = FakeNix::new("exit 127")?;
    nix.before(xtask(["nix"])).run()?.expect(3, &["missing here: nix", "nix-bin", "--install"])
}

fn a_nix_without_flakes_is_refused() -> Result<()> {
    let nix = FakeNix::new("echo 'nix (Nix) 2.3.16'")?;
    nix.before(xtask(["nix"])).run()?.expect(3, &["nix (Nix) 2.3.16 has no flakes", "2.4 or newer"])
}

fn what_nix_misses_is_reported_with_advice() -> Result<()> {
    let target = TempDir::new()?;
    for (words, advice) in [
        ("unable to download 'https://github.com/': Couldn't resolve host name (6)", "use --stand-in"),
        ("cannot connect to socket at '/nix/var/nix/daemon-socket/socket'", "systemctl start nix-daemon"),
        ("writing to file: No space left on device", "make room"),
    ] {
        let nix = FakeNix::new(&format!(
            r#"case "$1" in --version) echo 'nix (Nix) 2.31.2' ;; *) echo "error: {words}"; exit 1 ;; esac"#
        ))?;
        let run = nix.before(xtask(["nix"])).env("CARGO_TARGET_DIR", target.path());
        run.run()?.expect(3, &["nix build failed", words, "nix-build.log", advice])?;
    }
    // An error that xtask does not know is shown without advice.
    let nix =
        FakeNix::new(r#"case "$1" in --version) echo 'nix (Nix) 2.31.2' ;; *) echo oh no; exit 1 ;; esac"#)?;
    nix.before(xtask(["nix"])).env("CARGO_TARGET_DIR", target.path()).run()?.expect(1, &["oh no"])
}

fn outside_of_a_git_checkout_it_says_so() -> Result<()> {
    let nix = FakeNix::new("echo 'nix (Nix) 2.31.2'")?;
    let checkout = Checkout::new()?;
    nix.before(checkout.xtask(["nix"])).run()?.expect(3, &["no git checkout", "clone the repository"])
}

fn cargos_flags_are_those_of_the_toolkit() -> Result<()> {
    let flags = |file: &str, from: &str, to: &str| -> Result<BTreeSet<String>> {
        let text = fs::read_to_string(root().join(file))?;
        let part = text.split_once(from).and_then(|(_, rest)| rest.split_once(to));
        let (part, _) = part.with_context(|| format!("{file} has no {from}"))?;
        let words = part.split(|character: char| character.is_whitespace() || "\",".contains(character));
        Ok(words.filter(|word| word.starts_with('-')).map(str::to_owned).collect())
    };
    let nix = flags("nix/tls-rs.nix", "cargo rustc", "runHook postBuild")?;
    let toolkits = tls_rs::cargo_arguments(true).into_iter().filter(|argument| argument.starts_with('-'));
    let toolkits: BTreeSet<String> = toolkits.map(str::to_owned).collect();
    ensure!(nix == toolkits, "tls-rs: {nix:?} and {toolkits:?}");
    let kept = format!("grep -v '^{}'", tls_rs::OWN_OBJECTS);
    ensure!(fs::read_to_string(root().join("nix/tls-rs.nix"))?.contains(&kept), "tls-rs.nix lacks {kept}");

    let stress = flags("nix/guac-stress.nix", "cargoBuildFlags = [", "];")?;
    let toolkits = BTreeSet::from(PACKAGES.map(str::to_owned));
    ensure!(stress == toolkits, "guac-stress: {stress:?} and {toolkits:?}");
    Ok(())
}

fn configures_flags_are_those_of_the_toolkit() -> Result<()> {
    let prefix = support::built("patched")?;
    let manifest = fs::read(prefix.with_file_name("prefix.manifest.json"))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    let configure = manifest["configure"].as_array().context("the manifest has no configure")?;
    let configure: Vec<&str> = configure.iter().filter_map(|argument| argument.as_str()).collect();

    let package = fs::read_to_string(root().join("nix/package.nix"))?;
    let package = package
        .replace("${placeholder \"out\"}", &prefix.to_string_lossy())
        .replace("${tls-rs}", "../tls-rs");
    let (_, part) = package.split_once("configureFlags = [").context("package.nix has no configureFlags")?;
    let (part, _) = part.split_once(';').context("configureFlags do not end")?;
    let nix: BTreeSet<&str> = part.split('"').filter(|word| word.starts_with("--")).collect();
    // stdenv gives the prefix by itself.
    let xtasks = configure.iter().filter(|word| word.starts_with("--") && !word.starts_with("--prefix="));
    let xtasks: BTreeSet<&str> = xtasks.copied().collect();
    ensure!(nix == xtasks && nix.len() > 1, "{nix:?} and {xtasks:?}");

    // stdenv has its own flags for the compiler, except for the warnings that must not end the build. (xtask also has `cpp`, for C
    // libraries without FORTIFY 3. That of nixpkgs has it.)
    let words = configure.iter().flat_map(|word| word.split([' ', '=']));
    let warnings: Vec<&str> = words.skip_while(|word| *word != "CPPFLAGS").collect();
    let warnings = warnings.windows(2).filter(|pair| pair[0] == "-Wno-error" && pair[1] != "cpp");
    let mut count = 0;
    for pair in warnings {
        count += 1;
        ensure!(package.contains(&format!("\"-Wno-error={}\"", pair[1])), "package.nix lacks {}", pair[1]);
    }
    ensure!(count > 0, "xtask has no such flags any more: {configure:?}");
    Ok(())
}

fn the_lock_file_locks_what_the_flake_names() -> Result<()> {
    let flake = fs::read_to_string(root().join("flake.nix"))?;
    let lock: serde_json::Value = serde_json::from_slice(&fs::read(root().join("flake.lock"))?)?;
    let original = &lock["nodes"]["nixpkgs"]["original"];
    let part = |name: &str| original[name].as_str().unwrap_or_default();
    let url = format!("{}:{}/{}/{}", part("type"), part("owner"), part("repo"), part("ref"));
    ensure!(flake.contains(&format!("inputs.nixpkgs.url = \"{url}\";")), "flake.lock is for {url}");
    let locked = &lock["nodes"]["nixpkgs"]["locked"];
    ensure!(locked["rev"].as_str().is_some_and(|rev| rev.len() == 40), "{locked}");
    Ok(())
}

/// A program that is found before the real `nix`.
struct FakeNix(TempDir);

impl FakeNix {
    fn new(script: &str) -> Result<FakeNix> {
        let dir = TempDir::new()?;
        let program = dir.path().join("nix");
        fs::write(&program, format!("#!/bin/sh\n{script}\n"))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(FakeNix(dir))
    }

    fn before(&self, xtask: Xtask) -> Xtask {
        let path = std::env::var("PATH").unwrap_or_default();
        xtask.env("PATH", format!("{}:{path}", self.0.path().display()))
    }
}
