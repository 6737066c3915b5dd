//! Does the load generator tell the living from the dead? It is run against a guacd of our own making, which can be told to
//! fail in each way in which the real one does, and in some in which it never did.

mod engine;
mod fake;
mod program;
mod schema;

/// Flags, and those of the defaults that they do not give.
fn with_defaults(flags: &[&str], defaults: &[&str]) -> Vec<String> {
    let name = |flag: &str| flag.split('=').next().map(str::to_owned);
    let given = |default: &str| flags.iter().any(|flag| name(flag) == name(default));
    let defaults = defaults.iter().filter(|default| !given(default));
    defaults.chain(flags).map(|&flag| flag.to_owned()).collect()
}
