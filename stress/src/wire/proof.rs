//! When is a session alive? When the nonce that was typed into it comes back on the stream where it is expected.

/// A word that nobody can know beforehand: 128 random bits in hexadecimal digits, each of which has a key.
///
/// # Panics
///
/// When the kernel gives no random bytes.
pub fn fresh_nonce() -> String {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "the kernel has no random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was typed into a session and has to come back.
#[derive(Default)]
pub struct Proof {
    /// What was typed, until it has come back.
    awaited: Option<String>,
    /// The end of what came since: as much as may be the beginning of what is awaited.
    heard: Vec<u8>,
}

impl Proof {
    /// Awaits what was typed. What came before no longer counts.
    pub fn expect(&mut self, typed: &str) {
        self.heard.clear();
        self.awaited = Some(typed.into());
    }

    /// Forgets what came before, because a new stream begins.
    pub fn restart(&mut self) {
        self.heard.clear();
    }

    /// Takes what came on the expected stream, in pieces of any size. Returns whether it proves the session alive.
    pub fn hear(&mut self, bytes: &[u8]) -> bool {
        let Some(awaited) = self.awaited.as_ref().map(String::as_bytes) else { return false };
        self.heard.extend_from_slice(bytes);
        if self.heard.windows(awaited.len()).any(|heard| heard == awaited) {
            self.awaited = None;
            self.heard.clear();
            return true;
        }
        // What is awaited may begin at the end of what was heard. Nothing before that is needed.
        let unneeded = self.heard.len().saturating_sub(awaited.len());
        self.heard.drain(..unneeded);
        false
    }
}
