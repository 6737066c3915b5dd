//! What do the sessions of a run need of this machine, and how many of them can it carry?

use shared::capacity::{self, Demand, Limit, SSH_BYTES, TELNET_BYTES, VNC_BYTES};

use crate::{
    load::flags::Load,
    values::{Protocol, Target},
};

/// The limits of this machine for the sessions of a run, the one that is reached first in front.
pub fn limits(load: &Load) -> Vec<Limit> {
    let each = load.protocol.each();
    let bytes = each.iter().map(|protocol| match protocol {
        Protocol::Ssh | Protocol::Mix => SSH_BYTES,
        Protocol::Telnet => TELNET_BYTES,
        Protocol::Vnc => VNC_BYTES,
    });
    let bytes = bytes.sum::<f64>() / each.len() as f64;
    let guacd_bytes = load.guacd.is_none().then_some(bytes);
    capacity::limits(Demand { guacd_bytes, has_sshd: load.target == Target::OpenSsh })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        load: Load,
    }

    fn names(flags: &[&str]) -> Vec<String> {
        let limits = limits(&Flags::parse_from([&["guac-stress"], flags].concat()).load);
        limits.into_iter().map(|limit| limit.name).collect()
    }

    #[test]
    fn the_target_and_the_place_of_guacd_decide_which_limits_count() {
        assert!(names(&[]).iter().any(|name| name == "memory"));
        assert!(names(&["--target=openssh"]).iter().any(|name| name == "terminals"));
        assert_eq!(names(&["--guacd=a:1"]).len(), 2);
    }

    #[test]
    fn a_session_over_vnc_needs_less_memory_than_one_over_ssh() {
        let bytes = |flag: &str| {
            let limits = limits(&Flags::parse_from(["guac-stress", flag]).load);
            limits.iter().find(|limit| limit.source == "MemAvailable").unwrap().per_session
        };
        assert!(bytes("--protocol=vnc") < bytes("--protocol=mix"));
        assert!(bytes("--protocol=mix") < bytes("--protocol=ssh"));
    }
}
