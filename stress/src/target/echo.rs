//! The program in the terminals of the embedded SSH and telnet servers. It gives back each line that is typed, through a pipe of
//! Guacamole's, and what it draws goes to the terminal.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// The longest line that it takes. An endless one must not fill the memory.
const MAX_LINE: usize = 1024;

/// How long the program waits before it greets again.
const GREETING_INTERVAL: Duration = Duration::from_millis(50);

/// How often it greets again.
const MAX_GREETINGS: u32 = 100;

/// The program in one session.
#[derive(Clone)]
pub struct Echo {
    pipe: String,
    line: Vec<u8>,
}

impl Echo {
    /// A program with a pipe of this name.
    pub fn new(pipe: &str) -> Self {
        Self { pipe: pipe.into(), line: Vec::new() }
    }

    /// What it prints when it starts: nothing, through its pipe.
    pub fn greet(&self) -> Vec<u8> {
        self.print(b"")
    }

    /// When it has to greet again.
    pub fn greetings() -> Greetings {
        let mut interval = interval_at(Instant::now() + GREETING_INTERVAL, GREETING_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Greetings { interval, left: MAX_GREETINGS }
    }

    /// Takes what is typed, and returns what it prints.
    pub fn take(&mut self, typed: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for &byte in typed {
            if matches!(byte, b'\r' | b'\n') {
                out.extend(self.print(&self.line));
                self.line.clear();
            } else if self.line.len() < MAX_LINE {
                self.line.push(byte);
            }
        }
        out
    }

    /// Guacamole's own console codes redirect a terminal's output. Flag 2 sends each frame at once.
    fn print(&self, line: &[u8]) -> Vec<u8> {
        [b"\x1b]482202;2;", self.pipe.as_bytes(), b"\x07", line, b"\x1b]482203;\x07"].concat()
    }
}

/// When a program has to greet again: now and then, until something is typed. guacd 1.5 sends a user nothing in the first 250 ms,
/// and a pipe that was opened before is never announced.
pub struct Greetings {
    interval: Interval,
    left: u32,
}

impl Greetings {
    /// Waits until the next greeting is due. Returns whether there is one. It may be dropped at any time.
    pub async fn is_due(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.interval.tick().await;
        self.left -= 1;
        true
    }

    /// Something was typed: the greeting has arrived.
    pub fn stop(&mut self) {
        self.left = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_program_greets_again_until_something_is_typed() {
        let mut greetings = Echo::greetings();
        assert!(greetings.is_due().await && greetings.is_due().await);
        greetings.stop();
        assert!(!greetings.is_due().await);
        let mut greetings = Echo::greetings();
        greetings.left = 1;
        assert!(greetings.is_due().await);
        assert!(!greetings.is_due().await, "an idle session is left alone");
    }

    #[test]
    fn each_line_comes_back_whole() {
        let mut echo = Echo::new("proof");
        let printed = |line: &str| format!("\x1b]482202;2;proof\x07{line}\x1b]482203;\x07").into_bytes();
        assert_eq!(echo.greet(), printed(""));
        assert_eq!(echo.take(b"a"), b"");
        assert_eq!(echo.take(b"b\rc\rd"), [printed("ab"), printed("c")].concat());
        assert_eq!(echo.take(b"\n"), printed("d"));
        echo.take(&[b'x'; 2 * MAX_LINE]);
        assert_eq!(echo.take(b"\r").len(), printed("").len() + MAX_LINE);
    }
}
