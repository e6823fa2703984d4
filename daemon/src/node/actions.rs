//! Carrying out what the decider decides, in its order.

use std::sync::PoisonError;

use samsara_commitlog::StreamHeader;
use samsara_config::{RecordingForm, Role};
use samsara_failover::{
    Action, ArbiterRequest, Change, Event, GateMode, GaveUp, SessionId, Situation, StopReason, Term,
};
use samsara_machine::{Machine, Platform};
use samsara_replication::protocol::{
    Admission, Hello, PROTOCOL_VERSIONS, PeerRole, PrimaryIdentity, Right,
};

use super::Ended;
use super::backup::{self, Follow};
use super::event_loop::{Guest, Node, Way};
use super::input::Input;
use super::primary::Sending;
use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::guest;
use crate::status;

/// How long a host that stops waits for the other to have heard why.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(1);

/// What a primary tells its backup.
enum Word {
    InSync(Right),
    Ended(u8),
}

impl Node {
    /// Carries out all that is due; gives the end, if it has come.
    pub(super) async fn carry_out(&mut self) -> Result<Option<Ended>, Failure> {
        while let Some(action) = self.decider.poll_action() {
            if let Some(reason) = self.act(action).await? {
                return self.stop(&reason).map(Some);
            }
            self.check_caught_up();
        }
        self.admit();
        self.dial();
        Ok(None)
    }

    async fn act(&mut self, action: Action) -> Result<Option<StopReason>, Failure> {
        match action {
            Action::Ask(request) => self.ask(request),
            Action::Boot => self.boot()?,
            Action::Run => self.run_guest()?,
            Action::GoLive { term } => self.go_live(term).await?,
            Action::Gate(mode) => self.set_gate(mode),
            Action::StartSync { session } => self.start_sync(session)?,
            Action::TellInSync {
                session,
                term,
                mark,
            } => {
                let right = Right {
                    term: term.number(),
                    mark: mark.0,
                };
                self.say(session, Word::InSync(right)).await;
                self.base.board.update(|status| {
                    if let Some(peer) = &mut status.peer {
                        peer.in_sync = true;
                    }
                });
            }
            Action::TellEnded { session, status } => self.say(session, Word::Ended(status)).await,
            Action::Join { session, gave_up } => self.join(session, gave_up).await?,
            Action::Leave { session, reason } => self.leave(session, reason),
            Action::Changed(change) => self.changed(&change)?,
            Action::Stop(reason) => return Ok(Some(reason)),
        }
        Ok(None)
    }

    fn ask(&self, request: ArbiterRequest) {
        let (arbiter, inputs) = (self.arbiter.clone(), self.inputs.clone());
        tokio::task::spawn_blocking(move || {
            let mut arbiter = arbiter.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = inputs.send(Input::Arbiter(request.run(arbiter.as_mut())));
        });
    }

    fn boot(&mut self) -> Result<(), Failure> {
        let Some(source) = &self.source else {
            let message = "neither vm.program nor vm.kernel is set";
            return Err(Failure::text(ExitCode::Config, message));
        };
        let machine = guest::boot(&self.kvm, &self.base, source)?;
        self.drop_guest();
        let term = self.decider.status().term.number();
        if let Err(failure) = self.base.disks.begin_history(term) {
            self.give_back_term();
            return Err(failure);
        }
        self.guest = Guest::Booted(Box::new(machine));
        Ok(())
    }

    fn drop_guest(&mut self) {
        if let Guest::Running(recorder) = std::mem::replace(&mut self.guest, Guest::None) {
            recorder.stop();
        }
    }

    fn run_guest(&mut self) -> Result<(), Failure> {
        match std::mem::replace(&mut self.guest, Guest::None) {
            Guest::Booted(machine) => {
                self.base.leftovers.clear()?;
                self.establish_disks()?;
                self.run_machine(*machine)
            }
            other => {
                self.guest = other;
                Ok(())
            }
        }
    }

    fn run_machine(&mut self, mut machine: Machine) -> Result<(), Failure> {
        let base = &mut self.base;
        guest::prepare(&self.kvm, &base.config, &mut machine);
        if let Some(log) = &mut base.log {
            let queue = log.begin(&mut machine)?;
            let base_of = (machine.seq(), machine.guest_time());
            base.world.attach_log(queue, base_of);
        }
        let recorder = guest::run(&mut self.kvm, base, machine)?;
        if let Some(log) = &mut base.log {
            log.follow(&recorder)?;
        }
        self.guest = Guest::Running(recorder);
        Ok(())
    }

