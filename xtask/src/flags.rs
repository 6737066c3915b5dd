//! The command line of `cargo xtask`: every command and every flag.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use guac_stress::cli::ScenarioFlags;
use guac_stress::values::MAX_SESSIONS;
use toolkit::build::guacd;
use toolkit::host::features::{FEATURES, Feature};
use toolkit::source::fetch::Access;
use toolkit::source::release;

/// The last line of every help text.
macro_rules! exit_codes {
    () => {
        "Exit codes: 0 done; 1 failed; 2 usage; 3 a tool, a library or the source is missing; 4 a patch does not apply; 5 a \
         stress run or a benchmark missed its threshold, or two builds differ; 130 interrupted."
    };
}

/// The examples of a command, and the exit codes.
macro_rules! examples {
    ($($example:literal),+) => {
        concat!("Examples:\n", $("  ", $example, "\n",)+ "\n", exit_codes!())
    };
}

const EXIT_CODES: &str = exit_codes!();

/// The command line.
#[derive(Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    version,
    about = "Builds a guacd whose sessions are limited by the machine and not by libc, and tests it under load",
    after_help = EXIT_CODES
)]
pub struct Cli {
    /// Only parse the command line. The tests of the documentation use it.
    #[arg(long, hide = true)]
    pub parse_only: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    Fetch(Fetch),
    Build(Build),
    /// Hold real sessions through guacd, and count those that prove themselves alive
    ///
    /// Builds what is missing, starts guacd on a free loopback port, opens the sessions, holds them open together, and then
    /// types a fresh random word into each of them. A session counts only when its word comes back. Nothing that was started
    /// is left running. Without a subcommand, this is the scenario `hold`; `cargo xtask stress help SCENARIO` explains another.
    #[command(after_help = ScenarioFlags::<Stress>::after_help())]
    Stress(Box<ScenarioFlags<Stress>>),
    Bench(Bench),
    Preload(Preload),
    Image(Image),
    Package(Package),
    Nix(Nix),
    Patch(Patch),
    Follow(Follow),
    Matrix(Matrix),
    Reproduce(Reproduce),
    Doctor(Doctor),
    Test(Test),
    Prove(Prove),
}

/// Fetch a release's source, check it against its pin, and keep it in the cache.
///
/// Without --from, the release's origins in upstream.toml are tried in order. A source that is in the cache is not fetched
/// again. The cache is $XDG_CACHE_HOME/guacd-uncapped, or ~/.cache/guacd-uncapped. HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and
/// NO_PROXY apply. Prints the path of the source's archive.
///
/// --list and --prune fetch nothing: they show what is in the cache, for all releases, and remove what no release can use.
#[derive(Args)]
#[command(after_help = examples!(
    "cargo xtask fetch",
    "cargo xtask fetch --from ~/Downloads/guacamole-server.tar.gz",
    "cargo xtask fetch --keyring ~/Downloads/KEYS",
    "cargo xtask fetch --list",
    "cargo xtask fetch --prune --dry-run"
))]
pub struct Fetch {
    #[command(flatten)]
    pub release: Release,

    #[command(flatten)]
    pub source: Source,

    /// Check that a key in FILE has signed the tarball, before it enters the cache. FILE is a key ring of GnuPG, or Apache's
    /// KEYS. The signature comes from the `signature` of the origin in upstream.toml; with --from, from the tarball's name with
    /// `.asc` after it. Keys that have expired or were revoked are refused. Needs gpgv.
    #[arg(long, value_name = "FILE", conflicts_with = "cache")]
    pub keyring: Option<PathBuf>,

    /// List what is in the cache: how and when it came, its size, and whether it still matches its pin.
    #[arg(long, group = "cache", conflicts_with_all = ["from", "offline"])]
    pub list: bool,

    /// Remove from the cache what no release in upstream.toml has for a pin, what is damaged, and what was left by a fetch that
    /// was killed. Other checkouts of yours share the cache, and may have to fetch theirs again.
    #[arg(long, group = "cache", conflicts_with_all = ["from", "offline"])]
    pub prune: bool,

    /// With --prune, only say what would be removed.
    #[arg(long, requires = "prune")]
    pub dry_run: bool,

