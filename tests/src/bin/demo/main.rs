//! `cargo demo`: a VM survives the loss of its host.
//!
//! A primary and a backup, two processes with certificates of their own, run a guest with two vCPUs that computes the
//! SHA-256 tree of a file. Half way the primary is killed. The backup carries on, and its answer must be the one that
//! is computed here.

mod linux;
mod show;
mod table;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use samsara_tests::{Binaries, Guest, HarnessError, Joint, Pair, Site, kvm, tree};

use watch::Run;

const EXIT_WRONG: u8 = 1;
const EXIT_INPUT: u8 = 66;
const EXIT_NO_KVM: u8 = 69;
const EXIT_FAILED: u8 = 70;

/// Smaller files are hashed in less time than it takes to say so.
const INPUT_BYTES_MIN: u64 = 1 << 20;
/// The guest keeps the file in its memory.
const INPUT_BYTES_MAX: u64 = 1 << 30;
/// Hashed in all, in as many passes as it takes: some seconds.
const HASHED_BYTES: u64 = 512 << 20;
const MIB: u64 = 1 << 20;
/// Guest memory beside the file.
const ROOM_MIB: u64 = 64;

/// Kills the host of a running VM half way through its work, and shows that the VM carries on elsewhere.
#[derive(Debug, Parser)]
#[command(
    name = "demo",
    after_help = "Exit status:\n    \
    0   the survivor's answer is right, and nothing of the output is missing\n    \
    1   it is not\n    \
    2   the command line is wrong\n    \
    66  the input file cannot be used\n    \
    69  this machine has no usable /dev/kvm\n    \
    70  a host failed, or took too long"
)]
struct Arguments {
    /// The file to hash, 1 MiB to 1 GiB; default: the samsarad binary
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// A Linux machine with a disk and a network address instead: a client's connection outlives its hosts.
    /// Needs root, for taps and network namespaces, and some minutes the first time
    #[arg(long, conflicts_with = "input")]
    linux: bool,
}

/// Why the demo ends otherwise than well.
struct Failure {
    status: u8,
    line: String,
}

impl From<HarnessError> for Failure {
    fn from(error: HarnessError) -> Self {
        Self {
            status: EXIT_FAILED,
            line: error.line(),
        }
    }
}

impl Failure {
    fn new(status: u8, line: impl Into<String>) -> Self {
        Self {
            status,
            line: line.into(),
        }
    }
}

fn main() -> ExitCode {
    // `cargo demo -- --linux` hands on two of them, `cargo demo --linux` one that cargo takes.
    let words = std::env::args_os().filter(|word| word != "--");
    match run(&Arguments::parse_from(words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, line }) => {
            eprintln!("demo: {line}");
            ExitCode::from(status)
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    kvm().map_err(|why| {
        let line = format!("{why}: the demo runs virtual machines and needs KVM on this host");
        Failure::new(EXIT_NO_KVM, line)
    })?;
    if arguments.linux {
        return linux::run();
    }
    let binaries = Binaries::locate()?;
    let input = arguments.input.as_ref().unwrap_or(&binaries.samsarad);
    let work = Work::new(input)?;
    println!("{work}");
    let site = Site::new()?;
    let params = format!("passes={}", work.passes);
    let guest = Guest::new(&site, "sha256tree", &params)?;
    let guest = guest
        .input(input)
        .memory(&format!("{}MiB", work.memory_mib));
    let mut run = Run::start(Pair::start(&site, &guest, &[])?, work.leaves);
    run.until_protected()?;
    let killed = run.until_half()?;
    let survived = run.until_end(&killed)?;
    println!("\n{}", table::render(&killed, &survived));
    check(
        &work,
        &killed.output,
        &survived.output,
        survived.exit_status,
    )
}

/// What the guest is given, and what it must answer.
struct Work {
    path: PathBuf,
    bytes: u64,
    passes: u64,
    memory_mib: u64,
    /// Leaves hashed in all passes.
    leaves: u64,
    output: String,
}

impl Work {
    fn new(path: &Path) -> Result<Self, Failure> {
        let unusable = |why: String| {
            Failure::new(
                EXIT_INPUT,
                format!("cannot use {} as input: {why}", path.display()),
            )
        };
        let metadata = path
            .metadata()
            .map_err(|error| unusable(error.to_string()))?;
        let bytes = metadata.len();
        if !metadata.is_file() || !(INPUT_BYTES_MIN..=INPUT_BYTES_MAX).contains(&bytes) {
            return Err(unusable("it must be a file of 1 MiB to 1 GiB".to_owned()));
        }
        let root = tree::root_line(path).map_err(|error| unusable(error.to_string()))?;
        let passes = HASHED_BYTES.div_ceil(bytes);
        Ok(Self {
            path: path.to_owned(),
            bytes,
            passes,
            memory_mib: (bytes.div_ceil(MIB) + ROOM_MIB).next_multiple_of(ROOM_MIB),
            leaves: bytes.div_ceil(tree::LEAF_BYTES as u64) * passes,
            output: tree::guest_output(&root),
        })
    }

    fn root(&self) -> &str {
        self.output.lines().last().unwrap_or_default()
    }
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = self.bytes as f64 / MIB as f64;
        let times = if self.passes == 1 {
            "once".to_owned()
        } else {
            format!("{} times", self.passes)
        };
        write!(
            f,
            "a guest with 2 vCPUs and {} MiB computes the SHA-256 tree of {} ({mib:.1} MiB), {times};\n\
             half way its host is killed",
            self.memory_mib,
            self.path.display(),
        )
    }
}

/// The check that counts.
fn check(work: &Work, first: &[u8], second: &[u8], status: u8) -> Result<(), Failure> {
    let text = String::from_utf8_lossy(second);
    let answer = text.lines().last().unwrap_or_default();
    println!("the survivor's answer  {answer}");
    println!("the sha2 crate's       {}", work.root());
    if answer != work.root() {
        return Err(Failure::new(EXIT_WRONG, "the survivor's answer is wrong"));
    }
    if status != 0 {
        return Err(Failure::new(
            EXIT_WRONG,
            format!("the survivor exited with status {status}"),
        ));
    }
    match Joint::of(work.output.as_bytes(), &[first, second]) {
        Joint::Whole { repeated_bytes } => {
            let repeated: usize = repeated_bytes.iter().sum();
            println!(
                "equal; the output of both hosts has no gap, {repeated} bytes are repeated at the failover"
            );
            Ok(())
        }
        Joint::Broken { why } => Err(Failure::new(
            EXIT_WRONG,
            format!("the output is broken: {why}"),
        )),
    }
}
