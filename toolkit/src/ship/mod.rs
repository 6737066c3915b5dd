//! The forms in which a release is shipped: an image, packages, and outputs of the Nix flake.

pub mod compare;
pub mod image;
pub mod nix;
pub mod package;
pub mod tree;
