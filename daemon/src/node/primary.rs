//! The way to a backup.

use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use samsara_commitlog::{CommitSeq, StreamHeader};
use samsara_machine::Machine;
use samsara_replication::protocol::{
    Admission, DigestQuestion, DiskPosition, PrimaryEvent, RangeDigests, RefuseReason,
};
use samsara_replication::transport::{
    LinkEvent, ListenError, Listener, ListenerEvent, PrimaryHandle, PrimaryLink,
};
use samsara_replication::{CommitQueue, QueueLimits};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::event_loop::Outgoing;
use super::input::Input;
use crate::disk::{DiskSync, Disks, Peer, SyncError};
use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::snapshot;
use crate::world::World;

/// How long a backup may take to find out what a piece of its disk has.
const ANSWER_TIME: Duration = Duration::from_mins(1);

/// Pause between two messages of the same stranger.
const STRANGER_PAUSE: Duration = Duration::from_secs(5);

/// Listens for backups for as long as the process lives.
pub(super) async fn listen(
    mut listener: Listener,
    mut admissions: watch::Receiver<Admission>,
    inputs: mpsc::UnboundedSender<Input>,
) {
    let mut last_told: Option<(String, std::time::Instant)> = None;
    loop {
        tokio::select! {
            changed = admissions.changed() => {
                if changed.is_err() {
                    return;
                }
                listener.set_admission(admissions.borrow_and_update().clone());
            }
            event = listener.next() => match event {
                ListenerEvent::Backup(link) => {
                    tokio::spawn(await_join(link, inputs.clone()));
                }
                ListenerEvent::Rejected { error: ListenError::Refused(refusal), .. }
                    if refusal.reason == RefuseReason::NotPrimary => {}
                ListenerEvent::Rejected { remote, error } => {
                    let text = format!("a host at {remote} was not taken as backup: {error}");
                    let is_new = last_told
                        .as_ref()
                        .is_none_or(|(told, at)| *told != text || at.elapsed() > STRANGER_PAUSE);
                    if is_new {
                        tracing::warn!("{text}");
                        last_told = Some((text, std::time::Instant::now()));
                    }
                }
            }
        }
    }
}

async fn await_join(mut link: Box<PrimaryLink>, inputs: mpsc::UnboundedSender<Input>) {
    match link.joined().await {
        Ok(gave_up) => {
            // The loop is gone when the daemon ends.
            let _ = inputs.send(Input::Joined { link, gave_up });
        }
        Err(reason) => tracing::debug!("{} did not join: {reason}", link.hello().host),
    }
}

/// What the way to a backup needs of this host.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) world: Arc<World>,
    pub(super) disks: Arc<Disks>,
    pub(super) inputs: mpsc::UnboundedSender<Input>,
    pub(super) limits: QueueLimits,
}

/// A started link on which the snapshot is to follow.
pub(super) struct Sending {
    pub(super) session: u64,
    queue: Arc<CommitQueue>,
    handle: PrimaryHandle,
    /// What is written to the disks until the snapshot.
    sync: Option<DiskSync>,
    answers: blocking::Receiver<RangeDigests>,
}

impl Sending {
    /// Starts a link.
    pub(super) fn start(link: PrimaryLink, session: u64, means: &Means) -> Self {
        // The snapshot will be of this commit or of a later one.
        let [base, ..] = means.world.positions();
        let queue = Arc::new(CommitQueue::new(means.limits, base));
        let (handle, events) = link.start(Arc::clone(&queue), base);
        let (answered, answers) = blocking::channel();
        let forward = forward(session, events, answered, means.clone());
        Handle::current().spawn(forward);
        queue.push_between(StreamHeader::CURRENT.encode(), Instant::now());
        Self {
            session,
            queue,
            handle,
            sync: None,
            answers,
        }
    }

    /// What ends this early.
    pub(super) fn outgoing(&self) -> Outgoing {
        Outgoing {
            queue: Arc::clone(&self.queue),
            handle: self.handle.clone(),
        }
    }

