//! A guacd whose own parts that desktops need are compiled by a compiler that finds errors.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::built;
use super::guacd::Guacd;

/// The parts, each after those that it needs.
const PARTS: [&str; 6] =
    ["src/libguac", "src/common", "src/common-ssh", "src/guacd", "src/protocols/vnc", "src/protocols/rdp"];

pub struct Sanitized {
    dir: TempDir,
}

impl Sanitized {
    /// Compiles the parts of a patched guacd anew, to find errors of the kinds that `sanitizers` names. Upstream shifts into the
    /// sign bit, which gcc allows.
    pub fn compile(sanitizers: &str) -> Result<Sanitized> {
        let dir = TempDir::new()?;
        let build = built("patched")?.with_file_name("build");
        // With their times, as make would configure everything anew otherwise.
        run(Command::new("cp").arg("-a").arg(build).arg(dir.path().join("build")))?;
        let sanitized = Sanitized { dir };
        for part in PARTS {
            let make = || {
                let mut make = Command::new("make");
                make.arg("-s").arg("-C").arg(sanitized.part(part));
                make
            };
            run(make().arg("clean"))?;
            run(make()
                .arg(format!(
                    "CFLAGS=-w -g -O1 -fno-omit-frame-pointer -fsanitize={sanitizers} -fno-sanitize=shift"
                ))
                .arg(format!("LDFLAGS=-fsanitize={sanitizers}")))?;
        }
        Ok(sanitized)
    }

    fn part(&self, part: &str) -> PathBuf {
        self.dir.path().join("build").join(part)
    }

    /// Starts it. Errors are in its log, except for those that the suppressions name.
    pub fn start(&self, suppressions: &str) -> Result<Guacd> {
        let (script, known) = (self.dir.path().join("start"), self.dir.path().join("suppressions"));
        fs::write(&known, suppressions)?;
        let libraries = PARTS.map(|part| self.part(part).join(".libs").display().to_string()).join(":");
        // guacd ends without freeing what the kernel frees, and its plugins share a static library.
        let lines = [
            "#!/bin/sh".to_owned(),
            "shift".to_owned(),
            format!("export LD_LIBRARY_PATH={libraries} ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0"),
            format!("export TSAN_OPTIONS=suppressions={}", known.display()),
            format!("exec {}/.libs/guacd \"$@\"\n", self.part("src/guacd").display()),
        ];
        fs::write(&script, lines.join("\n"))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Guacd::start_by("patched", ":", &script.display().to_string(), "")
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
