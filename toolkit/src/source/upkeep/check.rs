//! Is a series as it should be? Each patch applies exactly, says what it is for, and is written in upstream's style.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use fs_err as fs;
use tempfile::TempDir;

use crate::host::run;
use crate::source::fetch::{self, Access};
use crate::source::release::Release;
use crate::source::series::{self, Difference, Kind, Patch};
use crate::ui;

/// The fields of Debian's DEP-3 that each patch's header has.
const FIELDS: [&str; 4] = ["Description", "Origin", "Forwarded", "Last-Update"];

/// The most columns of a line of C.
const COLUMNS: usize = 100;

/// The number of the first patch that only one release has. Those below are of the default release, too.
const OWN: u16 = 901;

/// Checks the series of a release. Returns what is wrong with its headers, its style, and what it says of the default release's
/// patches, with the name of the patch in front.
///
/// # Errors
///
/// When the series does not list each patch once, and in a group, or the source cannot be had;
/// [`Failure::Patch`](crate::failure::Failure::Patch) when a patch does not apply with no fuzz and no offset.
pub fn series(release: &Release, access: &Access) -> Result<Vec<String>> {
    let dir = release.patches_dir();
    let patches = series::series(&dir)?;
    let mut wrong = Vec::new();
    wrong.extend(numbers(&patches));
    for Patch { name, .. } in &patches {
        let text = fs::read_to_string(dir.join(name))?;
        wrong.extend(patch(&text).into_iter().map(|what| format!("{name}: {what}")));
    }
    let default = series::series(&Release::load(None)?.patches_dir())?;
    wrong.extend(against(&default, &patches, &series::differences(&dir)?));
    apply(release, access, &dir, &patches)?;
    Ok(wrong)
}

/// What is wrong with what a series says of the default release's patches. A patch has the same name in every series, and a
/// series says of each that it lacks why.
fn against(default: &[Patch], own: &[Patch], said: &[Difference]) -> Vec<String> {
    let mut wrong = Vec::new();
    let lists = |patches: &[Patch], name: &str| patches.iter().any(|patch| patch.name == name);
    for Patch { name, .. } in default {
        match said.iter().filter(|difference| difference.name == *name).count() {
            0 if !lists(own, name) => wrong.push(format!(
                "{name}: the series lacks it and does not say why: add `# mended: {name}: REASON` if the release itself does \
                 what the patch does, or `# without: {name}: REASON` if it has nothing that the patch could change"
            )),
            0 | 1 => {}
            _ => wrong.push(format!("{name}: the series says more than once how it differs: keep one of the lines")),
        }
    }
    for Difference { name, kind, .. } in said {
        if !lists(default, name) {
            wrong.push(format!(
                "{name}: the default release has no such patch: correct the line that names it, or remove it"
            ));
        } else if lists(own, name) && *kind != Kind::InPart {
            wrong.push(format!(
                "{name}: the series has it, and says that it lacks it: remove one of the two lines"
            ));
        } else if !lists(own, name) && *kind == Kind::InPart {
            wrong.push(format!(
                "{name}: the series lacks it, and says that it has a part of it: add it, or say `# mended:`"
            ));
        }
    }
    for Patch { name, .. } in own {
        if !lists(default, name) && number(name).is_some_and(|number| number < OWN) {
            wrong.push(format!(
                "{name}: the default release has no such patch: give it the name that it has there, or a number from {OWN:04} \
                 if only this release needs it"
            ));
        }
    }
    wrong
}

/// What is wrong with the numbers of patches. A patch keeps its number in every release: a gap is a patch that this one does not
/// need, and one that others build upon here may stand before its place.
fn numbers(patches: &[Patch]) -> Vec<String> {
    let mut numbers = BTreeMap::new();
    let wrong = patches.iter().filter_map(|Patch { name, .. }| {
        let Some(number) = number(name) else {
            return Some(format!("{name}: its name must begin with a number, such as 0001-"));
        };
        let other = numbers.insert(number, name)?;
        Some(format!("{name}: its number is that of {other}: give it another"))
    });
    wrong.collect()
}

/// The number that the name of a patch begins with.
fn number(name: &str) -> Option<u16> {
    name.split_once('-').filter(|(digits, _)| digits.len() == 4)?.0.parse().ok()
}