    /// With --list or --prune, print JSON.
    #[arg(long, requires = "cache")]
    pub json: bool,
}

/// Build guacd and install it into a prefix: fetch, patch, configure, make, install.
///
/// A step is skipped if its inputs have not changed. The prefix appears whole or not at all, and PREFIX.manifest.json lists
/// what it was made from. Prints the path of the prefix. guacd finds its protocol plugins through the library path:
/// LD_LIBRARY_PATH=PREFIX/lib PREFIX/sbin/guacd -f
#[derive(Args)]
#[command(after_help = examples!(
    "cargo xtask build --install",
    "cargo xtask build --variant stock --prefix /opt/guacd -- --without-rdp"
))]
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
    pub required: Required,

    #[command(flatten)]
    pub setup: Setup,

    /// Further arguments for upstream's configure, after `--`.
    #[arg(last = true, value_name = "CONFIGURE_ARGS")]
    pub configure_args: Vec<String>,
}

/// What `stress` adds to the flags of each scenario.
#[derive(Args)]
pub struct Stress {
    #[command(flatten)]
    pub release: Release,

    /// Which guacd to load; several are loaded one after another.
    #[arg(long, value_enum, default_value_t = Variants::Patched, conflicts_with = "guacd")]
    pub variant: Variants,

    /// Build the library of `cargo xtask preload`, and start guacd with it. It comes before the library of --key-limit, so
    /// `--variant stock --preload --key-limit 128` shows what it does for a stock guacd on musl.
    #[arg(long, conflicts_with = "guacd")]
    pub preload: bool,

    /// Build guacd with AddressSanitizer and UndefinedBehaviorSanitizer, and load it. A process in which they find an error
    /// ends, and `fuzz` counts that as a crash. Such a guacd is slower, and needs four times the memory.
    #[arg(long, conflicts_with_all = ["guacd", "preload", "key_limit"])]
    pub sanitize: bool,

    #[command(flatten)]
    pub setup: Setup,
}

impl guac_stress::cli::Program for Stress {
    const EXIT_CODES: &str = "4 a patch does not apply; ";

    fn example(scenario: &str, flags: &str) -> String {
        format!("cargo xtask stress {scenario} {flags}")
    }
}

/// Build a library that removes the limit on pthread keys from a guacd that you cannot rebuild.
///
/// Prints the library's path. Start guacd with the environment variable LD_PRELOAD set to it: each process of guacd can then
/// have a million keys. The same file works with glibc and musl, so it may be built on another machine with the same kind of
/// processor. The build needs Rust and a C compiler, and not guacd's libraries. If the loader cannot load the file, guacd runs
/// without it: check /proc/PID/maps. The variable has no effect on programs that are setuid or linked statically.
#[derive(Args)]
#[command(after_help = examples!("cargo xtask preload", "cargo xtask preload --out /usr/local/lib"))]
pub struct Preload {
    /// The directory to put the library into [default: target/preload].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Do not use the network.
    #[arg(long)]
    pub offline: bool,
}

/// Measure thread-local storage: tls-rs, pthread keys, `__thread`, and two other designs.
///
/// The other designs are an array per thread behind one mutex (upstream's PR #614), and 16 lock slots per thread
/// (GUACAMOLE-1998, for locks only). All designs are measured in turn, in rounds, in shared libraries, as libguac calls them.
/// Stock and patched guacd are built, and the locks and errors of both libguacs are measured. The table has ratios to pthread
/// keys: medians, with quartiles in brackets. A case meets its limit if the whole confidence interval of its median does, and
/// misses it if no part of the interval does. All other cases get more rounds, up to 128. The chance of any wrong verdict in a
/// run is at most 5 %.
///
/// The limits on times were measured on AMD's family 25. On other processors, a time beyond its limit is not judged. The
/// instructions and loads that each call of tls-rs executes are counted, too, and compared with budgets that are the same on
/// each processor with x86_64. The report says so if they cannot be counted.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Bench {
    #[command(flatten)]
    pub release: Release,

    /// Exit with 5 if a figure misses its limit, or if 128 rounds do not show that it meets its limit. Limits that the report
    /// calls "not judged" do not count.
    #[arg(long)]
    pub check: bool,

    /// The design whose figures are compared with the limits. The array behind a mutex misses nearly all.
    #[arg(long, value_enum, default_value_t = Judged::TlsRs)]
    pub judge: Judged,

    /// Run for a short time, to see that everything works. The figures are not reliable.
    #[arg(long)]
    pub quick: bool,

    /// Measure no libguac, so that guacd need not be built.
    #[arg(long)]
    pub keys_only: bool,

    /// Write every figure to a file as JSON. bench/schema/report.v2.json describes it.
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
/// The image can take the place of the official guacamole/guacd. The release's source is put into source/ first, so only the
/// base image, Debian's packages and the crates come from the network. Prints the image's name.
#[derive(Args)]
#[command(after_help = examples!(
    "cargo xtask image --check",
    "cargo xtask image --tag registry.example.org/guacd:latest --stress 300 --key-limit 128"
))]
pub struct Image {
    #[command(flatten)]
    pub release: Release,

