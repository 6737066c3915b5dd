//! How is a series of patches kept up? [`check`] finds what is wrong with it. [`commits`] has its patches as commits in a git work
//! tree, where they are edited, and [`rebase`] carries these over to another release. [`follow`] says which of them apply to
//! upstream's newest commit, and [`conflict`] why others do not.

pub mod check;
pub mod commits;
pub mod conflict;
pub mod follow;
pub mod rebase;

mod git;
