//! What do guacd's processes use? All of it comes from `/proc`. Most of it is cheap to read; a process's share of memory is
//! expensive, and is read only on request.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use procfs::{
    WithCurrentSystemInfo,
    process::{FDTarget, Process, Stat},
};
use rustix::process::Pid;

use crate::{
    load::series::Series,
    report::{MemoryKind, ProcessUse, Sample, Usage},
};

/// Sampling may take one part in so many of the time, because it uses the machine that is measured.
const SHARE: u32 = 50;

/// What a process and its descendants use.
pub fn usage(parent: Pid) -> Option<Usage> {
    let parent = Process::new(parent.as_raw_pid()).ok()?;
    let stats = family(parent.pid());
    let pids = stats.iter().map(|stat| stat.pid).collect::<Vec<_>>();
    let (memory_bytes, memory_kind) = memory(&pids);
    Some(Usage {
        parent_descriptors: parent.fd_count().ok()?.try_into().ok()?,
        parent_threads: parent.stat().ok()?.num_threads.try_into().ok()?,
        children: pids.len().checked_sub(1)?.try_into().ok()?,
        tasks: tasks(&stats),
        memory_bytes,
        memory_kind,
    })
}

/// How many threads a process has.
pub fn threads(pid: Pid) -> Option<u32> {
    Process::new(pid.as_raw_pid()).ok()?.stat().ok()?.num_threads.try_into().ok()
}

/// What one process uses, for a session.
pub fn process(pid: i32, session: u32) -> Option<ProcessUse> {
    let process = Process::new(pid).ok()?;
    Some(ProcessUse {
        session,
        descriptors: process.fd_count().ok()?.try_into().ok()?,
        threads: process.stat().ok()?.num_threads.try_into().ok()?,
        pss_bytes: pss(pid),
    })
}

