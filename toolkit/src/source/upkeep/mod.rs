//! How is a series of patches kept up? [`check`] finds what is wrong with it. [`commits`] has its patches as commits in a git work
//! tree, where they are edited, and [`rebase`] carries these over to another release.

pub mod check;
pub mod commits;
pub mod rebase;

mod git;
