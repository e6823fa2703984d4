//! The clock, the queue of what happens next, both hosts, and the checks that need all of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::host::{Effect, Life, settings};
use super::network::{Connection, Message, SimArbiter};
use super::outside::Outside;
use super::script::{END_MS, HEAL_MS, Mishap, Random, SETTLED_MS};
use crate::arbiter::{ArbiterAnswer, ArbiterRequest};
use crate::decider::{Fault, SessionId, Situation};
use crate::standing::Phase;

const TICK_MS: u64 = 5;

/// What happens to one process.
#[derive(Debug)]
enum Happening {
    Tick,
    Message(SessionId, Message),
    Answer(ArbiterAnswer),
    Synced(SessionId),
}

#[derive(Debug)]
enum Event {
    To {
        host: usize,
        life: u64,
        what: Happening,
    },
    /// A question reaches the arbiter; `answer_at` none: its answer is lost.
    Asked {
        host: usize,
        life: u64,
        request: ArbiterRequest,
        answer_at: Option<u64>,
    },
    Mishap(Mishap),
    Restart {
        host: usize,
        as_primary: bool,
    },
    Resume {
        host: usize,
    },
    Heal,
    Settled,
}

#[derive(Debug, Default)]
struct Place {
    life: Option<Life>,
    /// What arrived while the host was paused.
    inbox: VecDeque<(u64, Happening)>,
    paused_until: u64,
    arbiter_down_until: u64,
}

/// What a run amounted to.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) failovers: u64,
    pub(super) outputs: u64,
    pub(super) survived: bool,
    pub(super) ended: bool,
    pub(super) late_repeats: u64,
}

/// How a run is set up.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) seed: u64,
    pub(super) fault: Option<Fault>,
    pub(super) script: Vec<(u64, Mishap)>,
    pub(super) start_alone: bool,
    /// After how many commits the guest ends.
    pub(super) guest_bound: Option<usize>,
}

