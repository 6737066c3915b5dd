//! Does a patched guacd load the plugins of protocols before it forks connections, and is it safe to do so?

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::support::c::{Preloaded, compile_plugin_to};
use crate::support::guacd::{Guacd, plugins};
use crate::support::processes::{children, descriptors, is_alive};
use crate::support::user::User;
use crate::support::{SOON, built, wait_until};

crate::tests! {
    Source:
        the_fork_server_loads_plugins_and_keeps_one_thread_and_its_descriptors,
        a_session_begins_with_less_to_do_than_with_stock,
        a_plugin_that_is_replaced_is_used_by_the_next_session,
        requests_that_wait_while_a_plugin_is_replaced_are_repeated,
        requests_are_repeated_however_many_fork_servers_end,
        requests_wait_for_a_fork_server_that_starts_slowly,
        a_library_of_guacd_that_is_replaced_before_the_first_session_is_noticed,
        fonts_that_are_installed_are_known_to_the_next_session,
        fonts_that_change_have_the_fork_server_started_again_once,
        fonts_that_are_older_are_noticed_behind_a_link_that_is_switched,
        a_configuration_of_fonts_that_is_created_is_noticed,
        fonts_are_checked_for_sessions_whose_plugin_is_not_prepared,
        a_plugin_that_cannot_be_prepared_is_loaded_by_its_sessions,
        a_plugin_that_crashes_as_it_is_loaded_disturbs_nobody,
        a_plugin_is_tried_without_the_sockets_of_the_fork_server;
}

/// After less than this, the fork server gives up a plugin that hangs. It has 7 seconds.
const GIVEN_UP: Duration = Duration::from_secs(9);

/// A directory for plugins, which guacd searches first.
struct Plugins(TempDir);

impl Plugins {
    fn new() -> Result<Plugins> {
        Ok(Plugins(TempDir::new()?))
    }

    /// Compiles `c/prepared.c` to the plugin of a protocol, which replaces the one before.
    fn add(&self, protocol: &str, flags: &[&str]) -> Result<()> {
        let (new, file) = (self.0.path().join("new"), self.file(protocol));
        compile_plugin_to(&new, "prepared", "patched", flags)?;
        Ok(fs::rename(new, file)?)
    }

    fn file(&self, protocol: &str) -> PathBuf {
        self.0.path().join(format!("libguac-client-{protocol}.so"))
    }

    /// The shell command that comes before guacd.
    fn shell(&self) -> String {
        format!("export LD_LIBRARY_PATH={}:$LD_LIBRARY_PATH", self.0.path().display())
    }

    fn start(&self) -> Result<Guacd> {
        Guacd::start_with("patched", &self.shell(), "")
    }
}

fn fork_server(guacd: &Guacd) -> Result<i32> {
    guacd.fork_server().context("no fork server")
}

/// Whether the next session has the fork server started again, and the one after it has not.
fn expect_another_fork_server(guacd: &Guacd, protocol: &str, after: &str) -> Result<()> {
    let server = fork_server(guacd)?;
    guacd.user(protocol)?;
    ensure!(!is_alive(server), "the fork server goes on after {after}: {}", guacd.log()?);
    let server = fork_server(guacd)?;
    guacd.user(protocol)?;
    ensure!(guacd.fork_server() == Some(server), "another fork server was started: {}", guacd.log()?);
    Ok(())
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().count()
}

