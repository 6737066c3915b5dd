//! Are users told what they need to know, and is it logged? Each fault of stock's is shown there, too.

use std::fs;
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::ends::a_target_that_says_nothing;
use crate::support::SOON;
use crate::support::guacd::{Guacd, free_port};
use crate::support::user::User;

crate::tests! {
    Source:
        a_target_that_cannot_be_reached_is_reported_as_such,
        users_are_told_why_a_session_fails_however_soon,
        a_connection_that_is_ending_cannot_be_joined,
        a_failure_to_wake_the_target_is_reported_at_once,
        stocks_lines_of_a_telnet_session_are_all_logged;
    SourceAndSshd:
        an_rsa_key_that_needs_sha_1_is_explained,
        stocks_lines_of_an_ssh_session_are_all_logged;
}

fn a_target_that_cannot_be_reached_is_reported_as_such() -> Result<()> {
    let status = |guacd: &Guacd, protocol: &str, port: &str| -> Result<String> {
        let mut user = guacd.user(protocol)?;
        let more = match protocol {
            "kubernetes" => Some(("pod", "none")),
            "vnc" => None,
            _ => Some(("username", "nobody")),
        };
        let arguments: Vec<_> = [("hostname", "127.0.0.1"), ("port", port)].into_iter().chain(more).collect();
        user.handshake_with(&arguments)?;
        error_status(&mut user).with_context(|| format!("{protocol} to port {port}"))
    };
    let guacd = Guacd::start("patched")?;
    for (protocol, port) in [
        ("ssh", "1"),
        ("ssh", "none"),
        ("telnet", "1"),
        ("telnet", "none"),
        ("vnc", "1"),
        ("kubernetes", "1"),
    ] {
        let told = status(&guacd, protocol, port)?;
        ensure!(told == "519", "{protocol} to port {port}: {told}");
    }
    let stock = Guacd::start("stock")?;
    let told = status(&stock, "ssh", "1")?;
    ensure!(told == "515", "stock: {told}");
    Ok(())
}

/// Waits for an error, and returns its status.
fn error_status(user: &mut User) -> Result<String> {
    let heard = user.expect("5.error,")?;
    let error = heard.split("5.error,").nth(1).and_then(|rest| rest.split(';').next()).context("no error")?;
    Ok(error.rsplit('.').next().unwrap_or_default().to_owned())
}

fn users_are_told_why_a_session_fails_however_soon() -> Result<()> {
    let told = |guacd: &Guacd| -> Result<usize> {
        let mut told = 0;
        for _ in 0..20 {
            let mut user = guacd.user("vnc")?;
            user.handshake_with(&[("hostname", "127.0.0.1"), ("port", "1")])?;
            // What ends a session is noticed with the next instruction.
            while user.hear().unwrap_or_default() && user.send(&["nop"]).is_ok() {}
            let errors = user.heard.matches("5.error,").count();
            ensure!(errors <= 1, "told {errors} times: {}", user.heard);
            ensure!(user.heard.contains("10.disconnect;"), "{}", user.heard);
            told += errors;
        }
        Ok(told)
    };
    let patched = told(&Guacd::start("patched")?)?;
    ensure!(patched == 20, "{patched} of 20 were told");
    let stock = told(&Guacd::start("stock")?)?;
    ensure!(stock < 20, "stock: all were told");

    // A user who says nothing need not wait for the timeout.
    let guacd = Guacd::start("patched")?;
    let mut silent = guacd.user("vnc")?;
    silent.handshake_with(&[("hostname", "127.0.0.1"), ("port", "1")])?;
    ensure!(error_status(&mut silent)? == "519", "the silent user");
    Ok(())
}

fn a_connection_that_is_ending_cannot_be_joined() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let target = a_target_that_says_nothing()?.to_string();
    let mut owner = guacd.user("telnet")?;
    owner.handshake(&["127.0.0.1", &target])?;
    let id = owner.expect_id()?;
    // The owner leaves, but does not let go: the process waits for them to read what was sent last.
    owner.stream.shutdown(Shutdown::Write)?;
    let deadline = Instant::now() + SOON;
    let mut last = String::new();
    while !guacd.log()?.contains("removed.") {
        ensure!(Instant::now() < deadline, "the session does not end");
        let mut guest = User::connect(guacd.port)?;
        guest.send(&["select", &id])?;
        let answer =
            guest.expect_one_of(&["4.args,", "3.516;", "3.512;"]).context("a guest who comes late")?;
        ensure!(answer < 2, "a guest is told of an error of guacd's: {}", guest.heard);
        last = guest.heard;
        sleep(Duration::from_millis(5));
    }
    ensure!(last.contains("3.516;"), "the last guest was told {last}");
    ensure!(guacd.log()?.contains("\" does not exist"), "{}", guacd.log()?);
    Ok(())
}

