//! The command line of `cargo xtask`, all of it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use toolkit::build::guacd;
use toolkit::source::fetch::Access;
use toolkit::source::release;

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 usage; 3 a tool, a library or the source is missing; 4 a patch does \
    not apply; 5 a stress run or a benchmark missed its threshold, or two builds differ; 130 interrupted.";

/// What `cargo xtask` is asked to do.
#[derive(Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    version,
    about = "Builds a guacd whose sessions are limited by the machine and not by libc, and proves it",
    after_help = EXIT_CODES
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    Fetch(Fetch),
    Build(Build),
    Stress(Box<Stress>),
    Bench(Bench),
    Preload(Preload),
    Image(Image),
    Package(Package),
    Nix(Nix),
    Reproduce(Reproduce),
    Doctor(Doctor),
    Test(Test),
    Prove(Prove),
}

/// Fetch a release's source, check it against its pin, and keep it in the user's cache.
///
/// Without --from the release's origins are tried one after another: the Apache archive, the Apache downloads, the
/// archive of the tag on GitHub. What is in the cache already is not fetched again. The cache is below
/// $XDG_CACHE_HOME/guacd-uncapped, or ~/.cache/guacd-uncapped.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Fetch {
    #[command(flatten)]
    pub release: Release,

    #[command(flatten)]
    pub source: Source,
}

/// Fetch, patch, configure and make guacd, and install it into a prefix.
///
/// A step whose inputs have not changed is skipped, and the prefix appears whole or not at all. Beside it,
/// PREFIX.manifest.json leads to the list of what it was made from. guacd finds its protocol plugins through the library path:
/// LD_LIBRARY_PATH=PREFIX/lib PREFIX/sbin/guacd -f
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Build {
    #[command(flatten)]
    pub release: Release,

    /// Which guacd to build.
    #[arg(long, value_enum, default_value_t = Variant::Patched)]
    pub variant: Variant,

    /// Where to install guacd [default: target/guacd/RELEASE/VARIANT/prefix].
    #[arg(long, value_name = "DIR")]
    pub prefix: Option<PathBuf>,

    /// How many compilers to run at once [default: one per core].
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<std::num::NonZero<usize>>,

    #[command(flatten)]
    pub setup: Setup,

    /// Further arguments for upstream's configure, after `--`.
    #[arg(last = true, value_name = "CONFIGURE_ARGS")]
    pub configure_args: Vec<String>,
}

/// Hold real sessions through guacd, and count those that prove themselves alive.
///
/// Builds what is missing, starts guacd on a free loopback port, opens the sessions, holds them open together, and then
/// types a fresh random word into each of them. A session counts if its word comes back. --scenario does worse things to
/// guacd than to hold sessions. Nothing that was started is left running.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Stress {
    #[command(flatten)]
    pub release: Release,

    /// Which guacd to load; more than one are loaded one after the other.
    #[arg(long, value_enum, default_value_t = Variants::Patched, conflicts_with = "guacd")]
    pub variant: Variants,

    #[command(flatten)]
    pub load: guac_stress::flags::Load,

    /// Start guacd with the library of `cargo xtask preload`, which is built first. It goes before that of --key-limit,
    /// whose limit is on libc's keys: so `--variant stock --preload --key-limit 128` shows what it does for a guacd as it
    /// is on musl.
    #[arg(long, conflicts_with = "guacd")]
    pub preload: bool,

    /// Build a guacd with AddressSanitizer and UndefinedBehaviorSanitizer, and load that: whatever they find ends the
    /// process in which they find it. Meant for `--scenario fuzz`, which counts that. It is slower, and takes four times the
    /// memory.
    #[arg(long, conflicts_with_all = ["guacd", "preload", "key_limit"])]
    pub sanitize: bool,

    #[command(flatten)]
    pub setup: Setup,
}

