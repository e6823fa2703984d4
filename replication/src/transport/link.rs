//! Links: admitted connections, before and after they are started, and the handles to them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::Connection;
use samsara_commitlog::CommitSeq;
use tokio::sync::{Notify, mpsc};

use super::driver::{self, Inputs, Wires};
use super::error::CloseCause;
use super::fetch;
use crate::effects::EffectStore;
use crate::lag::{Lag, LagTracker};
use crate::protocol::{
    BackupCommand, BackupEvent, BackupSession, DigestQuestion, HeartbeatConfig, Hello,
    PrimaryCommand, PrimaryEvent, PrimarySession, RangeDigests, Refusal, Right, Welcome,
};
use crate::queue::CommitQueue;
use crate::{QuantileSummary, Quantiles};

/// Events a link keeps for a slow reader before it stops reading from the peer.
const EVENTS_MAX: usize = 64;
/// Commands that wait for the driver; each is a single rare step of a session.
const COMMANDS_MAX: usize = 64;
/// Time for a backup to decide whether it joins.
const JOIN_TIME: Duration = Duration::from_secs(5);
/// Batches of received bytes that wait to be decoded. With the flow control window before them
/// this bounds what a backup holds of commits it has not looked at.
const RECEIVED_BATCHES_MAX: usize = 16;

/// What a link reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent<E> {
    /// The session's.
    Session(E),
    /// The link is no more; the last event.
    Closed(CloseCause),
}

/// The link is closed: what was asked will not happen. Its last event says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link is closed")]
pub struct LinkClosed;

/// Numbers about a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Committed minus received.
    pub received_lag: Lag,
    /// Committed minus verified.
    pub verified_lag: Lag,
    /// From commit to the acknowledgement that it was received, in nanoseconds.
    pub to_received: QuantileSummary,
    /// From commit to the acknowledgement that it was verified, in nanoseconds.
    pub to_verified: QuantileSummary,
    /// Bytes of the commit stream sent.
    pub sent_bytes: u64,
}

/// The newest positions of this side, on their way to the driver. Positions only rise.
#[derive(Debug, Default)]
pub(super) struct Positions {
    first: AtomicU64,
    second: AtomicU64,
    pub(super) changed: Notify,
}

impl Positions {
    fn raise(&self, first: CommitSeq, second: CommitSeq) {
        self.first.fetch_max(first.0, Ordering::Release);
        self.second.fetch_max(second.0, Ordering::Release);
        self.changed.notify_one();
    }

    /// The second position is read first and written last, so it is never ahead of the first.
    pub(super) fn read(&self) -> (CommitSeq, CommitSeq) {
        let second = self.second.load(Ordering::Acquire);
        (
            CommitSeq(self.first.load(Ordering::Acquire)),
            CommitSeq(second),
        )
    }
}

/// What a handle and its driver share.
#[derive(Debug)]
struct Core<C> {
    commands: mpsc::Sender<C>,
    positions: Arc<Positions>,
    round_trips: Arc<Mutex<Quantiles>>,
}

impl<C> Clone for Core<C> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            positions: self.positions.clone(),
            round_trips: self.round_trips.clone(),
        }
    }
}

impl<C> Core<C> {
    fn new(to_command: fn(CommitSeq, CommitSeq) -> C) -> (Self, Inputs<C>) {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let core = Self {
            commands,
            positions: Arc::default(),
            round_trips: Arc::default(),
        };
        let inputs = Inputs {
            commands: receiver,
            positions: core.positions.clone(),
            to_command,
            round_trips: core.round_trips.clone(),
        };
        (core, inputs)
    }

    async fn send(&self, command: C) -> Result<(), LinkClosed> {
        self.commands.send(command).await.map_err(|_| LinkClosed)
    }

    fn round_trips(&self) -> QuantileSummary {
        lock(&self.round_trips).summary()
    }
}

/// A backup that was admitted: certificates, names, `Hello` and lifeline are good.
///
/// Dropping it closes the connection and makes room for another backup.
pub struct PrimaryLink {
    pub(super) hello: Hello,
    pub(super) remote: SocketAddr,
    pub(super) heartbeat: HeartbeatConfig,
    pub(super) wires: Wires,
}

impl PrimaryLink {
    /// What the backup presented.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Where it dialled from.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Waits until the backup takes its place; gives the right that it gave up by that.
    /// An error says in words why it does not.
    pub async fn joined(&mut self) -> Result<Option<Right>, String> {
        let joined = tokio::time::timeout(JOIN_TIME, self.wires.read_join()).await;
        match joined {
            Ok(joined) => joined.map_err(|error| error.to_string()),
            Err(_) => Err(format!("it did not join within {JOIN_TIME:?}")),
        }
    }

