//! Which packages does a distribution have for the tools and libraries, and how are they installed? `distributions.toml` says
//! it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::host::distribution::Distribution;
use crate::host::tools::Kind;

const DATA: &str = include_str!("distributions.toml");

/// How a table was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Verified {
    /// The packages were installed, and guacd was built with them.
    #[serde(rename = "run")]
    Run,
    /// Their names were looked up in its own lists, or in its own package of guacamole-server.
    #[serde(rename = "package lists")]
    PackageLists,
    /// Their names were found in how others build their programs for it.
    #[serde(rename = "recipes")]
    Recipes,
}

/// The packages of a distribution. `distributions.toml` explains the fields.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packaging {
    /// What the distribution is called.
    pub name: String,
    /// How the names were checked.
    pub verified: Verified,
    /// Where they were looked up.
    pub source: String,
    /// When they were checked.
    pub date: String,
    /// Packages that were found in no list of the distribution's own.
    #[serde(default)]
    pub unconfirmed: Vec<String>,
    /// The command that brings the lists of packages up to date.
    pub update: Option<String>,
    /// The command that installs the packages after it.
    pub install: String,
    known: String,
    names: Option<String>,
    #[serde(default)]
    programs: BTreeMap<String, String>,
    #[serde(default)]
    libraries: BTreeMap<String, String>,
    /// Items for which it has no package, and where they can be had instead.
    #[serde(default)]
    pub without: BTreeMap<String, String>,
}

impl Packaging {
    /// The tables of all distributions, by their IDs in os-release(5).
    ///
    /// # Errors
    ///
    /// When `distributions.toml` is not as its comment says.
    pub fn all() -> Result<BTreeMap<String, Packaging>> {
        parse(DATA)
    }

    /// The packages of a distribution, or of the first one that it derives from and that has a table.
    pub fn of(distribution: &Distribution) -> Option<Packaging> {
        let mut all = Packaging::all().unwrap_or_default();
        [&*distribution.id].into_iter().chain(distribution.id_like.split(' ')).find_map(|id| all.remove(id))
    }

    /// Every package that it names, once for each item, alternatives included.
    pub fn packages(&self) -> impl Iterator<Item = &str> {
        let texts = self.programs.values().chain(self.libraries.values());
        texts.flat_map(|text| text.split([' ', '|'])).filter(|word| !word.is_empty())
    }

    /// The packages that provide an item. `None` if the table has none. `exists` chooses between alternatives.
    pub fn packages_for(
        &self,
        kind: Kind,
        item: &str,
        exists: impl Fn(&Packaging, &str) -> bool,
    ) -> Option<Vec<String>> {
        let text = match kind {
            Kind::Program => self.programs.get(item)?,
            Kind::Library => self.libraries.get(item)?,
        };
        let alternatives: Vec<&str> = text.split('|').map(str::trim).collect();
        let chosen = match &alternatives[..] {
            [only] => only,
            several => several.iter().find(|package| exists(self, package)).unwrap_or(&several[0]),
        };
        Some(chosen.split_whitespace().map(str::to_owned).collect())
    }

    /// Whether the distribution's lists have a package.
    pub fn knows(&self, package: &str) -> bool {
        let mut words = self.known.split_whitespace().chain([package]);
        let command = duct::cmd(words.next().unwrap_or_default(), words).stderr_null().stdout_capture();
        let output = command.unchecked().run();
        output.is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
    }
}

