//! What was measured, and how is it shown? The model, and one file per printer.

pub mod model;

#[cfg(feature = "engine")]
pub mod compare;
#[cfg(feature = "engine")]
pub mod console;
#[cfg(feature = "engine")]
pub mod file;
#[cfg(feature = "engine")]
pub mod html;
#[cfg(feature = "engine")]
pub mod progress;
#[cfg(feature = "engine")]
mod table;
#[cfg(feature = "engine")]
pub mod text;

pub use model::*;
