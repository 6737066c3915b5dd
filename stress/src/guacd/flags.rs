//! Which guacds are started?

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::values::Prefix;

/// The guacds to start and load, one after another. With `--guacd` there are none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, Args)]
pub struct Guacds {
    /// A guacd to start and load: its installation prefix, and a name for the report. Several are loaded one after another,
    /// and their results are shown side by side.
    #[arg(
        long = "prefix",
        value_name = "VARIANT=DIR",
        required_unless_present = "guacd",
        conflicts_with = "guacd"
    )]
    pub prefixes: Vec<Prefix>,

    /// The guacamole-server release under test, for the report.
    #[arg(long, value_name = "RELEASE")]
    pub release: Option<String>,

    /// The library that applies --key-limit [default: libkey_limit.so next to this program].
    #[arg(long, value_name = "FILE", requires = "key_limit", conflicts_with = "guacd")]
    pub key_limit_library: Option<PathBuf>,

    /// The library that applies --pretend-cores [default: libpretend_cores.so next to this program].
    #[arg(long, value_name = "FILE", requires = "pretend_cores", conflicts_with = "guacd")]
    pub pretend_cores_library: Option<PathBuf>,

    /// A library to start guacd with (LD_PRELOAD), such as the one that `cargo xtask preload` builds. It comes before the
    /// library of --key-limit, so the limit applies to the keys that it asks libc for.
    #[arg(long, value_name = "FILE", conflicts_with = "guacd")]
    pub preload: Option<PathBuf>,

    /// The directory for guacd's log files [default: the directory for temporary files]. Has no effect with --guacd, whose
    /// log is not read.
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
}

impl Guacds {
    /// Finds flags that contradict each other, beyond what clap refuses.
    ///
    /// # Errors
    ///
    /// What to change, for a usage error.
    pub fn check(&self) -> Result<(), String> {
        for (index, prefix) in self.prefixes.iter().enumerate() {
            if self.prefixes[..index].iter().any(|before| before.variant == prefix.variant) {
                return Err(format!(
                    "two of --prefix have the name {}: give each another name",
                    prefix.variant
                ));
            }
        }
        Ok(())
    }
}
