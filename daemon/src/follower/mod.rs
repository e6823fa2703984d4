//! A backup's thread: applies commits as they arrive.

mod rerun;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use samsara_commitlog::{CommitSeq, DecodeError, Frame, FrameReader, Medium, Record};
use samsara_engine::{ConsumeError, Consumer};
use samsara_machine::{ApplyError, Machine, Output};
use samsara_replication::Retained;
use samsara_replication::protocol::DiskHistory;
use samsara_replication::transport::BackupHandle;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::board::Board;
use crate::disk::Disks;
use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::net::Network;

pub(crate) use rerun::{FromPrimary, Rerunning};

/// Records between two reports of what is verified.
const REPORT_EVERY: usize = 16;

/// Outputs of applied commits that the primary has not released.
pub(crate) type SharedRetained = Arc<Mutex<Retained<Output>>>;

/// Why a backup cannot follow any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    /// The stream is not one.
    #[error("the commit stream is damaged: {0}")]
    Decode(#[from] DecodeError),
    /// A frame does not fit.
    #[error("{}", with_causes(.0))]
    Consume(#[from] ConsumeError),
    /// Chunks cannot be run again here.
    #[error(
        "this host cannot run chunks again, as its primary may ask it to (recording.form there): {0}"
    )]
    Orders(Failure),
    /// Where this host's disks are cannot be kept.
    #[error("{0}")]
    Disks(Failure),
}

impl FollowError {
    fn failure(&self) -> Failure {
        let code = match self {
            Self::Orders(failure) => failure.code,
            Self::Decode(_) | Self::Consume(_) | Self::Disks(_) => ExitCode::Internal,
        };
        Failure::text(code, self.to_string())
    }
}

fn with_causes(error: &ConsumeError) -> String {
    Failure::new(ExitCode::Internal, error).message
}

/// What is followed.
pub(crate) struct Primary {
    /// Its commit stream.
    pub(crate) commits: mpsc::Receiver<Vec<Bytes>>,
    /// The link to it.
    pub(crate) link: BackupHandle,
    /// How its orders are run.
    pub(crate) rerunning: Rerunning,
}

/// A backup's disks, and the history that they become part of.
pub(crate) struct FollowedDisks {
    /// This host's.
    pub(crate) disks: Arc<Disks>,
    /// The primary's.
    pub(crate) history: Option<DiskHistory>,
}

/// The machine as far as it came, if it is one that can go live.
pub(crate) type Followed = (Option<Box<Machine>>, Option<FollowError>);

/// Starts to follow; `loaded` hears when the snapshot is complete.
pub(crate) fn start(
    Primary {
        commits,
        link,
        rerunning,
    }: Primary,
    retained: SharedRetained,
    network: Arc<Network>,
    board: Arc<Board>,
    disks: FollowedDisks,
    failed: impl FnOnce(Failure) + Send + 'static,
) -> std::io::Result<JoinHandle<Followed>> {
    let runtime = Handle::current();
    let body = move || {
        let mut follower = Follower {
            consumer: Consumer::with_disks(disks.disks.blocks()).with_rerun(rerunning.rerun),
            effects: rerunning.effects,
            expects_orders: rerunning.is_expected,
            disks,
            disks_are_changing: false,
            reader: FrameReader::new(Medium::Network),
            link,
            retained,
            network,
            board,
            runtime,
            received: CommitSeq::BOOT,
        };
        match follower.run(commits) {
            Ok(()) => (follower.consumer.into_machine().map(Box::new), None),
            // The chunk was never told received. What it did went with the primary.
            Err(FollowError::Consume(ConsumeError::Diverged(_))) if follower.effects.is_gone() => {
                // If the link is not gone, it is of no use any more.
                let reason = "the effects of a chunk did not come".to_owned();
                let _ = follower.runtime.block_on(follower.link.close(reason));
                (follower.consumer.into_machine().map(Box::new), None)
            }
            Err(error) => {
                follower.tell(&error);
                failed(error.failure());
                (None, Some(error))
            }
        }
    };
    std::thread::Builder::new().name("apply".into()).spawn(body)
}

struct Follower {
    consumer: Consumer,
    effects: Arc<FromPrimary>,
    expects_orders: bool,
    disks: FollowedDisks,
    /// They are no longer what they were.
    disks_are_changing: bool,
    reader: FrameReader,
    link: BackupHandle,
    retained: SharedRetained,
    network: Arc<Network>,
    board: Arc<Board>,
    runtime: Handle,
    received: CommitSeq,
}