    #[command(flatten)]
    pub source: Source,

    /// The name of the image [default: guacd-uncapped:RELEASE].
    #[arg(long, value_name = "NAME")]
    pub tag: Option<String>,

    /// The image to build on, such as debian@sha256:... It has to be Debian 13 [default: debian:trixie-slim].
    #[arg(long, value_name = "IMAGE")]
    pub base: Option<String>,

    /// The network of the build, as for `docker build --network`.
    #[arg(long, value_name = "MODE")]
    pub network: Option<String>,

    /// Check the image in containers with a read-only root and no capabilities: guacd answers for all five protocols, the
    /// health check notices a guacd that hangs, and guacd stops within 5 s while 100 sessions are open.
    #[arg(long)]
    pub check: bool,

    /// Hold this many sessions through a container of the image.
    #[arg(long, value_name = "SESSIONS", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SESSIONS)))]
    pub stress: Option<u32>,

    /// Limit each process of guacd in that container to this many pthread keys. (musl's limit is 128.) The run fails if the
    /// limit does not apply.
    #[arg(long, value_name = "KEYS", requires = "stress", value_parser = clap::value_parser!(u32).range(1..))]
    pub key_limit: Option<u32>,

    /// Build the image a second time, without the caches of the first build, and compare the two: names, contents, permissions
    /// and owners of files, and the container's configuration. Only the times of files may differ.
    #[arg(long, requires = "own_daemon")]
    pub rebuild: bool,

    /// Start a Docker daemon for this run alone, and make the base image from Debian's packages. The image is removed together
    /// with the daemon. Needs root, docker.io and mmdebstrap.
    #[arg(long, conflicts_with_all = ["base", "network"])]
    pub own_daemon: bool,

    /// Print the image and the checks that it passed as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Make a tarball that runs from any directory, and a Debian package with a systemd unit.
///
/// Both are for the distribution on which they are made, and need its libraries. The same source gives the same bytes, in any
/// form of it: all files have the time of the release's commit, or SOURCE_DATE_EPOCH. Needs dpkg-dev, patchelf and binutils.
/// Prints the paths of the packages.
///
/// With --tree, only writes the files of a package to a directory, for another distribution's tool to pack. packaging/arch
/// does that for Arch Linux, with makepkg.
#[derive(Args)]
#[command(after_help = examples!(
    "cargo xtask package --install",
    "cargo xtask package --tree /tmp/tree",
    "sudo cargo xtask package --suite trixie --check --output dist"
))]
pub struct Package {
    #[command(flatten)]
    pub release: Release,

    #[command(flatten)]
    pub setup: Setup,

    /// The directory to put the packages into [default: target/guacd/packages].
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,

    /// Write the files of a package to this directory, which must be new or empty, and make no package. Prints the directory.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "suite", "check", "json"])]
    pub tree: Option<PathBuf>,

    /// Make the packages for this release of Debian, in a root with its compilers. trixie is the oldest release with Rust 1.85.
    /// Needs root and mmdebstrap.
    #[arg(long, value_name = "CODENAME")]
    pub suite: Option<String>,