/// Build a library that lifts the cap on pthread keys for a guacd that cannot be rebuilt: one from a package, or in an
/// image.
///
/// Prints the path of the library, and how to use it: guacd is started with the environment variable LD_PRELOAD set to
/// that path, and the library then keeps all pthread keys of its processes, a million at once. The same file serves glibc
/// and musl, so it may be built elsewhere than where guacd runs, on a processor of the same kind. To build it takes Rust
/// and a C compiler, and nothing of guacd. If the loader cannot load the file, guacd runs without it, so look whether it
/// is there. For programs that are setuid or linked statically, the variable has no effect.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Preload {
    /// The directory to put the library into [default: target/preload].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Do not touch the network.
    #[arg(long)]
    pub offline: bool,
}

/// Measure thread-local storage: tls-rs, pthread keys, `__thread`, and two other designs.
///
/// The other designs are an array per thread behind one mutex (upstream's PR #614), and 16 lock slots per thread
/// (GUACAMOLE-1998, for locks only). All designs are measured in turn, in rounds, in shared libraries, as libguac calls them.
/// Stock and patched guacd are built, and the locks and errors of both libguacs are measured. The table has ratios to pthread
/// keys: medians, with quartiles in brackets. A case meets its limit if the whole confidence interval of its median does, and
/// misses it if none of the interval does. All other cases get more rounds, up to 128. The chance of a wrong verdict is 5 %
/// for all cases together.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Bench {
    #[command(flatten)]
    pub release: Release,

    /// Exit with 5 if a figure misses its limit, or if 128 rounds do not show that it meets the limit.
    #[arg(long)]
    pub check: bool,

    /// The design whose figures are compared with the limits. The array behind a mutex misses nearly all.
    #[arg(long, value_enum, default_value_t = Judged::TlsRs)]
    pub judge: Judged,

    /// Run for a short time, only to see that everything works.
    #[arg(long)]
    pub quick: bool,

    /// Measure no libguac, so that guacd need not be built.
    #[arg(long)]
    pub keys_only: bool,

    /// Write every figure to a file as JSON, as bench/schema/report.v2.json describes it.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Draw the ratios to a file, as SVG.
    #[arg(long, value_name = "FILE")]
    pub chart: Option<PathBuf>,

    #[command(flatten)]
    pub setup: Setup,
}

/// Build the container image with Docker, and check it.
///
/// The image has the interface of the official guacamole/guacd and can stand in its place. Nothing but the base image and
/// packages come from the network: the source is put into source/, from where the Dockerfile takes it.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Image {
    #[command(flatten)]
    pub release: Release,

    #[command(flatten)]
    pub source: Source,

    /// The name of the image [default: guacd-uncapped:RELEASE].
    #[arg(long, value_name = "NAME")]
    pub tag: Option<String>,

    /// An image to build on, in place of the Dockerfile's: Debian 13 too, such as debian@sha256:... or a mirror's.
    #[arg(long, value_name = "IMAGE")]
    pub base: Option<String>,

    /// The network of the build, as for `docker build --network`.
    #[arg(long, value_name = "MODE")]
    pub network: Option<String>,

    /// Check the image afterwards, with a read-only root and no capabilities: that all five protocols answer, that its
    /// health check notices a guacd that hangs, and that it stops within 5 s while 100 sessions are open.
    #[arg(long)]
    pub check: bool,

    /// Hold this many sessions through a container of the image afterwards.
    #[arg(long, value_name = "SESSIONS", value_parser = clap::value_parser!(u32).range(1..=i64::from(guac_stress::flags::MOST_SESSIONS)))]
    pub stress: Option<u32>,

    /// Give guacd in that container this many pthread keys per process, where 128 stands in for musl. The run fails if the
    /// limit was not in force.
    #[arg(long, value_name = "KEYS", requires = "stress", value_parser = clap::value_parser!(u32).range(1..))]
    pub key_limit: Option<u32>,

    /// Build the image a second time, without anything from the first, and compare the two file by file: names, contents,
    /// permissions and owners, and what a container of it is started with. Of files, the times may differ.
    #[arg(long, requires = "own_daemon")]
    pub rebuild: bool,

    /// Start a Docker daemon for this run alone, and make the base image from Debian's packages. As root, where docker.io and
    /// mmdebstrap are installed. The image goes with the daemon: this is for checking.
    #[arg(long, conflicts_with_all = ["base", "network"])]
    pub own_daemon: bool,

    /// Print what was built, and which checks it passed, as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Make a tarball that runs from any directory, and a Debian package with a systemd unit.
