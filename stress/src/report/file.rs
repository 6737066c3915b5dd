//! Where does a report go? To a file, which is replaced as a whole; or into what already has that name, such as a pipe.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{ErrorKind, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

use super::model::StressReport;
use crate::preflight::Preflight;

/// What a report is written as.
#[derive(Clone, Copy)]
pub struct Format {
    /// The flag that asks for it.
    pub flag: &'static str,
    /// The contents of the file.
    pub render: fn(&StressReport) -> Result<Vec<u8>>,
}

/// As JSON.
pub const JSON: Format =
    Format { flag: "--json", render: |report| Ok([&serde_json::to_vec_pretty(report)?[..], b"\n"].concat()) };

/// A file for a report, which can be written to.
pub struct ReportFile {
    path: PathBuf,
    format: Format,
    kind: Kind,
}

enum Kind {
    /// A regular file: readers see a whole report, or the one before.
    Replaced,
    /// The target of a symbolic link, a pipe or a device, which must not be replaced.
    Open { file: File, is_regular: bool },
}

impl ReportFile {
    /// Checks that the file can be written to, before there is anything to lose. Removes an older report, so that nobody
    /// mistakes it for the new one.
    ///
    /// # Errors
    ///
    /// When the file cannot be written to.
    pub fn prepare(path: &Path, format: Format) -> Result<Self> {
        let impossible = |error: &std::io::Error| impossible(path, format, error);
        let there = match fs::symlink_metadata(path) {
            Ok(there) => Some(there.file_type()),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => bail!(impossible(&error)),
        };
        let kind = match there {
            Some(there) if !there.is_file() => {
                // Opening a pipe waits for a reader.
                let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
                let file = file.map_err(|error| impossible(&error))?;
                let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
                Kind::Open { file, is_regular }
            }
            _ => {
                NamedTempFile::new_in(dir(path)).map_err(|error| impossible(&error))?;
                if there.is_some() {
                    fs::remove_file(path).map_err(|error| impossible(&error))?;
                }
                Kind::Replaced
            }
        };
        Ok(Self { path: path.into(), format, kind })
    }

    /// Writes a report that a longer one may follow. A pipe or a device, which cannot be rewound, is left alone.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write_so_far(&mut self, report: &StressReport) -> Result<()> {
        match self.kind {
            Kind::Open { is_regular: false, .. } => Ok(()),
            _ => self.write(report),
        }
    }

    /// Writes the report.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&mut self, report: &StressReport) -> Result<()> {
        self.try_write(report).with_context(|| format!("write the report to {}", self.path.display()))
    }

    fn try_write(&mut self, report: &StressReport) -> Result<()> {
        let bytes = (self.format.render)(report)?;
        match &mut self.kind {
            Kind::Replaced => {
                let mut temporary = NamedTempFile::new_in(dir(&self.path))?;
                temporary.write_all(&bytes)?;
                fs::set_permissions(temporary.path(), Permissions::from_mode(0o644))?;
                temporary.persist(&self.path)?;
            }
            Kind::Open { file, is_regular } => {
                if *is_regular {
                    file.rewind()?;
                    file.set_len(0)?;
                }
                file.write_all(&bytes)?;
            }
        }
        Ok(())
    }
}

fn dir(file: &Path) -> &Path {
    file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn impossible(path: &Path, format: Format, error: &std::io::Error) -> Preflight {
    Preflight(format!(
        "the report cannot be written to {}: {error}; give {} a file in a directory that is there and can be written to",
        path.display(),
        format.flag
    ))
}