fn the_fork_server_loads_plugins_and_keeps_one_thread_and_its_descriptors() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let server = fork_server(&guacd)?;
    let before = descriptors(server);
    ensure!(plugins(server).is_empty(), "at its start, it has loaded {:?}", plugins(server));
    let mut expected = BTreeSet::new();
    for protocol in ["ssh", "telnet", "vnc", "kubernetes", "rdp"] {
        if !built("patched")?.join(format!("lib/libguac-client-{protocol}.so")).exists() {
            continue;
        }
        expected.insert(protocol.to_owned());
        let mut users = Vec::new();
        for _ in 0..2 {
            let mut user = guacd.user(protocol)?;
            user.handshake(&["127.0.0.1"])?;
            user.expect_id()?;
            users.push(user);
        }
        ensure!(plugins(server) == expected, "after {protocol}: {:?}", plugins(server));
        ensure!(threads(server) == 1, "after {protocol}: {} threads", threads(server));
        // A session may answer before the fork server has closed its socket.
        let is_as_before = || descriptors(server) == before;
        wait_until("it closes all descriptors", SOON, is_as_before)
            .with_context(|| format!("after {protocol}: {:?} instead of {before:?}", descriptors(server)))?;
    }
    ensure!(expected.len() > 1, "only {expected:?}");
    ensure!(guacd.fork_server() == Some(server), "another fork server was started");
    // The fork server looks for the plugin of a protocol that does not exist, too.
    let mut user = User::connect(guacd.port)?;
    user.send(&["select", "nothing"])?;
    user.expect("3.512;")?;
    guacd.expect_in_log("Support for protocol \"nothing\" is not installed")?;
    guacd.expect_in_log("Plugin not loaded: ")?;
    ensure!(threads(server) == 1, "{} threads", threads(server));
    wait_until("it closes all descriptors", SOON, || descriptors(server) == before)?;
    guacd.user("ssh")?.finish_handshake()?;
    ensure!(guacd.fork_server() == Some(server), "another fork server was started");
    Ok(())
}

/// The median of how long connection processes run until the user knows the arguments of the protocol, without the time that they
/// wait for a processor.
fn time_to_select(variant: &str) -> Result<Duration> {
    let guacd = Guacd::start(variant)?;
    let mut users = Vec::new();
    for _ in 0..15 {
        users.push(guacd.user("ssh")?);
    }
    let mut times = Vec::new();
    for pid in guacd.connections() {
        let mut time = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let schedstat = fs::read_to_string(task?.path().join("schedstat"))?;
            time += schedstat.split(' ').next().context("no time")?.parse::<u64>()?;
        }
        times.push(Duration::from_nanos(time));
    }
    times.sort();
    ensure!(times.len() == users.len(), "{} processes", times.len());
    Ok(times[times.len() / 2])
}

fn a_session_begins_with_less_to_do_than_with_stock() -> Result<()> {
    let (stock, patched) = (time_to_select("stock")?, time_to_select("patched")?);
    ensure!(3 * patched < stock, "{patched:?}, and {stock:?} with stock");
    Ok(())
}

fn a_plugin_that_is_replaced_is_used_by_the_next_session() -> Result<()> {
    let dir = Plugins::new()?;
    dir.add("prepared", &["-DPREPARE=succeed", "-DARGUMENT=\"first\""])?;
    let guacd = dir.start()?;
    let first = guacd.user("prepared")?;
    ensure!(first.names == ["first"], "{:?}", first.names);
    ensure!(guacd.user("prepared")?.names == ["first"], "another plugin");
    let server = fork_server(&guacd)?;
    ensure!(plugins(server).contains("prepared"), "{:?}", plugins(server));
    let sessions = guacd.connections();

    dir.add("prepared", &["-DPREPARE=succeed", "-DARGUMENT=\"second\""])?;
    // It is noticed whatever the protocol is that is asked for next.
    guacd.user("ssh")?.finish_handshake()?;
    let second = guacd.user("prepared")?;
    ensure!(second.names == ["second"], "{:?}", second.names);
    ensure!(!is_alive(server), "the fork server goes on");
    guacd.expect_in_log("has ended, as what it had loaded has changed. Starting another.")?;
    ensure!(sessions.iter().any(|pid| is_alive(*pid)), "the session before has ended");

    // One that is removed is gone.
    fs::remove_file(dir.file("prepared"))?;
    let mut user = User::connect(guacd.port)?;
    user.send(&["select", "prepared"])?;
    user.expect("3.512;")?;
    let log = guacd.log()?;
    ensure!(log.matches("Starting another").count() == 2 && !log.contains("by signal"), "{log}");
    drop(first);
    Ok(())
}

