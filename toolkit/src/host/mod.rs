//! This machine: its programs, directories, files and packages.

pub mod checkout;
pub mod debian;
pub mod digest;
pub mod distribution;
pub mod files;
pub mod layout;
pub mod lock;
pub mod run;
pub mod tools;
