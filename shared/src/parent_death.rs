//! How is a program made to end with the one that started it? The kernel sends it SIGTERM.

use std::{io, os::unix::process::CommandExt, process::Command};

use rustix::{
    io::Errno,
    process::{Signal, getpid, getppid, set_parent_process_death_signal},
};

/// Makes the kernel send SIGTERM to the program when the thread that starts it ends, whatever the reason. If this process ends
/// before the kernel has been told, starting the program fails with ESRCH.
pub fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    // SAFETY: the closure runs in the forked child and makes two system calls. It neither allocates nor locks, on the error
    // path either.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::TERM))?;
            // A parent that died before the call above sends no signal.
            if getppid() != Some(parent) {
                return Err(io::Error::from(Errno::SRCH));
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::Stdio, thread};

    #[test]
    fn a_program_ends_with_the_thread_that_started_it() {
        let mut child = thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("60").stdin(Stdio::null());
            die_with_parent(&mut command);
            command.spawn().unwrap()
        })
        .join()
        .unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::TERM.as_raw()));
    }
}
