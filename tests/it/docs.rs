//! Do the commands in the documents work, and do the links lead somewhere?
//!
//! A block of commands is indented by four spaces, or fenced as `sh`. An HTML comment above it says whether it is run here:
//!
//! - `<!-- run -->`: it is run with the other tests.
//! - `<!-- run: minutes -->`: it is run by `cargo test -p tests -- --ignored`.
//! - `<!-- needs: WHAT -->`: it is not run, since it needs something that a test cannot have.
//!
//! Whatever that comment says, xtask has to accept its command lines in blocks and in the text.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use toolkit::source::release::Release;

use crate::support::{self, root, xtask};

crate::tests! {
    Nothing:
        every_block_of_commands_says_whether_it_is_run,
        xtask_accepts_every_command_line,
        every_release_is_pinned,
        every_link_leads_somewhere,
        the_checks_report_what_is_wrong;
    Source: blocks_do_what_they_say;
    Minutes: blocks_that_take_minutes_do_what_they_say;
}

/// The languages of fenced blocks that hold no commands.
const NOT_COMMANDS: &[&str] = &["c", "diff", "ini", "nix", "text", "toml", "yaml"];

/// What the words in capitals of a command line stand for.
const PLACEHOLDERS: &[(&str, &str)] = &[("HOST:PORT", "localhost:4822")];

/// What stands before the version of a release that the documents name.
const BEFORE_A_RELEASE: &[&str] =
    &["--release ", "guacamole-server ", "guacd-uncapped:", "/opt/guacamole/", "#guacd-", "patches/"];

/// When a block is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Run,
    RunWithinMinutes,
    Needs,
}

/// A Markdown document.
struct Document {
    /// Its path below the root of the checkout.
    path: PathBuf,
    text: String,
}

/// A fenced or indented block of a document.
struct Block {
    /// The number of its first line.
    line: usize,
    /// The comment above it, without its brackets.
    comment: Option<String>,
    /// The language of its fence.
    language: Option<String>,
    text: String,
}

impl Block {
    fn has_commands(&self) -> bool {
        !self.language.as_deref().is_some_and(|language| NOT_COMMANDS.contains(&language))
    }

    /// The mark that its comment is, if it is one.
    fn mark(&self) -> Option<Mark> {
        match self.comment.as_deref()? {
            "run" => Some(Mark::Run),
            "run: minutes" => Some(Mark::RunWithinMinutes),
            comment if comment.strip_prefix("needs: ").is_some_and(|what| !what.is_empty()) => {
                Some(Mark::Needs)
            }
            _ => None,
        }
    }
}

impl Document {
    fn read(path: impl Into<PathBuf>) -> Result<Document> {
        let path = path.into();
        let text =
            fs::read_to_string(root().join(&path)).with_context(|| format!("reading {}", path.display()))?;
        Ok(Document { path, text })
    }

    /// The documents for users and contributors.
    fn all() -> Result<Vec<Document>> {
        let mut paths: Vec<PathBuf> =
            ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"]
                .map(PathBuf::from)
                .into();
        paths.extend(chapters()?);
        paths.into_iter().map(Document::read).collect()
    }

    /// Whether its blocks have to be marked. The others have none for users to type.
    fn has_marks(&self) -> bool {
        self.path.starts_with("docs")
            || ["README.md", "CONTRIBUTING.md"].map(Path::new).contains(&&*self.path)
    }

