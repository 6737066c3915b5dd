//! Is what is installed hardened, as distributions harden what faces a network?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::support;

crate::tests! {
    Nothing:
        a_program_that_is_not_hardened_is_found_out;
    Source:
        guacd_its_library_and_its_plugins_are_hardened;
}

fn guacd_its_library_and_its_plugins_are_hardened() -> Result<()> {
    for variant in ["stock", "patched"] {
        let prefix = support::built(variant)?;
        let mut files = Vec::new();
        for dir in ["bin", "lib", "sbin"] {
            for entry in fs::read_dir(prefix.join(dir)).with_context(|| format!("{variant} has no {dir}"))? {
                let path = entry?.path();
                if !path.is_symlink() && fs::read(&path)?.starts_with(b"\x7fELF") {
                    files.push(path);
                }
            }
        }
        for name in ["sbin/guacd", "lib/libguac.so", "lib/libguac-client-ssh.so"] {
            let file = prefix.join(name).canonicalize()?;
            ensure!(files.contains(&file), "{name} is not among {files:?}");
        }
        let mut fortified = false;
        for file in &files {
            let found = Hardening::of(file)?;
            let weaknesses = found.weaknesses(&prefix);
            ensure!(weaknesses.is_empty(), "{}: {weaknesses:?}", file.display());
            fortified |= found.symbols.contains("__snprintf_chk");
        }
        ensure!(fortified, "nothing in {} calls a checked function of libc", prefix.display());
        let (level, best) =
            (fortify_level(&configured_with(&prefix)?)?, fortify_level("-O2 -D_FORTIFY_SOURCE=3")?);
        ensure!(
            level == best && level >= 2,
            "{variant} has FORTIFY level {level}, and the compiler can do {best}"
        );
    }
    Ok(())
}

/// The preprocessor's and the compiler's flags that a prefix was built with.
fn configured_with(prefix: &Path) -> Result<String> {
    let manifest = fs::read(prefix.with_file_name("prefix.manifest.json"))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    let arguments = manifest["configure"].as_array().context("the manifest has no configure")?;
    let flags = arguments.iter().filter_map(|argument| argument.as_str());
    let flags =
        flags.filter_map(|argument| argument.strip_prefix("CPPFLAGS=").or(argument.strip_prefix("CFLAGS=")));
    Ok(flags.collect::<Vec<_>>().join(" "))
}

/// The level that libc uses with these flags. With compilers that have no level 3, it uses 2.
fn fortify_level(flags: &str) -> Result<u32> {
    let dir = TempDir::new()?;
    let source = dir.path().join("level.c");
    fs::write(&source, "#include <stdio.h>\nlevel __USE_FORTIFY_LEVEL\n")?;
    let output = Command::new("cc").args(flags.split(' ')).args(["-E", "-P"]).arg(&source).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let level = text.lines().find_map(|line| line.strip_prefix("level "));
    level.and_then(|level| level.trim().parse().ok()).with_context(|| format!("cc {flags} says {text:?}"))
}

fn a_program_that_is_not_hardened_is_found_out() -> Result<()> {
    let dir = TempDir::new()?;
    let source = dir.path().join("program.c");
    fs::write(&source, "int main(void) { return 0; }")?;
    let weaknesses = |flags: &str| -> Result<Vec<&str>> {
        let program = dir.path().join("program");
        let built =
            Command::new("cc").args(flags.split(' ')).arg(&source).arg("-o").arg(&program).status()?;
        ensure!(built.success(), "cc {flags} failed");
        Ok(Hardening::of(&program)?.weaknesses(Path::new("/opt/guacamole")))
    };
    let good = "-g -fPIE -pie -fstack-protector-all -Wl,-z,relro,-z,now,-z,noexecstack -Wl,-rpath,/opt/guacamole/lib";
    ensure!(weaknesses(good)?.is_empty(), "{:?}", weaknesses(good)?);
    for (flag, instead, weakness) in [
        ("-fPIE -pie", "-fno-PIE -no-pie", "no PIE"),
        ("-fstack-protector-all", "-fno-stack-protector", "no stack protector"),
        ("-z,relro", "-z,norelro", "no RELRO"),
        ("-z,now", "-z,lazy", "lazy binding"),
        ("-z,noexecstack", "-z,execstack", "an executable stack"),
        ("/opt/guacamole/lib", "/home/somebody/build/lib", "a library path that leads elsewhere"),
    ] {
        let found = weaknesses(&good.replace(flag, instead))?;
        ensure!(found.contains(&weakness), "{instead} is not noticed: {found:?}");
    }
    Ok(())
}

/// What readelf says of a program or a library.
struct Hardening {
    headers: String,
    dynamic: String,
    symbols: String,
    /// The flags of each compilation, as the debug information records them.
    flags: Vec<String>,
}

impl Hardening {
    fn of(file: &Path) -> Result<Hardening> {
        let readelf = |flag: &str| -> Result<String> {
            let output =
                Command::new("readelf").args(["--wide", flag]).arg(file).env("LC_ALL", "C").output()?;
            ensure!(output.status.success(), "readelf cannot read {}", file.display());
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let debug = readelf("--debug-dump=info")?;
        let flags = debug.lines().filter(|line| line.contains("DW_AT_producer") && line.contains(": GNU C"));
        Ok(Hardening {
            headers: readelf("--file-header")? + &readelf("--program-headers")?,
            dynamic: readelf("--dynamic")?,
            symbols: readelf("--symbols")?,
            flags: flags.map(str::to_owned).collect(),
        })
    }

    /// What is wrong with it, if it belongs into `prefix`.
    fn weaknesses(&self, prefix: &Path) -> Vec<&'static str> {
        let header = |name: &str| self.headers.lines().find(|line| line.trim_start().starts_with(name));
        let entry = |name: &str| self.dynamic.lines().any(|line| line.contains(name));
        // `GNU_STACK 0x000000 0x0000000000000000 0x0000000000000000 0x000000 0x000000 RW  0x10`
        let stack = header("GNU_STACK").and_then(|line| line.split_whitespace().nth(6));
        let elsewhere = |line: &str| {
            let paths = line.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
            paths.is_some_and(|(paths, _)| {
                paths.split(':').any(|path| !PathBuf::from(path).starts_with(prefix))
            })
        };
        // Symbols do not show it: a library without arrays on the stack has nothing to protect.
        let protected =
            !self.flags.is_empty() && self.flags.iter().all(|flags| flags.contains(" -fstack-protector"));
        let mut library_paths =
            self.dynamic.lines().filter(|line| line.contains("(RPATH)") || line.contains("(RUNPATH)"));
        [
            (!header("Type:").is_some_and(|line| line.contains("DYN")), "no PIE"),
            (header("GNU_RELRO").is_none(), "no RELRO"),
            (!entry("BIND_NOW") && !entry("Flags: NOW"), "lazy binding"),
            (!protected, "no stack protector"),
            (stack != Some("RW"), "an executable stack"),
            (library_paths.any(elsewhere), "a library path that leads elsewhere"),
        ]
        .into_iter()
        .filter_map(|(weak, name)| weak.then_some(name))
        .collect()
    }
}