    async fn go_live(&mut self, term: Term) -> Result<(), Failure> {
        let unfit = |why: &str| {
            let message = format!("cannot go live: {why}");
            Failure::text(ExitCode::Internal, message)
        };
        let follow = self
            .follow
            .take()
            .ok_or_else(|| unfit("no machine was followed"))?;
        let ((machine, error), retained) = follow.finish().await;
        if let Some(error) = error {
            return Err(unfit(&error.to_string()));
        }
        let machine = *machine.ok_or_else(|| unfit("the snapshot is not complete"))?;
        self.base
            .board
            .update(|status| status.counters.failovers += 1);
        let ended = machine.ended().cloned();
        self.base
            .world
            .take_over(retained, machine.seq(), ended.as_ref());
        self.base.disks.settle(machine.seq())?;
        self.base.disks.begin_history(term.number())?;
        self.establish_disks()?;
        tracing::info!("going live from commit {}", machine.seq());
        self.run_machine(machine)
    }

    fn set_gate(&mut self, mode: GateMode) {
        let world = &self.base.world;
        let shown = match mode {
            GateMode::Open => {
                world.open();
                status::GateMode::Open
            }
            GateMode::Held => {
                world.hold_all();
                status::GateMode::Held
            }
            GateMode::Guarded(_) => {
                world.guard();
                if let Some(session) = &mut self.session {
                    session.awaits_catch_up = true;
                }
                status::GateMode::Guarded
            }
        };
        self.base.board.update(|status| status.gate.mode = shown);
    }

    fn start_sync(&mut self, session: SessionId) -> Result<(), Failure> {
        let means = self.means();
        let Some(current) = self
            .session
            .as_mut()
            .filter(|current| current.id == session.0)
        else {
            return Ok(());
        };
        let Way::Joined(link) = std::mem::replace(&mut current.way, Way::ToBackup) else {
            return Ok(());
        };
        let id = session.0;
        let position = link.hello().disk_position;
        let mut sending = Sending::start(*link, id, &means);
        if means.disks.is_empty() {
            self.send_snapshot(sending);
            return Ok(());
        }
        current.way = Way::SendingDisks(sending.outgoing());
        // Before the other host's say so: else this one's would look older when both are started again.
        self.establish_disks()?;
        let sent_bytes = self.base.board.disk_sync_bytes.clone();
        tokio::task::spawn_blocking(move || {
            let result = sending.send_disks(position.as_ref(), &means.disks, &sent_bytes);
            let _ = means.inputs.send(Input::DisksSent {
                session: id,
                result: result.map(|()| Box::new(sending)),
            });
        });
        Ok(())
    }

    /// Sends the machine to the backup of the present session.
    pub(super) fn send_snapshot(&mut self, sending: Sending) {
        if let Some(current) = &mut self.session {
            current.way = Way::Sending(sending.outgoing());
        }
        let (means, session) = (self.means(), sending.session);
        match std::mem::replace(&mut self.guest, Guest::None) {
            Guest::Booted(mut machine) => {
                // Nothing runs that this would hold up.
                let result =
                    tokio::task::block_in_place(|| sending.send_snapshot(&mut machine, &means));
                self.guest = Guest::Booted(machine);
                let _ = self.inputs.send(Input::SnapshotSent { session, result });
            }
            Guest::Running(recorder) => {
                self.guest = Guest::Running(recorder.clone());
                tokio::task::spawn_blocking(move || {
                    let result = recorder.paused(|machine| sending.send_snapshot(machine, &means));
                    let _ = means.inputs.send(Input::SnapshotSent { session, result });
                });
            }
            Guest::None => {}
        }
    }

    /// Says something to the backup of a session, if it is still there. What is said after it, a
    /// goodbye too, follows it.
    async fn say(&self, session: SessionId, word: Word) {
        let is_current = self
            .session
            .as_ref()
            .is_some_and(|current| current.id == session.0);
        if let Some(link) = self.base.world.backup().filter(|_| is_current) {
            // A link that is gone is noticed by its last event.
            let _ = match word {
                Word::InSync(right) => link.in_sync(right).await,
                Word::Ended(status) => link.ended(status).await,
            };
        }
    }

    async fn join(&mut self, session: SessionId, gave_up: Option<GaveUp>) -> Result<(), Failure> {
        // What was held of an earlier session is dropped here, when it writes no more to the disks.
        if let Some(follow) = self.follow.take() {
            let ((machine, _), _) = follow.finish().await;
            if let Some(machine) = machine {
                self.base.disks.settle(machine.seq())?;
            }
        }
        let Some(current) = self
            .session
            .as_mut()
            .filter(|current| current.id == session.0)
        else {
            return Ok(());
        };
        let Way::Offered(link) = std::mem::replace(&mut current.way, Way::ToPrimary) else {
            return Ok(());
        };
        let gave_up = gave_up.map(|right| Right {
            term: right.term.number(),
            mark: right.mark.0,
        });
        let follow = Follow::start(
            *link,
            session.0,
            gave_up,
            (&self.base, &self.kvm),
            &self.inputs,
        )?;
        self.follow = Some(follow);
        Ok(())
    }

