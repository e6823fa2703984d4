//! The loop of a host: everything that happens goes to the decider.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::guest::{Kvm, Source};
use samsara_engine::Recorder;
use samsara_failover::{
    Arbiter, ArbiterAnswer, Decider, Detector, Event, GaveUp, Moment, SessionId, SyncMark, Term,
    Verdict,
};
use samsara_machine::Machine;
use samsara_replication::protocol::{
    Admission, BackupEvent, PeerRole, PrimaryEvent, RefuseReason, Right,
};
use samsara_replication::transport::{
    BackupLink, CloseCause, Dialer, LinkEvent, PrimaryHandle, PrimaryLink,
};
use samsara_replication::{CommitQueue, QueueLimits};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::backup::{self, Follow};
use super::disks::disks_are_newest;
use super::input::Input;
use super::primary::Means;
use super::{Ended, Promotion};
use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::run::Base;
use crate::standalone::stopped;
use crate::status;
use crate::world::{Notice, exit_status};

/// The loop turns at least this often: the service manager's watchdog and the status follow it.
const TURN: Duration = Duration::from_millis(250);

/// The guest on this host.
pub(super) enum Guest {
    /// It is elsewhere, or nowhere.
    None,
    /// It has been made and has not run.
    Booted(Box<Machine>),
    /// It runs here, or ran.
    Running(Arc<Recorder>),
}

/// How far the connection to the other host has come.
pub(super) enum Way {
    /// A backup takes its place; its link waits for the snapshot.
    Joined(Box<PrimaryLink>),
    /// Its disks are brought up to date; the snapshot follows.
    SendingDisks(Outgoing),
    /// The snapshot is on its way to the queue. The guest stands still.
    Sending(Outgoing),
    /// The backup gets commits.
    ToBackup,
    /// A primary welcomes this host.
    Offered(Box<BackupLink>),
    /// A primary is followed.
    ToPrimary,
}

/// What somebody fills who does not know by himself when the session is over.
pub(super) struct Outgoing {
    pub(super) queue: Arc<CommitQueue>,
    pub(super) handle: PrimaryHandle,
}

impl Way {
    /// What is being filled for a backup.
    pub(super) fn outgoing(&self) -> Option<&Outgoing> {
        match self {
            Self::SendingDisks(outgoing) | Self::Sending(outgoing) => Some(outgoing),
            _ => None,
        }
    }
}

/// One connection to the other host.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) detector: Detector,
    pub(super) way: Way,
    /// At a primary: outputs are guarded by this backup, and it has not caught up yet.
    pub(super) awaits_catch_up: bool,
}

/// A host of a pair.
pub(super) struct Node {
    pub(super) base: Base,
    pub(super) guest: Guest,
    pub(super) kvm: Kvm,
    pub(super) source: Option<Source>,
    pub(super) decider: Decider,
    pub(super) arbiter: Arc<Mutex<Box<dyn Arbiter>>>,
    pub(super) inputs: mpsc::UnboundedSender<Input>,
    pub(super) receiver: mpsc::UnboundedReceiver<Input>,
    pub(super) admission: watch::Sender<Admission>,
    pub(super) dialer: Option<Dialer>,
    pub(super) dialling: Option<JoinHandle<()>>,
    pub(super) started: Instant,
    pub(super) limits: QueueLimits,
    pub(super) next_session: u64,
    pub(super) session: Option<Session>,
    /// The primary that is followed; outlives its session until that is settled.
    pub(super) follow: Option<Follow>,
    /// How the guest ended, once it has.
    pub(super) ended: Option<Ended>,
    /// Whether a primary has ever welcomed this host: then what stops it from dialling may pass.
    pub(super) was_backup: bool,
    /// Keeps the directory of an arbiter that belongs to this process alone.
    pub(super) _own_directory: Option<tempfile::TempDir>,
}

impl Node {
    pub(super) fn now(&self) -> Moment {
        Moment::from_ms(self.started.elapsed().as_millis() as u64)
    }