fn requests_that_wait_while_a_plugin_is_replaced_are_repeated() -> Result<()> {
    let dir = Plugins::new()?;
    dir.add("prepared", &["-DPREPARE=succeed"])?;
    dir.add("slow", &["-DPREPARE=succeed_slowly"])?;
    let guacd = dir.start()?;
    guacd.user("prepared")?;
    let server = fork_server(&guacd)?;
    dir.add("prepared", &["-DPREPARE=succeed"])?;
    // The fork server sees that only when it has loaded a plugin for the first of them. The next one has to load it anew.
    let mut users = Vec::new();
    for protocol in ["slow", "telnet", "prepared"] {
        let mut user = User::connect(guacd.port)?;
        user.send(&["select", protocol])?;
        users.push((protocol, user));
    }
    for (protocol, mut user) in users {
        wait_until("it is answered", 2 * SOON, || {
            let _ = user.hear();
            !user.heard.is_empty()
        })
        .context(protocol)?;
        ensure!(user.heard.starts_with("4.args,"), "{protocol}: {}, {}", user.heard, guacd.log()?);
    }
    ensure!(!is_alive(server), "the fork server goes on");
    guacd.expect_in_log("has ended, as what it had loaded has changed. Starting another.")
}

/// Has users ask for sessions at the same time, and waits until each has an answer.
fn ask_at_once(guacd: &Guacd, protocol: &str, users: usize) -> Result<()> {
    let mut waiting = Vec::new();
    for _ in 0..users {
        let mut user = User::connect(guacd.port)?;
        user.send(&["select", protocol])?;
        waiting.push(user);
    }
    for mut user in waiting {
        wait_until("it is answered", 3 * SOON, || {
            let _ = user.hear();
            !user.heard.is_empty()
        })?;
        ensure!(user.heard.starts_with("4.args,"), "{}, {}", user.heard, guacd.log()?);
    }
    Ok(())
}

fn requests_are_repeated_however_many_fork_servers_end() -> Result<()> {
    let dir = Plugins::new()?;
    dir.add("once", &["-DPREPARE=succeed_once"])?;
    ask_at_once(&dir.start()?, "once", 20)
}

fn requests_wait_for_a_fork_server_that_starts_slowly() -> Result<()> {
    let (dir, slow) = (Plugins::new()?, Preloaded::compile("slow_start")?);
    dir.add("prepared", &["-DPREPARE=succeed"])?;
    let guacd = Guacd::start_with("patched", &format!("{} && {}", slow.shell(), dir.shell()), "")?;
    guacd.user("prepared")?;
    fs::write(slow.file("slow"), "")?;
    dir.add("prepared", &["-DPREPARE=succeed"])?;
    ask_at_once(&guacd, "prepared", 3)
}

fn a_library_of_guacd_that_is_replaced_before_the_first_session_is_noticed() -> Result<()> {
    let library = Preloaded::compile("slow_start")?;
    let guacd = library.start("patched")?;
    fs::copy(library.file("slow_start.so"), library.file("new"))?;
    fs::rename(library.file("new"), library.file("slow_start.so"))?;
    expect_another_fork_server(&guacd, "ssh", "a library was replaced")
}

