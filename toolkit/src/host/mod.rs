//! This machine: its programs, directories, files and packages.

pub mod checkout;
pub mod debian;
pub mod digest;
pub mod distribution;
pub mod features;
pub mod files;
pub mod install;
pub mod layout;
pub mod lock;
pub mod packaging;
pub mod run;
pub mod ssh_keys;
pub mod tools;
