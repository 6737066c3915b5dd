//! How is a series of patches kept up? [`check`] finds what is wrong with it, and [`commits`] has its patches as commits in a git
//! work tree, where they are edited.

pub mod check;
pub mod commits;