    /// Starts the session. What is pushed to `queue` goes to the backup: first a snapshot, then
    /// records from the commit after it. `base` is the snapshot's commit, the one the queue was
    /// made with; if that is not known yet, an earlier one, see [`PrimaryHandle::rebase`].
    ///
    /// When the link closes it closes the queue, so that no vCPU waits for a lost backup, and
    /// then reports [`LinkEvent::Closed`].
    pub fn start(
        self,
        queue: Arc<CommitQueue>,
        base: CommitSeq,
    ) -> (PrimaryHandle, mpsc::Receiver<LinkEvent<PrimaryEvent>>) {
        let lag = Arc::new(Mutex::new(LagTracker::new(base)));
        let session = PrimarySession::new(self.heartbeat, lag.clone(), Instant::now());
        let (core, inputs) = Core::new(|seq, _| PrimaryCommand::Released { seq });
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let connection = self.wires.connection();
        let sender = driver::send_commits(connection.clone(), queue.clone(), lag.clone());
        let sender = tokio::spawn(sender);
        let effects = Arc::new(EffectStore::new(queue.bytes_max()));
        tokio::spawn(fetch::serve(connection, Arc::clone(&effects)));
        let at_end = queue.clone();
        tokio::spawn(async move {
            let cause = driver::drive(session, self.wires, inputs, &events).await;
            at_end.close();
            let _ = sender.await;
            let _ = events.send(LinkEvent::Closed(cause)).await;
        });
        let handle = PrimaryHandle {
            core,
            queue,
            lag,
            effects,
        };
        (handle, receiver)
    }
}

/// The primary's hold on a started link. The link lives until it fails, [`PrimaryHandle::close`]
/// or the last handle is dropped.
#[derive(Clone, Debug)]
pub struct PrimaryHandle {
    core: Core<PrimaryCommand>,
    queue: Arc<CommitQueue>,
    lag: Arc<Mutex<LagTracker>>,
    effects: Arc<EffectStore>,
}

impl PrimaryHandle {
    /// The snapshot that is about to be pushed is of commit `base`. What was pushed so far was not of
    /// commits: contents of disks.
    pub fn rebase(&self, base: CommitSeq) {
        self.queue.rebase(base);
        lock(&self.lag).rebase(base);
    }

    /// Effects of commits that travel as orders: to be kept before the order is pushed.
    pub fn effects(&self) -> &EffectStore {
        &self.effects
    }

    /// Asks what a disk of the backup has, once the last answer has come.
    pub async fn ask_digests(&self, question: DigestQuestion) -> Result<(), LinkClosed> {
        self.core.send(PrimaryCommand::AskDigests(question)).await
    }

    /// The backup cannot be brought in sync, and need not try again; closes the link.
    pub async fn refuse(&self, refusal: Refusal) -> Result<(), LinkClosed> {
        self.core.send(PrimaryCommand::Refuse(refusal)).await
    }

    /// Tells the backup that outputs are guarded by it. They must be, from before this call.
    pub async fn in_sync(&self, right: Right) -> Result<(), LinkClosed> {
        self.core.send(PrimaryCommand::InSync(right)).await
    }

    /// The outputs of all commits up to `seq` have left. Never blocks; only the newest travels.
    pub fn released(&self, seq: CommitSeq) {
        self.core.positions.raise(seq, CommitSeq::BOOT);
    }

    /// The guest has ended and everything it emitted has left.
    pub async fn ended(&self, status: u8) -> Result<(), LinkClosed> {
        self.core.send(PrimaryCommand::Ended { status }).await
    }

    /// Says goodbye and closes. Commits still in the queue are dropped: to deliver them,
    /// [`CommitQueue::finish`] it and wait until the last one is acknowledged.
    /// [`LinkEvent::Closed`] follows when the backup has the goodbye, or soon after.
    pub async fn close(&self, reason: String) -> Result<(), LinkClosed> {
        self.core.send(PrimaryCommand::Goodbye { reason }).await
    }

    /// Lag and latencies as of now.
    pub fn stats(&self, now: Instant) -> LinkStats {
        let depth = self.queue.depth();
        let lag = lock(&self.lag);
        LinkStats {
            received_lag: lag.received_lag(&depth, now),
            verified_lag: lag.verified_lag(&depth, now),
            to_received: lag.to_received().summary(),
            to_verified: lag.to_verified().summary(),
            sent_bytes: lag.sent_bytes(),
        }
    }

