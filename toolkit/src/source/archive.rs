//! Can an archive be unpacked without harm? One directory, with nothing in it that leads out of it.

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use fs_err::File;

/// The most that an archive may unpack to, in bytes and in files. guacamole-server is 10 MB in 900 files.
const LARGEST_TREE: u64 = 256 << 20;
const MOST_FILES: usize = 20_000;

/// Opens a tarball, which is compressed if its name ends in `.gz`. No more than [`LARGEST_TREE`] comes out of it.
///
/// # Errors
///
/// When it cannot be read.
pub fn open(path: &Path) -> Result<tar::Archive<Box<dyn Read>>> {
    let file = File::open(path)?;
    let tar: Box<dyn Read> = match path.extension() {
        Some(extension) if extension == "gz" => Box::new(Bounded(GzDecoder::new(file), LARGEST_TREE)),
        _ => Box::new(Bounded(file, LARGEST_TREE)),
    };
    Ok(tar::Archive::new(tar))
}

/// A reader that fails where it would give more than so many bytes.
struct Bounded<R>(R, u64);

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        let Some(left) = self.1.checked_sub(read as u64) else {
            return Err(io::Error::other(format!("it unpacks to more than {} MB", LARGEST_TREE >> 20)));
        };
        self.1 = left;
        Ok(read)
    }
}

/// Checks that a tarball has one top directory, and in it only files, directories, and links that stay in it.
///
/// # Errors
///
/// What is wrong with it.
pub fn check(path: &Path) -> Result<()> {
    let mut archive = open(path)?;
    let mut top: Option<PathBuf> = None;
    let entries = archive.entries().context("it is no tarball")?;
    for (index, entry) in entries.enumerate() {
        let entry = entry.context("it is no tarball, or was cut off")?;
        ensure!(index < MOST_FILES, "it has more than {MOST_FILES} files");
        let name = entry.path()?.into_owned();
        let place = resolve(Path::new(""), &name);
        let kind = entry.header().entry_type();
        let Some(place) = place.filter(|place| place.components().next().is_some()) else {
            bail!("it has the path {}, which leads out of it", name.display());
        };
        if kind.is_pax_global_extensions() {
            continue;
        }
        let own =
            PathBuf::from(place.components().next().map_or(Component::CurDir, |first| first).as_os_str());
        ensure!(*top.get_or_insert_with(|| own.clone()) == own, "it has more than one top directory");
        if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name()?.context("it has a link without a target")?.into_owned();
            // A hard link is relative to the archive, and a symbolic one to its own directory.
            let from =
                if kind.is_symlink() { place.parent().unwrap_or(Path::new("")) } else { Path::new("") };
            ensure!(
                resolve(from, &target).is_some_and(|target| target.starts_with(&own)),
                "it has the link {} to {}, which leads out of it",
                name.display(),
                target.display()
            );
        } else {
            ensure!(
                kind.is_file() || kind.is_dir(),
                "{} in it is neither a file, nor a directory, nor a link",
                name.display()
            );
        }
    }
    ensure!(top.is_some(), "it is empty, or no tarball");
    Ok(())
}

/// Where a path leads from a directory, without going above the start. None, if it does.
fn resolve(from: &Path, path: &Path) -> Option<PathBuf> {
    let mut at = from.to_owned();
    for component in path.components() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !at.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use tempfile::NamedTempFile;

    use super::*;

    fn tarball(add: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Result<()> {
        let mut tar = tar::Builder::new(Vec::new());
        add(&mut tar);
        let file = NamedTempFile::new()?;
        fs_err::write(file.path(), tar.into_inner()?)?;
        check(file.path())
    }

    fn header(kind: tar::EntryType, name: &str) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(0);
        // set_path() would refuse what is to be refused here.
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        header
    }

    fn add(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, target: &str) {
        let mut header = header(kind, name);
        header.as_ustar_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
    }

    #[test]
    fn a_tree_with_links_inside_is_accepted() {
        let good = tarball(|tar| {
            add(tar, tar::EntryType::Directory, "top/", "");
            add(tar, tar::EntryType::Regular, "top/a", "");
            add(tar, tar::EntryType::Symlink, "top/d/link", "../a");
            add(tar, tar::EntryType::Link, "top/hard", "top/a");
        });
        good.unwrap();
    }

    #[test]
    fn what_leads_out_of_the_tree_is_refused() {
        use tar::EntryType;
        for (kind, name, target, words) in [
            (EntryType::Regular, "../a", "", "the path ../a, which leads out"),
            (EntryType::Regular, "/etc/passwd", "", "leads out"),
            (EntryType::Regular, "top/../../a", "", "leads out"),
            (EntryType::Symlink, "top/link", "/etc", "the link top/link to /etc"),
            (EntryType::Symlink, "top/link", "../../etc", "leads out"),
            (EntryType::Symlink, "top/link", "..", "leads out"),
            (EntryType::Link, "top/link", "etc/passwd", "leads out"),
            (EntryType::Char, "top/null", "", "neither a file"),
            (EntryType::Fifo, "top/pipe", "", "neither a file"),
            (EntryType::Regular, "other/a", "", "more than one top directory"),
        ] {
            let error = tarball(|tar| {
                add(tar, EntryType::Directory, "top/", "");
                add(tar, kind, name, target);
            });
            let error = format!("{:#}", error.expect_err(name));
            assert!(error.contains(words), "{name}: {error}");
        }
        assert!(format!("{:#}", tarball(|_| {}).unwrap_err()).contains("empty"));
    }
}