///
/// Both are for the distribution on which they are made, whose libraries they need. dpkg-dev and patchelf make them. The
/// same source gives the same bytes: their times are SOURCE_DATE_EPOCH, or that of the source.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Package {
    #[command(flatten)]
    pub release: Release,

    #[command(flatten)]
    pub setup: Setup,

    /// Where to put them [default: target/guacd/packages].
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,

    /// Make them in a root of this release of Debian, with its own compilers, and so for it: trixie, or newer. (Rust is too
    /// old in the ones before, which have to be running.) As root, with mmdebstrap.
    #[arg(long, value_name = "CODENAME")]
    pub suite: Option<String>,

    /// Install them in a root that has nothing else, ask what runs there for every protocol, move the tarball's, and remove
    /// them again. As root, with mmdebstrap.
    #[arg(long)]
    pub check: bool,

    /// Print what was made, as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Build an output of the flake with Nix, and print its store path.
///
/// Nix takes the files that git knows of. The log, and the link that keeps the result from being collected, are
/// below target/guacd/nix.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Nix {
    /// The output: `default`, `keys`, `stock`, `guacd-1_6_0` and so on, `tls-rs`, `guac-stress`.
    #[arg(default_value = "default")]
    pub output: String,

    /// Also run `nix flake check`, which evaluates every output, runs upstream's tests and a short stress run; and build
    /// the output a second time, which fails unless it comes out bit by bit the same.
    #[arg(long)]
    pub check: bool,

    /// Then hold this many sessions through the guacd that was built.
    #[arg(long, value_name = "SESSIONS", value_parser = clap::value_parser!(u32).range(1..=i64::from(guac_stress::flags::MOST_SESSIONS)))]
    pub stress: Option<u32>,

    /// Build with this machine's own compilers and libraries in place of nixpkgs', in Nix's sandbox, without a network
    /// once the source and the crates are there.
    ///
    /// For where nixpkgs cannot be had: it shows that the flake evaluates and builds, and that builds are
    /// reproducible. The store is below target/guacd/nix-stand-in; the machine's own is not touched.
    #[arg(long)]
    pub stand_in: bool,

    #[command(flatten)]
    pub setup: Setup,
}

/// Build guacd twice under conditions that should not matter, and compare what is installed, byte by byte.
///
/// The builds differ in their directory, number of compilers, umask, time zone, locale, home and user; in the time, with
/// faketime; and in the order that directories list their files in, with disorderfs. Names, contents, permissions, owners and
/// links are compared, and nothing is left out; only the times of files are not. Diffoscope, if it is there, explains a
/// difference; else the section and the bytes are named.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Reproduce {
    #[command(flatten)]
    pub release: Release,

    /// `patched`, or `stock`: the release as it is.
    #[arg(long, value_enum, default_value_t = Variant::Patched)]
    pub variant: Variant,

    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub setup: Setup,

    /// Further arguments for upstream's configure, after `--`.
    #[arg(last = true, value_name = "CONFIGURE_ARGS")]
    pub configure_args: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Judged {
    /// tls-rs.
    TlsRs,
    /// An array per thread behind one mutex.
    MutexArray,
}

impl Judged {
    /// The design's name in the benchmark.
    pub fn name(self) -> &'static str {
        match self {
            Judged::TlsRs => "tls_rs",
            Judged::MutexArray => "mutex_array",
        }
    }
}

/// Say which tools and libraries are there, what each is for, and the command that installs what is missing.
///
/// Exits with 3 if something is missing without which guacd cannot be built.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Doctor {
    /// Install what guacd is missing, optional protocols included (Debian and Ubuntu; as root, or through sudo).
    #[arg(long)]
    pub install: bool,

    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Run every check of the project: format, lints, unit tests, C tests, and the integration tests.
///
/// The integration tests build stock and patched guacd and hold 300 sessions. Those that need upstream's source are
/// skipped, in one loud line, where it can neither be found in the cache nor fetched. With --install they get an OpenSSH
/// server, too, which Debian's package starts: do that in a container or a virtual machine.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Test {
    #[command(flatten)]
    pub release: Release,

    #[command(flatten)]
    pub setup: Setup,

    /// Only the quick checks: nothing that builds or runs a guacd.
    #[arg(long)]
    pub quick: bool,
}

