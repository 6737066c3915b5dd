//! Does a guacd answer? That its port is open does not show it: the kernel accepts connections for a process that hangs. So
//! this sends guacd the first instruction of its protocol, `select`, and expects the answer, `args`.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How many bytes an answer may have before its first `;`. The longest, RDP's, has about 2,000.
const LONGEST_ANSWER: usize = 64 << 10;

/// How guacd answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// With `args`: it has the protocol.
    Args,
    /// With TLS: it accepts encrypted connections only (`guacd -C -K`). It is alive, but this does not show whether it has the
    /// protocol.
    Tls,
}

/// Why there is no [`Answer`].
#[derive(Debug)]
pub enum Failure {
    /// Nobody listens, or the connection broke.
    Io(io::Error),
    /// No answer, or only a part of one, came in time. A guacd that does not have the protocol is silent, too.
    TimedOut,
    /// The connection was closed before there was an answer.
    Closed,
    /// Something else came. This is its beginning, at most 80 characters.
    Unexpected(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Io(error) => write!(f, "{error}"),
            Failure::TimedOut => f.write_str("no answer in time"),
            Failure::Closed => f.write_str("the connection was closed before there was an answer"),
            Failure::Unexpected(text) => write!(f, "this is no answer of guacd's: {text:?}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::TimedOut,
            // The other side closed before it had read everything.
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::Io(error),
        }
    }
}

/// Asks the guacd at `address` (`HOST:PORT`) for `protocol`. This takes at most `timeout`, plus the time to look up the host's
/// name.
///
/// # Errors
///
/// [`Failure`], if guacd does not answer as it should.
pub fn probe(address: &str, protocol: &str, timeout: Duration) -> Result<Answer, Failure> {
    let deadline = Instant::now() + timeout;
    let select = format!("6.select,{}.{protocol};", protocol.chars().count());
    match ask(address, select.as_bytes(), deadline, is_args) {
        Ok(()) => Ok(Answer::Args),
        // A guacd that wants TLS closes a connection with plain text.
        Err(Failure::Closed) => match ask(address, &CLIENT_HELLO, deadline, is_tls) {
            Ok(()) => Ok(Answer::Tls),
            Err(_) => Err(Failure::Closed),
        },
        Err(failure) => Err(failure),
    }
}

/// Sends `question`, and reads until `is_answer` can tell whether what came is an answer.
fn ask(
    address: &str,
    question: &[u8],
    deadline: Instant,
    is_answer: fn(&[u8]) -> Option<bool>,
) -> Result<(), Failure> {
    let mut stream = connect(address, deadline)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(question)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        // Set before each read. Otherwise a byte now and then would keep this from ending.
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer)? {
            0 => return Err(Failure::Closed),
            length => answer.extend_from_slice(&buffer[..length]),
        }
        match is_answer(&answer) {
            Some(true) => return Ok(()),
            None if answer.len() < LONGEST_ANSWER => {}
            _ => {
                let text = String::from_utf8_lossy(&answer);
                return Err(Failure::Unexpected(text.chars().take(80).collect()));
            }
        }
    }
}