    /// Install the packages in a minimal root, check that guacd answers for every protocol, also after the tarball's files were
    /// moved, and check that nothing is left when the package is removed. Needs root and mmdebstrap.
    #[arg(long)]
    pub check: bool,

    /// Print the packages as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Build an output of the flake with Nix, and print its store path.
///
/// Nix takes the files that git knows. The logs, and the link that protects the result from garbage collection, are in
/// target/guacd/nix.
#[derive(Args)]
#[command(after_help = examples!("cargo xtask nix --check", "cargo xtask nix stock --stress 50"))]
pub struct Nix {
    /// The output: `default`, `keys`, `stock`, `tls-rs`, `guac-stress`, or the patched guacd of a release, such as
    /// `guacd-1_6_0`.
    #[arg(default_value = "default")]
    pub output: String,

    /// Run `nix flake check` first, which builds every output and runs upstream's tests and a short stress run. Then build the
    /// output a second time: the run fails if the bytes differ.
    #[arg(long)]
    pub check: bool,

    /// Hold this many sessions through the guacd that was built.
    #[arg(long, value_name = "SESSIONS", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SESSIONS)))]
    pub stress: Option<u32>,

    /// Build with this machine's own compilers and libraries instead of nixpkgs, in Nix's sandbox.
    ///
    /// For machines that cannot download nixpkgs. It shows that the flake evaluates and builds, and that its builds are
    /// reproducible. The store is in target/guacd/nix-stand-in, and the machine's own store is not used.
    #[arg(long)]
    pub stand_in: bool,

    #[command(flatten)]
    pub setup: Setup,
}

/// Check and edit a release's series of patches.
#[derive(Args)]
#[command(after_help = examples!("cargo xtask patch check", "cargo xtask patch edit --dir /tmp/guacamole"))]
pub struct Patch {
    #[command(subcommand)]
    pub command: PatchCommand,
}

#[derive(Subcommand)]
pub enum PatchCommand {
    /// Check that every patch applies exactly, says what it is for, and is written in upstream's style.
    ///
    /// The series must list each patch once. A patch applies with no fuzz and no offset. Its header has the fields Description,
    /// Origin, Forwarded and Last-Update (DEP-3). The C that it adds has no tabs, no white space at the end of a line, no
    /// comments of C++, and at most 100 columns. Prints what is wrong, one line each.
    ///
    /// With --upstream, checks the patches in patches/upstream instead: those that guacamole-server could take. Each applies
    /// alone to the commit that they are for, has the form of upstream's commits, and adds a CUnit test, or says why none can
    /// show the fault. Upstream's tests are built and run twice for each patch, in one build tree: with its tests alone, when
    /// they must fail, and with all of it, when they must pass.
    #[command(after_help = examples!(
        "cargo xtask patch check",
        "cargo xtask patch check --upstream --no-build",
        "cargo xtask patch check --upstream 0008 0018"
    ))]
    Check(PatchCheck),

    /// Write the series to a git work tree, as commits.
    ///
    /// The first commit, with the tag `upstream`, has upstream's source. The message of each other one is the patch's file name,
    /// its group and its header. Amend, add, reorder and drop commits, and then write them back with `patch refresh`.
    #[command(after_help = examples!("cargo xtask patch edit", "cargo xtask patch edit --dir /tmp/guacamole"))]
    Edit(PatchTree),

    /// Write the commits of the work tree back to the files of the series.
    ///
    /// Nothing is written if a commit is not that of a patch, or the work tree has changes that are not committed. Where
    /// nothing was edited, no file changes. Prints the names of the files that did.
    #[command(after_help = examples!("cargo xtask patch refresh", "cargo xtask patch refresh --dir /tmp/guacamole"))]
    Refresh(PatchRefresh),

    /// Carry the series in the work tree over to another release or commit of upstream.
    ///
    /// Stops at the first patch that conflicts, with exit code 4, and shows the lines in question and upstream's commits that
    /// changed them. Resolve the conflict in the work tree, and go on with --continue. (`git rebase --abort` gives up.) At the
    /// end, names the patches that upstream has taken over. `patch refresh --release TO` then writes the series of that release.
    #[command(after_help = examples!(
        "cargo xtask patch rebase --to main --from ~/guacamole-server",
        "cargo xtask patch rebase --continue"
    ))]
    Rebase(PatchRebase),

    /// Make a branch of commits for guacamole-server, from the patches in patches/upstream.
    ///
    /// The branch is made in a git work tree of yours, where what is checked out stays. If there is nothing at DIR, it becomes a
    /// clone with the branch checked out. A patch that conflicts is refused, with exit code 4, the lines in question and
    /// upstream's commits that changed them: no branch is made then. Prints the name of the branch.
    #[command(after_help = examples!(
        "cargo xtask patch export --onto main --from ~/guacamole-server --dir /tmp/export",
        "cargo xtask patch export --onto origin/main --dir ~/guacamole-server --branch parser 0018 0057"
    ))]
    Export(PatchExport),
}