    /// Where something is, for an error.
    fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }

    /// Its blocks, and the lines that belong to none.
    fn parse(&self) -> (Vec<Block>, Vec<(usize, &str)>) {
        let mut blocks: Vec<Block> = Vec::new();
        let mut prose = Vec::new();
        let mut comment = None;
        let mut after_blank = true;
        let mut lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line)).peekable();
        while let Some((number, line)) = lines.next() {
            let trimmed = line.trim();
            if let Some(language) = trimmed.strip_prefix("```") {
                let inside: Vec<&str> =
                    lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```").collect();
                blocks.push(Block {
                    line: number,
                    comment: comment.take(),
                    language: (!language.is_empty()).then(|| language.to_owned()),
                    text: inside.join("\n"),
                });
            } else if after_blank && line.starts_with("    ") {
                let mut inside = vec![trimmed];
                while let Some((_, line)) = lines.next_if(|(_, line)| line.starts_with("    ")) {
                    inside.push(line.trim());
                }
                let text = inside.join("\n");
                blocks.push(Block { line: number, comment: comment.take(), language: None, text });
            } else if let Some(text) = trimmed.strip_prefix("<!--").and_then(|text| text.strip_suffix("-->"))
            {
                comment = Some(text.trim().to_owned());
            } else if !trimmed.is_empty() {
                comment = None;
                prose.push((number, line));
            }
            after_blank = trimmed.is_empty();
        }
        (blocks, prose)
    }

    /// The command lines for xtask, in its blocks and in its text.
    fn command_lines(&self) -> Vec<(usize, String)> {
        let (blocks, prose) = self.parse();
        let in_blocks = blocks.iter().filter(|block| block.has_commands()).flat_map(|block| {
            block.text.lines().enumerate().map(|(index, line)| (block.line + index, line.to_owned()))
        });
        let in_text = prose.iter().flat_map(|(number, line)| {
            line.split('`').skip(1).step_by(2).map(|code| (*number, code.to_owned()))
        });
        in_blocks.chain(in_text).filter(|(_, line)| arguments(line).is_some()).collect()
    }

    /// Blocks of commands without a mark, and commands in other blocks.
    fn unmarked(&self) -> Vec<String> {
        let (blocks, _) = self.parse();
        let problem = |block: &Block| {
            let at = self.at(block.line);
            if block.has_commands() {
                let marked = block.mark().is_some();
                (!marked)
                    .then(|| format!("{at}: say above the block whether it is run: see tests/it/docs.rs"))
            } else {
                let hidden = block.text.lines().any(|line| arguments(line).is_some());
                hidden.then(|| format!("{at}: a block that is not `sh` has a command"))
            }
        };
        blocks.iter().filter_map(problem).collect()
    }

    /// Command lines that xtask refuses.
    fn refused(&self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for (number, line) in self.command_lines() {
            let arguments = split(arguments(&line).unwrap_or_default())?;
            let output = xtask(["--parse-only".to_owned()].into_iter().chain(arguments)).run()?;
            if output.code != 0 {
                problems.push(format!("{}: {line}\n{}", self.at(number), output.stderr));
            }
        }
        Ok(problems)
    }

    /// Releases that upstream.toml does not have.
    fn unknown_releases(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (index, line) in self.text.lines().enumerate() {
            for rest in BEFORE_A_RELEASE.iter().flat_map(|before| line.split(before).skip(1)) {
                let end = |letter: char| !letter.is_ascii_digit() && !"._".contains(letter);
                let version =
                    rest.split(end).next().unwrap_or_default().trim_end_matches('.').replace('_', ".");
                if !version.is_empty() && Release::load(Some(&version)).is_err() {
                    problems.push(format!("{}: upstream.toml has no release {version}", self.at(index + 1)));
                }
            }
        }
        problems
    }

    /// Links to files, or to headings, that do not exist.
    fn dead_links(&self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for (number, line) in self.parse().1 {
            // Code is no link.
            let text: String = line.split('`').step_by(2).collect();
            let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            for link in links.filter(|link| !link.contains("://")) {
                let (file, heading) = link.split_once('#').unwrap_or((link, ""));
                let from = self.path.parent().unwrap_or(Path::new(""));
                let path = from.join(file);
                let headings = || -> Result<Vec<String>> {
                    if file.is_empty() { Ok(self.headings()) } else { Ok(Document::read(&path)?.headings()) }
                };
                let there = file.is_empty() || root().join(&path).exists();
                if !there || (!heading.is_empty() && !headings()?.iter().any(|name| name == heading)) {
                    problems.push(format!("{}: nothing is at {link}", self.at(number)));
                }
            }
        }
        Ok(problems)
    }

    /// Its headings, as links name them.
    fn headings(&self) -> Vec<String> {
        let name = |line: &str| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let keep = |letter: &char| letter.is_alphanumeric() || " -_".contains(*letter);
            text.chars().filter(keep).map(|letter| if letter == ' ' { '-' } else { letter }).collect()
        };
        let (_, prose) = self.parse();
        prose.iter().filter(|(_, line)| line.starts_with('#')).map(|(_, line)| name(line)).collect()
    }

    /// Runs its blocks with this mark, and returns how many those are, and what went wrong.
    fn run(&self, mark: Mark) -> Result<(usize, Vec<String>)> {
        let (blocks, _) = self.parse();
        let (mut count, mut problems) = (0, Vec::new());
        for block in blocks.iter().filter(|block| block.mark() == Some(mark)) {
            count += 1;
            let output = support::shell(&block.text).run()?;
            if output.code != 0 {
                problems.push(format!(
                    "{}: exit code {}\n{}\n{}",
                    self.at(block.line),
                    output.code,
                    block.text,
                    output.stderr
                ));
            }
        }
        Ok((count, problems))
    }
}

/// The chapters below docs/.
fn chapters() -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(root().join("docs"))? {
        paths.push(Path::new("docs").join(entry?.file_name()));
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    Ok(paths)
}

/// What follows the name of xtask in a command line for it.
fn arguments(line: &str) -> Option<&str> {
    ["cargo xtask", "./bootstrap.sh"]
        .iter()
        .find_map(|name| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(' '))
}

