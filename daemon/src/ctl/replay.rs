//! `samsaractl replay`: a log, followed to its end by the same `apply` that made it.

mod again;
mod follow;
mod gdb;
mod overlay;
mod progress;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use samsara_commitlog::CommitSeq;
use serde::Serialize;

use super::CtlError;
use super::log::tail_word;
use super::render::one_line;
use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::world::exit_status;
use again::Reexecute;
use follow::{Asked, Begin, Followed};
use progress::Progress;

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command")]
pub(super) struct ReplayArguments {
    /// The log: a file, or a directory with segments.
    file: PathBuf,
    /// Begins at the last checkpoint that is not after this commit; what the guest wrote before it is not printed. Without
    /// this option, that is where a replay that does not go to the end begins: at the last checkpoint before --until.
    #[arg(long, value_name = "SEQ")]
    from_checkpoint: Option<u64>,
    /// Begins with the first state that the log has, wherever it is to stop.
    #[arg(long, conflicts_with = "from_checkpoint")]
    from_start: bool,
    /// Stops after this commit; the status is 0 then.
    #[arg(long, value_name = "SEQ")]
    until: Option<u64>,
    /// Prints the digest of the whole state after this commit; repeatable.
    #[arg(long, value_name = "SEQ")]
    digest_at: Vec<u64>,
    /// Applies what the log says that each chunk changed; done anyway unless chunks are run again.
    #[arg(long, conflicts_with = "reexecute")]
    apply: bool,
    /// Runs chunks again on this host's KVM, as far as their ends can be found, and compares what comes out. Chunks of which the
    /// log says only where they end (recording.form = "order") can be replayed in no other way.
    #[arg(long, conflicts_with = "gdb")]
    reexecute: bool,
    /// vCPUs that are run again at the same time, at most [default: processors of this host].
    #[arg(long, value_name = "COUNT", requires = "reexecute")]
    threads: Option<NonZeroUsize>,
    /// A copy of a disk's image as it was when the log begins; one for each disk of the guest, in their order. It is read
    /// only: what the guest writes goes to a temporary file (in TMPDIR).
    #[arg(long = "disk", value_name = "IMAGE")]
    disks: Vec<PathBuf>,
    /// Where the guest's console output goes [default: standard output, or nowhere with --json]
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
    /// Serves gdb on this port of 127.0.0.1 (0: any): registers and memory of every vCPU at a commit, forward and backward
    /// from commit to commit, to watchpoints and breakpoints. Begins where the replay would, or after --until. In gdb: target
    /// remote 127.0.0.1:PORT, then monitor help.
    #[arg(long, value_name = "PORT", conflicts_with_all = ["digest_at", "console", "json"])]
    gdb: Option<u16>,
}

/// What `samsaractl replay --help` ends with.
pub(super) fn after_help() -> String {
    let own = [
        ExitCode::Usage,
        ExitCode::GuestFault,
        ExitCode::Input,
        ExitCode::Kvm,
        ExitCode::Output,
        ExitCode::LogFile,
        ExitCode::GuestReset,
        ExitCode::Diverged,
        ExitCode::LogEnds,
    ];
    let line = |code: ExitCode| format!("    {:<5}  {}\n", code.code(), code.about());
    let lines: String = own.into_iter().map(line).collect();
    format!(
        "\
Standard output has what the guest wrote to its console, byte for byte; digests and how it ended go to standard error, or with
--json to standard output. No KVM is needed, but for --reexecute. Frames that the guest sent to a network are counted, not sent.

Exit status:
    0-255  the guest's own; 0 if --until was reached before the guest's end
{lines}
Examples:
    samsarad --role standalone --set vm.program=hello.elf --record run.log
    samsaractl replay run.log
    samsaractl replay run.log --reexecute --threads 1
    samsaractl replay run.log --until 1000 --digest-at 500 --digest-at 1000 --json
    samsarad --role standalone --set vm.program=hello.elf --record directory/ --set log.keep_minutes=10
    samsaractl replay directory/ --from-checkpoint 5000
    samsaractl replay run.log --gdb 1234 &
    gdb hello.elf -ex 'target remote 127.0.0.1:1234' -ex 'monitor help'"
    )
}