fn a_failure_to_wake_the_target_is_reported_at_once() -> Result<()> {
    // Nobody answers there, so that a connection would take until the timeout.
    let arguments = |mac, wait| {
        [
            ("hostname", "203.0.113.1"),
            ("port", "22"),
            ("wol-send-packet", "true"),
            ("wol-mac-addr", mac),
            ("wol-broadcast-addr", "127.255.255.255"),
            ("wol-wait-time", wait),
        ]
    };
    let guacd = Guacd::start("patched")?;
    for protocol in ["ssh", "telnet", "vnc", "rdp"] {
        for wait in ["", "1"] {
            let mut user = guacd.user(protocol)?;
            user.handshake_with(&arguments("no address", wait))?;
            let since = Instant::now();
            let status = error_status(&mut user).with_context(|| format!("{protocol}, wait {wait:?}"))?;
            ensure!(status == "512", "{protocol}: {status}");
            ensure!(since.elapsed() < Duration::from_secs(2), "{protocol}: after {:?}", since.elapsed());
        }
    }
    let log = guacd.log()?;
    ensure!(log.matches("Invalid argument for Wake-on-LAN MAC address").count() == 8, "{log}");

    // The packet is sent, but the target stays down.
    let mut user = guacd.user("ssh")?;
    let mut down = arguments("02:00:00:00:00:01", "1");
    down[0].1 = "127.0.0.1";
    down[1].1 = "1";
    user.handshake_with(&down)?;
    let deadline = Instant::now() + 3 * SOON;
    while !user.heard.contains("5.error,") {
        ensure!(Instant::now() < deadline && user.hear()?, "the user is not told: {}", user.heard);
        user.send(&["nop"])?;
    }
    ensure!(error_status(&mut user)? == "519", "the target is down");

    let stock = Guacd::start("stock")?;
    let mut user = stock.user("ssh")?;
    user.handshake_with(&arguments("no address", ""))?;
    user.expect_id()?;
    ensure!(error_status(&mut user).is_err(), "stock: the user is told");
    Ok(())
}

fn stocks_lines_of_a_telnet_session_are_all_logged() -> Result<()> {
    let lines = |variant| -> Result<Vec<String>> {
        let guacd = Guacd::start(variant)?;
        let target = a_target_that_says_nothing()?.to_string();
        let mut owner = guacd.user("telnet")?;
        owner.handshake(&["127.0.0.1", &target])?;
        let id = owner.expect_id()?;
        is_logged(&guacd, "Telnet connection successful")?;
        let mut guest = guacd.user(&id)?;
        guest.handshake(&[])?;
        guest.expect_id()?;
        is_logged(&guacd, "(2 users now present)")?;
        guest.send(&["disconnect"])?;
        is_logged(&guacd, "(1 users remain)")?;
        owner.send(&["disconnect"])?;
        is_logged(&guacd, "removed.")?;

        for (unknown, words) in [
            ("$00000000-0000-0000-0000-000000000000", "Connection did not succeed"),
            ("gopher", "Support for protocol \"gopher\" is not installed"),
        ] {
            let mut stranger = User::connect(guacd.port)?;
            stranger.send(&["select", unknown])?;
            is_logged(&guacd, words)?;
        }
        let deadline = Instant::now() + SOON;
        while guacd.log()?.matches("removed.").count() < 2 {
            ensure!(Instant::now() < deadline, "the unknown protocol has not ended: {}", guacd.log()?);
            sleep(Duration::from_millis(20));
        }
        logged_lines(&guacd)
    };
    compare_lines(&lines("stock")?, &lines("patched")?)
}