/// Whether a process still runs. A zombie does not: it only waits for its parent to reap it.
pub fn is_there(pid: i32) -> bool {
    Process::new(pid).and_then(|process| process.stat()).is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Whether a process was started by another, or by one that it started.
pub fn descends_from(pid: i32, ancestor: i32) -> bool {
    family(ancestor).iter().skip(1).any(|stat| stat.pid == pid)
}

/// The local port of the connection that a process has to one of these ports.
pub fn port_towards(pid: i32, ports: &[u16]) -> Option<u16> {
    let process = Process::new(pid).ok()?;
    let sockets = process.fd().ok()?.filter_map(|fd| match fd.ok()?.target {
        FDTarget::Socket(inode) => Some(inode),
        _ => None,
    });
    let sockets = sockets.collect::<Vec<_>>();
    let is_it = |entry: &&procfs::net::TcpNetEntry| {
        ports.contains(&entry.remote_address.port()) && sockets.contains(&entry.inode)
    };
    procfs::net::tcp().ok()?.iter().find(is_it).map(|entry| entry.local_address.port())
}

/// One sample of what is cheap to read. The caller gives the time and the number of sessions.
pub fn sample(parent: Pid, at_seconds: f64, sessions: u32) -> Option<Sample> {
    let ticks = procfs::ticks_per_second() as f64;
    let seconds = |ticks_taken: u64| ticks_taken as f64 / ticks;
    let process = Process::new(parent.as_raw_pid()).ok()?;
    let stats = family(process.pid());
    let (parent, children) = stats.split_first()?;
    let living = children.iter().map(|stat| stat.utime + stat.stime).sum::<u64>();
    // Each process has that of the children that it has waited for, and of theirs.
    let gone = stats.iter().map(|stat| u64::try_from(stat.cutime + stat.cstime).unwrap_or(0)).sum::<u64>();
    Some(Sample {
        at_seconds,
        sessions,
        parent_descriptors: process.fd_count().ok()?.try_into().ok()?,
        parent_threads: parent.num_threads.try_into().ok()?,
        children: children.len().try_into().ok()?,
        tasks: tasks(&stats),
        memory_bytes: None,
        parent_cpu_seconds: seconds(parent.utime + parent.stime),
        children_cpu_seconds: seconds(living + gone),
    })
}

/// A process and its descendants, the process first. Empty if it has ended.
pub fn family(ancestor: i32) -> Vec<Stat> {
    let Ok(all) = procfs::process::all_processes() else { return Vec::new() };
    // A process may end before it is read.
    let mut stats = all
        .filter_map(|process| process.ok()?.stat().ok())
        .map(|stat| (stat.pid, stat))
        .collect::<HashMap<_, _>>();
    let descends = |pid: i32| {
        let mut at = pid;
        while let Some(stat) = stats.get(&at) {
            if at == ancestor {
                return true;
            }
            at = stat.ppid;
        }
        false
    };
    let mut pids = stats.keys().copied().filter(|&pid| descends(pid)).collect::<Vec<_>>();
    pids.sort_unstable_by_key(|&pid| (pid != ancestor, pid));
    pids.into_iter().filter_map(|pid| stats.remove(&pid)).collect()
}

fn tasks(stats: &[Stat]) -> u32 {
    stats.iter().map(|stat| u32::try_from(stat.num_threads).unwrap_or(0)).sum()
}

fn memory(pids: &[i32]) -> (u64, MemoryKind) {
    let rss = |&pid: &i32| Some(Process::new(pid).ok()?.stat().ok()?.rss_bytes().get());
    let shares = pids.iter().filter_map(|&pid| pss(pid)).collect::<Vec<_>>();
    // The kernel shows a process's share only to users who may trace it.
    if !shares.is_empty() && shares.len() * 10 >= pids.len() * 9 {
        (shares.iter().sum(), MemoryKind::Pss)
    } else {
        (pids.iter().filter_map(rss).sum(), MemoryKind::Rss)
    }
}

/// The memory of a process and its descendants. None where this user may not see the shares of all that still run.
fn pss_of_family(parent: Pid) -> Option<u64> {
    let pids = family(parent.as_raw_pid()).iter().map(|stat| stat.pid).collect::<Vec<_>>();
    match memory(&pids) {
        (bytes, MemoryKind::Pss) => Some(bytes),
        (_, MemoryKind::Rss) => None,
    }
}

fn pss(pid: i32) -> Option<u64> {
    let rollup = Process::new(pid).ok()?.smaps_rollup().ok()?;
    rollup.memory_map_rollup.0.first()?.extension.map.get("Pss").copied()
}

/// Samples a process again and again, until it is dropped.
pub struct Sampler {
    samples: Arc<Mutex<Series<Sample>>>,
    sessions: Arc<AtomicU32>,
    _stop: mpsc::Sender<()>,
}

impl Sampler {
    /// Starts the sampling. None where no thread can be started; a run does without samples then.
    pub fn start(parent: Pid, begun: Instant) -> Option<Self> {
        let samples = Arc::new(Mutex::new(Series::default()));
        let sessions = Arc::new(AtomicU32::new(0));
        let (stop, stopped) = mpsc::channel::<()>();
        let (into, open) = (Arc::clone(&samples), Arc::clone(&sessions));
        let sample_all = move || {
            // A share of memory is expensive to read.
            let mut memory_due = begun;
            loop {
                let began = Instant::now();
                let at_seconds = begun.elapsed().as_secs_f64();
                let wait = match sample(parent, at_seconds, open.load(Ordering::Relaxed)) {
                    Some(mut sample) => {
                        let took = began.elapsed();
                        if memory_due <= began {
                            sample.memory_bytes = pss_of_family(parent);
                            memory_due = Instant::now() + (began.elapsed() - took) * SHARE;
                        }
                        let mut samples = into.lock().unwrap_or_else(PoisonError::into_inner);
                        samples.offer(at_seconds, || sample);
                        Duration::from_secs_f64(samples.interval()).max(took * SHARE)
                    }
                    None => Duration::from_secs(1),
                };
                if stopped.recv_timeout(wait) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        thread::Builder::new().name("sampler".into()).spawn(sample_all).ok()?;
        Some(Self { samples, sessions, _stop: stop })
    }

    /// Sets how many sessions are open, for the samples to come.
    pub fn set_sessions(&self, open: u32) {
        self.sessions.store(open, Ordering::Relaxed);
    }

    /// The samples so far.
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).values().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::{Ipv4Addr, TcpListener, TcpStream},
        process::{Command, Stdio},
    };

    #[test]
    fn a_family_is_a_process_and_what_descends_from_it() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & echo; wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read(shell.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let stats = family(pid);
        assert_eq!((stats.len(), stats[0].pid, stats[1].ppid), (2, pid, pid));
        let usage = usage(Pid::from_raw(pid).unwrap()).unwrap();
        assert_eq!((usage.children, usage.tasks, usage.parent_threads), (1, 2, 1));
        assert!(usage.memory_bytes > 0 && usage.parent_descriptors >= 3);
        let before = process(pid, 7).unwrap();
        assert_eq!((before.session, before.descriptors), (7, usage.parent_descriptors));
        let sleep = Pid::from_raw(stats[1].pid).unwrap();
        rustix::process::kill_process(sleep, rustix::process::Signal::KILL).unwrap();
        shell.wait().unwrap();
        assert!(family(pid).is_empty() && !is_there(pid) && !is_there(sleep.as_raw_pid()));
    }

    #[test]
    fn finds_the_port_of_a_connection() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = listener.local_addr().unwrap().port();
        let me = i32::try_from(std::process::id()).unwrap();
        assert_eq!(port_towards(me, &[target]), None);
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).unwrap();
        assert_eq!(port_towards(me, &[1, target]), Some(stream.local_addr().unwrap().port()));
    }
}
