//! Are two trees the same, byte for byte? If not, how do they differ?

use std::collections::BTreeMap;
use std::fmt;
use std::fs::FileType;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;
use serde::Serialize;

/// A file, link or directory that differs between two trees, or is in one of them only.
#[derive(Serialize)]
pub struct Difference {
    /// Its path, relative to the trees' roots.
    pub path: PathBuf,
    /// How the two differ, in words.
    pub what: String,
    /// The path of a file with diffoscope's explanation, if there is one.
    pub explanation: Option<PathBuf>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

/// Compares the names, contents, permissions and owners of what is below two directories. Returns how many files, links and
/// directories there are, and the differences.
pub fn compare(first: &Path, second: &Path) -> Result<(usize, Vec<Difference>)> {
    let (mut in_first, mut in_second) = (BTreeMap::new(), BTreeMap::new());
    list(first, first, &mut in_first)?;
    list(second, second, &mut in_second)?;
    let mut differences = Vec::new();
    let mut add = |path: &Path, what: String| {
        differences.push(Difference { path: path.to_owned(), what, explanation: None });
    };
    for (path, one) in &in_first {
        let Some(other) = in_second.get(path) else {
            add(path, "is in the first only".into());
            continue;
        };
        if one.mode != other.mode {
            add(path, format!("its mode is {:o} in the first, and {:o} in the second", one.mode, other.mode));
        }
        if one.owner != other.owner {
            let [first, second] =
                [one, other].map(|Entry { owner: (user, group), .. }| format!("{user}:{group}"));
            add(path, format!("it belongs to {first} in the first, and to {second} in the second"));
        }
        let contents = [one.content(&first.join(path))?, other.content(&second.join(path))?];
        if contents[0] != contents[1] {
            add(path, where_they_differ(&first.join(path), &contents[0], &contents[1]));
        }
    }
    for path in in_second.keys().filter(|path| !in_first.contains_key(*path)) {
        add(path, "is in the second only".into());
    }
    Ok((in_first.len().max(in_second.len()), differences))
}

/// A file, a link, a directory, or a device.
struct Entry {
    kind: FileType,
    /// Its type and permissions.
    mode: u32,
    /// The IDs of its user and its group.
    owner: (u32, u32),
}

impl Entry {
    /// The bytes of a file, or the target of a link. Nothing for anything else: to read a device or a pipe may take for ever.
    fn content(&self, path: &Path) -> Result<Vec<u8>> {
        if self.kind.is_symlink() {
            Ok(fs::read_link(path)?.into_os_string().into_encoded_bytes())
        } else if self.kind.is_file() {
            Ok(fs::read(path)?)
        } else {
            Ok(Vec::new())
        }
    }
}

/// Adds everything below `dir` to `entries`, by its path below `root`.
fn list(root: &Path, dir: &Path, entries: &mut BTreeMap<PathBuf, Entry>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = path.symlink_metadata()?;
        if metadata.is_dir() {
            list(root, &path, entries)?;
        }
        let name = path.strip_prefix(root).unwrap_or(&path).to_owned();
        let (kind, mode) = (metadata.file_type(), metadata.permissions().mode());
        entries.insert(name, Entry { kind, mode, owner: (metadata.uid(), metadata.gid()) });
    }
    Ok(())
}

/// Describes the first difference between two contents of a file.
fn where_they_differ(file: &Path, first: &[u8], second: &[u8]) -> String {
    let offset = first.iter().zip(second).take_while(|(one, other)| one == other).count();
    let section = section(file, offset).map_or_else(String::new, |name| format!(" in the section {name}"));
    let text = |bytes: &[u8]| {
        let printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
        // The printable text around the first difference.
        let before = bytes[..offset].iter().rev().take(24).take_while(|byte| printable(byte)).count();
        let word = bytes[offset - before..].iter().take(60).take_while(|byte| printable(byte));
        String::from_utf8(word.copied().collect()).unwrap_or_default()
    };
    format!(
        "{} and {} bytes, which differ from byte {offset} on{section}: {:?} became {:?}",
        first.len(),
        second.len(),
        text(first),
        text(second)
    )
}