    /// Brings the backup's disks, which are at this position, near to those of the machine, which runs on.
    /// Blocks for as long as that takes.
    pub(super) fn send_disks(
        &mut self,
        position: Option<&DiskPosition>,
        disks: &Disks,
        sent_bytes: &Arc<std::sync::atomic::AtomicU64>,
    ) -> Result<(), SyncError> {
        let (queue, sent_bytes) = (Arc::clone(&self.queue), Arc::clone(sent_bytes));
        let sync = DiskSync::begin(disks.files(), queue, sent_bytes);
        // After tracking has begun: what is written from here on is in one of the two.
        if let Some(changed) = disks.changed_since(position) {
            sync.send(&changed)?;
        } else {
            let mut peer = Linked {
                handle: &self.handle,
                answers: &self.answers,
            };
            sync.send_differing(&mut peer)?;
        }
        sync.send_changed()?;
        self.sync = Some(sync);
        Ok(())
    }

    /// Sends what is left of the disks and a snapshot of a machine that stands still; commits that
    /// follow go to the backup.
    pub(super) fn send_snapshot(self, machine: &mut Machine, means: &Means) -> Result<(), Failure> {
        let base = machine.seq();
        match self.sync.as_ref().map_or(Ok(()), DiskSync::send_rest) {
            // What is pushed from here on is dropped; the link says itself that it is gone.
            Ok(()) | Err(SyncError::Closed) => {}
            Err(error) => return Err(Failure::new(ExitCode::Input, &error)),
        }
        self.handle.rebase(base);
        snapshot::push_machine(machine, &self.queue)?;
        means.disks.backup_begins(base);
        means.world.attach(
            self.session,
            self.queue,
            self.handle,
            (base, machine.guest_time()),
        );
        Ok(())
    }
}

/// A backup that is asked over its link.
struct Linked<'a> {
    handle: &'a PrimaryHandle,
    answers: &'a blocking::Receiver<RangeDigests>,
}

impl Peer for Linked<'_> {
    fn ask(&mut self, question: DigestQuestion) -> Result<(), SyncError> {
        let asked = Handle::current().block_on(self.handle.ask_digests(question));
        asked.map_err(|_| SyncError::Closed)
    }

    fn answer(&mut self) -> Result<RangeDigests, SyncError> {
        use blocking::RecvTimeoutError::{Disconnected, Timeout};
        match self.answers.recv_timeout(ANSWER_TIME) {
            Ok(digests) => Ok(digests),
            Err(Disconnected) => Err(SyncError::Closed),
            Err(Timeout) => Err(SyncError::Silent),
        }
    }
}

/// Takes acknowledgements to the gate at once, and tells the loop of everything.
async fn forward(
    session: u64,
    mut events: mpsc::Receiver<LinkEvent<PrimaryEvent>>,
    answered: blocking::Sender<RangeDigests>,
    means: Means,
) {
    let world = &means.world;
    while let Some(event) = events.recv().await {
        let event = match event {
            LinkEvent::Session(PrimaryEvent::Digests(digests)) => {
                // Nobody waits for them any more when the session is given up.
                let _ = answered.send(digests);
                LinkEvent::Session(PrimaryEvent::SignOfLife)
            }
            other => other,
        };
        match &event {
            LinkEvent::Session(PrimaryEvent::Ack { received, verified }) => {
                world.acknowledge(session, *received, *verified);
                if world.is_attached(session) {
                    let committed = || world.positions()[0];
                    means.disks.backup_verified(*verified, committed);
                }
            }
            LinkEvent::Session(PrimaryEvent::SyncDone { seq }) => {
                world.acknowledge(session, *seq, CommitSeq::BOOT);
            }
            _ => {}
        }
        if means.inputs.send(Input::Backup { session, event }).is_err() {
            return;
        }
    }
}