/// Connects to the first address of a name that accepts a connection.
fn connect(address: &str, deadline: Instant) -> Result<TcpStream, Failure> {
    let mut failure = Failure::Io(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

/// The time until the deadline.
fn left(deadline: Instant) -> Result<Duration, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A timeout of zero would mean none.
    if left.is_zero() { Err(Failure::TimedOut) } else { Ok(left) }
}

/// Whether `bytes` are an `args` instruction. `None` if that takes more bytes to tell.
fn is_args(bytes: &[u8]) -> Option<bool> {
    const ARGS: &[u8] = b"4.args";
    let alike = bytes.iter().zip(ARGS).all(|(byte, expected)| byte == expected);
    (!alike || bytes.contains(&b';')).then_some(alike)
}

/// Whether `bytes` are a TLS record of any content: an alert (21) or a handshake (22) of version 3.x. `None` if that takes more
/// bytes to tell.
fn is_tls(bytes: &[u8]) -> Option<bool> {
    let alike = matches!(bytes, [21 | 22] | [21 | 22, 3, ..]);
    (!alike || bytes.len() > 1).then_some(alike)
}

/// The shortest message that a TLS server has to answer: a ClientHello of TLS 1.2 (RFC 5246, 7.4.1.2) with one cipher suite,
/// ECDHE-RSA-AES128-GCM-SHA256. It has neither compression nor extensions, and its random bytes are zeroes, as nothing secret
/// follows.
const CLIENT_HELLO: [u8; 50] = {
    let mut hello = [0; 50];
    hello[0] = 22; // A handshake record of TLS 1.x
    hello[1] = 3;
    hello[2] = 1;
    hello[4] = 45; // of 45 bytes:
    hello[5] = 1; // a ClientHello
    hello[8] = 41; // of 41 bytes,
    hello[9] = 3; // TLS 1.2; then the 32 random bytes, and a session id of 0 bytes;
    hello[10] = 3;
    hello[45] = 2; // 2 bytes of cipher suites;
    hello[46] = 0xC0;
    hello[47] = 0x2F;
    hello[48] = 1; // 1 byte of compression methods: none.
    hello
};

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Probes a server that reads a `select` and does `then`, on a thread that this does not wait for.
    fn probed(then: impl FnOnce(TcpStream) + Send + 'static) -> Result<Answer, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut select = [0; 15];
            stream.read_exact(&mut select).unwrap();
            assert_eq!(&select, b"6.select,3.ssh;");
            then(stream);
        });
        probe(&address, "ssh", Duration::from_millis(300))
    }

    #[test]
    fn args_is_the_answer_however_it_is_cut() {
        let answer = probed(|mut stream| {
            for byte in b"4.args,13.VERSION_1_5_0,8.hostname;" {
                stream.write_all(&[*byte]).unwrap();
            }
        });
        assert_eq!(answer.unwrap(), Answer::Args);
    }

    #[test]
    fn tls_is_an_answer_if_plain_text_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            // As guacd does: the first bytes tell it that this is no TLS, and it closes.
            let mut plain = listener.accept().unwrap().0;
            plain.read_exact(&mut [0; 5]).unwrap();
            drop(plain);
            let mut tls = listener.accept().unwrap().0;
            let mut hello = [0; CLIENT_HELLO.len()];
            tls.read_exact(&mut hello).unwrap();
            tls.write_all(&[21, 3, 1, 0, 2, 2, 70]).unwrap();
        });
        assert_eq!(probe(&address, "ssh", Duration::from_secs(1)).unwrap(), Answer::Tls);
    }

    #[test]
    fn anything_else_is_no_answer() {
        let answer = probed(|mut stream| stream.write_all(b"5.error,9.not found,3.516;").unwrap());
        assert!(matches!(answer, Err(Failure::Unexpected(text)) if text.starts_with("5.error")));
        let endless = probed(|mut stream| while stream.write_all(b"4.args,1.x,").is_ok() {});
        assert!(matches!(endless, Err(Failure::Unexpected(_))));
        assert!(matches!(probed(drop), Err(Failure::Closed)));
    }

    #[test]
    fn silence_and_a_trickle_end_in_time() {
        let silence = probed(|_stream| thread::sleep(Duration::from_secs(5)));
        assert!(matches!(silence, Err(Failure::TimedOut)));
        let start = Instant::now();
        let trickle = probed(|mut stream| {
            for byte in b"4.args,13.VERSION_1_5_0,8.hostname" {
                stream.write_all(&[*byte]).unwrap();
                thread::sleep(Duration::from_millis(50));
            }
        });
        assert!(matches!(trickle, Err(Failure::TimedOut)));
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_port_that_nobody_listens_on_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let refused = probe(&address, "ssh", Duration::from_secs(1));
        assert!(
            matches!(refused, Err(Failure::Io(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
        );
    }
}
