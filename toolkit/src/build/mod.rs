//! The steps from a source to a prefix, and what a prefix says about itself.

pub mod freerdp3;
pub mod guacd;
pub mod manifest;
pub mod musl;
pub mod prefix;
pub mod preload;
pub mod sbom;
pub mod steps;
pub mod tls_rs;
pub mod trial;