fn parse(text: &str) -> Result<BTreeMap<String, Packaging>> {
    let mut all: BTreeMap<String, Packaging> = toml::from_str(text)?;
    let own = all.clone();
    for (id, table) in &mut all {
        ensure!(!table.install.is_empty() && !table.known.is_empty(), "{id}: a command is empty");
        let Some(other) = &table.names else { continue };
        let other = own.get(other).with_context(|| format!("{id}: there is no table {other}"))?;
        let has_own = !(table.programs.is_empty() && table.libraries.is_empty() && table.without.is_empty());
        ensure!(!has_own && other.names.is_none(), "{id}: a table has names of its own, or another's");
        table.programs.clone_from(&other.programs);
        table.libraries.clone_from(&other.libraries);
        table.without.clone_from(&other.without);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tools::{self, Need};

    /// The needs that every distribution's table has packages for. Other tools are for the project's own tests and chores, which are
    /// for Debian.
    const OF_EVERY_DISTRIBUTION: [Need; 8] = [
        Need::Build,
        Need::Ssh,
        Need::Optional,
        Need::Print,
        Need::Video,
        Need::Git,
        Need::Signature,
        Need::OpenSsh,
    ];

    /// What is wrong with a table: items that it has no word on, items that nobody looks for, and the like.
    fn problems(table: &Packaging, items: &[(Kind, &str, Need)], is_complete: bool) -> Vec<String> {
        let mut problems = Vec::new();
        let has = |kind, item: &str| table.packages_for(kind, item, |_, _| true);
        for (kind, item, need) in items {
            let count =
                usize::from(has(*kind, item).is_some()) + usize::from(table.without.contains_key(*item));
            if count > 1 {
                problems.push(format!("{item} is there twice"));
            } else if count == 0 && (is_complete || OF_EVERY_DISTRIBUTION.contains(need)) {
                problems.push(format!("{item} is missing"));
            }
        }
        for (kind, keys) in [(Kind::Program, table.programs.iter()), (Kind::Library, table.libraries.iter())]
        {
            for (key, packages) in keys {
                if !items.iter().any(|(known, item, _)| *known == kind && item == key) {
                    problems.push(format!("nothing looks for {key}"));
                }
                if packages.split('|').any(|one| one.trim().is_empty()) {
                    problems.push(format!("{key} has no package"));
                }
            }
        }
        for key in table.without.keys() {
            if !items.iter().any(|(_, item, _)| item == key) {
                problems.push(format!("nothing looks for {key}"));
            }
        }
        for package in &table.unconfirmed {
            if !table.packages().any(|known| known == package) {
                problems.push(format!("{package} is unconfirmed, and is not there"));
            }
        }
        let is_date = table.date.len() == 10 && table.date.split('-').all(|part| part.parse::<u16>().is_ok());
        if !is_date {
            problems.push(format!("{} is no date", table.date));
        }
        problems
    }

    fn items() -> Vec<(Kind, &'static str, Need)> {
        tools::items().collect()
    }

    #[test]
    fn every_distribution_has_packages_for_every_feature_and_nothing_else() {
        let all = Packaging::all().unwrap();
        let ids: Vec<&String> = all.keys().collect();
        assert_eq!(ids, ["alpine", "arch", "debian", "fedora", "opensuse", "ubuntu"]);
        for (id, table) in &all {
            let is_complete = table.install.starts_with("apt-get");
            assert_eq!(problems(table, &items(), is_complete), Vec::<String>::new(), "{id}");
        }
        // Nobody has run the others.
        let run: Vec<&String> =
            all.iter().filter(|(_, table)| table.verified == Verified::Run).map(|(id, _)| id).collect();
        assert_eq!(run, ["debian"]);
    }

    #[test]
    fn what_is_wrong_with_a_table_is_named() {
        let arch = |from: &str, to: &str| {
            assert!(DATA.contains(from), "{from}");
            let all = parse(&DATA.replace(from, to))?;
            anyhow::Ok(problems(&all["arch"], &items(), false))
        };
        assert_eq!(arch("freerdp = \"freerdp | freerdp2\"", "").unwrap(), ["freerdp is missing"]);
        assert_eq!(
            arch("cairo = \"cairo\"", "cairo = \"cairo\"\ncaro = \"x\"").unwrap(),
            ["nothing looks for caro"]
        );
        assert_eq!(arch("pango = \"pango\"", "pango = \"\"").unwrap(), ["pango has no package"]);
        assert_eq!(
            arch("libtelnet = \"the AUR has libtelnet\"", "libtelnet = \"the AUR\"\ncairo = \"x\"").unwrap(),
            ["cairo is there twice"]
        );
        let unconfirmed = "unconfirmed = [\"libtelnet-devel\"]";
        assert!(arch(unconfirmed, "").unwrap().is_empty());
        let all = parse(&DATA.replace(unconfirmed, "unconfirmed = [\"x\"]")).unwrap();
        assert_eq!(problems(&all["opensuse"], &items(), false), ["x is unconfirmed, and is not there"]);
        // A word that the format does not have, another state, and a table that is not there.
        assert!(arch("name = \"Arch Linux\"", "name = \"Arch Linux\"\nnmae = \"x\"").is_err());
        assert!(arch("verified = \"run\"", "verified = \"perhaps\"").is_err());
        assert!(arch("names = \"debian\"", "names = \"debain\"").is_err());
    }

    #[test]
    fn a_distribution_without_a_table_has_that_of_one_it_derives_from() {
        let name = |id: &str, id_like: &str| {
            let distribution =
                Distribution { id: id.into(), id_like: id_like.into(), ..Distribution::default() };
            Packaging::of(&distribution).map(|table| table.name)
        };
        for (id, id_like, expected) in [
            ("debian", "", Some("Debian")),
            ("linuxmint", "ubuntu debian", Some("Ubuntu")),
            ("manjaro", "arch", Some("Arch Linux")),
            ("rocky", "rhel centos fedora", Some("Fedora")),
            ("opensuse-tumbleweed", "opensuse suse", Some("openSUSE")),
            ("opensuse-leap", "suse opensuse", Some("openSUSE")),
            ("postmarketos", "alpine", Some("Alpine Linux")),
            ("nixos", "", None),
            ("", "", None),
        ] {
            assert_eq!(name(id, id_like).as_deref(), expected, "{id}");
        }
    }

    #[test]
    fn the_first_alternative_that_exists_is_taken() {
        let all = Packaging::all().unwrap();
        let freerdp = |exists: &[&str]| {
            all["ubuntu"].packages_for(Kind::Library, "freerdp", |_, name| exists.contains(&name)).unwrap()
        };
        assert_eq!(freerdp(&["freerdp2-dev", "freerdp3-dev"]), ["freerdp2-dev"]);
        assert_eq!(freerdp(&["freerdp3-dev"]), ["freerdp3-dev"]);
        assert_eq!(freerdp(&[]), ["freerdp2-dev"]);
        let cc = all["debian"].packages_for(Kind::Program, "cc", |_, _| false).unwrap();
        assert_eq!(cc, ["gcc", "libc6-dev"]);
    }
}