#[derive(Args)]
pub struct PatchExport {
    /// The commit, tag or branch on which to put the commits.
    #[arg(long, value_name = "COMMIT")]
    pub onto: String,

    /// The git work tree.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,

    /// The git repository to clone if there is nothing at DIR: a URL or a directory [default: the one in upstream.toml].
    #[arg(long, value_name = "GIT")]
    pub from: Option<String>,

    /// The name of the branch.
    #[arg(long, value_name = "NAME", default_value = "guacd-uncapped")]
    pub branch: String,

    /// The patches, by the beginnings of their names [default: all].
    #[arg(value_name = "PATCH")]
    pub names: Vec<String>,
}

#[derive(Args)]
pub struct PatchRebase {
    #[command(flatten)]
    pub release: Release,

    /// The directory of the work tree [default: target/guacd/RELEASE/series].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// A release of upstream.toml, or a commit, tag or branch of upstream.
    #[arg(long, value_name = "RELEASE|COMMIT", required_unless_present = "go_on", conflicts_with = "go_on")]
    pub to: Option<String>,

    /// The git repository with upstream's history: a URL or a directory [default: the one in upstream.toml].
    #[arg(long, value_name = "GIT", conflicts_with = "go_on")]
    pub from: Option<String>,

    /// Go on after a conflict has been resolved.
    #[arg(long = "continue")]
    pub go_on: bool,
}

#[derive(Args)]
pub struct PatchCheck {
    #[command(flatten)]
    pub release: Release,

    #[command(flatten)]
    pub setup: Setup,

    /// Check the patches for upstream, on the commit that they are for, whatever --release is.
    #[arg(long)]
    pub upstream: bool,

    /// Only check the form of the patches, and whether they apply.
    #[arg(long, requires = "upstream")]
    pub no_build: bool,

    /// How many compilers to run at once [default: one per core].
    #[arg(short, long, value_name = "N", requires = "upstream")]
    pub jobs: Option<std::num::NonZero<usize>>,

    /// Print what is wrong with each patch as JSON.
    #[arg(long, requires = "upstream")]
    pub json: bool,

    /// The patches for upstream to check, by the beginnings of their names [default: all].
    #[arg(value_name = "PATCH", requires = "upstream")]
    pub names: Vec<String>,
}

#[derive(Args)]
pub struct PatchTree {
    #[command(flatten)]
    pub release: Release,

    /// The directory of the work tree [default: target/guacd/RELEASE/series].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    #[command(flatten)]
    pub source: Source,
}

/// Whose series is written, and from where?
#[derive(Args)]
pub struct PatchRefresh {
    /// The release to whose series the commits are written.
    #[command(flatten)]
    pub release: Release,

    /// The directory of the work tree [default: target/guacd/RELEASE/series].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Apply the series to upstream's newest commit, build it, and hold 80 sessions through it.
///
/// Made to be run every night. Prints a line for each patch. If all of them apply, builds the patched guacd, and holds 80
/// sessions with 128 pthread keys. If one conflicts, exits with 4, with the lines in question and the commits of upstream that
/// changed them.
#[derive(Args)]
#[command(after_help = examples!(
    "cargo xtask follow",
    "cargo xtask follow --from ~/guacamole-server --branch my-branch --no-build"
))]
pub struct Follow {
    #[command(flatten)]
    pub release: Release,