/// Splits arguments as a shell does, with `...` for what a reader adds left out.
fn split(arguments: &str) -> Result<Vec<String>> {
    let mut line = arguments.trim_end_matches("...").to_owned();
    for (placeholder, value) in PLACEHOLDERS {
        line = line.replace(placeholder, value);
    }
    let output = support::shell(&format!("printf '%s\\n' {line}")).run()?;
    output.expect(0, &[])?;
    Ok(output.stdout.lines().map(str::to_owned).collect())
}

fn none(problems: Vec<String>) -> Result<()> {
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn every_block_of_commands_says_whether_it_is_run() -> Result<()> {
    let documents = Document::all()?;
    none(documents.iter().filter(|document| document.has_marks()).flat_map(Document::unmarked).collect())
}

fn xtask_accepts_every_command_line() -> Result<()> {
    let mut problems = Vec::new();
    for document in Document::all()? {
        problems.extend(document.refused()?);
    }
    none(problems)
}

fn every_release_is_pinned() -> Result<()> {
    none(Document::all()?.iter().flat_map(Document::unknown_releases).collect())
}

fn every_link_leads_somewhere() -> Result<()> {
    let mut problems = Vec::new();
    for document in Document::all()? {
        problems.extend(document.dead_links()?);
    }
    let readme = Document::read("README.md")?;
    let unlinked = |path: &PathBuf| !readme.text.contains(&format!("({})", path.display()));
    problems.extend(
        chapters()?
            .iter()
            .filter(|path| unlinked(path))
            .map(|path| format!("README.md does not link {}", path.display())),
    );
    none(problems)
}

fn run_all(mark: Mark) -> Result<()> {
    let (mut count, mut problems) = (0, Vec::new());
    for document in Document::all()?.iter().filter(|document| document.has_marks()) {
        let (number, wrong) = document.run(mark)?;
        count += number;
        problems.extend(wrong);
    }
    ensure!(count > 0, "no block is marked {mark:?}");
    none(problems)
}

fn blocks_do_what_they_say() -> Result<()> {
    run_all(Mark::Run)
}

fn blocks_that_take_minutes_do_what_they_say() -> Result<()> {
    run_all(Mark::RunWithinMinutes)
}

fn the_checks_report_what_is_wrong() -> Result<()> {
    let document = |text: &str| Document { path: "docs/made-up.md".into(), text: text.to_owned() };
    let one = |problems: Vec<String>, word: &str| {
        ensure!(
            problems.len() == 1 && problems[0].contains(word),
            "{word:?} is not reported by {problems:?}"
        );
        Ok(())
    };

    // Blocks without a mark, or with one that says nothing; and a command where none is looked for.
    for wrong in [
        "Text.\n\n    cargo xtask doctor\n",
        "```sh\ncargo xtask doctor\n```\n",
        "```\nls\n```\n",
        "<!-- runs -->\n\n    ls\n",
        "<!-- needs: -->\n\n    ls\n",
        "<!-- run -->\n\nText.\n\n    ls\n",
        "1. Text:\n\n       ls\n",
        "```text\n./bootstrap.sh doctor\n```\n",
    ] {
        one(document(wrong).unmarked(), "docs/made-up.md:")?;
    }
    let marked =
        "<!-- run -->\n\n    ls\n\nText\n    that goes on.\n\n<!-- needs: root -->\n\n```sh\nls\n```\n";
    none(document(marked).unmarked())?;

    // Flags and commands that do not exist, wherever they stand.
    for wrong in [
        "    cargo xtask doctor --no-such-flag\n",
        "    ls\n    ./bootstrap.sh stress --count none # a comment\n",
        "See `cargo xtask no-such-command`.\n",
        "| `cargo xtask stress --guacd HOST:PORT --key-limit 128 ...` |\n",
    ] {
        one(document(wrong).refused()?, "error: ")?;
    }
    let right = "    cargo xtask build -- 'CFLAGS=-O2 -g'  # a comment\n\n`cargo xtask stress --guacd HOST:PORT ...`\n";
    ensure!(document(right).command_lines().len() == 2);
    none(document(right).refused()?)?;

    let default = Release::load(None)?.version;
    let releases =
        format!("image: guacd-uncapped:{default}, .#guacd-{}, --release 0.0.1.", default.replace('.', "_"));
    one(document(&releases).unknown_releases(), "no release 0.0.1")?;

    for wrong in ["[a](no-such-file.md)", "[a](../README.md#no-such-heading)", "[a](#nor-here)"] {
        one(document(&format!("# Here\n\n{wrong}\n")).dead_links()?, "nothing is at")?;
    }
    let right =
        "# It's here: `now`\n\n[a](#its-here-now), [b](../README.md#try-it), [c](https://example.org)\n";
    none(document(right).dead_links()?)?;

    let (count, problems) =
        document("<!-- run -->\n\n    true\n    false\n    true\n\n<!-- run -->\n\n    cd docs\n")
            .run(Mark::Run)?;
    ensure!(count == 2, "{count} blocks were run");
    one(problems, "docs/made-up.md:3: exit code 1")
}
