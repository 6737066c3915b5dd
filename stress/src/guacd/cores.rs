//! Which processors may guacd use? Where its capacity is measured, some that the generator does not use.

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::preflight::Preflight;

/// The processors of this machine, divided between guacd and this program.
pub struct Cores {
    guacd: CpuSet,
    ours: CpuSet,
    count: u32,
    names: String,
}

impl Cores {
    /// Divides the processors that this program may use. guacd gets so many, or half of them. None where there is only one.
    ///
    /// # Errors
    ///
    /// When none would be left for this program.
    pub fn divide(wanted: Option<u32>) -> Result<Option<Self>> {
        let all = sched_getaffinity(None).context("find the processors of this machine")?;
        let mut numbers = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)).collect::<Vec<_>>();
        // Those that share a physical core stay together.
        numbers.sort_by_key(|&cpu| (first_sibling(cpu), cpu));
        let count = wanted.map_or(numbers.len() / 2, |wanted| wanted as usize);
        match wanted {
            Some(wanted) if count >= numbers.len() => bail!(Preflight(format!(
                "there are {} processors here, and guac-stress needs one of them: give --cores a number below that \
                 instead of {wanted}",
                numbers.len()
            ))),
            None if count == 0 => return Ok(None),
            _ => {}
        }
        let (guacd, ours) = numbers.split_at(count);
        let list = |cpus: &[usize]| cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let names = format!("guacd has the processors {}, and guac-stress {}", list(guacd), list(ours));
        Ok(Some(Self { guacd: set(guacd), ours: set(ours), count: count as u32, names }))
    }

    /// Which processors guacd has, and which we have, for people.
    pub fn describe(&self) -> &str {
        &self.names
    }

    /// How many guacd has.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Makes this thread, and those that it starts from now on, use our processors.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn use_ours(&self) -> Result<()> {
        sched_setaffinity(None, &self.ours).context("choose the processors of guac-stress")
    }

    /// Calls a function on guacd's processors. A process that it starts stays on them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn on_guacds<T>(&self, start: impl FnOnce() -> T) -> Result<T> {
        sched_setaffinity(None, &self.guacd).context("choose the processors of guacd")?;
        let started = start();
        self.use_ours()?;
        Ok(started)
    }
}

/// The first of the processors that share a physical core with this one. Where that is not known, the processor itself.
fn first_sibling(cpu: usize) -> usize {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let list = fs_err::read_to_string(path).unwrap_or_default();
    list.split([',', '-', '\n']).next().and_then(|first| first.parse().ok()).unwrap_or(cpu)
}

fn set(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guacd_and_we_have_other_processors() {
        let before = sched_getaffinity(None).unwrap();
        if before.count() < 2 {
            return;
        }
        let cores = Cores::divide(Some(1)).unwrap().unwrap();
        cores.use_ours().unwrap();
        let ours = sched_getaffinity(None).unwrap();
        let guacds = cores.on_guacds(|| sched_getaffinity(None).unwrap()).unwrap();
        assert_eq!((guacds.count(), ours.count()), (1, before.count() - 1));
        assert!((0..CpuSet::MAX_CPU).all(|cpu| !(guacds.is_set(cpu) && ours.is_set(cpu))));
        assert_eq!(sched_getaffinity(None).unwrap(), ours);
        assert!(Cores::divide(Some(1024)).err().unwrap().to_string().contains("--cores"));
    }
}
