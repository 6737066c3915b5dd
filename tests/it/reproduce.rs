//! `cargo xtask reproduce`: does it notice what is not reproducible?

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};

use crate::support::SMALL;
use crate::support::checkout::Checkout;

crate::tests! {
    Minutes:
        a_date_that_a_patch_plants_is_found;
}

fn a_date_that_a_patch_plants_is_found() -> Result<()> {
    let checkout = Checkout::new()?;
    let name = "0099-tell-when-it-was-built.patch";
    fs::write(
        checkout.series().join(name),
        "--- a/src/libguac/id.c\n+++ b/src/libguac/id.c\n@@ -18,2 +18,3 @@\n  */\n+const char guac_built[] = \"built on \" __DATE__ \" \" \
         __TIME__;\n \n",
    )?;
    let series = fs::read_to_string(checkout.series().join("series"))? + name + "\n";
    fs::write(checkout.series().join("series"), series)?;
    // A compiler that does not know SOURCE_DATE_EPOCH.
    let cc = checkout.path().join("cc");
    fs::write(&cc, "#!/bin/sh\nunset SOURCE_DATE_EPOCH\nexec cc \"$@\"\n")?;
    fs::set_permissions(&cc, fs::Permissions::from_mode(0o755))?;

    let arguments = [&["reproduce", "--offline", "--json", "--"], SMALL].concat();
    let output = checkout.xtask(&arguments).env("CC", &cc).run()?;
    output.expect(5, &["files differ between the two builds"])?;
    let report: serde_json::Value = serde_json::from_str(&output.stdout)?;
    let differences = report["differences"].as_array().context("no differences")?;
    let paths: Vec<&str> = differences.iter().filter_map(|difference| difference["path"].as_str()).collect();
    ensure!(report["reproducible"] == false && !paths.is_empty(), "{report:#}");
    ensure!(paths.iter().all(|path| path.starts_with("lib/libguac.")), "{report:#}");
    let library =
        differences.iter().find(|one| one["path"].as_str().is_some_and(|path| path.contains(".so.")));
    let what = library.and_then(|library| library["what"].as_str()).context("not the library")?;
    ensure!(what.contains("bytes, which differ from byte"), "{what}");
    Ok(())
}
