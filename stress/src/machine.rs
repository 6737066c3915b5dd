//! Which machine is this? And what do the sessions of a run need of it, and how many of them can it carry?

use procfs::{CpuInfo, Current, Meminfo};
use shared::capacity::{self, Demand, Limit, Need};

use crate::{
    load::flags::Load,
    report::Host,
    values::{Protocol, Target},
};

/// This machine.
pub fn host() -> Host {
    let release = fs_err::read_to_string("/etc/os-release").unwrap_or_default();
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let cpu = CpuInfo::current().ok();
    let model = cpu.as_ref().and_then(|cpu| cpu.model_name(0));
    Host {
        system: system.unwrap_or("Linux").trim_matches('"').into(),
        kernel: rustix::system::uname().release().to_string_lossy().into(),
        processor: model.unwrap_or(std::env::consts::ARCH).into(),
        processors: cpu.as_ref().map_or(0, |cpu| cpu.num_cores() as u32),
        memory_bytes: Meminfo::current().map_or(0, |memory| memory.mem_total),
    }
}

/// The limits of this machine for the sessions of a run, the one that is reached first in front.
pub fn limits(load: &Load) -> Vec<Limit> {
    let each = load.protocol.each();
    let mean = |what: fn(Need) -> f64| {
        each.iter().map(|&protocol| what(need(protocol))).sum::<f64>() / each.len() as f64
    };
    let is_here = load.guacd.is_none();
    let guacd = is_here.then(|| Need { bytes: mean(|need| need.bytes), tasks: mean(|need| need.tasks) });
    capacity::limits(Demand { guacd, has_sshd: load.target == Target::OpenSsh })
}

fn need(protocol: Protocol) -> Need {
    match protocol {
        Protocol::Ssh | Protocol::Mix => capacity::SSH,
        Protocol::Telnet => capacity::TELNET,
        Protocol::Vnc => capacity::VNC,
        Protocol::Rdp => capacity::RDP,
    }
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
    fn the_protocol_decides_how_much_memory_a_session_needs() {
        let bytes = |flag: &str| {
            let limits = limits(&Flags::parse_from(["guac-stress", flag]).load);
            limits.iter().find(|limit| limit.source == "MemAvailable").unwrap().per_session
        };
        assert!(bytes("--protocol=vnc") < bytes("--protocol=ssh"));
        assert!(bytes("--protocol=ssh") < bytes("--protocol=mix"));
        assert!(bytes("--protocol=mix") < bytes("--protocol=rdp"));
    }
}
