//! The pinned releases, their sources, and the patches for them.

pub mod archive;
pub mod download;
pub mod fetch;
pub mod release;
pub mod series;
pub mod upkeep;
