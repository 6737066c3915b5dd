//! Do users learn why their session fails, and is it logged? Most tests also show the fault of stock.

use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::rdp::error_within;
use crate::support::guacd::Guacd;
use crate::support::sshd::{ED25519, Sshd};
use crate::support::target::a_target_that_says_nothing;
use crate::support::user::User;
use crate::support::{SOON, wait_until};

crate::tests! {
    Source:
        a_target_that_cannot_be_reached_is_reported_as_such,
        users_are_told_why_a_session_fails_however_soon,
        a_connection_that_is_ending_cannot_be_joined,
        a_failure_to_wake_the_target_is_reported_at_once,
        a_target_that_is_awake_need_not_be_woken,
        an_unknown_protocol_is_reported,
        a_wrong_number_of_arguments_is_reported,
        an_ssh_server_that_says_nothing_is_reported,
        a_user_who_leaves_at_the_prompt_is_not_logged_in,
        stocks_lines_of_a_telnet_session_are_all_logged;
    SourceAndSshd:
        an_rsa_key_that_needs_sha_1_is_explained,
        stocks_lines_of_an_ssh_session_are_all_logged;
}

fn a_target_that_cannot_be_reached_is_reported_as_such() -> Result<()> {
    let status_of = |guacd: &Guacd, protocol: &str, port: &str| -> Result<String> {
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
        let status = status_of(&guacd, protocol, port)?;
        ensure!(status == "519", "{protocol} to port {port}: {status}");
    }
    let stock = Guacd::start("stock")?;
    // Another status, or none.
    let status = status_of(&stock, "ssh", "1").unwrap_or_default();
    ensure!(status != "519", "stock: {status}");
    Ok(())
}

/// Waits for an error, and returns its status.
fn error_status(user: &mut User) -> Result<String> {
    let heard = user.expect("5.error,")?;
    let error = heard.split("5.error,").nth(1).and_then(|rest| rest.split(';').next()).context("no error")?;
    Ok(error.rsplit('.').next().unwrap_or_default().to_owned())
}

fn users_are_told_why_a_session_fails_however_soon() -> Result<()> {
    let informed = |guacd: &Guacd| -> Result<usize> {
        let mut informed = 0;
        for _ in 0..20 {
            let mut user = guacd.user("vnc")?;
            user.handshake_with(&[("hostname", "127.0.0.1"), ("port", "1")])?;
            // guacd notices the end of a session with the user's next instruction.
            while user.hear().unwrap_or_default() && user.send(&["nop"]).is_ok() {}
            let errors = user.heard.matches("5.error,").count();
            ensure!(errors <= 1, "{errors} errors: {}", user.heard);
            ensure!(user.heard.contains("10.disconnect;"), "{}", user.heard);
            informed += errors;
        }
        Ok(informed)
    };
    let patched = informed(&Guacd::start("patched")?)?;
    ensure!(patched == 20, "{patched} of 20 received an error");
    let stock = informed(&Guacd::start("stock")?)?;
    ensure!(stock < 20, "stock: all received an error");

    // A user who sends nothing need not wait for the timeout.
    let guacd = Guacd::start("patched")?;
    let mut silent = guacd.user("vnc")?;
    silent.handshake_with(&[("hostname", "127.0.0.1"), ("port", "1")])?;
    ensure!(error_status(&mut silent)? == "519", "the silent user");
    Ok(())
}

fn a_connection_that_is_ending_cannot_be_joined() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let (owner, id) = guacd.telnet(&a_target_that_says_nothing()?)?;
    // The owner leaves, but keeps the connection half open: the process waits until they have read what was sent last.
    owner.stream.shutdown(Shutdown::Write)?;
    let deadline = Instant::now() + SOON;
    while !guacd.log()?.contains("\" does not exist") {
        ensure!(Instant::now() < deadline, "the session does not end: {}", guacd.log()?);
        let mut guest = User::connect(guacd.port)?;
        guest.send(&["select", &id])?;
        let answer =
            guest.expect_one_of(&["4.args,", "3.516;", "3.512;"]).context("a guest who comes late")?;
        ensure!(answer < 2, "a guest receives a server error: {}", guest.heard);
        sleep(Duration::from_millis(5));
    }
    ensure!(guacd.log()?.contains("removed."), "{}", guacd.log()?);
    Ok(())
}

fn a_failure_to_wake_the_target_is_reported_at_once() -> Result<()> {
    // An address where nobody answers: to connect would take until the timeout.
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
    // Otherwise, the user may be asked for these before guacd connects.
    user.handshake_with(&[&down[..], &[("username", "nobody"), ("password", "none")]].concat())?;
    let deadline = Instant::now() + 3 * SOON;
    while !user.heard.contains("5.error,") {
        ensure!(Instant::now() < deadline && user.hear()?, "the user receives no error: {}", user.heard);
        user.send(&["nop"])?;
    }
    ensure!(error_status(&mut user)? == "519", "the target is down");

    let stock = Guacd::start("stock")?;
    let mut user = stock.user("ssh")?;
    user.handshake_with(&arguments("no address", ""))?;
    user.expect_id()?;
    ensure!(error_status(&mut user).is_err(), "stock: the user receives an error");
    Ok(())
}

