//! One file per command, each with a function `run`.

pub mod bench;
pub mod build;
pub mod doctor;
pub mod fetch;
pub mod follow;
pub mod image;
pub mod matrix;
pub mod nix;
pub mod package;
pub mod patch;
pub mod preload;
pub mod prove;
pub mod reproduce;
pub mod stress;
pub mod test;
