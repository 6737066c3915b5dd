//! The daemon under test: started from an installation prefix on a loopback port, read, measured, and ended.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::Pid;

use super::{
    cores::Cores,
    keys::KeyLimit,
    log::{LogBook, Reader},
    preload, processes,
};
use crate::{preflight::Preflight, report::Keys};

/// How long guacd may take to listen, and how long to end by itself.
const START: Duration = Duration::from_secs(10);
const END: Duration = Duration::from_secs(2);

/// How often to try another free port, when another process took the one that was free a moment ago.
const TRIES: u32 = 5;

/// A guacd that runs. It and all its children end when this is dropped.
pub struct Guacd {
    child: Child,
    address: SocketAddr,
    log: Reader,
    log_file: PathBuf,
    keys: Option<KeyLimit>,
    libraries: Libraries,
    spared: Vec<Pid>,
}

/// How guacd is to be started.
pub struct Start<'a> {
    /// The installation prefix.
    pub prefix: &'a Path,
    /// The port, or any free one.
    pub port: Option<u16>,
    /// What the name of its log file begins with.
    pub name: &'a str,
    /// The directory for its log file, which stays.
    pub logs: &'a Path,
    /// A directory for temporary files.
    pub scratch: &'a Path,
    /// A library to preload.
    pub preload: Option<&'a Path>,
    /// The library that limits keys, and how many it is to allow.
    pub key_limit: Option<(&'a Path, u32)>,
    /// The library that has guacd see another number of processors, and how many.
    pub pretend_cores: Option<(&'a Path, u32)>,
    /// The processors that it may use, unless all.
    pub cores: Option<&'a Cores>,
    /// Children of this process that are not guacd's.
    pub spared: Vec<Pid>,
}

impl Guacd {
    /// Starts guacd, and waits until it listens. Call it from the main thread: guacd dies with the thread that started it.
    ///
    /// # Errors
    ///
    /// When it is not there, does not start, cannot have the port, or runs without a library that it was to have.
    pub fn start(start: &Start<'_>) -> Result<Self> {
        let program = start.prefix.join("sbin/guacd");
        if !program.is_file() {
            bail!(Preflight(format!(
                "there is no {}: give --prefix the directory that guacd was installed to with `make install`",
                program.display()
            )));
        }
        let libraries = Libraries::find(start)?;
        let log_file = log_file(start)?;
        let mut tries = 0;
        loop {
            tries += 1;
            let port = start.port.map_or_else(free_port, Ok)?;
            let mut guacd = Self::spawn(start, &program, &libraries, &log_file, port)?;
            let Some(end) = guacd.wait_until_it_listens()? else {
                guacd.check_libraries()?;
                return Ok(guacd);
            };
            let lines = guacd.log.book.last_lines();
            let taken = lines.iter().any(|line| line.contains("bind socket") || line.contains("not listen"));
            match start.port {
                Some(_) if taken => bail!(
                    "guacd cannot listen on 127.0.0.1:{port}, as another process does already: find it with \
                     `ss -ltnp 'sport = :{port}'` and stop it, or leave --port out"
                ),
                None if taken && tries < TRIES => {}
                _ => bail!("guacd {end} at its start; its last lines: {}", lines.join(" | ")),
            }
        }
    }

    fn spawn(
        start: &Start<'_>,
        program: &Path,
        libraries: &Libraries,
        log_file: &Path,
        port: u16,
    ) -> Result<Self> {
        let copy = fs_err::File::create(log_file)?.into_file();
        let (log, log_end) = Reader::start(copy)?;

        let mut command = Command::new(program);
        command.args(["-b", "127.0.0.1", "-l", &port.to_string(), "-f", "-L", "info"]);
        command.env("LD_LIBRARY_PATH", library_path(start.prefix));
        // A patched guacd shows its memory and descriptors to root alone otherwise.
        command.env("GUACD_DUMPABLE", "1");
        // In the locale "C", wcwidth() knows no wide characters, and guacd's terminal has none.
        if ["LC_ALL", "LC_CTYPE", "LANG"].iter().all(|name| std::env::var_os(name).is_none()) {
            command.env("LC_ALL", "C.UTF-8");
        }
        command.stdin(Stdio::null()).stdout(log_end.try_clone()?).stderr(log_end);
        let preloaded = libraries.in_order();
        if !preloaded.is_empty() {
            let others = std::env::var_os("LD_PRELOAD").unwrap_or_default();
            command.env("LD_PRELOAD", preload::list(&preloaded, others));
        }
        let limit = start.key_limit.map(|(_, limit)| KeyLimit::apply(&mut command, limit, start.scratch));
        let keys = limit.transpose()?;
        if let Some((_, cores)) = start.pretend_cores {
            command.env("PRETEND_CORES", cores.to_string());
        }
        let mut spawn = || processes::spawn_tied(&mut command);
        let child = match start.cores {
            Some(cores) => cores.on_guacds(spawn)?,
            None => spawn(),
        };
        let child = child.with_context(|| format!("start {}", program.display()))?;
        log.book.set_parent(processes::pid_of(&child).as_raw_pid());
        Ok(Self {
            child,
            address: (Ipv4Addr::LOCALHOST, port).into(),
            log,
            log_file: log_file.into(),
            keys,
            libraries: libraries.clone(),
            spared: start.spared.clone(),
        })
    }

    /// Waits until guacd listens. Returns how it ended, if it did.
    fn wait_until_it_listens(&mut self) -> Result<Option<String>> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(end) = self.ended() {
                self.log.finish();
                return Ok(Some(end));
            }
            // guacd logs that it listens a moment before it does. Another program could answer on the port, but would not log it.
            if self.log.book.is_listening() && TcpStream::connect(self.address).is_ok() {
                return Ok(None);
            }
            if Instant::now() > deadline {
                bail!(
                    "guacd does not listen on {} after {START:?}: see {}",
                    self.address,
                    self.log_file.display()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// A limit that is not in force would look like one that was not reached; stock would look like stock with the library.
    fn check_libraries(&self) -> Result<()> {
        let missing = if !self.keys.as_ref().is_none_or(KeyLimit::is_applied) {
            "the limit on its pthread keys"
        } else if !self.is_loaded(self.libraries.preload.as_deref()) {
            "the library of --preload"
        } else if !self.is_loaded(self.libraries.pretend_cores.as_deref()) {
            "the library of --pretend-cores"
        } else {
            return Ok(());
        };
        bail!(Preflight(format!(
            "guacd runs without {missing}, because the library was not loaded: {} has the loader's message. \
             The library was probably built for another libc or another processor than guacd, or guacd is linked \
             statically, has file capabilities, or is a script that clears its environment",
            self.log_file.display()
        )))
    }

    fn is_loaded(&self, library: Option<&Path>) -> bool {
        library.is_none_or(|library| preload::is_loaded(self.pid(), library))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its parent process.
    pub fn pid(&self) -> Pid {
        processes::pid_of(&self.child)
    }

    /// Its log.
    pub fn log(&self) -> Arc<LogBook> {
        Arc::clone(&self.log.book)
    }

    /// The file with all that it wrote.
    pub fn log_file(&self) -> &Path {
        &self.log_file
    }

    /// The pthread keys that it took, where they are limited.
    pub fn keys(&self) -> Option<Keys> {
        self.keys.as_ref().map(KeyLimit::keys)
    }

    /// The library that was preloaded into it, besides the one that limits its keys.
    pub fn preload(&self) -> Option<&Path> {
        self.libraries.preload.as_deref()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(describe)
    }

    /// Ends it and all its children, and waits for the last of its log.
    pub fn stop(&mut self) {
        processes::terminate(&mut self.child, END);
        // guacd's children outlive it when they hang. They have become ours.
        processes::kill_children(&self.spared);
        self.log.finish();
    }
}

impl Drop for Guacd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The full paths of the libraries that are preloaded into guacd.
#[derive(Clone)]
struct Libraries {
    preload: Option<PathBuf>,
    key_limit: Option<PathBuf>,
    pretend_cores: Option<PathBuf>,
}

impl Libraries {
    fn find(start: &Start<'_>) -> Result<Self> {
        let find = |library: Option<&Path>, flag, build| {
            library.map(|library| preload::find(library, flag, build)).transpose()
        };
        let key_limit = start.key_limit.map(|(library, _)| library);
        let pretend_cores = start.pretend_cores.map(|(library, _)| library);
        Ok(Self {
            preload: find(start.preload, "--preload", "cargo xtask preload")?,
            key_limit: find(key_limit, "--key-limit-library", "cargo build --package key-limit")?,
            pretend_cores: find(
                pretend_cores,
                "--pretend-cores-library",
                "cargo build --package pretend-cores",
            )?,
        })
    }

    /// In the order in which the loader looks for functions. The limit is on the keys that libc is asked for: by guacd, or by what
    /// is preloaded into it.
    fn in_order(&self) -> Vec<&Path> {
        [&self.preload, &self.key_limit, &self.pretend_cores]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect()
    }
}

/// A new log file for each run.
fn log_file(start: &Start<'_>) -> Result<PathBuf> {
    fs_err::create_dir_all(start.logs)?;
    let name = start.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let file =
        tempfile::Builder::new().prefix(&format!("guacd-{name}-")).suffix(".log").tempfile_in(start.logs);
    let (_, path) = file
        .and_then(|file| Ok(file.keep()?))
        .with_context(|| format!("create a log in {}", start.logs.display()))?;
    Ok(path)
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("ended with exit code {}", status.code().unwrap_or_default()),
    }
}

/// A port of the loopback interface that is free now.
///
/// # Errors
///
/// When there is none.
pub fn free_port() -> Result<u16> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port on 127.0.0.1")?;
    Ok(socket.local_addr()?.port())
}

/// The prefix's libraries first, so that guacd finds its own plugins.
fn library_path(prefix: &Path) -> OsString {
    let ours = ["lib", "lib64"].map(|lib| prefix.join(lib)).into_iter().filter(|lib| lib.is_dir());
    let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let inherited =
        std::env::split_paths(&inherited).filter(|path| !path.as_os_str().is_empty()).collect::<Vec<_>>();
    std::env::join_paths(ours.chain(inherited)).unwrap_or_else(|_| prefix.join("lib").into())
}