/// Starts guacd after a shell command, with a directory as its home and that of fontconfig's configuration. Returns the directory
/// of fonts, which is a link.
fn start_with_fonts(dir: &TempDir, shell: &str) -> Result<(Guacd, PathBuf)> {
    let (path, fonts) = (dir.path().display(), dir.path().join("fonts"));
    fs::create_dir(dir.path().join("first"))?;
    symlink("first", &fonts)?;
    let dirs = format!("<dir>/usr/share/fonts</dir><dir>{}</dir>", fonts.display());
    let includes = ["local.conf", "~/.config/fontconfig/fonts.conf"]
        .map(|name| format!("<include ignore_missing=\"yes\">{name}</include>"))
        .concat();
    let config = format!("<fontconfig>{dirs}{includes}<cachedir>{path}/cache</cachedir></fontconfig>");
    fs::write(dir.path().join("fonts.conf"), config)?;
    let variables = format!("unset FONTCONFIG_FILE && export FONTCONFIG_PATH={path} HOME={path}");
    Ok((Guacd::start_with("patched", &format!("{variables} && {shell}"), "")?, fonts))
}

fn fonts_that_change_have_the_fork_server_started_again_once() -> Result<()> {
    let dir = TempDir::new()?;
    let (guacd, fonts) = start_with_fonts(&dir, ":")?;
    guacd.user("telnet")?;
    fs::write(fonts.join("new.ttf"), "no font")?;
    fs::remove_file(fonts.join("new.ttf"))?;
    ask_at_once(&guacd, "telnet", 20)?;
    let log = guacd.log()?;
    ensure!(log.matches("Starting another").count() == 1, "{log}");
    Ok(())
}

fn fonts_that_are_installed_are_known_to_the_next_session() -> Result<()> {
    let dir = TempDir::new()?;
    let (guacd, fonts) = start_with_fonts(&dir, ":")?;
    guacd.user("ssh")?.finish_handshake()?;
    let server = fork_server(&guacd)?;
    guacd.user("telnet")?;
    ensure!(guacd.fork_server() == Some(server), "another fork server was started: {}", guacd.log()?);
    fs::write(fonts.join("new.ttf"), "no font")?;
    guacd.user("ssh")?.finish_handshake()?;
    ensure!(!is_alive(server), "the fork server goes on");
    guacd.user("ssh")?.finish_handshake()?;
    let server = fork_server(&guacd)?;
    guacd.user("ssh")?.finish_handshake()?;
    guacd.user("telnet")?;
    ensure!(guacd.fork_server() == Some(server), "another fork server was started: {}", guacd.log()?);
    // Whatever copies a directory with its times sets them back.
    fs::write(fonts.join("copied.ttf"), "no font")?;
    fs::File::open(&fonts)?.set_modified(SystemTime::now() - Duration::from_secs(3600))?;
    guacd.user("ssh")?.finish_handshake()?;
    ensure!(!is_alive(server), "the fork server goes on after a directory was copied");
    Ok(())
}

fn fonts_that_are_older_are_noticed_behind_a_link_that_is_switched() -> Result<()> {
    let dir = TempDir::new()?;
    fs::create_dir(dir.path().join("second"))?;
    let (guacd, fonts) = start_with_fonts(&dir, ":")?;
    guacd.user("telnet")?;
    symlink("second", dir.path().join("new"))?;
    fs::rename(dir.path().join("new"), fonts)?;
    expect_another_fork_server(&guacd, "telnet", "a link was switched")
}

fn a_configuration_of_fonts_that_is_created_is_noticed() -> Result<()> {
    let dir = TempDir::new()?;
    let (guacd, _) = start_with_fonts(&dir, ":")?;
    guacd.user("telnet")?;
    for name in ["local.conf", ".config/fontconfig/fonts.conf"] {
        let file = dir.path().join(name);
        fs::create_dir_all(file.parent().context("no parent")?)?;
        fs::write(file, "<fontconfig/>")?;
        expect_another_fork_server(&guacd, "telnet", name)?;
    }
    Ok(())
}

fn fonts_are_checked_for_sessions_whose_plugin_is_not_prepared() -> Result<()> {
    let (dir, plugins) = (TempDir::new()?, Plugins::new()?);
    plugins.add("none", &[])?;
    let (guacd, fonts) = start_with_fonts(&dir, &plugins.shell())?;
    guacd.user("none")?;
    guacd.user("telnet")?;
    fs::write(fonts.join("new.ttf"), "no font")?;
    expect_another_fork_server(&guacd, "none", "a font was installed")
}

