pub mod keys;
pub mod log;
pub mod preload;
pub mod processes;
pub mod sample;
pub mod start;
