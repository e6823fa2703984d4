//! One process on one host: what the daemon does around a decider, with a toy machine.

use super::network::Message;
use super::outside::{Emitter, Outside};
use crate::decider::{
    Action, Decider, Event, GateMode, SessionId, Settings, Situation, StartPolicy,
};
use crate::detector::{Detector, Verdict};
use crate::moment::Moment;
use crate::standing::Term;

pub(super) const DEAD_AFTER_MS: u64 = 150;
const HEARTBEAT_MS: u64 = 30;
const DIAL_EVERY_MS: u64 = 60;
const DIAL_PATIENCE_MS: u64 = 400;
/// How many outputs may be held before the guest has to wait.
const MAX_HELD: usize = 60;

/// What a process asks of the world.
#[derive(Debug)]
pub(super) enum Effect {
    Dial,
    Send(SessionId, Message),
    Ask(crate::arbiter::ArbiterRequest),
    /// Finish sending the machine after a while.
    Sync(SessionId),
    /// A guest is needed.
    Boot,
}

/// A guest that counts: each commit draws a number and puts it out.
#[derive(Debug, Default)]
struct Machine {
    guest: Option<u32>,
    commits: Vec<u64>,
    ended: bool,
    running: bool,
}

#[derive(Debug)]
struct Link {
    session: SessionId,
    /// None until the session was joined.
    detector: Option<Detector>,
    since: u64,
    acked: Option<usize>,
    /// Commits go to it.
    fed: bool,
}

/// A process.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) me: Emitter,
    pub(super) decider: Decider,
    in_sync_term: Option<Term>,
    machine: Machine,
    gate: GateMode,
    /// Outputs that left, as far as this host knows.
    left: usize,
    /// What had left when the gate was guarded last, until the backup has it.
    to_cover: Option<usize>,
    link: Option<Link>,
    last_dial: u64,
    last_heartbeat: u64,
    told_end: bool,
    told_drained: bool,
    guest_bound: Option<usize>,
    pub(super) effects: Vec<Effect>,
}

impl Life {
    pub(super) fn new(
        me: Emitter,
        settings: Settings,
        as_primary: bool,
        guest_bound: Option<usize>,
        now: u64,
    ) -> Self {
        let moment = Moment::from_ms(now);
        let decider = if as_primary {
            Decider::primary(settings, moment)
        } else {
            Decider::backup(settings, moment)
        };
        Self {
            me,
            decider,
            in_sync_term: None,
            machine: Machine::default(),
            gate: GateMode::Held,
            left: 0,
            to_cover: None,
            link: None,
            last_dial: 0,
            last_heartbeat: 0,
            told_end: false,
            told_drained: false,
            guest_bound,
            effects: Vec::new(),
        }
    }

    pub(super) fn situation(&self) -> Situation {
        self.decider.status().situation
    }

    /// Time passes: heartbeats, detection, the guest, dialing.
    pub(super) fn tick(
        &mut self,
        now: u64,
        draw: u64,
        outside: &mut Outside,
    ) -> Result<(), String> {
        self.detect(now, outside)?;
        let moment = Moment::from_ms(now);
        if self.decider.poll_timeout().is_some_and(|due| due <= moment) {
            self.decider.handle_timeout(moment);
        }
        self.carry_out(now, outside)?;
        self.run_guest(draw);
        self.heartbeat(now);
        self.dial(now);
        self.release(now, outside)
    }

