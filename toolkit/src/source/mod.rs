//! The pinned releases, their sources, and the patches for them.

pub mod archive;
pub mod cache;
pub mod download;
pub mod fetch;
pub mod proxy;
pub mod release;
pub mod series;
pub mod signature;
pub mod upkeep;
