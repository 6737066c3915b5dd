pub mod codec;
pub mod link;