    /// Adds this session's latencies from commit to received and to verified to histograms that
    /// outlive it.
    pub fn merge_latencies(&self, to_received: &mut Quantiles, to_verified: &mut Quantiles) {
        let lag = lock(&self.lag);
        to_received.merge(lag.to_received());
        to_verified.merge(lag.to_verified());
    }

    /// Heartbeat round trips, in nanoseconds.
    pub fn round_trips(&self) -> QuantileSummary {
        self.core.round_trips()
    }
}

/// A primary that took this host as its backup.
pub struct BackupLink {
    pub(super) welcome: Welcome,
    pub(super) remote: SocketAddr,
    pub(super) heartbeat: HeartbeatConfig,
    pub(super) wires: Wires,
}

/// A started link to a primary.
pub struct StartedBackup {
    /// To report and to close.
    pub handle: BackupHandle,
    /// What the primary says, and the end.
    pub events: mpsc::Receiver<LinkEvent<BackupEvent>>,
    /// The commit stream, cut anywhere, for a frame reader. It ends with the link, after
    /// everything that had arrived; a slow reader slows the primary.
    pub commits: mpsc::Receiver<Vec<Bytes>>,
}

impl BackupLink {
    /// What the primary presented.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// The primary's address.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Takes the place; by that an earlier right to go live is `gave_up`.
    pub fn start(self, gave_up: Option<Right>) -> StartedBackup {
        let session = BackupSession::new(self.heartbeat, gave_up, Instant::now());
        let (core, inputs) =
            Core::new(|received, verified| BackupCommand::Report { received, verified });
        let (events, event_receiver) = mpsc::channel(EVENTS_MAX);
        let (batches, commits) = mpsc::channel(RECEIVED_BATCHES_MAX);
        let connection = self.wires.connection();
        let mut wires = self.wires;
        let data_seen = wires.data_seen();
        let receiver = driver::receive_commits(connection.clone(), batches, data_seen);
        tokio::spawn(receiver);
        tokio::spawn(async move {
            let cause = driver::drive(session, wires, inputs, &events).await;
            let _ = events.send(LinkEvent::Closed(cause)).await;
        });
        StartedBackup {
            handle: BackupHandle { core, connection },
            events: event_receiver,
            commits,
        }
    }
}

/// The backup's hold on a started link. The link lives until it fails, [`BackupHandle::close`] or
/// the last handle is dropped.
#[derive(Clone, Debug)]
pub struct BackupHandle {
    core: Core<BackupCommand>,
    connection: Connection,
}

impl BackupHandle {
    /// The snapshot of commit `seq` is loaded.
    pub async fn sync_done(&self, seq: CommitSeq) -> Result<(), LinkClosed> {
        self.core.send(BackupCommand::SyncDone { seq }).await
    }

    /// All commits up to `received` are here, all up to `verified` (not more than `received`) are
    /// applied and their digests agreed. Never blocks, from any thread; only the newest travel.
    pub fn report(&self, received: CommitSeq, verified: CommitSeq) {
        assert!(
            verified <= received,
            "verified {verified}, received only {received}"
        );
        self.core.positions.raise(received, verified);
    }

    /// Asks the primary for the effects of a commit that came as an order: the encoded record; empty if it has
    /// them no more.
    pub async fn effects(&self, seq: CommitSeq) -> Result<Bytes, LinkClosed> {
        fetch::fetch(&self.connection, seq).await
    }

    /// Answers the primary's question.
    pub async fn digests(&self, digests: RangeDigests) -> Result<(), LinkClosed> {
        self.core.send(BackupCommand::Digests(digests)).await
    }

    /// The digest after commit `seq` differs.
    pub async fn diverged(
        &self,
        seq: CommitSeq,
        expected: u128,
        found: u128,
    ) -> Result<(), LinkClosed> {
        self.core
            .send(BackupCommand::Diverged {
                seq,
                expected,
                found,
            })
            .await
    }

    /// This host cannot be the backup of what it was offered; closes the link.
    pub async fn refuse(&self, refusal: Refusal) -> Result<(), LinkClosed> {
        self.core.send(BackupCommand::Refuse(refusal)).await
    }

    /// Says goodbye and closes; [`LinkEvent::Closed`] follows.
    pub async fn close(&self, reason: String) -> Result<(), LinkClosed> {
        self.core.send(BackupCommand::Goodbye { reason }).await
    }

    /// Heartbeat round trips, in nanoseconds.
    pub fn round_trips(&self) -> QuantileSummary {
        self.core.round_trips()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
