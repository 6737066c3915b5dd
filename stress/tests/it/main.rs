//! Does the load generator tell the living from the dead? It is run against a guacd of our own making, which can be told to
//! fail in each way in which the real one does, and in some in which it never did.

mod engine;
mod fake;
mod program;
mod schema;