/// Everything there is.
pub(super) struct World {
    now: u64,
    random: Random,
    setup: Setup,
    queue: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    places: [Place; 2],
    connections: Vec<Connection>,
    partitioned_until: u64,
    arbiter: SimArbiter,
    outside: Outside,
    lives: u64,
    guests: u32,
    /// The processes that an operator told to be primary, and that have not started a guest yet.
    told_primary: BTreeSet<u64>,
    at_settled: Option<(bool, u64)>,
    tally: Tally,
    trace: bool,
}

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        let mut world = Self {
            now: 1000,
            random: Random::new(setup.seed ^ 0xD1CE),
            queue: BTreeMap::new(),
            scheduled: 0,
            places: Default::default(),
            connections: Vec::new(),
            partitioned_until: 0,
            arbiter: SimArbiter::default(),
            outside: Outside::default(),
            lives: 0,
            guests: 0,
            told_primary: BTreeSet::new(),
            at_settled: None,
            tally: Tally::default(),
            trace: std::env::var_os("SAMSARA_TRACE").is_some(),
            setup,
        };
        let start = world.now;
        for (after, mishap) in world.setup.script.clone() {
            world.schedule(start + after, Event::Mishap(mishap));
        }
        world.schedule(start + HEAL_MS, Event::Heal);
        world.schedule(start + SETTLED_MS, Event::Settled);
        world.schedule(
            start,
            Event::Restart {
                host: 0,
                as_primary: true,
            },
        );
        world.schedule(
            start + 3,
            Event::Restart {
                host: 1,
                as_primary: false,
            },
        );
        world
    }

    /// Runs to the end; an error is a broken promise.
    pub(super) fn run(mut self) -> Result<Tally, String> {
        let end = self.now + END_MS;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > end {
                break;
            }
            self.now = at;
            if self.trace
                && !matches!(
                    event,
                    Event::To {
                        what: Happening::Tick,
                        ..
                    }
                )
            {
                eprintln!("{at} {event:?}");
            }
            self.step(event)
                .map_err(|broken| format!("at {at} ms: {broken}"))?;
        }
        self.check_survival()?;
        self.tally.failovers = self.outside.failovers;
        self.tally.outputs = self.outside.total;
        self.tally.late_repeats = self.outside.late_repeats;
        Ok(self.tally)
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        self.queue.insert((at, self.scheduled), event);
    }

    fn healed(&self) -> bool {
        self.now >= 1000 + HEAL_MS
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::To { host, life, what } => {
                self.places[host].inbox.push_back((life, what));
                self.drain(host)
            }
            Event::Resume { host } => self.drain(host),
            Event::Asked {
                host,
                life,
                request,
                answer_at,
            } => {
                let answer = self.arbiter.apply(&request);
                let anew = SimArbiter::has_taken(&request, &answer, Phase::Starting);
                if anew && self.told_primary.remove(&life) {
                    self.outside.give_up(self.guests + 1);
                }
                if let Some(at) = answer_at {
                    self.schedule(
                        at,
                        Event::To {
                            host,
                            life,
                            what: Happening::Answer(answer),
                        },
                    );
                }
                Ok(())
            }
            Event::Mishap(mishap) => {
                self.mishap(mishap);
                Ok(())
            }
            Event::Restart { host, as_primary } => {
                self.restart(host, as_primary);
                Ok(())
            }
            Event::Heal => self.heal(),
            Event::Settled => {
                self.at_settled = Some((self.has_carrier(), self.outside.total));
                Ok(())
            }
        }
    }

    fn drain(&mut self, host: usize) -> Result<(), String> {
        while self.places[host].paused_until <= self.now
            && let Some((life, what)) = self.places[host].inbox.pop_front()
        {
            self.happen(host, life, what)?;
        }
        Ok(())
    }

    fn happen(&mut self, host: usize, id: u64, what: Happening) -> Result<(), String> {
        let (now, draw) = (self.now, self.random.next());
        let Some(life) = self.places[host]
            .life
            .as_mut()
            .filter(|life| life.me.1 == id)
        else {
            return Ok(());
        };
        let outside = &mut self.outside;
        let is_tick = matches!(what, Happening::Tick);
        match what {
            Happening::Tick => life.tick(now, draw, outside)?,
            Happening::Message(session, message) => life.receive(now, session, message, outside)?,
            Happening::Answer(answer) => life.answered(now, answer, outside)?,
            Happening::Synced(session) => life.synced(now, session, outside)?,
        }
        if is_tick {
            self.schedule(
                now + TICK_MS,
                Event::To {
                    host,
                    life: id,
                    what: Happening::Tick,
                },
            );
        }
        self.effects(host)
    }

    fn effects(&mut self, host: usize) -> Result<(), String> {
        while let Some(life) = &mut self.places[host].life
            && !life.effects.is_empty()
        {
            let id = life.me.1;
            for effect in std::mem::take(&mut life.effects) {
                if self.trace
                    && !matches!(
                        effect,
                        Effect::Dial
                            | Effect::Send(
                                _,
                                Message::Heartbeat
                                    | Message::Commit { .. }
                                    | Message::Ack { .. }
                                    | Message::Released { .. }
                            )
                    )
                {
                    eprintln!("{}   host {host} life {id}: {effect:?}", self.now);
                }
                self.effect(host, id, effect)?;
            }
        }
        Ok(())
    }

    fn effect(&mut self, host: usize, life: u64, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Dial => self.dial(host, life),
            Effect::Send(session, message) => self.send(host, life, session, message),
            Effect::Ask(request) => self.ask(host, life, request),
            Effect::Sync(session) => {
                let at = self.now + self.random.range(10, 200);
                self.schedule(
                    at,
                    Event::To {
                        host,
                        life,
                        what: Happening::Synced(session),
                    },
                );
            }
            Effect::Boot => {
                self.guests += 1;
                let guest = self.guests;
                self.outside.boot(guest)?;
                if let Some(life) = &mut self.places[host].life {
                    life.boot(guest);
                }
            }
        }
        Ok(())
    }

    fn dial(&mut self, host: usize, life: u64) {
        let Some(peer) = self.places[1 - host].life.as_ref().map(|peer| peer.me) else {
            return;
        };
        if self.partitioned_until > self.now {
            return;
        }
        let session = SessionId(self.connections.len() as u64);
        let mut connection = Connection::new((host, life), peer, &mut self.random);
        if self.healed() {
            connection.make_fast();
        }
        self.connections.push(connection);
        if let Some(life) = &mut self.places[host].life {
            life.dialed(self.now, session);
        }
        self.send(host, life, session, Message::Dial);
    }

    fn send(&mut self, host: usize, life: u64, session: SessionId, message: Message) {
        let Some(connection) = self.connections.get_mut(session.0 as usize) else {
            return;
        };
        let Some(from) = connection.ends.iter().position(|&end| end == (host, life)) else {
            return;
        };
        if self.partitioned_until > self.now {
            connection.cut = [true; 2];
        }
        if connection.cut[from] {
            return;
        }
        let (host, life) = connection.ends[1 - from];
        let at = connection.arrival(from, &message, self.now, &mut self.random);
        self.schedule(
            at,
            Event::To {
                host,
                life,
                what: Happening::Message(session, message),
            },
        );
    }

    fn ask(&mut self, host: usize, life: u64, request: ArbiterRequest) {
        let down = self.places[host].arbiter_down_until > self.now;
        let fate = SimArbiter::fate(&request, self.now, down, self.healed(), &mut self.random);
        let answer_at = fate.failure.is_none().then_some(fate.answered_at);
        if let Some(at) = fate.applied_at {
            self.schedule(
                at,
                Event::Asked {
                    host,
                    life,
                    request,
                    answer_at,
                },
            );
        }
        if let Some(answer) = fate.failure {
            let what = Happening::Answer(answer);
            self.schedule(fate.answered_at, Event::To { host, life, what });
        }
    }

    fn mishap(&mut self, mishap: Mishap) {
        match mishap {
            Mishap::Kill {
                host,
                back_after_ms,
                as_primary,
            } => {
                self.kill(host);
                let back = (self.now + back_after_ms).min(1000 + HEAL_MS - 1);
                self.schedule(back, Event::Restart { host, as_primary });
            }
            Mishap::Pause { host, for_ms } => {
                let until = (self.now + for_ms).min(1000 + HEAL_MS);
                self.places[host].paused_until = until;
                self.schedule(until, Event::Resume { host });
            }
            Mishap::Partition { for_ms } => self.partitioned_until = self.now + for_ms,
            Mishap::Cut { one_way } => {
                for connection in &mut self.connections {
                    for end in 0..2 {
                        connection.cut[end] |=
                            one_way.is_none_or(|host| connection.ends[end].0 == host);
                    }
                }
            }
            Mishap::ArbiterDown { host, for_ms } => {
                self.places[host].arbiter_down_until = self.now + for_ms;
            }
        }
    }

    /// A process dies; its host's kernel closes its connections.
    fn kill(&mut self, host: usize) {
        let Some(life) = self.places[host].life.take() else {
            return;
        };
        for session in 0..self.connections.len() as u64 {
            self.send(host, life.me.1, SessionId(session), Message::Closed);
        }
    }

    fn restart(&mut self, host: usize, as_primary: bool) {
        let alive = self.places[host]
            .life
            .as_ref()
            .is_some_and(|life| life.situation() != Situation::Stopped);
        if alive {
            return;
        }
        self.kill(host);
        self.lives += 1;
        let mut settings = settings(host, self.setup.start_alone);
        settings.fault = self.setup.fault;
        let me = (host, self.lives);
        if as_primary {
            self.told_primary.insert(self.lives);
        }
        let life = Life::new(me, settings, as_primary, self.setup.guest_bound, self.now);
        self.places[host].life = Some(life);
        self.schedule(
            self.now,
            Event::To {
                host,
                life: me.1,
                what: Happening::Tick,
            },
        );
    }

    /// The end of all trouble: whoever is down comes back as a backup.
    fn heal(&mut self) -> Result<(), String> {
        self.partitioned_until = 0;
        for connection in &mut self.connections {
            connection.make_fast();
        }
        for host in 0..2 {
            self.places[host].paused_until = 0;
            self.places[host].arbiter_down_until = 0;
            self.drain(host)?;
            for again in 1..20 {
                let back = Event::Restart {
                    host,
                    as_primary: false,
                };
                self.schedule(self.now + 300 * again, back);
            }
        }
        Ok(())
    }

    /// Whether a process carries the guest on, by what the arbiter says.
    fn has_carrier(&self) -> bool {
        let Some(standing) = self.arbiter.current.as_ref().map(|current| &current.value) else {
            return false;
        };
        self.places
            .iter()
            .filter_map(|place| place.life.as_ref())
            .any(|life| {
                let status = life.decider.status();
                let mine = standing.holder.as_str() == ["alpha", "beta"][life.me.0];
                match status.situation {
                    Situation::InSync | Situation::BackupClaiming => status.term == standing.term,
                    Situation::Stopped | Situation::Searching | Situation::BackupSyncing => false,
                    _ => mine,
                }
            })
    }

    fn check_survival(&mut self) -> Result<(), String> {
        let Some((carried, outputs)) = self.at_settled else {
            return Ok(());
        };
        let standing = self.arbiter.current.as_ref().map(|current| &current.value);
        let ended = standing.is_some_and(|standing| standing.phase == Phase::Ended);
        self.tally.ended = ended;
        self.tally.survived = carried || ended;
        if !carried || ended {
            return Ok(());
        }
        let situations: Vec<_> = self
            .places
            .iter()
            .filter_map(|place| place.life.as_ref())
            .map(|life| life.decider.status())
            .collect();
        let what = || format!("arbiter: {standing:?}; hosts: {situations:#?}");
        if self.outside.total <= outputs {
            return Err(format!("the guest did not carry on; {}", what()));
        }
        let protected = situations
            .iter()
            .any(|status| status.situation == Situation::Protected);
        if !protected && self.setup.guest_bound.is_none() {
            return Err(format!("the guest is not protected again; {}", what()));
        }
        Ok(())
    }
}
