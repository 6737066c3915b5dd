//! How many sessions can this machine carry? Each limit of the machine, and how many sessions it allows.

use std::{fs, path::Path};

use rustix::process::{Resource, geteuid, getrlimit};
use serde::{Deserialize, Serialize};

/// What a session needs in guacd: in its own process, and in guacd's parent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Need {
    /// Memory in bytes, with what the load generator needs for it.
    pub bytes: f64,
    /// Tasks: processes and threads.
    pub tasks: f64,
}

/// What an SSH session needs. All figures of this module were measured with stock 1.6.0, and with servers in the load generator.
pub const SSH: Need = Need { bytes: 14.5e6, tasks: 12.0 };

/// What a telnet session needs.
pub const TELNET: Need = Need { bytes: 13.5e6, tasks: 12.0 };

/// What a VNC session needs.
pub const VNC: Need = Need { bytes: 8.5e6, tasks: 12.0 };

/// What an RDP session needs on a machine with two cores. With more cores, it has more threads.
pub const RDP: Need = Need { bytes: 22.0e6, tasks: 22.0 };

/// What an sshd needs for a session: memory in bytes, and tasks.
const SSHD_BYTES: f64 = 4.0e6;
const SSHD_TASKS: f64 = 2.0;

/// Descriptors in guacd's parent for a session.
const DESCRIPTORS: f64 = 3.0;

/// Memory mappings in guacd's parent for a session: two threads, each with a stack and its guard, and malloc's for them.
const MAPPINGS: f64 = 6.5;

/// A limit of this size or more counts as none: nobody sets one.
const UNLIMITED: u64 = 1 << 50;

/// A resource of which there is a limited amount.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// The resource: memory, open files, tasks, mappings, terminals or ports.
    pub name: String,
    /// Where the limit is set, or where it was read.
    pub source: String,
    /// How much of it there is: bytes, or a number. For memory, cgroups and terminals, what is in use is subtracted.
    pub available: u64,
    /// How much of it a session needs, as measured with stock 1.6.0.
    pub per_session: f64,
    /// For how many sessions that is enough.
    pub sessions: u64,
}

/// What a session needs of this machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// What a session needs in guacd, if that runs on this machine. `None` if it runs elsewhere: then a session needs only a
    /// port and two descriptors here.
    pub guacd: Option<Need>,
    /// Whether an sshd on this machine serves the session.
    pub has_sshd: bool,
}

/// The limits of this machine for such sessions. Those that allow fewest sessions come first.
pub fn limits(demand: Demand) -> Vec<Limit> {
    let sshd = f64::from(u8::from(demand.has_sshd));
    let mut limits = Vec::new();
    let mut limit = |name: &str, source: &str, available: Option<u64>, per_session: f64| {
        let Some(available) = available.filter(|&available| available < UNLIMITED) else { return };
        limits.push(Limit {
            name: name.into(),
            source: source.into(),
            available,
            per_session,
            sessions: (available as f64 / per_session) as u64,
        });
    };
    let descriptors = if demand.guacd.is_some() { DESCRIPTORS } else { 2.0 };
    limit("open files", "RLIMIT_NOFILE", getrlimit(Resource::Nofile).maximum, descriptors);
    // A session has one port towards guacd, and one from guacd to its target.
    limit("ports", "net.ipv4.ip_local_port_range", ports(), 1.0);
    if let Some(need) = demand.guacd {
        let bytes = need.bytes + sshd * SSHD_BYTES;
        let tasks = need.tasks + sshd * SSHD_TASKS;
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
    }
    if demand.has_sshd {
        let left = sysctl("kernel/pty/max").zip(sysctl("kernel/pty/nr"));
        limit("terminals", "kernel.pty.max", left.map(|(max, used)| max.saturating_sub(used)), 1.0);
    }
    limits.sort_by_key(|limit| limit.sessions);
    limits
}

/// The memory that is available, in bytes.
fn memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn sysctl(name: &str) -> Option<u64> {
    number(&Path::new("/proc/sys").join(name))
}

/// The number of ports for outgoing connections.
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

/// What is left of a cgroup's limit: the least of what is left in this process's group and in those above it. `limit` is the
/// name of the file with the limit in version 2 of cgroups, and `limit_of_1` its name in version 1. `used` gives the name of
/// the file with what is in use, and gets whether this is version 2.
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
        // In a container, the group may have its name on the host, but be the root.
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

    #[test]
    fn the_limit_that_is_reached_first_comes_first() {
        let limits = limits(Demand { guacd: Some(SSH), has_sshd: false });
        assert!(limits.is_sorted_by_key(|limit| limit.sessions));
        for name in ["memory", "open files", "tasks", "ports", "mappings"] {
            assert!(
                limits.iter().any(|limit| limit.name == name && limit.sessions > 0),
                "{name}: {limits:?}"
            );
        }
    }

    #[test]
    fn a_real_sshd_needs_terminals_and_a_guacd_elsewhere_only_ports_and_files_here() {
        let limits_with_sshd = limits(Demand { guacd: Some(SSH), has_sshd: true });
        assert!(limits_with_sshd.iter().any(|limit| limit.name == "terminals"));
        let limits = limits(Demand { guacd: None, has_sshd: false });
        let names = limits.into_iter().map(|limit| limit.name).collect::<Vec<_>>();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