    /// Turns until the guest has ended or this host must stop.
    pub(super) async fn run(&mut self) -> Result<Ended, Failure> {
        let internal = |error: std::io::Error| Failure::new(ExitCode::Internal, &error);
        let mut terminate = signal(SignalKind::terminate()).map_err(internal)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(internal)?;
        self.begin().await?;
        loop {
            if let Some(ended) = self.carry_out().await? {
                return Ok(ended);
            }
            self.show();
            let wake = tokio::time::sleep(self.until_next());
            tokio::select! {
                biased;
                Some(notice) = self.base.notices.recv() => self.handle_notice(notice)?,
                Some(input) = self.receiver.recv() => self.handle_input(input)?,
                Some(request) = self.base.promotions.recv() => self.promote(request),
                _ = terminate.recv() => return Err(stopped()),
                _ = interrupt.recv() => return Err(stopped()),
                () = wake => {}
            }
            self.handle_time();
        }
    }

    /// A host that starts as primary asks the other whether it is primary already. With disks it waits
    /// for the answer, before it takes a term: the other's disks may be the newer ones.
    async fn begin(&mut self) -> Result<(), Failure> {
        if self.decider.status().situation.is_primary() {
            self.base.disks.check_whole()?;
            if let Some(dialer) = self.dialer.clone() {
                let hello = self.hello(PeerRole::Primary);
                let asked = tokio::spawn(backup::ask_peer(dialer, hello, self.inputs.clone()));
                if !self.base.disks.is_empty() {
                    // A task that failed has no answer either.
                    let refusal = asked.await.ok().flatten();
                    disks_are_newest(refusal.as_ref())?;
                }
            }
        }
        self.base.notifier.ready();
        Ok(())
    }

    pub(super) fn means(&self) -> Means {
        Means {
            world: self.base.world.clone(),
            disks: self.base.disks.clone(),
            inputs: self.inputs.clone(),
            limits: self.limits,
        }
    }

    fn until_next(&self) -> Duration {
        let detector = self
            .session
            .as_ref()
            .and_then(|session| session.detector.poll_timeout());
        let next = [detector, self.decider.poll_timeout()]
            .into_iter()
            .flatten()
            .min();
        let wait = next.map_or(TURN, |next| {
            Duration::from_millis(next.ms_since(self.now()))
        });
        wait.min(TURN)
    }