fn apply(release: &Release, access: &Access, dir: &Path, patches: &[Patch]) -> Result<()> {
    let work = TempDir::new()?;
    let tree = work.path().join("source");
    fetch::unpack(&fetch::source(release, access)?, &tree)?;
    let progress = ui::Step::start("patches");
    for patch in patches {
        run::check_interrupted()?;
        progress.busy_with(&patch.name);
        series::apply(dir, std::slice::from_ref(patch), &tree)?;
    }
    progress.done(format!("{} patches, no fuzz, no offset", patches.len()));
    Ok(())
}

/// What is wrong with a patch.
fn patch(text: &str) -> Vec<String> {
    let Some((before, diff)) = text.split_once("\n---\n--- ") else {
        return vec!["a line `---` must end its header".into()];
    };
    let mut wrong = header(before);
    wrong.extend(added_style(diff));
    wrong
}

/// What a diff adds that upstream's C never has, with the path of the file in front.
pub(super) fn added_style(diff: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    // What a patch only moves has the style that it had.
    let removed =
        diff.lines().filter_map(|line| Some(line.strip_prefix('-')?.trim())).collect::<BTreeSet<_>>();
    let mut file = "";
    for line in diff.lines() {
        if let Some(path) = line.strip_prefix("+++ ") {
            file = path.split_once('/').map_or(path, |(_, path)| path);
            continue;
        }
        let is_c = file.ends_with(".c") || file.ends_with(".h");
        if let Some(added) = line.strip_prefix('+').filter(|_| is_c) {
            let what = style(added).filter(|_| !removed.contains(added.trim()));
            wrong.extend(what.map(|what| format!("{file}: {what}: {}", added.trim())));
        }
    }
    wrong
}

/// What is wrong with a header. Each field stands once, and its value may go on in lines that begin with a space.
pub fn header(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let names =
        text.lines().filter(|line| !line.starts_with(' ')).map(|line| line.split(':').next().unwrap_or(line));
    let names = names.collect::<Vec<_>>();
    for field in FIELDS {
        match names.iter().filter(|name| **name == field).count() {
            0 => wrong.push(format!("its header has no {field}")),
            1 => {}
            _ => wrong.push(format!("its header has {field} more than once")),
        }
    }
    let dates = text.lines().filter_map(|line| line.strip_prefix("Last-Update: "));
    wrong.extend(
        dates.filter(|date| !is_date(date)).map(|date| format!("the date `{date}` is not YYYY-MM-DD")),
    );
    let is_field = |line: &str| {
        line.split_once(": ")
            .is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_alphabetic() || c == '-'))
    };
    let stray = text.lines().filter(|line| !line.starts_with(' ') && !is_field(line));
    wrong.extend(stray.map(|line| format!("its header has the line `{line}`, which is no field; one that goes on with a value begins with a space")));
    wrong
}

fn is_date(text: &str) -> bool {
    let shape = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>();
    let number =
        |range: std::ops::Range<usize>| text.get(range).and_then(|number| number.parse::<u32>().ok());
    shape == "0000-00-00"
        && number(5..7).is_some_and(|month| (1..=12).contains(&month))
        && number(8..10).is_some_and(|day| (1..=31).contains(&day))
}