/// What a replay came to, for scripts.
#[derive(Debug, Serialize)]
struct Outcome {
    /// What samsaractl exits with.
    status: u8,
    /// How it ended, in words.
    stop: String,
    /// The guest's exit status, if it ended by itself.
    exit_status: Option<u8>,
    /// The commit that the replay began from.
    from_seq: u64,
    /// The last commit applied, and the guest's clock there.
    seq: u64,
    guest_time_ns: u64,
    /// Digest of the whole state there.
    digest: String,
    /// The digests that were asked for.
    digests: Vec<Digest>,
    /// Digests in the log that were compared.
    digests_compared: u64,
    chunks: u64,
    /// Those of them that were run again, and came out differently, by cause.
    chunks_run: u64,
    divergences: BTreeMap<&'static str, u64>,
    inputs: u64,
    console_bytes: u64,
    frames_sent: u64,
    /// How the log ends; nothing if it was not read to its end.
    tail: Option<&'static str>,
    wall_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Digest {
    seq: u64,
    digest: String,
}

impl ReplayArguments {
    /// Gives the status to exit with.
    pub(super) fn run(self, out: &mut dyn Write) -> Result<u8, CtlError> {
        if let Some(port) = self.gdb {
            return self.serve_gdb(port);
        }
        let asked = self.asked()?;
        let mut console = self.open_console()?;
        let started = std::time::Instant::now();
        let mut progress = Progress::new(started);
        let followed = {
            let sink: &mut dyn Write = match &mut console {
                Some(file) => file,
                None => out,
            };
            let told = |line: &str| eprintln!("samsaractl: {line}");
            follow::follow(&asked, sink, &mut |position| progress.look(position, told))
        };
        let outcome = Outcome::new(&followed?, started.elapsed().as_secs_f64());
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&outcome)?)
                .map_err(|error| write_failure(&error))?;
        } else {
            eprint!("{}", outcome.text());
        }
        out.flush().map_err(|error| write_failure(&error))?;
        Ok(outcome.status)
    }

    fn asked(&self) -> Result<Asked, CtlError> {
        let until = self.until.map(CommitSeq);
        let digests_at: Vec<_> = self.digest_at.iter().copied().map(CommitSeq).collect();
        if let Some((&late, until)) = digests_at.iter().max().zip(until)
            && late > until
        {
            return Err(CtlError::Usage(format!(
                "--digest-at {late} is after --until {until}: leave out the one or raise the other"
            )));
        }
        Ok(Asked {
            path: self.file.clone(),
            begin: self.begin(),
            until,
            digests_at: digests_at.into_iter().collect(),
            disks: overlay::open(&self.disks)?,
            again: self.reexecute.then_some(Reexecute {
                threads: self.threads,
            }),
        })
    }

    /// Copies of images are those of the beginning of the log, so that is where a replay with disks begins unless told
    /// otherwise.
    fn begin(&self) -> Begin {
        let asked = self.from_checkpoint.or_else(|| {
            let until = self
                .until
                .filter(|_| !self.from_start && self.disks.is_empty())?;
            Some(self.digest_at.iter().copied().fold(until, u64::min))
        });
        asked.map_or(Begin::First, |seq| Begin::Checkpoint(CommitSeq(seq)))
    }

    fn serve_gdb(self, port: u16) -> Result<u8, CtlError> {
        let source = gdb::Source {
            begin: self.begin(),
            path: self.file,
            disks: self.disks,
            kept_bytes: gdb::KEPT_BYTES,
        };
        let told = |line: &str| eprintln!("samsaractl: {line}");
        gdb::serve(source, self.until.map(CommitSeq), port, told)?;
        Ok(0)
    }

    /// The console if it is not standard output.
    fn open_console(&self) -> Result<Option<Box<dyn Write>>, CtlError> {
        let Some(path) = &self.console else {
            return Ok(self.json.then(|| Box::new(io::sink()) as Box<dyn Write>));
        };
        let file = File::create(path).map_err(|error| {
            let message = format!("cannot write the console to {}: {error}", path.display());
            CtlError::Replay(Failure::text(ExitCode::Output, message))
        })?;
        Ok(Some(Box::new(io::BufWriter::new(file))))
    }
}

/// A replay whose output nobody reads has not done what it was for: unlike elsewhere, that is an error.
fn write_failure(error: &io::Error) -> CtlError {
    let message = format!("cannot write the guest's output: {error}");
    CtlError::Replay(Failure::text(ExitCode::Output, message))
}

impl Outcome {
    fn new(followed: &Followed, wall_seconds: f64) -> Self {
        let (status, stop, exit_status) = match (&followed.ended, followed.is_until_reached) {
            (Some(ended), _) => {
                let (status, how) = exit_status(ended);
                (status, how, ended.is_orderly().then_some(status))
            }
            (None, true) => (0, format!("stopped at commit {}", followed.state.seq), None),
            (None, false) => {
                let stop = format!(
                    "the log ends at commit {}, before its guest does",
                    followed.state.seq
                );
                (ExitCode::LogEnds.code(), stop, None)
            }
        };
        let hex = |digest: u128| format!("{digest:032x}");
        let digests = followed.digests.iter().map(|digest| Digest {
            seq: digest.seq.0,
            digest: hex(digest.digest),
        });
        Self {
            status,
            stop,
            exit_status,
            from_seq: followed.from.0,
            seq: followed.state.seq.0,
            guest_time_ns: followed.guest_time.0,
            digest: hex(followed.state.digest),
            digests: digests.collect(),
            digests_compared: followed.digests_compared,
            chunks: followed.chunks,
            chunks_run: followed.chunks_run,
            divergences: followed.divergences.clone(),
            inputs: followed.inputs,
            console_bytes: followed.console_bytes,
            frames_sent: followed.frames_sent,
            tail: followed.tail.map(tail_word),
            wall_seconds,
        }
    }

    /// For people: the digests asked for, then what was replayed and how it ended.
    fn text(&self) -> String {
        let digest =
            |digest: &Digest| format!("digest at commit {}: {}\n", digest.seq, digest.digest);
        let digests: String = self.digests.iter().map(digest).collect();
        let torn = match self.tail {
            Some("torn") => " (in an unfinished write, which is dropped)",
            _ => "",
        };
        let run = match self.chunks_run {
            0 => String::new(),
            count => {
                let diverged: u64 = self.divergences.values().sum();
                format!(" ({count} run again, {diverged} of them came out differently)")
            }
        };
        format!(
            "{digests}replayed commits {} to {}: {} chunks{run}, {} inputs, {:.3} s of guest time, {} digests compared\n\
             digest at commit {}: {}\n{}{torn}\n",
            self.from_seq,
            self.seq,
            self.chunks,
            self.inputs,
            self.guest_time_ns as f64 / 1e9,
            self.digests_compared,
            self.seq,
            self.digest,
            one_line(&self.stop)
        )
    }
}

#[cfg(test)]
mod tests;