    fn detect(&mut self, now: u64, outside: &mut Outside) -> Result<(), String> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let session = link.session;
        let cause = match &mut link.detector {
            Some(detector) => match detector.poll(Moment::from_ms(now)) {
                Verdict::Alive => return Ok(()),
                Verdict::Lost(cause) => cause.to_string(),
            },
            None if now - link.since > DIAL_PATIENCE_MS => "no welcome".to_owned(),
            None => return Ok(()),
        };
        self.effects.push(Effect::Send(session, Message::Closed));
        self.lost(now, session, cause, outside)
    }

    fn lost(
        &mut self,
        now: u64,
        session: SessionId,
        cause: String,
        outside: &mut Outside,
    ) -> Result<(), String> {
        if self
            .link
            .as_ref()
            .is_some_and(|link| link.session == session)
        {
            self.link = None;
        }
        self.event(now, Event::PeerLost { session, cause }, outside)
    }

    fn run_guest(&mut self, draw: u64) {
        let machine = &mut self.machine;
        if !machine.running || machine.ended || machine.commits.len() - self.left >= MAX_HELD {
            return;
        }
        machine.commits.push(draw);
        machine.ended = self
            .guest_bound
            .is_some_and(|bound| machine.commits.len() >= bound);
        let index = machine.commits.len() - 1;
        let commit = Message::Commit {
            index,
            value: draw,
            ended: machine.ended,
        };
        if let Some(link) = self.link.as_ref().filter(|link| link.fed) {
            self.effects.push(Effect::Send(link.session, commit));
        }
    }

    fn heartbeat(&mut self, now: u64) {
        if now - self.last_heartbeat < HEARTBEAT_MS {
            return;
        }
        self.last_heartbeat = now;
        if let Some(link) = self.link.as_ref().filter(|link| link.detector.is_some()) {
            self.effects
                .push(Effect::Send(link.session, Message::Heartbeat));
            if link.fed {
                let released = Message::Released { left: self.left };
                self.effects.push(Effect::Send(link.session, released));
            }
        }
    }

    fn dial(&mut self, now: u64) {
        let idle = self.link.is_none() && self.decider.reign().is_none();
        if idle && self.situation() != Situation::Stopped && now - self.last_dial >= DIAL_EVERY_MS {
            self.last_dial = now;
            self.effects.push(Effect::Dial);
        }
    }

    /// The world has made the connection that was dialed.
    pub(super) fn dialed(&mut self, now: u64, session: SessionId) {
        self.link = Some(Link {
            session,
            detector: None,
            since: now,
            acked: None,
            fed: false,
        });
    }

    /// A message, or the end of a session.
    pub(super) fn receive(
        &mut self,
        now: u64,
        session: SessionId,
        message: Message,
        outside: &mut Outside,
    ) -> Result<(), String> {
        let mine = self
            .link
            .as_ref()
            .is_some_and(|link| link.session == session);
        if mine && let Some(detector) = self.link.as_mut().and_then(|link| link.detector.as_mut()) {
            detector.handle_sign(Moment::from_ms(now));
        }
        match message {
            Message::Dial => {
                let answer = match self.decider.reign() {
                    Some(term) => Message::Welcome { term },
                    None => Message::Decline,
                };
                self.effects.push(Effect::Send(session, answer));
                Ok(())
            }
            Message::Join { gave_up } => self.joined(now, session, gave_up, outside),
            Message::Closed => self.lost(now, session, "closed".to_owned(), outside),
            _ if !mine => Ok(()),
            Message::Welcome { term } if self.situation().is_primary() => {
                self.link = None;
                self.event(now, Event::PeerIsPrimary { term }, outside)
            }
            Message::Welcome { term } => {
                self.event(now, Event::PrimaryFound { session, term }, outside)
            }
            Message::Decline => {
                self.link = None;
                Ok(())
            }
            Message::Ack { commits } => self.acked(now, commits, outside),
            Message::InSync { term, mark } => {
                self.in_sync_term = Some(term);
                self.event(
                    now,
                    Event::InSync {
                        session,
                        term,
                        mark,
                    },
                    outside,
                )
            }
            Message::Ended { status } => {
                self.event(now, Event::PrimaryEnded { session, status }, outside)
            }
            message => self.replicate(session, message),
        }
    }

    fn joined(
        &mut self,
        now: u64,
        session: SessionId,
        gave_up: Option<crate::decider::GaveUp>,
        outside: &mut Outside,
    ) -> Result<(), String> {
        let detector = Some(Detector::new(DEAD_AFTER_MS, Moment::from_ms(now)));
        self.link = Some(Link {
            session,
            detector,
            since: now,
            acked: None,
            fed: false,
        });
        self.to_cover = None;
        self.event(now, Event::BackupJoined { session, gave_up }, outside)
    }

    fn acked(&mut self, now: u64, commits: usize, outside: &mut Outside) -> Result<(), String> {
        if let Some(link) = &mut self.link {
            link.acked = link.acked.max(Some(commits));
        }
        self.check_covered(now, outside)?;
        self.release(now, outside)
    }

    fn check_covered(&mut self, now: u64, outside: &mut Outside) -> Result<(), String> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        let (session, acked) = (link.session, link.acked);
        if self
            .to_cover
            .is_some_and(|left| acked.is_some_and(|acked| acked >= left))
        {
            self.to_cover = None;
            self.event(now, Event::BackupCaughtUp { session }, outside)?;
        }
        Ok(())
    }

    fn replicate(&mut self, session: SessionId, message: Message) -> Result<(), String> {
        match message {
            Message::Machine {
                guest,
                commits,
                ended,
                left,
            } => {
                self.machine = Machine {
                    guest: Some(guest),
                    commits,
                    ended,
                    running: false,
                };
                self.left = left;
            }
            Message::Commit {
                index,
                value,
                ended,
            } => {
                if index != self.machine.commits.len() {
                    return Err(format!(
                        "commit {index} out of order: the simulation is wrong"
                    ));
                }
                self.machine.commits.push(value);
                self.machine.ended = ended;
            }
            Message::Released { left } => {
                self.left = self.left.max(left).min(self.machine.commits.len());
                return Ok(());
            }
            _ => return Ok(()),
        }
        let ack = Message::Ack {
            commits: self.machine.commits.len(),
        };
        self.effects.push(Effect::Send(session, ack));
        Ok(())
    }

    /// Every page was sent; the machine is what it is now, and commits follow.
    pub(super) fn synced(
        &mut self,
        now: u64,
        session: SessionId,
        outside: &mut Outside,
    ) -> Result<(), String> {
        let Some(link) = self.link.as_mut().filter(|link| link.session == session) else {
            return Ok(());
        };
        let Some(guest) = self.machine.guest else {
            return Ok(());
        };
        link.fed = true;
        let machine = Message::Machine {
            guest,
            commits: self.machine.commits.clone(),
            ended: self.machine.ended,
            left: self.left,
        };
        self.effects.push(Effect::Send(session, machine));
        self.event(now, Event::BackupSynced { session }, outside)
    }

    pub(super) fn answered(
        &mut self,
        now: u64,
        answer: crate::arbiter::ArbiterAnswer,
        outside: &mut Outside,
    ) -> Result<(), String> {
        self.decider.handle_answer(Moment::from_ms(now), answer);
        self.carry_out(now, outside)
    }

    /// The guest that was asked for.
    pub(super) fn boot(&mut self, guest: u32) {
        let running = self.machine.running;
        self.machine = Machine {
            guest: Some(guest),
            running,
            ..Machine::default()
        };
        self.left = 0;
        self.in_sync_term = None;
    }

    fn event(&mut self, now: u64, event: Event, outside: &mut Outside) -> Result<(), String> {
        self.decider.handle(Moment::from_ms(now), event);
        self.carry_out(now, outside)
    }

    fn carry_out(&mut self, now: u64, outside: &mut Outside) -> Result<(), String> {
        while let Some(action) = self.decider.poll_action() {
            self.act(now, action, outside)?;
        }
        self.check_covered_after_gate(now, outside)
    }

    fn check_covered_after_gate(&mut self, now: u64, outside: &mut Outside) -> Result<(), String> {
        if self.to_cover.is_some() {
            self.check_covered(now, outside)
        } else {
            Ok(())
        }
    }

    fn act(&mut self, now: u64, action: Action, outside: &mut Outside) -> Result<(), String> {
        match action {
            Action::Ask(request) => self.effects.push(Effect::Ask(request)),
            Action::Boot => self.effects.push(Effect::Boot),
            Action::Run => {
                self.machine.running = true;
                return outside.run(self.me, self.decider.status().term);
            }
            Action::GoLive { term } => return self.go_live(now, term, outside),
            Action::Gate(gate) => {
                self.gate = gate;
                self.to_cover = matches!(gate, GateMode::Guarded(_)).then_some(self.left);
                return self.release(now, outside);
            }
            Action::StartSync { session } => self.effects.push(Effect::Sync(session)),
            Action::TellInSync {
                session,
                term,
                mark,
            } => {
                self.effects
                    .push(Effect::Send(session, Message::InSync { term, mark }));
            }
            Action::TellEnded { session, status } => {
                self.effects
                    .push(Effect::Send(session, Message::Ended { status }));
            }
            Action::Join { session, gave_up } => {
                self.machine = Machine::default();
                self.left = 0;
                self.in_sync_term = None;
                if let Some(link) = &mut self.link {
                    link.detector = Some(Detector::new(DEAD_AFTER_MS, Moment::from_ms(now)));
                }
                self.effects
                    .push(Effect::Send(session, Message::Join { gave_up }));
            }
            Action::Leave { session, .. } => {
                if self
                    .link
                    .as_ref()
                    .is_some_and(|link| link.session == session)
                {
                    self.link = None;
                }
                self.effects.push(Effect::Send(session, Message::Closed));
            }
            Action::Changed(_) => {}
            Action::Stop(_) => {
                self.machine.running = false;
                if let Some(link) = self.link.take() {
                    self.effects
                        .push(Effect::Send(link.session, Message::Closed));
                }
            }
        }
        Ok(())
    }

    fn go_live(&mut self, now: u64, term: Term, outside: &mut Outside) -> Result<(), String> {
        if self.in_sync_term.and_then(Term::next) != Some(term) {
            return Err(format!(
                "live in term {term}, in sync in {:?}",
                self.in_sync_term
            ));
        }
        outside.go_live(self.machine.guest, &self.machine.commits)?;
        self.machine.running = true;
        outside.run(self.me, term)?;
        self.release(now, outside)
    }

    /// Lets out what the gate allows, and reports the end.
    fn release(&mut self, now: u64, outside: &mut Outside) -> Result<(), String> {
        let made = self.machine.commits.len();
        let allowed = match self.gate {
            _ if !self.machine.running => 0,
            GateMode::Open => made,
            GateMode::Held => 0,
            GateMode::Guarded(session) => self
                .link
                .as_ref()
                .filter(|link| link.session == session)
                .and_then(|link| link.acked)
                .unwrap_or(0),
        };
        if let Some(guest) = self.machine.guest {
            while self.left < allowed {
                outside.emit(self.me, guest, self.left, self.machine.commits[self.left])?;
                self.left += 1;
            }
        }
        if self.machine.running && self.machine.ended && !self.told_end {
            self.told_end = true;
            self.event(now, Event::GuestEnded { status: 0 }, outside)?;
        }
        if self.told_end && !self.told_drained && self.left == made {
            self.told_drained = true;
            self.event(now, Event::OutputsDrained, outside)?;
        }
        Ok(())
    }
}

/// The settings that the simulation uses: waits are short, so that more happens.
pub(super) fn settings(host: usize, alone: bool) -> Settings {
    let name = |host: usize| crate::HostName::new(["alpha", "beta"][host]).unwrap();
    let mut settings = Settings::new(name(host), name(1 - host));
    settings.start = if alone {
        StartPolicy::Alone
    } else {
        StartPolicy::Protected
    };
    settings.can_boot = true;
    settings.reclaim_after_ms = 800;
    settings.boot_after_ms = 200;
    settings.end_patience_ms = 1000;
    settings
}