/// Waits until these words are in the log.
pub fn is_logged(guacd: &Guacd, words: &str) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !guacd.log()?.contains(words) {
        ensure!(Instant::now() < deadline, "{words:?} is not logged: {}", guacd.log()?);
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What a guacd has logged so far, without the IDs of processes, connections and users, and without its port.
fn logged_lines(guacd: &Guacd) -> Result<Vec<String>> {
    let lines: Vec<String> = guacd
        .log()?
        .lines()
        .filter(|line| !line.contains("Listening on"))
        .map(|line| {
            let message = line.split_once("]: ").map_or(line, |(_, message)| message);
            let mut parts = message.split('"').map(|part| match part.as_bytes() {
                [sigil @ (b'$' | b'@'), id @ ..] if id.len() == 36 => format!("{}ID", char::from(*sigil)),
                _ => part.to_owned(),
            });
            let first = parts.next().unwrap_or_default();
            parts.fold(first, |line, part| line + "\"" + &part)
        })
        .collect();
    Ok(lines)
}

/// Checks that all lines of stock's were written, as often as there.
fn compare_lines(stock: &[String], patched: &[String]) -> Result<()> {
    ensure!(stock.len() > 10, "stock logs only {stock:#?}");
    let mut rest = patched.to_vec();
    let missing: Vec<&String> = stock
        .iter()
        .filter(|line| {
            let found = rest.iter().position(|other| other == *line);
            found.map(|at| rest.remove(at)).is_none()
        })
        .collect();
    ensure!(missing.is_empty(), "missing: {missing:#?}\nin {patched:#?}");
    Ok(())
}

fn an_rsa_key_that_needs_sha_1_is_explained() -> Result<()> {
    let sshd = Sshd::start()?;
    for variant in ["patched", "stock"] {
        let guacd = Guacd::start(variant)?;
        for key in ["rsa", "rsa-pem", "rsa-pkcs8"] {
            let mut user = guacd.user("ssh")?;
            sshd.log_in(&mut user, key)?;
            let end = user.expect_one_of(&["5.error,", "7.argv,"])?;
            // A libssh2 that signs with SHA-2 can use the key.
            if end == 1 && user.expect_one_of(&["5.error,"]).is_err() {
                is_logged(&guacd, "SSH connection successful")?;
                return Ok(());
            }
            ensure!(error_status(&mut user)? == "769", "{variant}, {key}: {}", user.heard);
        }
        let explained = guacd.log()?.matches("signs with such a key using SHA-1").count();
        ensure!(explained == if variant == "patched" { 3 } else { 0 }, "{variant}: {}", guacd.log()?);
    }
    // Whatever else is wrong with a key is not SHA-1.
    let guacd = Guacd::start("patched")?;
    let mut user = guacd.user("ssh")?;
    sshd.log_in(&mut user, "stranger")?;
    ensure!(error_status(&mut user)? == "769", "{}", user.heard);
    let log = guacd.log()?;
    ensure!(log.contains("Public key authentication failed") && !log.contains("SHA-1"), "{log}");
    Ok(())
}

fn stocks_lines_of_an_ssh_session_are_all_logged() -> Result<()> {
    let sshd = Sshd::start()?;
    let lines = |variant| -> Result<Vec<String>> {
        let guacd = Guacd::start(variant)?;
        let mut owner = guacd.user("ssh")?;
        sshd.log_in(&mut owner, "ed25519")?;
        let id = owner.expect_id()?;
        is_logged(&guacd, "SSH connection successful")?;
        let mut guest = guacd.user(&id)?;
        guest.handshake(&[])?;
        guest.expect_id()?;
        is_logged(&guacd, "(2 users now present)")?;
        guest.send(&["disconnect"])?;
        is_logged(&guacd, "(1 users remain)")?;
        owner.send(&["disconnect"])?;
        is_logged(&guacd, "removed.")?;
        logged_lines(&guacd)
    };
    compare_lines(&lines("stock")?, &lines("patched")?)
}

/// The program `sshd`, which wants to be started by its full path.
const SSHD: &str = "/usr/sbin/sshd";

/// Whether there is an sshd.
pub fn has_sshd() -> bool {
    Path::new(SSHD).exists()
}

/// An sshd of the test's own, with keys of its own.
struct Sshd {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Sshd {
    fn start() -> Result<Sshd> {
        let dir = TempDir::new()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700))?;
        let path = |name: &str| dir.path().join(name);
        let keys: [(&str, &[&str]); 6] = [
            ("host", &["-t", "ed25519"]),
            ("ed25519", &["-t", "ed25519"]),
            ("stranger", &["-t", "ed25519"]),
            ("rsa", &["-t", "rsa", "-b", "2048"]),
            ("rsa-pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
            ("rsa-pkcs8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"]),
        ];
        let mut authorized = String::new();
        for (name, options) in keys {
            let made = Command::new("ssh-keygen")
                .args(options)
                .args(["-q", "-N", "", "-f"])
                .arg(path(name))
                .output()?;
            ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            if !["host", "stranger"].contains(&name) {
                authorized += &fs::read_to_string(path(name).with_extension("pub"))?;
            }
        }
        fs::write(path("authorized"), authorized)?;
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd")?;
        }
        let port = free_port()?;
        let here = dir.path().display();
        fs::write(
            path("config"),
            format!(
                "ListenAddress 127.0.0.1\nPort {port}\nHostKey {here}/host\nPidFile none\n\
                 AuthorizedKeysFile {here}/authorized\nAuthenticationMethods publickey\n\
                 PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nUseDNS no\n"
            ),
        )?;
        let child = Command::new(SSHD)
            .args(["-D", "-e", "-f"])
            .arg(path("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log"))?)
            .spawn()?;
        let mut sshd = Sshd { child, port, dir };
        let deadline = Instant::now() + SOON;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let said = fs::read_to_string(sshd.dir.path().join("log"))?;
            ensure!(sshd.child.try_wait()?.is_none() && Instant::now() < deadline, "sshd: {said}");
            sleep(Duration::from_millis(20));
        }
        Ok(sshd)
    }

    /// Finishes a user's handshake, such that they log in with one of the keys.
    fn log_in(&self, user: &mut User, key: &str) -> Result<()> {
        let name = Command::new("id").arg("-un").output()?;
        let name = String::from_utf8(name.stdout)?;
        let key = fs::read_to_string(self.dir.path().join(key))?;
        user.handshake_with(&[
            ("hostname", "127.0.0.1"),
            ("port", &self.port.to_string()),
            ("username", name.trim()),
            ("private-key", &key),
        ])
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
