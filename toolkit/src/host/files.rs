//! How are files written? Whole or not at all: an interruption leaves the old file.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use tempfile::NamedTempFile;

/// A file that is still being written, under a temporary name in the directory of its path. If this is dropped before
/// [`NewFile::publish`], the file is removed.
pub struct NewFile {
    temporary: NamedTempFile,
    path: PathBuf,
}

impl NewFile {
    /// Begins the file that will be at `path`. Its directory has to exist.
    pub fn begin(path: &Path) -> Result<NewFile> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let temporary =
            NamedTempFile::new_in(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
        Ok(NewFile { temporary, path: path.to_owned() })
    }

    /// The temporary path, for another program that writes the file.
    pub fn temporary_path(&self) -> &Path {
        self.temporary.path()
    }

    /// Gives the file the permissions `mode`, as in `0o644`, and renames it to its path. A file that was there is replaced.
    pub fn publish(self, mode: u32) -> Result<()> {
        let NewFile { temporary, path } = self;
        let published = temporary
            .as_file()
            .set_permissions(Permissions::from_mode(mode))
            .and_then(|()| Ok(temporary.persist(&path)?));
        published.map(drop).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.flush()
    }
}

/// Writes `contents` to `path`, whole or not at all, for everybody to read. A device, a pipe, or what a link leads to is not
/// replaced, but written to.
pub fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
        return Ok(fs::write(path, contents)?);
    }
    let mut file = NewFile::begin(path)?;
    file.write_all(contents.as_ref()).with_context(|| format!("cannot write {}", path.display()))?;
    file.publish(0o644)
}

/// Copies the file `from` to `to`, whole or not at all, with the permissions `mode`, as in `0o644`.
pub fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let mut file = NewFile::begin(to)?;
    let mut contents = fs::File::open(from)?;
    io::copy(&mut contents, &mut file)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    file.publish(mode)
}

/// Creates the directory that `path` is in, and those above it, unless they are there.
pub fn create_parent(path: &Path) -> Result<()> {
    Ok(path.parent().map_or(Ok(()), fs::create_dir_all)?)
}

/// Creates the log file `path` and its directory, or empties the file. Programs then append to it.
pub fn begin_log(path: &Path) -> Result<()> {
    create_parent(path)?;
    Ok(fs::write(path, "")?)
}

/// Removes the directory `path` with everything in it, if it is there.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Removes the file or link `path`, if it is there.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// `dir`, and the files, links and directories below it, sorted by path. Links are not followed.
pub fn tree(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(path) = paths.get(next).cloned() {
        next += 1;
        if path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(&path)? {
                paths.push(entry?.path());
            }
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name = |path: &PathBuf| path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
        tree(dir).unwrap().iter().skip(1).map(name).collect()
    }

    #[test]
    fn a_file_appears_when_it_is_published_and_leaves_nothing_when_it_is_not() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("file");
        write(&path, "before").unwrap();
        let mut file = NewFile::begin(&path).unwrap();
        file.write_all(b"after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        drop(file);
        assert_eq!(names(dir.path()), ["file"]);
        copy(&path, &dir.path().join("copy"), 0o755).unwrap();
        assert_eq!(names(dir.path()), ["copy", "file"]);
        let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("copy"), mode("file")), (0o755, 0o644));
        let error = write(&dir.path().join("no/file"), "").unwrap_err().to_string();
        assert!(error.starts_with("cannot write to ") && error.ends_with("/no"), "{error}");
    }

    #[test]
    fn a_link_is_written_through_and_not_replaced() {
        let dir = TempDir::new().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        write(&link, "text").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(file).unwrap(), "text");
    }

    #[test]
    fn a_log_begins_empty() {
        let dir = TempDir::new().unwrap();
        let log = dir.path().join("logs/make.log");
        for _ in 0..2 {
            begin_log(&log).unwrap();
            assert_eq!(fs::read_to_string(&log).unwrap(), "");
            fs::write(&log, "text").unwrap();
        }
    }
}
