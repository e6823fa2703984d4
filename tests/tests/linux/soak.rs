//! A Linux guest under mixed load, protected, for an hour: every few minutes its primary is killed and the survivor
//! protected again, while one TCP connection of a client lasts.
//!
//! `SAMSARA_MINUTES=n` takes another time, `SAMSARA_SEED=s` repeats a run's moments.

use std::time::{Duration, Instant};

use samsara_testing::number_from_env;
use samsara_tests::seed::{Seeded, run_seed};
use samsara_tests::service::{Client, Service};
use samsara_tests::soak::Span;
use samsara_tests::soak::digests::Digests;
use samsara_tests::soak::failovers::{Failover, check_clocks, check_sleeps};
use samsara_tests::soak::memory::{Ledger, Role, Usage};
use samsara_tests::soak::observer::{Observed, Observer};
use samsara_tests::soak::processor::Processor;
use samsara_tests::soak::stretch::Stretch;
use samsara_tests::soak::ticks::TickCount;
use samsara_tests::{HarnessError, Host, Status, Wire};

use crate::service::assert_ended_alike;
use crate::{Told, turn_or_skip};

const TEST: &str = "an_hour_under_mixed_load";
/// What [`Service`] gives its guest.
const CPUS: u64 = 2;
/// What the guest does in the background: so much that a kernel which is emulated has time left for its programs.
const BACKGROUND: &str = "rest_ms=200 sleep_ms=100 pause_ms=500";
/// A sleep of the background that takes longer is late: a lost timer never ends one, and a machine with much else to do only makes it
/// take seconds. Where nothing is killed there is none.
const LATE: Duration = Duration::from_secs(20);
/// Commits between two digests of the whole state: often, so that a difference is found soon after it came up.
const DIGEST_EVERY: &str = "recording.digest_every=64";
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
const SAY_EVERY: Duration = Duration::from_mins(1);
/// Least time from protection to a kill; a kill comes within twice that. In a short run it is a part of it.
const CALM: Duration = Duration::from_mins(2);
const CALMS_IN_A_RUN: u32 = 6;
/// A survivor whose client waits longer for an answer has not carried on, be the machine ever so busy.
const AWAY_MAX: Duration = Duration::from_mins(1);

#[test]
#[ignore = "it takes an hour: SAMSARA_MINUTES=60 cargo test --release -p samsara-tests --test linux soak -- --ignored --nocapture"]
fn an_hour_under_mixed_load() {
    let Some(turn) = turn_or_skip(TEST) else {
        return;
    };
    let Some(wire) = Wire::new_or_skip(TEST) else {
        return;
    };
    let minutes = number_from_env("SAMSARA_MINUTES").unwrap_or(60);
    let seed = run_seed();
    println!("{TEST}: seed {seed}, {minutes} minutes");
    let _told = Told(format!(
        "SAMSARA_SEED={seed} SAMSARA_MINUTES={minutes} cargo test --release --package samsara-tests --test linux -- --ignored --nocapture {TEST}"
    ));
    let job = format!("mixed {BACKGROUND} late_ms={}", LATE.as_millis());
    let service = Service::start_with(turn.guest, &job, wire, &[DIGEST_EVERY]).unwrap();
    crate::wait_said(&service.pair.primary, "samsara: serving");
    let mut soak = Soak::start(service, Seeded::new(seed)).unwrap();
    if let Err(why) = soak.run(Duration::from_secs(60 * minutes)) {
        println!("{}", soak.memory.table());
        panic!("{why}");
    }
    soak.finish();
}

struct Soak {
    service: Service,
    client: Client,
    seeded: Seeded,
    observed: Observed,
    started: Instant,
    said: Instant,
    /// The stretch that has begun, as far as it is known.
    answered: Instant,
    protected: Instant,
    failovers: Vec<Failover>,
    digests: Digests,
    memory: Ledger,
    ticks: TickCount,
    /// Those that lasted as long as [`CALM`], and of them those whose clocks are known to have kept their rate.
    long_stretches: usize,
    decided_stretches: usize,
}

impl Soak {
    fn start(mut service: Service, mut seeded: Seeded) -> Result<Self, HarnessError> {
        service.wait_protected()?;
        let observed = Observed::default();
        let mut asks = Observer::new(observed.clone());
        let values = Seeded::new(seeded.bits());
        let client = Client::start_with(&service.wire, values, move |store| asks.step(store))?;
        client.wait_more(1)?;
        let now = Instant::now();
        Ok(Self {
            service,
            client,
            seeded,
            observed,
            started: now,
            said: now,
            answered: now,
            protected: now,
            failovers: Vec::new(),
            digests: Digests::default(),
            memory: Ledger::default(),
            ticks: TickCount::default(),
            long_stretches: 0,
            decided_stretches: 0,
        })
    }

    fn run(&mut self, time: Duration) -> Result<(), String> {
        let calm = CALM.min(time / CALMS_IN_A_RUN);
        let end = self.started + time;
        loop {
            let kill_at = Instant::now() + calm + self.seeded.up_to(calm);
            // So that the last stretch is one that says something.
            let is_last = kill_at + calm > end;
            self.watch(if is_last { end } else { kill_at })?;
            if is_last {
                return self.judge_stretch(Instant::now());
            }
            self.kill()?;
        }
    }