impl Follower {
    /// Follows until the stream ends. What arrived is applied, but for orders that are not run when the primary is gone: nothing
    /// from the first on was told received, and running them would only keep the guest waiting.
    fn run(&mut self, mut commits: mpsc::Receiver<Vec<Bytes>>) -> Result<(), FollowError> {
        while let Some(batch) = commits.blocking_recv() {
            let mut frames = Vec::new();
            for bytes in batch {
                self.board
                    .following
                    .bytes
                    .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                self.reader.push(&bytes);
                while let Some(frame) = self.reader.poll_frame()? {
                    frames.push(frame);
                }
            }
            self.note_received(&frames);
            for piece in frames.chunks(REPORT_EVERY) {
                let is_order = |frame: &Frame| frame.record().is_some_and(Record::is_order);
                let is_over = commits.is_closed();
                let first_order = piece.iter().position(is_order).filter(|_| is_over);
                self.follow(&piece[..first_order.unwrap_or(piece.len())])?;
                self.report();
                if first_order.is_some() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What has come can be told received: it can be applied, whatever becomes of the primary. A chunk that is to be
    /// run again may need its effects after all, so it counts when it is verified.
    fn note_received(&mut self, frames: &[Frame]) {
        let records = frames.iter().filter_map(Frame::record);
        let sure = records.take_while(|record| !record.is_order());
        if let Some(record) = sure.last()
            && let Some(verified) = self.consumer.seq()
        {
            self.received = self.received.max(record.seq).max(verified);
            self.board
                .following
                .received
                .store(self.received.0, Ordering::Relaxed);
            self.link.report(self.received, verified);
        }
    }

    fn follow(&mut self, frames: &[Frame]) -> Result<(), FollowError> {
        if frames
            .iter()
            .any(|frame| matches!(frame, Frame::DiskRange(_)))
        {
            self.disks_change()?;
        }
        // A snapshot's end is told at once, not after what follows it.
        let is_end = |frame: &Frame| matches!(frame, Frame::SnapshotEnd(_));
        for piece in frames.split_inclusive(is_end) {
            let mut applied = Vec::new();
            let followed = self.consumer.frames(piece, &mut applied);
            self.retain(applied);
            followed?;
            self.count(piece);
            if let Some(Frame::SnapshotEnd(digest)) = piece.last() {
                self.snapshot_ended(digest.seq)?;
            }
        }
        Ok(())
    }

    fn retain(&self, applied: Vec<(CommitSeq, Vec<Output>)>) {
        let mut retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        for (seq, outputs) in applied {
            for output in outputs {
                if let Output::Frame { device, bytes } = &output {
                    self.network.observe(*device, bytes);
                }
                let bytes = output.bytes() as u64;
                retained.hold(seq, output, bytes);
            }
        }
    }

    fn count(&self, frames: &[Frame]) {
        let following = &self.board.following;
        let records = || frames.iter().filter_map(Frame::record);
        let orders = records().filter(|record| record.is_order());
        let effects = records().filter(|record| record.chunk().is_some());
        let add = |counter: &AtomicU64, by: usize| counter.fetch_add(by as u64, Ordering::Relaxed);
        add(&following.orders, orders.count());
        add(&following.chunks, effects.count());
        following
            .digests_compared
            .store(self.consumer.digests_compared(), Ordering::Relaxed);
    }

    fn snapshot_ended(&mut self, seq: CommitSeq) -> Result<(), FollowError> {
        self.received = self.received.max(seq);
        self.report();
        if self.expects_orders {
            // Before the primary can rely on this host.
            let ready = self.consumer.prepare_orders();
            ready.map_err(|error| FollowError::Orders(error.into()))?;
        }
        self.disks_are_current()?;
        // A link that is gone is noticed elsewhere.
        let _ = self.runtime.block_on(self.link.sync_done(seq));
        Ok(())
    }

    /// The disks are about to be brought up to date.
    fn disks_change(&mut self) -> Result<(), FollowError> {
        if let Some(history) = self.disks.history
            && !std::mem::replace(&mut self.disks_are_changing, true)
        {
            let begun = self.disks.disks.begin_sync(history);
            begun.map_err(FollowError::Disks)?;
        }
        Ok(())
    }

    /// The disks are those of the snapshot, and from here on of each commit that is verified. Kept
    /// before the primary can rely on this host.
    fn disks_are_current(&self) -> Result<(), FollowError> {
        let Some(history) = self.disks.history else {
            return Ok(());
        };
        let board = Arc::clone(&self.board);
        let verified = move || CommitSeq(board.following.verified.load(Ordering::Acquire));
        let kept = self.disks.disks.follow(history, Arc::new(verified));
        kept.map_err(FollowError::Disks)
    }

    fn report(&self) {
        let shown = self.consumer.look(|machine| {
            let mark = machine.devices().mark();
            (machine.seq(), machine.guest_time(), mark)
        });
        let Some((seq, guest_time, mark)) = shown else {
            return;
        };
        let following = &self.board.following;
        following.verified.store(seq.0, Ordering::Release);
        following
            .guest_time_ns
            .store(guest_time.0, Ordering::Relaxed);
        following.mark.store(mark, Ordering::Relaxed);
        self.link.report(self.received.max(seq), seq);
    }

    /// Tells the primary of a divergence.
    fn tell(&self, error: &FollowError) {
        let (seq, expected, found) = match error {
            FollowError::Consume(ConsumeError::Divergence { expected, found }) => {
                (expected.seq, expected.digest, found.digest)
            }
            FollowError::Consume(ConsumeError::Apply(ApplyError::Divergence {
                seq,
                expected,
                found,
            })) => (*seq, u128::from(*expected), u128::from(*found)),
            _ => return,
        };
        let _ = self
            .runtime
            .block_on(self.link.diverged(seq, expected, found));
    }
}
