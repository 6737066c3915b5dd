//! What a release is shipped as: an image, packages, and an output of the Nix flake.

pub mod compare;
pub mod image;
pub mod nix;
pub mod package;
