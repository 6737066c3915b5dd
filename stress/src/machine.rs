//! What can this machine carry? Each limit, how many sessions it is enough for, and which of them ends first.

use std::{fs, path::Path};

use procfs::Current;
use rustix::process::{Resource, geteuid, getrlimit};

use crate::{
    cli::{Load, Protocol, Target},
    report::Limit,
};

/// Memory of a session, with guacd's process for it, its share of guacd's parent, and ours. Measured with stock 1.6.0
/// and the embedded targets, but for sshd.
const SSH_BYTES: f64 = 14.5e6;
const TELNET_BYTES: f64 = 13.5e6;
const VNC_BYTES: f64 = 8.5e6;
const SSHD_BYTES: f64 = 4.0e6;

/// What stock 1.6.0 takes of the rest: threads of its parent and of a session's process, and descriptors of the parent.
const TASKS: f64 = 12.0;
const SSHD_TASKS: f64 = 2.0;
const DESCRIPTORS: f64 = 3.0;

/// Memory mappings of guacd's parent: two threads, each with a stack and its guard, and what malloc maps for them.
const MAPPINGS: f64 = 6.5;

/// The limits of this machine for what a run opens, the one that ends first before the others.
pub fn limits(load: &Load) -> Vec<Limit> {
    let is_here = load.guacd.is_none();
    let sshd = f64::from(u8::from(load.target == Target::OpenSsh));
    let mut limits = Vec::new();
    let mut limit = |name: &str, source: &str, available: Option<u64>, per_session: f64| {
        // Nobody sets a limit of so many.
        let Some(available) = available.filter(|&available| available < 1 << 50) else { return };
        limits.push(Limit {
            name: name.into(),
            source: source.into(),
            available,
            per_session,
            sessions: (available as f64 / per_session) as u64,
        });
    };
    limit(
        "open files",
        "RLIMIT_NOFILE",
        getrlimit(Resource::Nofile).maximum,
        if is_here { DESCRIPTORS } else { 2.0 },
    );
    // One towards guacd for each, and one of guacd's towards each target.
    limit("ports", "net.ipv4.ip_local_port_range", ports(), 1.0);
    if is_here {
        let each = load.protocol.each();
        let bytes = each.iter().map(|protocol| match protocol {
            Protocol::Ssh | Protocol::Mix => SSH_BYTES + sshd * SSHD_BYTES,
            Protocol::Telnet => TELNET_BYTES,
            Protocol::Vnc => VNC_BYTES,
        });
        let bytes = bytes.sum::<f64>() / each.len() as f64;
        let tasks = TASKS + sshd * SSHD_TASKS;
        limit("memory", "MemAvailable", memory(), bytes);
        limit(
            "memory",
            "the memory cgroup",
            cgroup("memory", "memory.max", "memory.limit_in_bytes", memory_used),
            bytes,
        );
        limit("tasks", "the pids cgroup", cgroup("pids", "pids.max", "pids.max", tasks_used), tasks);
        limit("tasks", "kernel.pid_max", sysctl("kernel/pid_max"), tasks);
        limit("tasks", "kernel.threads-max", sysctl("kernel/threads-max"), tasks);
        if !geteuid().is_root() {
            limit("tasks", "RLIMIT_NPROC", getrlimit(Resource::Nproc).maximum, tasks);
        }
        limit("mappings", "vm.max_map_count", sysctl("vm/max_map_count"), MAPPINGS);
        if load.target == Target::OpenSsh {
            let left = sysctl("kernel/pty/max").zip(sysctl("kernel/pty/nr"));
            limit("terminals", "kernel.pty.max", left.map(|(most, used)| most.saturating_sub(used)), 1.0);
        }
    }
    limits.sort_by_key(|limit| limit.sessions);
    limits
}

fn memory() -> Option<u64> {
    procfs::Meminfo::current().ok()?.mem_available
}

fn sysctl(name: &str) -> Option<u64> {
    number(&Path::new("/proc/sys").join(name))
}

fn ports() -> Option<u64> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut range = range.split_whitespace().filter_map(|port| port.parse::<u64>().ok());
    let (low, high) = (range.next()?, range.next()?);
    (high + 1).checked_sub(low)
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

const fn memory_used(version_2: bool) -> &'static str {
    if version_2 { "memory.current" } else { "memory.usage_in_bytes" }
}

const fn tasks_used(_: bool) -> &'static str {
    "pids.current"
}

/// What is left of a cgroup's limit: the least, of the group that we are in and of all above it.
fn cgroup(controller: &str, limit: &str, limit_of_1: &str, used: fn(bool) -> &'static str) -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let left = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let (root, limit, version_2) = match controllers {
            "" => ("/sys/fs/cgroup".into(), limit, true),
            names if names.split(',').any(|name| name == controller) => {
                (format!("/sys/fs/cgroup/{controller}"), limit_of_1, false)
            }
            _ => return None,
        };
        let root = Path::new(&root);
        let group = root.join(group.trim_start_matches('/'));
        let above = group.ancestors().take_while(|group| group.starts_with(root));
        // In a container, the group may be named as the host sees it, and lie at the root here.
        let left = above.filter_map(|group| {
            Some(number(&group.join(limit))?.saturating_sub(number(&group.join(used(version_2)))?))
        });
        left.min()
    });
    left.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn of(flags: &[&str]) -> Vec<Limit> {
        limits(&Cli::parse_from([&["guac-stress"], flags].concat()).load)
    }

    #[test]
    fn what_ends_first_comes_first() {
        let limits = of(&["--prefix=stock=/x"]);
        assert!(limits.is_sorted_by_key(|limit| limit.sessions));
        for name in ["memory", "open files", "tasks", "ports", "mappings"] {
            assert!(
                limits.iter().any(|limit| limit.name == name && limit.sessions > 0),
                "{name}: {limits:?}"
            );
        }
    }

    #[test]
    fn a_real_sshd_needs_terminals_and_a_guacd_elsewhere_nothing_of_ours_but_ports_and_files() {
        assert!(of(&["--prefix=stock=/x", "--target=openssh"]).iter().any(|limit| limit.name == "terminals"));
        let names = of(&["--guacd=a:1"]).into_iter().map(|limit| limit.name).collect::<Vec<_>>();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
