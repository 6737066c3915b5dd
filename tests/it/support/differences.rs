//! What differs between the release that is tested and the default one, as the release's series says it. So no test names a release.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use toolkit::source::release::Release;
use toolkit::source::series::{self, Difference, Kind};

use super::release;
use crate::Test;

/// Whether the stock of the release lacks what the patch with this number brings, such as `"0042"`. The stock half of a test asks
/// for it where a release has mended a fault by itself.
pub fn stock_lacks(patch: &str) -> Result<bool> {
    let said =
        said_of(patch, &patches_of_the_default_release()?, &series::differences(&release().patches_dir())?)?;
    match said {
        None => Ok(true),
        Some(Kind::Mended | Kind::InPart) => Ok(false),
        Some(Kind::Without) => {
            bail!("{patch} has nothing to change in this release: list the test with `of \"{patch}\"`")
        }
    }
}

/// The names of those tests for which the release has nothing to test.
pub fn tests_without_patches(tests: &[Test]) -> Result<BTreeSet<&'static str>> {
    without(tests, &patches_of_the_default_release()?, &series::differences(&release().patches_dir())?)
}

/// The same for a series that says this of these patches.
pub fn without(tests: &[Test], patches: &[String], said: &[Difference]) -> Result<BTreeSet<&'static str>> {
    let mut without = BTreeSet::new();
    for test in tests {
        for patch in test.of {
            if said_of(patch, patches, said).context(test.name)? == Some(Kind::Without) {
                without.insert(test.name);
            }
        }
    }
    Ok(without)
}

fn patches_of_the_default_release() -> Result<Vec<String>> {
    let patches = series::series(&Release::load(None)?.patches_dir())?;
    Ok(patches.into_iter().map(|patch| patch.name).collect())
}

/// What a series says of the patch with this number.
fn said_of(number: &str, patches: &[String], said: &[Difference]) -> Result<Option<Kind>> {
    let is_it = |name: &str| name.strip_prefix(number).is_some_and(|rest| rest.starts_with('-'));
    let name = patches.iter().find(|name| is_it(name));
    let name = name.with_context(|| format!("the default release has no patch {number}"))?;
    Ok(said.iter().find(|difference| difference.name == *name).map(|difference| difference.kind))
}