fn a_target_that_is_awake_need_not_be_woken() -> Result<()> {
    let connects = |variant: &str, protocol: &str| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        target.set_nonblocking(true)?;
        let port = target.local_addr()?.port().to_string();
        let mut arguments = vec![
            ("hostname", "127.0.0.1"),
            ("port", &*port),
            ("wol-send-packet", "true"),
            ("wol-mac-addr", "02:00:00:00:00:01"),
            ("wol-broadcast-addr", "127.255.255.255"),
            // Nothing can be sent to this port.
            ("wol-udp-port", "0"),
        ];
        if protocol != "vnc" {
            arguments.extend([("username", "nobody"), ("password", "none")]);
        }
        let mut user = guacd.user(protocol)?;
        user.handshake_with(&arguments)?;
        let mut is_refused = false;
        wait_until("guacd connects or refuses", SOON, || {
            is_refused = !user.hear().unwrap_or_default() || user.heard.contains("5.error,");
            is_refused || target.accept().is_ok()
        })?;
        let log = guacd.log()?;
        ensure!(
            is_refused || variant == "stock" || log.contains("Failed to send WOL packet: Invalid"),
            "{log}"
        );
        Ok(!is_refused)
    };
    for protocol in ["ssh", "telnet", "vnc", "rdp"] {
        ensure!(connects("patched", protocol)?, "{protocol}: a target that is awake is not connected to");
        ensure!(
            connects("stock", protocol)?,
            "stock, {protocol}: a target that is awake is not connected to"
        );
    }
    Ok(())
}

fn an_unknown_protocol_is_reported() -> Result<()> {
    let received = |variant| -> Result<String> {
        let guacd = Guacd::start(variant)?;
        let mut user = User::connect(guacd.port)?;
        user.send(&["select", "gopher"])?;
        guacd.expect_in_log("removed.")?;
        user.hear()?;
        Ok(user.heard)
    };
    let (stock, patched) = (received("stock")?, received("patched")?);
    ensure!(stock.is_empty(), "stock: {stock}");
    ensure!(patched.starts_with("5.error,") && patched.ends_with("3.512;"), "patched: {patched:?}");
    Ok(())
}

fn a_wrong_number_of_arguments_is_reported() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let mut owner = guacd.user("telnet")?;
    owner.arguments += 1;
    owner.handshake(&["127.0.0.1", "1"])?;
    ensure!(error_status(&mut owner)? == "768", "the owner");

    let (_owner, id) = guacd.telnet(&a_target_that_says_nothing()?)?;
    let mut guest = guacd.user(&id)?;
    guest.arguments -= 1;
    guest.handshake(&[])?;
    ensure!(error_status(&mut guest)? == "768", "the guest");

    let stock = Guacd::start("stock")?;
    let mut owner = stock.user("telnet")?;
    owner.arguments += 1;
    owner.handshake(&["127.0.0.1", "1"])?;
    owner.expect_id()?;
    let _ = owner.read_to_end(SOON);
    ensure!(!owner.heard.contains("5.error,"), "stock: {}", owner.heard);
    Ok(())
}

fn an_ssh_server_that_says_nothing_is_reported() -> Result<()> {
    let status = |variant: &str| -> Result<Option<String>> {
        let guacd = Guacd::start(variant)?;
        let port = a_target_that_says_nothing()?;
        let mut user = guacd.user("ssh")?;
        let (timeout, limit) = user.shortest_timeout();
        let target =
            [("hostname", "127.0.0.1"), ("port", &*port), ("username", "nobody"), ("password", "none")];
        user.handshake_with(&[&target, timeout].concat())?;
        user.expect_id()?;
        Ok(error_within(&mut user, limit + SOON))
    };
    let patched = status("patched")?;
    ensure!(patched.as_deref() == Some("514"), "{patched:?}");
    let stock = status("stock")?;
    ensure!(stock.is_none(), "stock: {stock:?}");
    Ok(())
}