fn a_plugin_that_cannot_be_prepared_is_loaded_by_its_sessions() -> Result<()> {
    let dir = Plugins::new()?;
    let ways = ["none", "fail", "crash", "hang", "start_a_thread", "succeed"];
    for way in ways {
        let flag = format!("-DPREPARE={way}");
        let flags = [flag.as_str()];
        dir.add(way, if way == "none" { &[] } else { &flags })?;
    }
    let guacd = dir.start()?;
    let server = fork_server(&guacd)?;
    for way in ways {
        for round in 1..=2 {
            let mut user = User::connect(guacd.port)?;
            user.send(&["select", way])?;
            let expected = if way == "hang" && round == 1 { GIVEN_UP } else { SOON };
            wait_until("the session answers", expected, || {
                let _ = user.hear();
                user.heard.ends_with("8.argument;")
            })
            .with_context(|| format!("{way}, session {round}: {}", user.heard))?;
        }
    }
    ensure!(plugins(server) == BTreeSet::from(["succeed".to_owned()]), "{:?}", plugins(server));
    ensure!(guacd.fork_server() == Some(server) && threads(server) == 1, "{} threads", threads(server));
    let log = guacd.log()?;
    let warnings = log.matches("ahead of its connections").count();
    ensure!(warnings == 2 && !log.contains("by signal"), "{log}");
    for (way, what) in [("crash", "failed"), ("hang", "takes too long")] {
        let words = format!("protocol \"{way}\" ahead of its connections {what}");
        ensure!(log.contains(&words), "{words} is not in {log}");
    }
    Ok(())
}

fn a_plugin_that_crashes_as_it_is_loaded_disturbs_nobody() -> Result<()> {
    let dir = Plugins::new()?;
    dir.add("crashes", &["-DCRASHES", "-DPREPARE=succeed"])?;
    let guacd = dir.start()?;
    let server = fork_server(&guacd)?;
    for _ in 0..3 {
        let mut user = User::connect(guacd.port)?;
        user.send(&["select", "crashes"])?;
        user.read_to_end(SOON)?;
        guacd.user("ssh")?.finish_handshake()?;
    }
    ensure!(guacd.fork_server() == Some(server), "another fork server was started");
    // The fork server notices the ends of processes together, a moment later.
    let crashed = || guacd.log().is_ok_and(|log| log.matches("was ended by signal 6").count() == 3);
    wait_until("three crashes are logged", SOON, crashed)?;
    let log = guacd.log()?;
    ensure!(log.matches("ahead of its connections failed").count() == 1, "{log}");
    Ok(())
}

fn a_plugin_is_tried_without_the_sockets_of_the_fork_server() -> Result<()> {
    let dir = Plugins::new()?;
    dir.add("hang", &["-DPREPARE=hang"])?;
    let guacd = dir.start()?;
    let server = fork_server(&guacd)?;
    let mut user = User::connect(guacd.port)?;
    user.send(&["select", "hang"])?;
    let tries = || children(server).into_iter().find(|pid| plugins(*pid).contains("hang"));
    wait_until("the plugin is tried", SOON, || tries().is_some())?;
    let child = tries().context("it is tried no more")?;
    // Sockets of this type are those between guacd, the fork server and connections.
    let table = fs::read_to_string("/proc/net/unix")?;
    let of_guacd = |name: &String| {
        let inode = name.trim_start_matches("socket:[").trim_end_matches(']');
        table.lines().any(|line| {
            line.split_whitespace().nth(4) == Some("0005") && line.split_whitespace().nth(6) == Some(inode)
        })
    };
    let sockets = |pid| descriptors(pid).into_iter().filter(of_guacd).count();
    ensure!(sockets(server) == 2, "the fork server has {:?}", descriptors(server));
    ensure!(sockets(child) == 0, "its child has {:?}", descriptors(child));
    Ok(())
}
