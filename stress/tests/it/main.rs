//! Does the load generator tell live sessions from dead ones? It runs against a fake guacd, which fails on demand as a real one
//! does, and in some ways in which a real one never did.

mod engine;
mod fake;
mod program;
mod schema;

/// Flags, and those of the defaults that the flags do not give.
fn with_defaults(flags: &[&str], defaults: &[&str]) -> Vec<String> {
    let name = |flag: &str| flag.split('=').next().map(str::to_owned);
    let given = |default: &str| flags.iter().any(|flag| name(flag) == name(default));
    let defaults = defaults.iter().filter(|default| !given(default));
    defaults.chain(flags).map(|&flag| flag.to_owned()).collect()
}