    fn leave(&mut self, session: SessionId, reason: String) {
        let Some(left) = self.session.take_if(|current| current.id == session.0) else {
            return;
        };
        tracing::debug!("leaving the other host: {reason}");
        if let Way::ToPrimary = left.way
            && let Some(follow) = &mut self.follow
        {
            follow.leave(&reason);
        }
        let sending = left.way.outgoing().map(|outgoing| {
            outgoing.queue.close();
            outgoing.handle.clone()
        });
        let attached = self.base.world.detach(session.0);
        if let Some(link) = attached.or(sending) {
            self.base.board.link_ended(&link);
            tokio::spawn(async move {
                // Closed already, or closed now.
                let _ = link.close(reason).await;
            });
        }
        self.tell(Event::PeerLost {
            session,
            cause: "left".into(),
        });
    }

    fn changed(&self, change: &Change) -> Result<(), Failure> {
        tracing::info!("{} (term {})", change.reason, change.term);
        let role = if change.situation.is_primary() {
            Role::Primary
        } else {
            Role::Backup
        };
        let term = change.term.number();
        if change.situation == Situation::Stopped {
            return Ok(());
        }
        if change.situation.is_primary() {
            self.base.disks.raise_term(term)?;
        }
        let last = self.base.board.update(|status| {
            status.protected = change.situation.is_protected();
            status
                .role_changes
                .last()
                .map(|last| (last.role, last.term))
        });
        if last != Some((role, term)) {
            self.base.board.role_changed(role, term, &change.reason);
        }
        Ok(())
    }

    /// Who may become the backup, as of now.
    fn admit(&self) {
        let shape = match &self.guest {
            Guest::None => None,
            Guest::Booted(machine) => Some(machine.shape()),
            Guest::Running(recorder) => Some(recorder.shape()),
        };
        let tsc_khz = self.kvm.tsc_khz().filter(|_| self.keeps_time_by_tsc());
        let host = self.base.host.clone();
        let admission = match (self.decider.reign(), shape) {
            (Some(term), Some(shape)) => Admission::Primary(PrimaryIdentity {
                vm: self.base.config.vm.name.clone(),
                host,
                term: term.number(),
                log_version: StreamHeader::CURRENT.version,
                vcpu_count: shape.vcpu_count,
                memory_bytes: shape.memory_bytes,
                input_bytes: self.base.input_bytes,
                disks: self.base.disks.shapes(),
                disk_history: self.base.disks.history(),
                effects_only: self.sends_effects_only(),
                disk_term: matches!(self.guest, Guest::Running(_))
                    .then(|| self.base.disks.base_term())
                    .flatten(),
                cpu_digest: Some(self.kvm.cpu_digest()),
                tsc_khz,
            }),
            _ => Admission::NotPrimary {
                host,
                term: self.decider.status().term.number(),
                disks: self.base.disks.kept(),
            },
        };
        self.admission.send_if_modified(|current| {
            let differs = *current != admission;
            if differs {
                *current = admission;
            }
            differs
        });
    }

    /// A Linux guest does.
    fn keeps_time_by_tsc(&self) -> bool {
        self.platform() == Some(Platform::Pc)
    }

    /// Whether no backup will ever be sent an order: there are none of a Linux guest's chunks.
    fn sends_effects_only(&self) -> bool {
        self.base.config.recording.form == RecordingForm::Effects
            || self.platform() == Some(Platform::Pc)
    }

    fn platform(&self) -> Option<Platform> {
        match &self.guest {
            Guest::None => None,
            Guest::Booted(machine) => Some(machine.platform()),
            Guest::Running(recorder) => Some(recorder.platform()),
        }
    }

    pub(super) fn hello(&self, role: PeerRole) -> Hello {
        Hello {
            protocol: PROTOCOL_VERSIONS,
            log_version: StreamHeader::CURRENT.version,
            role,
            vm: self.base.config.vm.name.clone(),
            host: self.base.host.clone(),
            term: self.decider.status().term.number(),
            can_boot: self.source.is_some(),
            vcpu_max: samsara_commitlog::Shape::VCPUS_MAX,
            memory_bytes_max: samsara_commitlog::Shape::MEMORY_BYTES_MAX,
            input_bytes: self.base.input_bytes,
            disks: self.base.disks.shapes(),
            disk_position: self.base.disks.position(),
            cpu_digest: Some(self.kvm.cpu_digest()),
            tsc_khz: self.kvm.tsc_khz(),
        }
    }