    /// The git repository with upstream's history: a URL or a directory [default: the one in upstream.toml].
    #[arg(long, value_name = "GIT")]
    pub from: Option<String>,

    /// The branch, tag or commit.
    #[arg(long, value_name = "BRANCH", default_value = "main")]
    pub branch: String,

    /// Only say whether the patches apply.
    #[arg(long)]
    pub no_build: bool,

    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,

    /// Do not use the network for the release's source.
    #[arg(long)]
    pub offline: bool,
}

/// Hold SSH sessions through every release, stock and patched, and compare.
///
/// Each guacd is loaded twice: with the 128 pthread keys per process that musl has, and with as many as libc has. Prints a table
/// in Markdown, or JSON. That sessions die is a result, and no failure.
#[derive(Args)]
#[command(after_help = examples!("cargo xtask matrix", "cargo xtask matrix --release 1.6.0 --count 400 --json"))]
pub struct Matrix {
    #[command(flatten)]
    pub release: Release,

    /// Number of sessions to hold open at the same time; with 128 keys, no more than 300.
    #[arg(long, value_name = "SESSIONS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SESSIONS)))]
    pub count: u32,

    /// Maximum number of sessions to open per second. Above 8, some sessions of a stock guacd hang.
    #[arg(long, value_name = "PER_SECOND", default_value = "8")]
    pub rate: String,

    /// How long to hold all sessions open together.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub hold: String,

    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub setup: Setup,
}

/// Build guacd twice under different conditions, and compare the two installations byte by byte.
///
/// The builds differ in directory, number of compilers, umask, time zone, locale, home and user. If faketime is installed, they
/// differ in the time, and if disorderfs is, in the order in which directories list their files. Names, contents, permissions,
/// owners and links are compared, but not the times of files. diffoscope explains differences, if it is installed.
#[derive(Args)]
#[command(after_help = examples!("cargo xtask reproduce", "cargo xtask reproduce --variant stock --json"))]
pub struct Reproduce {
    #[command(flatten)]
    pub release: Release,

    /// Which guacd to build.
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

/// A design that the benchmark can compare with the limits.
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

/// List the tools and libraries that are installed, what each is for, and the command that installs the missing ones.
///
/// Says which protocols and features a guacd that is built here has, which types of SSH keys its libssh2 can use, and how many
/// sessions the limits of this machine allow. The exit code is 3 if guacd cannot be built with what is installed, or would lack
/// what is required.
#[derive(Args)]
#[command(after_help = examples!(
    "cargo xtask doctor",
    "cargo xtask doctor --install",
    "cargo xtask doctor --require rdp,vnc"
))]
pub struct Doctor {
    /// Install what guacd and all its protocols need, with the package manager of Debian, Ubuntu, Arch Linux, Fedora, Alpine
    /// Linux, openSUSE, or a distribution like them. The command is shown first. Needs root or sudo.
    #[arg(long)]
    pub install: bool,

    /// With --install, only print the command.
    #[arg(long, requires = "install")]
    pub dry_run: bool,

    #[command(flatten)]
    pub required: Required,

    /// Print the list as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Run every check of the project: format, lints, unit tests, C tests, and integration tests.
///
/// The integration tests build a stock and a patched guacd of the release, and hold 300 sessions. If upstream's source is not
/// in the cache and cannot be fetched, the tests that need it are skipped, with a warning. --install also installs an OpenSSH
/// server, and Debian's package starts it: use a container or a virtual machine.
#[derive(Args)]
#[command(after_help = examples!("cargo xtask test --quick", "cargo xtask test --all-releases"))]
pub struct Test {
    #[command(flatten)]
    pub release: Release,

    /// Run the integration tests for every release in upstream.toml, one after the other. A release whose source is missing is
    /// skipped, with a warning.
    #[arg(long, conflicts_with = "from")]
    pub all_releases: bool,

    #[command(flatten)]
    pub setup: Setup,

    /// Run only the quick checks: no guacd is built or run.
    #[arg(long)]
    pub quick: bool,