/// The section of an ELF file that has the byte at `offset`, as readelf tells. `None` if the file is no ELF file.
fn section(file: &Path, offset: usize) -> Option<String> {
    let table = duct::cmd!("readelf", "--section-headers", "--wide", file).stderr_null().read().ok()?;
    // `  [ 1] .interp PROGBITS 0000000000000318 000318 00001c 00 A 0 0 1`
    table.lines().find_map(|line| {
        let mut words = line.split_once(']')?.1.split_whitespace();
        let (name, kind) = (words.next()?, words.next()?);
        let start = usize::from_str_radix(words.nth(1)?, 16).ok()?;
        let size = usize::from_str_radix(words.next()?, 16).ok()?;
        (kind != "NOBITS" && (start..start + size).contains(&offset)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// Compares two trees of which `change` has changed the second.
    fn differences(change: impl Fn(&Path)) -> Vec<String> {
        let dir = TempDir::new().unwrap();
        let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
        for root in [&first, &second] {
            fs::create_dir_all(root.join("share/doc")).unwrap();
            fs::write(root.join("share/text"), "one two three").unwrap();
            symlink("text", root.join("share/link")).unwrap();
        }
        assert_eq!(compare(&first, &second).map(|(files, found)| (files, found.len())).unwrap(), (4, 0));
        change(&second);
        compare(&first, &second).unwrap().1.iter().map(Difference::to_string).collect()
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let text = differences(|root| fs::write(root.join("share/text"), "one 2 three").unwrap());
        assert_eq!(
            text,
            [
                r#"share/text: 13 and 11 bytes, which differ from byte 4 on: "one two three" became "one 2 three""#
            ]
        );
        let mode =
            |root: &Path| fs::set_permissions(root.join("share/doc"), Permissions::from_mode(0o700)).unwrap();
        assert_eq!(differences(mode), ["share/doc: its mode is 40755 in the first, and 40700 in the second"]);
        assert_eq!(
            differences(|root| fs::remove_dir(root.join("share/doc")).unwrap()),
            ["share/doc: is in the first only"]
        );
        assert_eq!(
            differences(|root| fs::write(root.join("more"), "").unwrap()),
            ["more: is in the second only"]
        );
        if rustix::process::geteuid().is_root() {
            let given =
                |root: &Path| std::os::unix::fs::chown(root.join("share/text"), Some(4822), None).unwrap();
            let text = differences(given);
            assert!(
                text.len() == 1 && text[0].ends_with(":0 in the first, and to 4822:0 in the second"),
                "{text:?}"
            );
        }
        let link = |root: &Path| {
            fs::remove_file(root.join("share/link")).unwrap();
            symlink("doc", root.join("share/link")).unwrap();
        };
        assert_eq!(differences(link).len(), 1);
    }

    #[test]
    fn a_pipe_is_not_read() {
        let dir = TempDir::new().unwrap();
        let [first, second] = ["first", "second"].map(|name| {
            let root = dir.path().join(name);
            fs::create_dir(&root).unwrap();
            duct::cmd!("mkfifo", root.join("pipe")).run().unwrap();
            root
        });
        assert!(matches!(compare(&first, &second), Ok((1, differences)) if differences.is_empty()));
    }

    #[test]
    fn a_date_in_a_library_is_found_and_its_section_is_named() {
        let dir = TempDir::new().unwrap();
        let source = dir.path().join("library.c");
        fs::write(&source, r#"const char built[] = "built on " __DATE__;"#).unwrap();
        let libraries = [("first", "0"), ("second", "100000000")].map(|(name, time)| {
            let root = dir.path().join(name);
            fs::create_dir(&root).unwrap();
            let library = root.join("library.so");
            let compile = duct::cmd!("cc", "-shared", "-fPIC", "-Wl,--build-id=none", "-o", library, &source);
            compile.env("SOURCE_DATE_EPOCH", time).run().unwrap();
            root
        });
        let (_, found) = compare(&libraries[0], &libraries[1]).unwrap();
        assert_eq!(found.len(), 1);
        let text = found[0].to_string();
        assert!(text.contains("in the section .rodata"), "{text}");
        assert!(text.contains(r#""built on Jan  1 1970" became "built on Mar  3 1973""#), "{text}");
    }
}
