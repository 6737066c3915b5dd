pub mod crowd;
pub mod session;
