//! The C programs and libraries of `tests/it/c`: how they are compiled, run, and preloaded into guacd.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::guacd::Guacd;
use super::{built, root};

/// What a program prints that is compiled with the installed headers, and linked with a variant's libguac.
pub fn run_c(name: &str, variant: &str) -> Result<String> {
    run_c_with(name, variant, &[], &[])
}

/// The same for a program that needs further flags of the compiler, such as libraries, and has arguments.
pub fn run_c_with(name: &str, variant: &str, flags: &[&str], arguments: &[&str]) -> Result<String> {
    let flags: Vec<OsString> = ["-Wall", "-Werror"].iter().chain(flags).map(OsString::from).collect();
    let arguments: Vec<&Path> = arguments.iter().map(Path::new).collect();
    compile_and_run(name, variant, &flags, &arguments)
}

/// The same for a program that needs upstream's own sources and headers, and has arguments.
pub fn run_c_with_sources(name: &str, variant: &str, arguments: &[&Path]) -> Result<String> {
    let build = built(variant)?.with_file_name("build");
    // The warnings are upstream's.
    let mut flags: Vec<OsString> = vec!["-w".into()];
    for include in ["", "src/libguac", "src/common", "src/common-ssh", "src/terminal", "src/protocols/rdp"] {
        flags.extend([OsString::from("-I"), build.join(include).into_os_string()]);
    }
    if matches!(name, "drive" | "rdp_desktop") {
        flags.push("-l:libguac-client-rdp.so".into());
        let makefile = fs::read_to_string(build.join("src/protocols/rdp/Makefile"))?;
        for line in makefile.lines() {
            if let Some(("RDP_CFLAGS" | "RDP_LIBS", words)) = line.split_once(" = ") {
                flags.extend(words.split_whitespace().map(OsString::from));
            }
        }
    }
    compile_and_run(name, variant, &flags, arguments)
}

fn compile_and_run(name: &str, variant: &str, flags: &[OsString], arguments: &[&Path]) -> Result<String> {
    let dir = TempDir::new()?;
    let (program, prefix) = (dir.path().join(name), built(variant)?);
    let mut cc = Command::new("cc");
    cc.arg("-o").arg(&program).arg(source(name)).args(flags);
    cc.arg("-I").arg(prefix.join("include")).arg("-L").arg(prefix.join("lib")).args(["-lguac", "-pthread"]);
    compile(cc)?;
    let ran = Command::new(program).args(arguments).env("LD_LIBRARY_PATH", prefix.join("lib")).output()?;
    let (said, error) = (String::from_utf8(ran.stdout)?, String::from_utf8_lossy(&ran.stderr));
    ensure!(ran.status.success(), "{name} with {variant}: {}\n{said}{error}", ran.status);
    Ok(said)
}

/// What a program prints that is compiled together with libguac, by a compiler that finds errors of the kinds that `sanitizers`
/// names. Fails if any is found, except for those that a file with suppressions names.
pub fn run_c_sanitized(
    name: &str,
    sanitizers: &str,
    suppressions: Option<&Path>,
    arguments: &[&str],
) -> Result<String> {
    let dir = TempDir::new()?;
    let (program, build) = (dir.path().join(name), built("patched")?.with_file_name("build"));
    let (libguac, tls_rs) = (build.join("src/libguac"), build.with_file_name("tls-rs"));
    let mut cc = Command::new("cc");
    cc.args(["-w", "-g", "-O1", "-fno-omit-frame-pointer"]).arg(format!("-fsanitize={sanitizers}"));
    cc.arg("-o").arg(&program).arg("-include").arg(build.join("config.h")).arg(source(name));
    for entry in fs::read_dir(&libguac)? {
        let path = entry?.path();
        // Windows has its own kind of sockets.
        if path.extension().is_some_and(|extension| extension == "c") && !path.ends_with("socket-wsa.c") {
            cc.arg(path);
        }
    }
    for include in [&build, &libguac, &tls_rs.join("include")] {
        cc.arg("-I").arg(include);
    }
    cc.arg("-L").arg(tls_rs.join("lib")).arg("-ltls_rs");
    cc.args(
        "cairo jpeg png webp ogg vorbis vorbisenc ssl crypto uuid z m dl"
            .split(' ')
            .map(|name| format!("-l{name}")),
    );
    cc.arg("-pthread");
    compile(cc)?;
    let suppressions = suppressions.map_or(String::new(), |file| format!("suppressions={}", file.display()));
    let ran = Command::new(program).args(arguments).env("TSAN_OPTIONS", suppressions).output()?;
    let (said, error) = (String::from_utf8(ran.stdout)?, String::from_utf8_lossy(&ran.stderr));
    ensure!(ran.status.success() && error.is_empty(), "{name}, {sanitizers}: {}\n{said}{error}", ran.status);
    Ok(said)
}

/// Compiles a plugin for guacd, which is the protocol of its name. Returns the directory of its library.
pub fn compile_plugin(name: &str, variant: &str) -> Result<TempDir> {
    let dir = TempDir::new()?;
    compile_plugin_to(&dir.path().join(format!("libguac-client-{name}.so")), name, variant, &[])?;
    Ok(dir)
}

/// Compiles a plugin with these flags to a file, whatever its name.
pub fn compile_plugin_to(file: &Path, name: &str, variant: &str, flags: &[&str]) -> Result<()> {
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(file).args(flags).arg(source(name));
    cc.arg("-I").arg(built(variant)?.join("include"));
    compile(cc)
}

fn source(name: &str) -> PathBuf {
    root().join("tests/it/c").join(name).with_extension("c")
}

fn compile(mut cc: Command) -> Result<()> {
    let compiled = cc.output()?;
    ensure!(compiled.status.success(), "{cc:?} failed: {}", String::from_utf8_lossy(&compiled.stderr));
    Ok(())
}

/// A library that changes what guacd does. It finds its directory in the variable that has its name in capitals; files there
/// control it, and it writes some itself.
pub struct Preloaded {
    name: &'static str,
    dir: TempDir,
}

impl Preloaded {
    pub fn compile(name: &'static str) -> Result<Preloaded> {
        let dir = TempDir::new()?;
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(dir.path().join(format!("{name}.so")));
        cc.arg(source(name));
        compile(cc)?;
        Ok(Preloaded { name, dir })
    }

    /// The shell command that comes before guacd.
    pub fn shell(&self) -> String {
        let (variable, name, dir) = (self.name.to_uppercase(), self.name, self.dir.path().display());
        format!("export {variable}={dir} LD_PRELOAD={dir}/{name}.so")
    }

    /// Starts a guacd with it.
    pub fn start(&self, variant: &str) -> Result<Guacd> {
        Guacd::start_with(variant, &self.shell(), "")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file in its directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
