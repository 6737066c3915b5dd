#[cfg(feature = "engine")]
pub mod console;
#[cfg(feature = "engine")]
pub mod json;
pub mod model;

pub use model::*;