/// What upstream's C never has, in a line that a patch adds.
fn style(line: &str) -> Option<String> {
    if line.contains('\t') {
        Some("a tab".into())
    } else if line.ends_with([' ', '\r']) {
        Some("white space at the end of a line".into())
    } else if line.trim_start().starts_with("//") {
        Some("a comment of C++".into())
    } else if line.chars().count() > COLUMNS {
        Some(format!("more than {COLUMNS} columns"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Description: libguac: do it\n Because.\n .\n Also.\nOrigin: vendor\nForwarded: no\nLast-Update: 2026-02-29";

    fn with(added: &str) -> String {
        format!("{GOOD}\n---\n--- a/src/a.c\n+++ b/src/a.c\n@@ -1,2 +1,3 @@\n a\n+{added}\n b\n")
    }

    #[test]
    fn a_patch_says_what_it_is_for_and_where_it_comes_from() {
        assert_eq!(patch(&with("int a;")), [""; 0]);
        for (bad, words) in [
            (GOOD.replace("Origin: vendor\n", ""), "has no Origin"),
            (GOOD.replace("Forwarded: no", "Forwarded: no\nForwarded: no"), "Forwarded more than once"),
            (GOOD.replace("Forwarded: no", "Forwarded:"), "the line `Forwarded:`"),
            (GOOD.replace("2026-02-29", "2026-13-01"), "is not YYYY-MM-DD"),
            (GOOD.replace("2026-02-29", "today"), "is not YYYY-MM-DD"),
            (GOOD.replace(" Because.", "Because."), "the line `Because.`"),
        ] {
            let wrong = header(&bad).join("\n");
            assert!(wrong.contains(words), "{words} is not said: {wrong}");
        }
        let headless = with("int a;").split_once("---\n").map(|(_, diff)| diff.to_owned()).unwrap();
        assert!(patch(&headless)[0].contains("must end its header"));
        assert!(header(&GOOD.replace("Origin", "Bug: https://example.org\nOrigin")).is_empty());
    }

    #[test]
    fn the_name_of_a_patch_begins_with_its_number() {
        assert_eq!(number("0012-libguac-do-it.patch"), Some(12));
        for bad in ["12-a.patch", "00012-a.patch", "a.patch", "00a2-a.patch"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    fn patches(names: &[&str]) -> Vec<Patch> {
        let patch = |name: &&str| Patch { name: (*name).into(), group: "one".into(), sha256: String::new() };
        names.iter().map(patch).collect()
    }

    #[test]
    fn a_number_is_that_of_one_patch() {
        assert_eq!(numbers(&patches(&["0001-a.patch", "0901-b.patch", "0003-c.patch"])), [""; 0]);
        for (names, words) in [
            (["0001-a.patch", "0001-b.patch"], "0001-b.patch: its number is that of 0001-a.patch"),
            (["0001-a.patch", "b.patch"], "b.patch: its name must begin"),
        ] {
            let wrong = numbers(&patches(&names));
            assert!(wrong.len() == 1 && wrong[0].starts_with(words), "{words} is not said: {wrong:?}");
        }
    }

    #[test]
    fn a_series_says_why_it_lacks_a_patch() {
        let wrong = |own: &[&str], said: &[(&str, Kind)]| {
            let said = said.iter().map(|(name, kind)| Difference {
                name: (*name).into(),
                kind: *kind,
                reason: "reason".into(),
            });
            against(&patches(&["0001-a.patch", "0002-b.patch"]), &patches(own), &said.collect::<Vec<_>>())
        };
        assert_eq!(wrong(&["0001-a.patch", "0002-b.patch"], &[]), [""; 0]);
        assert_eq!(wrong(&["0001-a.patch"], &[("0002-b.patch", Kind::Mended)]), [""; 0]);
        assert_eq!(
            wrong(
                &["0002-b.patch", "0901-c.patch"],
                &[("0001-a.patch", Kind::Without), ("0002-b.patch", Kind::InPart)]
            ),
            [""; 0]
        );
        for (own, said, words) in [
            (&["0001-a.patch"][..], &[][..], "0002-b.patch: the series lacks it and does not say why"),
            (
                &["0001-a.patch", "0002-b.patch"],
                &[("0003-c.patch", Kind::Mended)],
                "0003-c.patch: the default release has no such",
            ),
            (
                &["0001-a.patch", "0002-b.patch"],
                &[("0002-b.patch", Kind::Mended)],
                "0002-b.patch: the series has it, and says",
            ),
            (
                &["0001-a.patch", "0002-b.patch"],
                &[("0002-b.patch", Kind::Without)],
                "0002-b.patch: the series has it, and says",
            ),
            (
                &["0001-a.patch"],
                &[("0002-b.patch", Kind::InPart)],
                "0002-b.patch: the series lacks it, and says that it has",
            ),
            (
                &["0001-a.patch"],
                &[("0002-b.patch", Kind::Mended), ("0002-b.patch", Kind::Without)],
                "0002-b.patch: the series says more than once",
            ),
            (
                &["0001-a.patch", "0002-b.patch", "0003-c.patch"],
                &[],
                "0003-c.patch: the default release has no such patch: give",
            ),
        ] {
            let wrong = wrong(own, said);
            assert!(wrong.len() == 1 && wrong[0].starts_with(words), "{words} is not said: {wrong:?}");
        }
    }

    #[test]
    fn what_is_added_has_upstreams_style() {
        for (bad, words) in [
            ("\tint a;", "a tab"),
            ("int a; ", "white space"),
            ("    // a", "C++"),
            (&"a".repeat(101), "100 columns"),
        ] {
            let wrong = patch(&with(bad));
            assert!(
                wrong.len() == 1 && wrong[0].starts_with("src/a.c: ") && wrong[0].contains(words),
                "{wrong:?}"
            );
        }
        assert!(patch(&with("\tmoved();").replace(" a\n", " a\n-    moved();\n")).is_empty());
        assert!(patch(&with("\tall:").replace("a.c", "Makefile.am")).is_empty(), "make needs tabs");
    }
}
