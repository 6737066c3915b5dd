//! This machine: its programs, directories and packages.

pub mod debian;
pub mod digest;
pub mod layout;
pub mod run;
pub mod tools;
