//! What a prefix is packed into.

pub mod compare;
pub mod image;
pub mod nix;
pub mod package;