    /// A backup without a primary looks for one.
    fn dial(&mut self) {
        let is_primary = self.decider.status().situation.is_primary();
        if is_primary {
            if let Some(dialling) = self.dialling.take() {
                dialling.abort();
            }
        } else if self.session.is_none()
            && self.dialling.is_none()
            && let Some(dialer) = self.dialer.clone()
        {
            let hello = self.hello(PeerRole::Backup);
            let dial = backup::dial(dialer, hello, self.was_backup, self.inputs.clone());
            self.dialling = Some(tokio::spawn(dial));
        }
    }

    /// Shows where this host stands.
    pub(super) fn show(&mut self) {
        let now = self.decider.status();
        self.base
            .alive
            .store(true, std::sync::atomic::Ordering::Relaxed);
        self.base.notifier.status(&now.sentence);
        self.base.board.update(|status| {
            status.gate.why.clone_from(&now.sentence);
            status.set_state(now.sentence);
        });
    }

    pub(super) fn show_peer(&self, name: &str, address: Option<String>) {
        self.base.board.update(|status| {
            let name = name.to_owned();
            status.peer = Some(status::Peer {
                name,
                address,
                connected: true,
                in_sync: false,
            });
        });
    }

    fn stop(&mut self, reason: &StopReason) -> Result<Ended, Failure> {
        let code = match reason {
            StopReason::Ended { status } => {
                let known = self.ended.take();
                return Ok(known.unwrap_or_else(|| Ended {
                    status: status.unwrap_or(0),
                    how: reason.to_string(),
                    is_fault: false,
                    digest: None,
                }));
            }
            StopReason::LostTerm { .. } => ExitCode::LostTerm,
            StopReason::Refused { .. }
            | StopReason::GuestLeftBehind { .. }
            | StopReason::TwoPrimaries { .. } => ExitCode::Refused,
        };
        Err(Failure::text(code, reason.to_string()))
    }

    /// Ends everything; the other host hears why.
    pub(super) async fn shut_down(
        mut self,
        mut result: Result<Ended, Failure>,
    ) -> Result<Ended, Failure> {
        if result.is_err() {
            self.base.world.hold_all();
        }
        self.base.world.stop();
        // A guest that is being sent stands still, and could not be stopped.
        let outgoing = self
            .session
            .as_ref()
            .and_then(|session| session.way.outgoing());
        if let Some(outgoing) = outgoing {
            outgoing.queue.close();
        }
        let mut digest = None;
        if let Guest::Running(recorder) = &self.guest {
            let recorder = recorder.clone();
            let stop = tokio::task::spawn_blocking(move || {
                recorder.stop();
                recorder.paused(|machine| machine.digest())
            });
            digest = stop.await.ok();
        }
        let reason = match &result {
            Ok(ended) => ended.how.clone(),
            Err(failure) => failure.message.clone(),
        };
        self.say_goodbye(&reason).await;
        let mut last = digest.map(|digest: samsara_commitlog::StateDigest| digest.seq);
        if let Some(follow) = self.follow.take() {
            let ((machine, _), _) = follow.finish().await;
            // A backup hears from its primary or from the arbiter that the guest has ended; its own
            // machine knows best how.
            if result.is_ok()
                && let Some(how) = machine.as_ref().and_then(|machine| machine.ended())
            {
                result = Ok(self.note_end(how));
            }
            digest = machine.map(|machine| machine.digest());
            last = digest.map(|digest| digest.seq);
        }
        if let Some(last) = last
            && let Err(failure) = self.base.disks.settle(last)
        {
            // What is stored is older than the disks are, and that is no reason to hide how the run ended.
            tracing::warn!("{failure}");
        }
        if let Some(log) = self.base.log.take() {
            log.end()?;
        }
        result.map(|ended| Ended { digest, ..ended })
    }

    async fn say_goodbye(&mut self, reason: &str) {
        let Some(link) = self.base.world.backup() else {
            return;
        };
        if link.close(reason.to_owned()).await.is_err() {
            return;
        }
        let closed = async {
            while let Some(input) = self.receiver.recv().await {
                use samsara_replication::transport::LinkEvent::Closed;
                if matches!(
                    input,
                    Input::Backup {
                        event: Closed(_),
                        ..
                    }
                ) {
                    break;
                }
            }
        };
        // A backup that does not answer is not waited for.
        let _ = tokio::time::timeout(FAREWELL, closed).await;
    }
}