    /// Looks at everything until then.
    fn watch(&mut self, until: Instant) -> Result<(), String> {
        loop {
            self.sample()?;
            if self.said.elapsed() >= SAY_EVERY {
                self.said += SAY_EVERY;
                self.say();
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(SAMPLE_EVERY));
        }
    }

    fn sample(&mut self) -> Result<(), String> {
        let pauses = self.client.pauses();
        if pauses.failures > 0 {
            return Err(format!(
                "{} requests failed: {:?}",
                pauses.failures, pauses.errors
            ));
        }
        let pair = &mut self.service.pair;
        let is_protected = look(&mut pair.primary)?.protected;
        for host in [&mut pair.primary, &mut pair.backup] {
            let status = look(host)?;
            let now = Instant::now();
            let follows = is_protected && status.role == samsara_config::Role::Backup;
            self.digests
                .note(status.pid, &status.counters, follows, now)
                .map_err(|why| format!("{}: {why}; {}", host.name(), status.state))?;
            let usage = Usage::of(status.pid).map_err(|error| error.to_string())?;
            self.memory
                .note(host.name(), status.pid, Role::of(&status), now, usage);
        }
        Ok(())
    }

    fn say(&self) {
        let pauses = self.client.pauses();
        let pair = &self.service.pair;
        println!(
            "  {:.0} min: {} serves, {} follows; {} kills; {} answers, none failed; {} digests equal; {:.1} % of due ticks handled",
            self.started.elapsed().as_secs_f64() / 60.0,
            pair.primary.name(),
            pair.backup.name(),
            self.failovers.len(),
            pauses.answers,
            self.digests.compared(),
            self.ticks.share() * 100.0
        );
    }

    fn kill(&mut self) -> Result<(), String> {
        self.sample()?;
        let pair = &mut self.service.pair;
        let (name, backup) = (pair.primary.name().to_owned(), look(&mut pair.backup)?);
        if self.digests.compared_in(backup.pid) == 0 {
            return Err(format!("{} never compared a digest", backup.host));
        }
        let before = Processor::of(backup.pid).map_err(|error| error.to_string())?;
        let at = Instant::now();
        pair.kill_primary().map_err(|error| error.line())?;
        let answered = loop {
            if let Some(exchange) = self.observed.look().first_after(at) {
                break exchange.received;
            }
            self.client.wait_more(1).map_err(|error| error.line())?;
        };
        let used = Processor::of(backup.pid).map_err(|error| error.to_string())?;
        let used = used.since(&before);
        self.judge_stretch(at)?;
        let (took, bytes) = self.service.protect_again().map_err(|error| error.line())?;
        let protected = Instant::now();
        let away = self.observed.look().longest_pause(&Span {
            from: at,
            to: answered,
        });
        println!(
            "  {name} killed: {away:.2?} without an answer, in which {} {used}; protected again after {took:.1?} with {} KiB of disk",
            backup.host,
            bytes / 1024
        );
        if away > AWAY_MAX {
            return Err(format!("no answer for {away:.0?} after {name} was killed"));
        }
        self.failovers.push(Failover {
            killed: at,
            answered,
        });
        (self.answered, self.protected) = (answered, protected);
        Ok(())
    }

    fn judge_stretch(&mut self, end: Instant) -> Result<(), String> {
        let stretch = Stretch {
            answered: self.answered,
            protected: self.protected,
            end,
        };
        let report = stretch.judge(&self.observed.look(), CPUS, LATE)?;
        println!("  {report}");
        self.ticks.add(report.ticks);
        let is_long = stretch.whole().length() >= CALM;
        self.long_stretches += usize::from(is_long);
        self.decided_stretches += usize::from(is_long && report.is_decided);
        Ok(())
    }

    /// No clock was wrong; this says how far that is known. Short stretches do not tell.
    fn check_decided(&self) {
        let (decided, long) = (self.decided_stretches, self.long_stretches);
        println!(
            "  clocks proven to keep the host's rate within 0.1 %: {decided} of {long} stretches of {CALM:?} or more"
        );
        assert!(
            2 * decided >= long,
            "readings were too slow to tell of the clocks"
        );
    }

    /// Ends the guest; what holds for all of the run.
    fn finish(self) {
        self.check_decided();
        let seen = self.client.finish(&self.service.wire).unwrap();
        assert_eq!(seen.pauses.failures, 0, "{:?}", seen.pauses.errors);
        println!(
            "  {} kills; {} answers, none failed; {} values set, {} read back; longest pause {:.2?}",
            self.failovers.len(),
            seen.pauses.answers,
            seen.sets,
            seen.keys,
            seen.pauses.longest
        );
        println!("  {} digests equal, no divergence", self.digests.compared());
        let observations = self.observed.look();
        let clocks = check_clocks(&observations, &self.failovers);
        let sleeps = check_sleeps(&observations, LATE);
        drop(observations);
        clocks.unwrap().iter().for_each(|line| println!("  {line}"));
        println!("  {}", sleeps.unwrap());
        println!("{}", self.memory.table());
        let judged = self.memory.check().unwrap_or_else(|why| panic!("{why}"));
        println!("  memory is flat in {judged} lives that were long enough to tell");
        assert_ended_alike(self.service);
    }
}

/// A host's status; an error if it has ended.
fn look(host: &mut Host) -> Result<Status, String> {
    if host.has_ended().map_err(|error| error.line())? {
        return Err(format!("{} has ended: {}", host.name(), host.log_text()));
    }
    host.status().map_err(|error| error.line())
}
