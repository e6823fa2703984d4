//! A backup's thread: applies commits as they arrive.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use samsara_commitlog::{CommitSeq, DecodeError, Frame, FrameReader};
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
    /// Where this host's disks are cannot be kept.
    #[error("{0}")]
    Disks(Failure),
}

fn with_causes(error: &ConsumeError) -> String {
    Failure::new(ExitCode::Internal, error).message
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
    commits: mpsc::Receiver<Vec<Bytes>>,
    link: BackupHandle,
    retained: SharedRetained,
    network: Arc<Network>,
    board: Arc<Board>,
    disks: FollowedDisks,
    failed: impl FnOnce(String) + Send + 'static,
) -> std::io::Result<JoinHandle<Followed>> {
    let runtime = Handle::current();
    let body = move || {
        let mut follower = Follower {
            consumer: Consumer::with_disks(disks.disks.blocks()),
            disks,
            disks_are_changing: false,
            reader: FrameReader::new(),
            link,
            retained,
            network,
            board,
            runtime,
            received: CommitSeq::BOOT,
        };
        match follower.run(commits) {
            Ok(()) => (follower.consumer.into_machine().map(Box::new), None),
            Err(error) => {
                follower.tell(&error);
                failed(error.to_string());
                (None, Some(error))
            }
        }
    };
    std::thread::Builder::new().name("apply".into()).spawn(body)
}

struct Follower {
    consumer: Consumer,
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
    /// Follows until the stream ends. Everything that arrived is applied.
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
                piece.iter().try_for_each(|frame| self.follow(frame))?;
                self.report();
            }
        }
        Ok(())
    }

    fn note_received(&mut self, frames: &[Frame]) {
        let last = frames.iter().rev().find_map(Frame::record);
        if let Some(record) = last
            && let Some(verified) = self.consumer.seq()
        {
            self.received = self.received.max(record.seq);
            self.board
                .following
                .received
                .store(self.received.0, Ordering::Relaxed);
            self.link.report(self.received, verified);
        }
    }

    fn follow(&mut self, frame: &Frame) -> Result<(), FollowError> {
        if matches!(frame, Frame::DiskRange(_)) {
            self.disks_change()?;
        }
        let outputs = self.consumer.frame(frame)?;
        match frame {
            Frame::Record(record) => {
                let mut retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
                for output in outputs {
                    if let Output::Frame { device, bytes } = &output {
                        self.network.observe(*device, bytes);
                    }
                    let bytes = output.bytes() as u64;
                    retained.hold(record.seq, output, bytes);
                }
                let is_chunk = u64::from(record.chunk().is_some());
                self.board
                    .following
                    .chunks
                    .fetch_add(is_chunk, Ordering::Relaxed);
            }
            Frame::SnapshotEnd(digest) => {
                self.received = self.received.max(digest.seq);
                self.report();
                self.disks_are_current()?;
                // A link that is gone is noticed elsewhere.
                let _ = self.runtime.block_on(self.link.sync_done(digest.seq));
            }
            Frame::Digest(_) => {
                let compared = self.consumer.digests_compared();
                self.board
                    .following
                    .digests_compared
                    .store(compared, Ordering::Relaxed);
            }
            Frame::SnapshotStart(_) | Frame::SnapshotPages(_) | Frame::DiskRange(_) => {}
        }
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
        let Some(machine) = self.consumer.machine() else {
            return;
        };
        let following = &self.board.following;
        following.verified.store(machine.seq().0, Ordering::Release);
        following
            .guest_time_ns
            .store(machine.guest_time().0, Ordering::Relaxed);
        following
            .mark
            .store(machine.devices().mark(), Ordering::Relaxed);
        self.link
            .report(self.received.max(machine.seq()), machine.seq());
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