    fn handle_time(&mut self) {
        let now = self.now();
        if self.decider.poll_timeout().is_some_and(|at| at <= now) {
            self.decider.handle_timeout(now);
        }
        if let Some(session) = &mut self.session
            && let Verdict::Lost(cause) = session.detector.poll(now)
        {
            let id = session.id;
            self.lose(id, cause.to_string());
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        let now = self.now();
        self.decider.handle(now, event);
    }

    fn promote(&mut self, request: Promotion) {
        let now = self.now();
        let result = self
            .decider
            .handle_promote(now)
            .map_err(|error| error.to_string());
        // The operator may have hung up.
        let _ = request.reply.send(result);
    }

    fn handle_notice(&mut self, notice: Notice) -> Result<(), Failure> {
        match notice {
            Notice::GuestEnded(how) => {
                let ended = self.note_end(&how);
                let status = ended.status;
                self.ended = Some(ended);
                self.tell(Event::GuestEnded { status });
            }
            Notice::Drained => self.tell(Event::OutputsDrained),
            Notice::EngineFailed(error) => return Err(error.into()),
            Notice::OutputFailed(error) => {
                let message = format!("cannot write console output: {error}");
                return Err(Failure::text(ExitCode::Output, message));
            }
        }
        Ok(())
    }

    /// Shows how the guest ended.
    pub(super) fn note_end(&self, how: &samsara_machine::Ended) -> Ended {
        let (status, how_text) = exit_status(how);
        let is_fault = !how.is_orderly();
        self.base.board.update(|shown| {
            shown.ended = Some(status::Ended {
                exit_status: (!is_fault).then_some(status),
                how: how_text.clone(),
            });
        });
        Ended {
            status,
            how: how_text,
            is_fault,
            digest: None,
        }
    }

    fn handle_input(&mut self, input: Input) -> Result<(), Failure> {
        match input {
            Input::Arbiter(answer) => self.handle_answer(answer),
            Input::Joined { link, gave_up } => self.handle_joined(link, gave_up)?,
            Input::DisksSent { session, result } => self.handle_disks(session, result)?,
            Input::SnapshotSent { session, result } => self.handle_snapshot(session, result)?,
            Input::Backup { session, event } => self.handle_backup(session, event),
            Input::Found(link) => self.handle_found(link),
            Input::CannotDial(error) => return Err(backup::dial_failure(&error)),
            Input::PeerAsked(refusal) => {
                disks_are_newest(refusal.as_ref())?;
                let also_primary = RefuseReason::AlsoPrimary;
                if let Some(refusal) = refusal.filter(|refusal| refusal.reason == also_primary) {
                    self.tell(Event::PeerIsPrimary {
                        term: Term::new(refusal.term),
                    });
                }
            }
            Input::Primary { session, event } => self.handle_primary(session, event)?,
            Input::FollowFailed { session, failure } => {
                if self
                    .session
                    .as_ref()
                    .is_some_and(|current| current.id == session)
                {
                    let Failure { code, message } = failure;
                    // Otherwise it has not begun.
                    let has_diverged = code == ExitCode::Internal;
                    self.base
                        .board
                        .update(|status| status.counters.divergences += u64::from(has_diverged));
                    let message = format!(
                        "this backup cannot follow its primary and must start anew: {message}"
                    );
                    return Err(Failure::text(code, message));
                }
            }
        }
        Ok(())
    }

    fn handle_answer(&mut self, answer: ArbiterAnswer) {
        let (is_reachable, detail) = describe(&answer);
        // It is asked again and again: what it says is news only if it differs.
        let is_news = self.base.board.update(|status| {
            let arbiter = status.arbiter.as_mut();
            arbiter.is_some_and(|arbiter| {
                let is_news = arbiter.reachable != is_reachable
                    || (!is_reachable && arbiter.detail != detail);
                (arbiter.reachable, arbiter.detail) = (is_reachable, detail.clone());
                is_news
            })
        });
        if is_news && is_reachable {
            tracing::info!("the arbiter answers again: {detail}");
        } else if is_news {
            tracing::warn!("{detail}");
        }
        let now = self.now();
        self.decider.handle_answer(now, answer);
    }

    fn new_session(&mut self, way: Way) -> SessionId {
        let id = self.next_session;
        self.next_session += 1;
        let dead_after_ms = self.base.config.failover.dead_after_ms;
        let detector = Detector::new(dead_after_ms, self.now());
        self.session = Some(Session {
            id,
            detector,
            way,
            awaits_catch_up: false,
        });
        SessionId(id)
    }

    fn handle_joined(
        &mut self,
        link: Box<PrimaryLink>,
        gave_up: Option<Right>,
    ) -> Result<(), Failure> {
        self.check_disks_of(link.hello())?;
        if let Some(old) = self.session.as_ref().map(|session| session.id) {
            self.lose(old, "another connection took its place".into());
        }
        let name = link.hello().host.clone();
        self.show_peer(&name, Some(link.remote().to_string()));
        let session = self.new_session(Way::Joined(link));
        let gave_up = gave_up.map(|right| GaveUp {
            term: Term::new(right.term),
            mark: SyncMark(right.mark),
        });
        self.tell(Event::BackupJoined { session, gave_up });
        Ok(())
    }

    fn handle_snapshot(
        &mut self,
        session: u64,
        result: Result<(), Failure>,
    ) -> Result<(), Failure> {
        result?;
        match &mut self.session {
            Some(current) if current.id == session => current.way = Way::ToBackup,
            // Lost while it was being sent.
            _ => drop(self.base.world.detach(session)),
        }
        Ok(())
    }

    /// From the backup.
    fn handle_backup(&mut self, session: u64, event: LinkEvent<PrimaryEvent>) {
        if !self.sign(session) {
            return;
        }
        match event {
            LinkEvent::Session(
                PrimaryEvent::SignOfLife | PrimaryEvent::Ack { .. } | PrimaryEvent::Digests(_),
            ) => {}
            LinkEvent::Session(PrimaryEvent::SyncDone { .. }) => {
                self.tell(Event::BackupSynced {
                    session: SessionId(session),
                });
            }
            LinkEvent::Session(PrimaryEvent::Diverged {
                seq,
                expected,
                found,
            }) => {
                self.base
                    .board
                    .update(|status| status.counters.divergences += 1);
                tracing::error!(
                    "the backup's state after commit {seq} differs: {expected:032x} here, \
                     {found:032x} there; it must be synced anew"
                );
            }
            LinkEvent::Closed(cause) => self.lose(session, cause.to_string()),
        }
        self.check_caught_up();
    }

    pub(super) fn check_caught_up(&mut self) {
        let level = crate::run::ack_level(&self.base.config);
        if let Some(session) = self
            .session
            .as_mut()
            .filter(|session| session.awaits_catch_up)
            && self.base.world.is_caught_up(level)
        {
            session.awaits_catch_up = false;
            let session = SessionId(session.id);
            self.tell(Event::BackupCaughtUp { session });
        }
    }

    fn handle_found(&mut self, link: Box<BackupLink>) {
        self.dialling = None;
        self.was_backup = true;
        let welcome = link.welcome();
        let (name, term) = (welcome.host.clone(), Term::new(welcome.term));
        let count = usize::from(welcome.vcpu_count);
        let memory_bytes = welcome.memory_bytes;
        self.base.board.update(|status| {
            status.vcpus = count as u32;
            status.memory_bytes = memory_bytes;
        });
        self.show_peer(&name, Some(link.remote().to_string()));
        let session = self.new_session(Way::Offered(link));
        self.tell(Event::PrimaryFound { session, term });
    }

    /// From the primary.
    fn handle_primary(
        &mut self,
        session: u64,
        event: LinkEvent<BackupEvent>,
    ) -> Result<(), Failure> {
        if !self.sign(session) {
            return Ok(());
        }
        let id = SessionId(session);
        match event {
            // The follower's to answer.
            LinkEvent::Session(BackupEvent::SignOfLife { .. } | BackupEvent::DigestsAsked(_)) => {}
            LinkEvent::Session(BackupEvent::InSync(right)) => {
                self.base.disks.raise_term(right.term)?;
                let (term, mark) = (Term::new(right.term), SyncMark(right.mark));
                self.tell(Event::InSync {
                    session: id,
                    term,
                    mark,
                });
            }
            LinkEvent::Session(BackupEvent::Released { seq }) => {
                if let Some(follow) = &self.follow {
                    follow.released(seq);
                }
            }
            LinkEvent::Session(BackupEvent::Ended { status }) => {
                self.tell(Event::PrimaryEnded {
                    session: id,
                    status,
                });
            }
            LinkEvent::Closed(CloseCause::Refused(refusal))
                if refusal.reason == RefuseReason::DiskMismatch =>
            {
                return Err(Failure::new(ExitCode::Input, &refusal));
            }
            LinkEvent::Closed(cause) => self.lose(session, cause.to_string()),
        }
        Ok(())
    }

    /// A sign of life; whether the session is the present one.
    fn sign(&mut self, session: u64) -> bool {
        let now = self.now();
        match &mut self.session {
            Some(current) if current.id == session => {
                current.detector.handle_sign(now);
                true
            }
            _ => false,
        }
    }

    /// The session is over.
    pub(super) fn lose(&mut self, session: u64, cause: String) {
        let Some(lost) = self.session.take_if(|current| current.id == session) else {
            return;
        };
        if let Some(link) = self.base.world.detach(session) {
            self.base.board.link_ended(&link);
        }
        if let Some(outgoing) = lost.way.outgoing() {
            outgoing.queue.close();
        }
        if matches!(lost.way, Way::ToPrimary)
            && let Some(follow) = &mut self.follow
        {
            follow.leave("it showed no sign of life");
        }
        tracing::warn!("lost the other host: {cause}");
        self.base.board.update(|status| {
            if let Some(peer) = &mut status.peer {
                (peer.connected, peer.in_sync) = (false, false);
            }
        });
        self.tell(Event::PeerLost {
            session: SessionId(session),
            cause,
        });
    }
}

fn describe(answer: &ArbiterAnswer) -> (bool, String) {
    use samsara_failover::Swap;
    match answer {
        ArbiterAnswer::Swap(Ok(Swap::Won(_))) => (true, "granted".into()),
        ArbiterAnswer::Read(Ok(Some(standing)))
        | ArbiterAnswer::Swap(Ok(Swap::Lost(Some(standing)))) => (true, standing.value.to_string()),
        ArbiterAnswer::Read(Ok(None)) | ArbiterAnswer::Swap(Ok(Swap::Lost(None))) => {
            (true, "no term has been taken yet".into())
        }
        ArbiterAnswer::Read(Err(error)) | ArbiterAnswer::Swap(Err(error)) => {
            (false, error.to_string())
        }
    }
}
