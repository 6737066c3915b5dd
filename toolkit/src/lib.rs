//! Turns a guacamole-server release into something installed: a prefix, a package, an image, a Nix output.
//!
//! - [`source`]: the releases of `upstream.toml`, how a source is fetched and checked, and the patch series.
//! - [`build`]: the steps from a source to a prefix, and what a prefix says about itself.
//! - [`ship`]: the container image, the packages, and the Nix outputs.
//! - [`host`]: this machine, with its programs, directories, files, and packages.
//! - [`stress`] compiles and runs guac-stress, [`ui`] prints, and [`failure`] has the exit codes.

pub mod build;
pub mod failure;
pub mod host;
pub mod ship;
pub mod source;
pub mod stress;
pub mod ui;
