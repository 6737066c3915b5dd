//! What is typed to prove that a session is alive?

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
