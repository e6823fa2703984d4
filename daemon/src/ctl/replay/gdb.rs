//! `samsaractl replay --gdb PORT`: gdb looks at a replay, and goes through it in both directions.
//!
//! ```text
//! gdb -- remote protocol --> target -> motion -> timeline -> log, machine
//!                              |         stops     journal
//!                              +-> monitor
//! ```
//!
//! - [`timeline`]: a log as states that can be gone to; [`journal`]: disks that can.
//! - [`stops`]: watched memory, addresses, commits; [`motion`]: going on until there is one of them.
//! - [`target`], [`registers`], [`monitor`]: what gdb sees of it.

mod journal;
mod monitor;
mod motion;
mod registers;
mod stops;
mod target;
mod timeline;

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;

use gdbstub::conn::ConnectionExt as _;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{GdbStub, MultiThreadStopReason};
use samsara_commitlog::CommitSeq;

use super::follow::Begin;
use super::progress::Progress;
use crate::ctl::CtlError;
use crate::exit::ExitCode;
use crate::failure::Failure;
use target::Session;
use timeline::Timeline;

/// What is kept of commits, to be undone: tens of thousands of them, as a rule.
pub(super) const KEPT_BYTES: usize = 256 << 20;
/// Commits between two looks at whether gdb's user wants to interrupt.
const LOOK_COMMITS: u32 = 64;

/// What is to be gone through.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) begin: Begin,
    /// Images of the guest's disks as they were when the log begins.
    pub(super) disks: Vec<PathBuf>,
    /// Bytes of steps that are kept.
    pub(super) kept_bytes: usize,
}

/// Serves one gdb on this port of the loopback interface, from the state where the source begins or after commit `at`.
pub(super) fn serve(
    source: Source,
    at: Option<CommitSeq>,
    port: u16,
    tell: impl Fn(&str),
) -> Result<(), CtlError> {
    let listener = listen(port)?;
    let mut timeline = Timeline::open(source)?;
    if let Some(at) = at {
        go(&mut timeline, at, &tell)?;
    }
    let address = listener
        .local_addr()
        .map_err(|error| no_port(port, &error))?;
    tell(&format!(
        "at commit {}, waiting for gdb (in gdb: target remote {address})",
        timeline.seq()
    ));
    let (connection, _) = listener.accept().map_err(|error| no_port(port, &error))?;
    drop(listener);
    let mut session = Session::new(timeline);
    match GdbStub::new(connection).run_blocking::<Loop>(&mut session) {
        Ok(_) => Ok(()),
        // gdb was killed: that is an end as well.
        Err(error) if error.is_connection_error() => Ok(()),
        Err(error) => Err(match error.into_target_error() {
            Some(error) => error,
            None => not_spoken(),
        }),
    }
}

fn listen(port: u16) -> Result<TcpListener, CtlError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    listener.map_err(|error| no_port(port, &error))
}

/// Goes to where gdb is to begin.
fn go(timeline: &mut Timeline, at: CommitSeq, tell: &impl Fn(&str)) -> Result<(), CtlError> {
    let mut progress = Progress::new(std::time::Instant::now());
    while timeline.seq() < at && timeline.forward()? {
        progress.look(timeline.position(), tell);
    }
    let seq = timeline.seq();
    let why = timeline.end().map_or("", |(_, why)| why);
    if seq == at {
        return Ok(());
    }
    let message = format!("--until {at} is no state of this log, which is at commit {seq}: {why}");
    Err(CtlError::Replay(Failure::text(ExitCode::LogEnds, message)))
}

fn no_port(port: u16, error: &io::Error) -> CtlError {
    let message = format!(
        "cannot serve gdb on port {port} of 127.0.0.1: {error}; name another, or 0 for any"
    );
    CtlError::Replay(Failure::text(ExitCode::Network, message))
}

fn not_spoken() -> CtlError {
    let message = "what has connected does not speak gdb's remote protocol as gdb does";
    CtlError::Replay(Failure::text(ExitCode::Network, message))
}

/// Between gdb's commands.
struct Loop;

impl BlockingEventLoop for Loop {
    type Target = Session;
    type Connection = TcpStream;
    type StopReason = MultiThreadStopReason<u64>;

    fn wait_for_stop_reason(
        session: &mut Session,
        connection: &mut TcpStream,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<CtlError, io::Error>> {
        loop {
            for _ in 0..LOOK_COMMITS {
                let stop = session.advance().map_err(WaitForStopReasonError::Target)?;
                if let Some(stop) = stop {
                    return Ok(Event::TargetStopped(stop));
                }
            }
            let next = connection
                .peek()
                .map_err(WaitForStopReasonError::Connection)?;
            if next.is_some() {
                let byte = connection
                    .read()
                    .map_err(WaitForStopReasonError::Connection)?;
                return Ok(Event::IncomingData(byte));
            }
        }
    }

    fn on_interrupt(session: &mut Session) -> Result<Option<Self::StopReason>, CtlError> {
        Ok(Some(session.interrupted()))
    }
}

#[cfg(test)]
mod tests;