fn a_user_who_leaves_at_the_prompt_is_not_logged_in() -> Result<()> {
    let connects = |variant: &str| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        target.set_nonblocking(true)?;
        let port = target.local_addr()?.port().to_string();
        let mut user = guacd.user("ssh")?;
        user.handshake_with(&[("hostname", "127.0.0.1"), ("port", &port)])?;
        user.expect_id()?;
        // The terminal draws the prompt.
        user.expect("3.img,")?;
        user.send(&["key", "120", "1"])?;
        user.send(&["disconnect"])?;
        let deadline = Instant::now() + SOON;
        loop {
            if target.accept().is_ok() {
                return Ok(true);
            }
            if guacd.connections().is_empty() {
                return Ok(target.accept().is_ok());
            }
            ensure!(Instant::now() < deadline, "the session does not end");
            sleep(Duration::from_millis(10));
        }
    };
    ensure!(!connects("patched")?, "guacd connects for a user who has left");
    // Stock's process sometimes ends before it connects.
    for _ in 0..20 {
        if connects("stock")? {
            return Ok(());
        }
    }
    bail!("stock does not connect for a user who has left")
}

fn stocks_lines_of_a_telnet_session_are_all_logged() -> Result<()> {
    let lines = |variant| -> Result<Vec<String>> {
        let guacd = Guacd::start(variant)?;
        let (owner, id) = guacd.telnet(&a_target_that_says_nothing()?)?;
        join_and_leave(&guacd, owner, &id, "Telnet connection successful")?;

        for (unknown, words) in [
            ("$00000000-0000-0000-0000-000000000000", "Connection did not succeed"),
            ("gopher", "Support for protocol \"gopher\" is not installed"),
        ] {
            let mut stranger = User::connect(guacd.port)?;
            stranger.send(&["select", unknown])?;
            guacd.expect_in_log(words)?;
        }
        let has_ended = || guacd.log().is_ok_and(|log| log.matches("removed.").count() >= 2);
        wait_until("the connection of the unknown protocol ends", SOON, has_ended)
            .with_context(|| guacd.log().unwrap_or_default())?;
        logged_lines(&guacd)
    };
    compare_lines(&lines("stock")?, &lines("patched")?)
}

/// Once the target is connected, a guest joins the owner's session and leaves it. Then the owner leaves. Each step waits until
/// the one before is logged.
fn join_and_leave(guacd: &Guacd, mut owner: User, id: &str, connected: &str) -> Result<()> {
    guacd.expect_in_log(connected)?;
    let mut guest = guacd.user(id)?;
    guest.handshake(&[])?;
    guest.expect_id()?;
    guacd.expect_in_log("(2 users now present)")?;
    guest.send(&["disconnect"])?;
    guacd.expect_in_log("(1 users remain)")?;
    owner.send(&["disconnect"])?;
    guacd.expect_in_log("removed.")
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

/// Checks that patched has logged all lines that stock has, as often as stock.
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
    let keys: [(&str, &[&str]); 3] = [
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("rsa-pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
        ("rsa-pkcs8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"]),
    ];
    let sshd = Sshd::start(&keys)?;
    for variant in ["patched", "stock"] {
        let guacd = Guacd::start(variant)?;
        for (index, (key, _)) in keys.into_iter().enumerate() {
            let mut user = guacd.user("ssh")?;
            sshd.log_in(&mut user, &sshd.key(key)?, &[])?;
            if variant == "stock" {
                let has_failed = || {
                    guacd
                        .log()
                        .is_ok_and(|log| log.matches("Public key authentication failed").count() > index)
                };
                wait_until("the login fails", SOON, has_failed)?;
                continue;
            }
            let end = user.expect_one_of(&["5.error,", "7.argv,"])?;
            // A libssh2 that signs with SHA-2 can use the key.
            if end == 1 && user.expect_one_of(&["5.error,"]).is_err() {
                guacd.expect_in_log("SSH connection successful")?;
                return Ok(());
            }
            ensure!(error_status(&mut user)? == "769", "{key}: {}", user.heard);
        }
        let explained = guacd.log()?.matches("signs with such a key using SHA-1").count();
        ensure!(explained == if variant == "patched" { 3 } else { 0 }, "{variant}: {}", guacd.log()?);
    }
    // SHA-1 is not named where something else is wrong with the key.
    let guacd = Guacd::start("patched")?;
    let mut user = guacd.user("ssh")?;
    sshd.log_in(&mut user, &sshd.make_unknown_key("stranger")?, &[])?;
    ensure!(error_status(&mut user)? == "769", "{}", user.heard);
    let log = guacd.log()?;
    ensure!(log.contains("Public key authentication failed") && !log.contains("SHA-1"), "{log}");
    Ok(())
}

fn stocks_lines_of_an_ssh_session_are_all_logged() -> Result<()> {
    let sshd = Sshd::start(&[("key", ED25519)])?;
    let lines = |variant| -> Result<Vec<String>> {
        let guacd = Guacd::start(variant)?;
        let mut owner = guacd.user("ssh")?;
        sshd.log_in(&mut owner, &sshd.key("key")?, &[])?;
        let id = owner.expect_id()?;
        join_and_leave(&guacd, owner, &id, "SSH connection successful")?;
        logged_lines(&guacd)
    };
    compare_lines(&lines("stock")?, &lines("patched")?)
}
