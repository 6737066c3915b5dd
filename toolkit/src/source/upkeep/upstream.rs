//! Which patches are ready for upstream, and do they have its form? `patches/upstream` has a mail for each, as `git am` takes it:
//! a change for itself, with its test, onto one commit of upstream.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fs_err as fs;
use tempfile::TempDir;

use super::check;
use super::git::Git;
use crate::failure::Failure;
use crate::host::{layout, run};
use crate::source::fetch::{self, Access};
use crate::source::release::Release;
use crate::source::series::{self, Patch};

/// The start of the line in `patches/upstream/series` that names the release whose commit the patches are for.
const RELEASE: &str = "# release:";

/// The most columns of a line of a commit's message.
const COLUMNS: usize = 72;

/// The most columns of its first line.
const SUBJECT_COLUMNS: usize = 80;

/// The patches for upstream.
pub struct Offers {
    /// What they are for.
    pub release: Release,
    /// The directory that has them.
    pub dir: PathBuf,
    /// Each of them, in the order of the file `series`.
    pub list: Vec<Offer>,
}

/// A patch for upstream.
#[derive(Debug)]
pub struct Offer {
    /// The name of its file.
    pub name: String,
    /// The first line of the commit's message.
    pub subject: String,
    /// The rest of the message.
    body: String,
    /// The name of the patch in the default release's series that it comes from.
    pub series: String,
    /// Why no unit test can show the fault.
    pub untested: Option<String>,
    /// What it changes: the path of each file, and its part of the diff.
    pub files: Vec<(String, String)>,
}

/// Something that is wrong with a patch.
#[derive(Debug)]
pub struct Wrong {
    /// What it is.
    pub text: String,
    /// Whether the patch applies nevertheless.
    pub applies: bool,
}

impl Offers {
    /// Reads the patches that `names` choose: their names, or the beginnings of these. No names choose all.
    ///
    /// # Errors
    ///
    /// When the file `series` does not list each patch once, a file is no mail with a patch, or a name chooses none.
    pub fn load(names: &[String]) -> Result<Offers> {
        let dir = layout::root().join("patches/upstream");
        let path = dir.join("series");
        let text = fs::read_to_string(&path)?;
        let release = text.lines().find_map(|line| line.strip_prefix(RELEASE));
        let release =
            release.with_context(|| format!("{} has no line `{RELEASE} RELEASE`", path.display()))?;
        let release = Release::load(Some(release.trim()))?;
        // The same rules as for a release's series, whose patches are in groups.
        let mut list = Vec::new();
        for Patch { name, .. } in series::series(&dir)? {
            let text = fs::read_to_string(dir.join(&name))?;
            list.push(Offer::parse(&name, &text).with_context(|| format!("cannot understand {name}"))?);
        }
        if let Some(name) = names.iter().find(|name| !list.iter().any(|offer| offer.is_meant_by(name))) {
            bail!("{} lists no patch whose name begins with {name}", path.display());
        }
        list.retain(|offer| names.is_empty() || names.iter().any(|name| offer.is_meant_by(name)));
        Ok(Offers { release, dir, list })
    }

    /// Checks the form of each patch, and applies each alone to upstream's commit, with no fuzz and no offset. Returns what is
    /// wrong, in the order of the list.
    ///
    /// # Errors
    ///
    /// When the source cannot be had.
    pub fn check(&self, access: &Access) -> Result<Vec<Vec<Wrong>>> {
        let known = series::series(&Release::load(None)?.patches_dir())?;
        let known = known.into_iter().map(|patch| patch.name).collect::<BTreeSet<_>>();
        let work = TempDir::new()?;
        let tree = work.path().join("source");
        fetch::unpack(&fetch::source(&self.release, access)?, &tree)?;
        let git = Git::at(&tree);
        git.run(&["init", "--quiet"])?;
        git.run(&["add", "--all", "--force"])?;
        git.commit(self.release.epoch, &format!("guacamole-server {}", self.release.upstream_name()))?;
        git.run(&["tag", "upstream"])?;
        let check = |offer: &Offer| {
            run::check_interrupted()?;
            let form = offer.form(&known).into_iter().map(|text| Wrong { text, applies: true });
            let conflict = self.apply(offer, &git)?.map(|text| Wrong { text, applies: false });
            Ok(form.chain(conflict).collect())
        };
        self.list.iter().map(check).collect()
    }