/// Check tls-rs with tools that find errors which tests miss: loom, valgrind, a fuzzer, sanitizers, and Miri.
///
/// Each check also runs on copies of the code with a bug in them, those of tls-rs/bugs, and fails if it does not report the
/// bug. A check whose tools are not installed is skipped, in a line with the command that installs them. If the check was
/// named on the command line, the exit code is 3 instead. Logs are in target/prove.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Prove {
    /// The checks to run [default: all].
    #[arg(value_enum, value_name = "CHECK")]
    pub checks: Vec<Check>,

    /// How long the fuzzer runs, as `90s` or `2h`.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub fuzz_time: std::time::Duration,

    /// How many thread schedules Miri tries.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub seeds: u32,

    /// Print the results as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A check of tls-rs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// Every interleaving of small programs on the registry.
    Loom,
    /// The C tests under memcheck: no error, no leak.
    Valgrind,
    /// Programs that libFuzzer writes, compared with the model. Needs a C++ compiler.
    Fuzz,
    /// AddressSanitizer: unit tests, model and C tests. Needs a nightly Rust with rust-src.
    Address,
    /// ThreadSanitizer: unit tests and C tests. Needs a nightly Rust with rust-src.
    Thread,
    /// The unit tests under Miri: strict provenance, many schedules. Needs a nightly Rust with miri and rust-src.
    Miri,
}

#[derive(Args)]
pub struct Release {
    /// Which guacamole-server release, of those that upstream.toml pins [default: the newest supported one].
    #[arg(long, value_name = "RELEASE", env = "GUACD_RELEASE", hide_env_values = true)]
    pub release: Option<String>,
}

impl Release {
    /// Looks it up in upstream.toml.
    pub fn load(&self) -> anyhow::Result<release::Release> {
        release::Release::load(self.release.as_deref())
    }
}

#[derive(Args)]
pub struct Source {
    /// Take the source from here: a URL, a tarball, an unpacked tree, or a git clone (bare or not).
    #[arg(long, value_name = "URL|TARBALL|DIRECTORY|GIT")]
    pub from: Option<String>,

    /// Do not touch the network.
    #[arg(long)]
    pub offline: bool,
}

impl Source {
    /// As the toolkit has it.
    pub fn access(&self) -> Access {
        Access { from: self.from.clone(), offline: self.offline }
    }
}

/// What a command may do to get what it needs.
#[derive(Args)]
pub struct Setup {
    #[command(flatten)]
    pub source: Source,

    /// Install the tools and libraries that are missing first (Debian and Ubuntu; as root, or through sudo).
    #[arg(long)]
    pub install: bool,
}

impl Setup {
    /// As the toolkit has it.
    pub fn options(&self) -> guacd::Setup {
        guacd::Setup { source: self.source.access(), install: self.install }
    }
}

/// A guacd as upstream made it, or with our patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// With all patches.
    Patched,
    /// With the patches of the group `keys` alone: no limit of keys, but every other one.
    Keys,
    /// As upstream made it.
    Stock,
}

impl Variant {
    /// What the toolkit calls it.
    pub fn of(self) -> guacd::Variant {
        match self {
            Variant::Patched => guacd::Variant::Patched,
            Variant::Keys => guacd::Variant::Keys,
            Variant::Stock => guacd::Variant::Stock,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Variants {
    /// With all patches.
    Patched,
    /// With the patches of the group `keys` alone.
    Keys,
    /// As upstream made it.
    Stock,
    /// `stock`, and then `patched`.
    Both,
    /// `stock`, then `keys`, and then `patched`.
    All,
}

impl Variants {
    pub fn list(self) -> &'static [guacd::Variant] {
        use guacd::Variant;
        match self {
            Variants::Patched => &[Variant::Patched],
            Variants::Keys => &[Variant::Keys],
            Variants::Stock => &[Variant::Stock],
            Variants::Both => &[Variant::Stock, Variant::Patched],
            Variants::All => &[Variant::Stock, Variant::Keys, Variant::Patched],
        }
    }
}