    /// Run only the check with musl, where a process has 128 keys: build guacd for it, with SSH alone, and count sessions.
    ///
    /// Needs Debian. guacd's libraries are built from its source packages the first time, and then kept in the user's cache.
    #[arg(long, conflicts_with = "quick")]
    pub musl: bool,

    /// Run only the tests of RDP, with FreeRDP 3, its server and xrdp: those of Debian 13.
    ///
    /// Needs root and mmdebstrap. A root directory of Debian 13 is made the first time, and then kept in the user's cache (1.7
    /// GB). Nothing is installed on this machine.
    #[arg(long, conflicts_with_all = ["quick", "musl"])]
    pub freerdp3: bool,
}

/// Check tls-rs with tools that find errors which tests miss: loom, valgrind, a fuzzer, sanitizers, and Miri.
///
/// Each check also runs on copies of the code, each with a bug of tls-rs/bugs in it, and fails if it does not report the bug. A
/// check whose tools are not installed is skipped, with a warning that has the command to install them. If the check was named
/// on the command line, the exit code is 3 instead. Logs are in target/prove.
#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct Prove {
    /// The checks to run [default: all].
    #[arg(value_enum, value_name = "CHECK")]
    pub checks: Vec<Check>,

    /// How long the fuzzer runs, such as `90s` or `2h`.
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

/// Which release a command is for.
#[derive(Args)]
pub struct Release {
    /// A guacamole-server release of upstream.toml [default: the newest supported one].
    #[arg(long, value_name = "RELEASE", env = "GUACD_RELEASE", hide_env_values = true)]
    pub release: Option<String>,
}

impl Release {
    /// The release in upstream.toml.
    pub fn load(&self) -> anyhow::Result<release::Release> {
        release::Release::load(self.release.as_deref())
    }
}

/// Where a command may take the release's source from.
#[derive(Args)]
pub struct Source {
    /// Take the source from a URL, a tarball, an unpacked tree, or a git clone (bare or not).
    #[arg(long, value_name = "URL|TARBALL|DIRECTORY|GIT")]
    pub from: Option<String>,

    /// Do not use the network.
    #[arg(long)]
    pub offline: bool,
}

impl Source {
    /// The toolkit's type for this.
    pub fn to_toolkit(&self) -> Access {
        Access { from: self.from.clone(), offline: self.offline, keyring: None }
    }
}

/// What a command may do to get its source and tools.
#[derive(Args)]
pub struct Setup {
    #[command(flatten)]
    pub source: Source,

    /// Install missing tools and libraries first, with the distribution's package manager (see `cargo xtask doctor --help`).
    #[arg(long)]
    pub install: bool,
}

impl Setup {
    /// The toolkit's type for this.
    pub fn to_toolkit(&self) -> guacd::Setup {
        guacd::Setup { source: self.source.to_toolkit(), install: self.install }
    }
}

/// What a guacd has to have.
#[derive(Args)]
pub struct Required {
    /// Fail if guacd would lack one of these, separated by commas. Otherwise a protocol or feature whose library is missing is
    /// left out, with a warning.
    #[arg(long = "require", value_name = "FEATURE", value_delimiter = ',', value_parser = feature_parser())]
    pub features: Vec<&'static Feature>,
}

fn feature_parser() -> impl TypedValueParser<Value = &'static Feature> {
    let names = PossibleValuesParser::new(FEATURES.iter().map(|feature| feature.name));
    names.try_map(|name| Feature::named(&name).ok_or("there is no such feature"))
}

/// A guacd as upstream made it, or with our patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// With all patches.
    Patched,
    /// With the patches of the group `keys` alone: they remove the limit on keys, and no other limit.
    Keys,
    /// As upstream made it.
    Stock,
}

impl Variant {
    /// The toolkit's type for this.
    pub fn to_toolkit(self) -> guacd::Variant {
        match self {
            Variant::Patched => guacd::Variant::Patched,
            Variant::Keys => guacd::Variant::Keys,
            Variant::Stock => guacd::Variant::Stock,
        }
    }
}

/// Which variants are loaded, in one run.
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
    /// The variants, in the order in which they are loaded.
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
