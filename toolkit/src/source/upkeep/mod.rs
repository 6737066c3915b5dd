//! How is a series of patches kept up? [`check`] finds what is wrong with it. [`commits`] has its patches as commits in a git work
//! tree, where they are edited, and [`rebase`] carries these over to another release. [`follow`] says which of them apply to
//! upstream's newest commit, and [`conflict`] why others do not. [`upstream`] has the patches that upstream could take, and
//! [`export`] makes commits of them.

pub mod check;
pub mod commits;
pub mod conflict;
pub mod export;
pub mod follow;
pub mod rebase;
pub mod upstream;

mod git;
