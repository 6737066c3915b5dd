//! How is the container image built with Docker, and checked?
//!
//! [`docker`] runs Docker's client, [`daemon`] starts a daemon for one run, [`checks`] runs the image, and [`key_limit`] limits
//! the pthread keys of a container.

mod checks;
mod daemon;
mod docker;
mod key_limit;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use fs_err as fs;
use serde::Serialize;

use crate::failure::Failure;
use crate::host::{layout, lock};
use crate::ship::compare;
use crate::source::fetch::{self, Access};
use crate::source::release::Release;
use crate::ui;
use checks::Check;
use daemon::Daemon;
use docker::{Contents, Docker};

/// What to build, and how to check it.
#[derive(Debug, Default)]
pub struct Options {
    /// The image's name, if not `guacd-uncapped:RELEASE`.
    pub tag: Option<String>,
    /// The image to build on, if not the Dockerfile's.
    pub base: Option<String>,
    /// The network of the build, as for `docker build --network`.
    pub network: Option<String>,
    /// Whether to check the image.
    pub check: bool,
    /// How many sessions to hold through a container of the image, if any.
    pub stress: Option<u32>,
    /// How many pthread keys each process of that container may have, if there is a limit.
    pub key_limit: Option<u32>,
    /// Whether to build the image a second time, and compare the two.
    pub rebuild: bool,
    /// Whether to start a daemon for this run alone, and to make the base image from Debian's packages.
    pub own_daemon: bool,
}

/// An image that was built, and the checks that it passed. `--json` prints it.
#[derive(Serialize)]
pub struct Image {
    schema_version: u32,
    /// Its name.
    pub tag: String,
    id: String,
    /// Its size, in bytes.
    size: u64,
    release: String,
    base: Option<String>,
    /// The versions of Docker's client and daemon.
    docker: String,
    checks: Vec<Check>,
}

/// Builds the image, and runs the checks that the options name.
///
/// # Errors
///
/// [`Failure::Preflight`] when Docker or something that it needs is missing; [`Failure::Difference`] when two builds differ;
/// any other when the build or a check fails.
pub fn build(release: &Release, access: &Access, options: &Options) -> Result<Image> {
    let _lock = lock::command("image")?;
    let work = layout::target_dir().join("guacd/image");
    fs::create_dir_all(&work)?;
    let daemon = options.own_daemon.then(|| Daemon::start(&work)).transpose()?;
    let docker = Docker::find(daemon.as_ref().map(Daemon::socket))?;
    let base = match &daemon {
        Some(_) => Some(docker.make_base(&work)?),
        None => options.base.clone(),
    };
    let tag = options.tag.clone().unwrap_or_else(|| format!("guacd-uncapped:{}", release.version));

    let _source = fetch::stage(release, access)?;
    let id = docker.build(release, &tag, base.as_deref(), options.network.as_deref(), &work)?;
    let size = docker.read(&["image", "inspect", "--format={{.Size}}", &id])?;
    let mut image = Image {
        schema_version: 1,
        size: size.parse().with_context(|| format!("docker prints {size:?} as the size"))?,
        tag,
        id,
        release: release.version.clone(),
        base: base.clone(),
        docker: docker.versions.clone(),
        checks: Vec::new(),
    };
    ui::note(format!("  {}, {} MB", image.id, image.size / 1_000_000));
    if options.rebuild {
        let since = Instant::now();
        let first = docker.contents(&image.id, &work)?;
        // Without the caches of the first build, which have the compilers' output.
        docker.read(&["builder", "prune", "--all", "--force"])?;
        let id = docker.build(release, &image.tag, base.as_deref(), None, &work)?;
        let remark = same(&first, &docker.contents(&id, &work)?)?;
        ui::note(format!("  {remark}"));
        image.checks.push(Check { name: "rebuild", seconds: since.elapsed().as_secs_f64(), remark });
    }
    if options.check {
        image.checks.extend(checks::run(&docker, &image.id, &work, access.offline)?);
    }
    if let Some(count) = options.stress {
        let check = checks::under_load(&docker, &image.id, count, options.key_limit, &work, access.offline)?;
        image.checks.push(check);
    }
    Ok(image)
}

/// Compares two images, except the times of their files. Returns a remark.
///
/// # Errors
///
/// [`Failure::Difference`] when they differ.
fn same(first: &Contents, second: &Contents) -> Result<String> {
    let (files, differences) = compare::compare(first.root.path(), second.root.path())?;
    let mut differences: Vec<String> = differences.iter().map(|one| format!("    {one}")).collect();
    if first.config != second.config {
        differences.push(format!("    {}\n    became {}", first.config, second.config));
    }
    ensure!(
        differences.is_empty(),
        Failure::Difference(format!("the image was built twice, and differs:\n{}", differences.join("\n")))
    );
    Ok(format!("built again from nothing: none of {files} files differs"))
}