    /// Applies a patch to a work tree with upstream's commit, as `patch` does and as `git am` does. Returns why it does not apply.
    fn apply(&self, offer: &Offer, git: &Git) -> Result<Option<String>> {
        let clean = || {
            git.run(&["reset", "--quiet", "--hard", "upstream"])?;
            git.run(&["clean", "--quiet", "--force", "-d", "-x"])
        };
        let applied = series::apply(&self.dir, &[offer.as_patch()], git.dir());
        clean()?;
        if let Err(error) = applied {
            return match error.downcast_ref() {
                Some(Failure::Patch(why)) => Ok(Some(why.clone())),
                _ => Err(error),
            };
        }
        if let Err(error) = git.run(&["am", "--quiet", "--keep-cr", &self.path(offer)]) {
            git.run(&["am", "--abort"])?;
            return Ok(Some(format!("{error:#}")));
        }
        clean()?;
        Ok(None)
    }

    /// The path of a patch's file.
    pub fn path(&self, offer: &Offer) -> String {
        self.dir.join(&offer.name).to_string_lossy().into_owned()
    }
}

impl Offer {
    fn parse(name: &str, text: &str) -> Result<Offer> {
        let (header, rest) = text.split_once("\n\n").context("it has no header of a mail")?;
        ensure!(header.starts_with("From "), "its first line is not that of a mail from `git format-patch`");
        // A long line goes on in lines that begin with a space.
        let header = header.replace("\n ", " ");
        let subject = header.lines().find_map(|line| line.strip_prefix("Subject: [PATCH] "));
        let subject = subject.context("its header has no line `Subject: [PATCH] SUMMARY`")?;
        let (body, rest) = rest.split_once("\n---\n").context("no line `---` ends its message")?;
        let (notes, diff) = rest.split_once("\ndiff --git ").context("it has no diff")?;
        let note = |name: &str| notes.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let diff = format!("\ndiff --git {diff}");
        let parts = diff.split("\ndiff --git ").filter(|part| !part.trim().is_empty());
        let files = parts.map(|part| {
            let path = part.lines().next().and_then(|line| line.split(" b/").nth(1));
            Ok((path.context("a file in it has no path")?.to_owned(), format!("diff --git {part}\n")))
        });
        Ok(Offer {
            name: name.into(),
            subject: subject.into(),
            body: body.into(),
            series: note("Series: ").context("it has no line `Series: NAME` below the line `---`")?,
            untested: note("Untested: "),
            files: files.collect::<Result<_>>()?,
        })
    }

    fn is_meant_by(&self, name: &str) -> bool {
        self.name.starts_with(name)
    }

    fn as_patch(&self) -> Patch {
        Patch { name: self.name.clone(), group: String::new(), sha256: String::new() }
    }

    /// Whether a file of the source is part of upstream's tests.
    pub fn is_test(path: &str) -> bool {
        Path::new(path).iter().any(|name| name == "tests")
    }

    /// What is not as upstream has it. `known` has the names of the patches that it may come from.
    fn form(&self, known: &BTreeSet<String>) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut expect = |is_right: bool, what: String| {
            if !is_right {
                wrong.push(what);
            }
        };
        expect(
            is_subject(&self.subject),
            format!(
                "`{}` is not a sentence that begins with a capital, perhaps after `GUACAMOLE-1234: `, and ends with a full stop",
                self.subject
            ),
        );
        let columns = self.subject.chars().count();
        expect(
            columns <= SUBJECT_COLUMNS,
            format!("its subject has {columns} columns, of {SUBJECT_COLUMNS} at most"),
        );
        expect(!self.body.trim().is_empty(), "its message does not say what is wrong in upstream".into());
        for line in self.body.lines().filter(|line| line.chars().count() > COLUMNS) {
            expect(false, format!("its message has a line of more than {COLUMNS} columns: {line}"));
        }
        expect(known.contains(&self.series), format!("the series has no {}", self.series));
        let adds_test = self.files.iter().any(|(path, diff)| {
            Offer::is_test(path) && diff.lines().any(|line| line.starts_with("+void test_"))
        });
        match &self.untested {
            Some(_) => expect(!adds_test, "it has a test, and a line `Untested:`".into()),
            None => expect(
                adds_test,
                "it adds no CUnit test: add one, or a line `Untested: REASON` below the line `---`".into(),
            ),
        }
        for (path, diff) in &self.files {
            let is_new = diff.contains("\n--- /dev/null\n");
            let is_licensed = diff.contains("Licensed to the Apache Software Foundation (ASF)");
            expect(!is_new || is_licensed, format!("{path}: a new file needs the license's header"));
            for what in check::added_style(diff) {
                expect(false, what);
            }
        }
        wrong
    }
}

/// Whether a summary is written as upstream's are, with an issue or without.
fn is_subject(subject: &str) -> bool {
    let (issue, sentence) = match subject.strip_prefix("GUACAMOLE-") {
        Some(rest) => rest.split_once(": ").unwrap_or((rest, "")),
        None => ("0", subject),
    };
    issue.parse::<u32>().is_ok()
        && sentence.starts_with(|c: char| c.is_ascii_uppercase())
        && sentence.ends_with('.')
}
