//! Histories of random programs, run again from orders alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use samsara_commitlog::{Commit, CommitSeq, Frame, Record, StateDigest, VcpuIndex};
use samsara_engine::{
    ConsumeError, Consumer, Divergence, DivergenceCause, EngineError, Faults, Fetch, Item,
    Replayer, Rerun, Settings, Stats,
};
use samsara_machine::memory::View;
use samsara_machine::{Machine, Output, Source};
use samsara_testing::by_effort;

use crate::cpu::{Limits, ToyCpu, Trouble};
use crate::program::Op;
use crate::world::{Run, Setup, check_machine};

/// A recorded history.
struct History {
    programs: Vec<Arc<[Op]>>,
    snapshot: Vec<Frame>,
    items: Vec<(Item, Vec<Output>)>,
    last: Frame,
}

fn record(setup: &Setup) -> History {
    let programs = setup.programs();
    let run = Run::start(setup, programs.clone());
    run.wait().unwrap();
    run.recorder.stop();
    let last = Frame::Digest(run.recorder.paused(|machine| machine.digest()));
    let items = std::mem::take(&mut *run.world.items.lock().unwrap());
    History {
        programs,
        snapshot: run.snapshot.clone(),
        items,
        last,
    }
}

/// What to do with chunks that come out differently.
#[derive(Default)]
struct Effects {
    records: Mutex<Vec<Record>>,
    asked: AtomicU64,
    /// vCPUs that ran no more.
    gave_up: Mutex<Vec<VcpuIndex>>,
}

impl Fetch for Effects {
    fn effects(&self, diverged: &Divergence) -> Option<Record> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let records = self.records.lock().unwrap();
        let found = records.iter().find(|record| record.seq == diverged.seq);
        found.cloned()
    }

    fn gave_up(&self, vcpu: VcpuIndex, error: &EngineError) {
        println!("{vcpu}: {error}");
        self.gave_up.lock().unwrap().push(vcpu);
    }
}

/// How a history is run again.
#[derive(Clone, Copy)]
struct How {
    settings: Settings,
    /// So many vCPUs at the same time.
    threads: usize,
    /// So many frames together.
    piece: usize,
    /// What the first vCPU meets.
    trouble: Trouble,
}

impl How {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            threads: 4,
            piece: 32,
            trouble: Trouble::None,
        }
    }
}

impl History {
    /// Its frames; of those chunks that `is_order` takes only the orders.
    fn frames(&self, is_order: impl Fn(u64) -> bool) -> Vec<Frame> {
        let frames = self.items.iter().map(|(item, _)| match item {
            Item::Record(record, Some(order)) if is_order(record.seq.0) => Frame::Record(Record {
                commit: Commit::Order(*order),
                ..record.clone()
            }),
            Item::Record(record, _) => Frame::Record(record.clone()),
            Item::Digest(digest) => Frame::Digest(*digest),
        });
        frames.chain([self.last.clone()]).collect()
    }

    fn outputs(&self) -> Vec<Output> {
        let outputs = self.items.iter().flat_map(|(_, outputs)| outputs.clone());
        outputs.collect()
    }

    fn effects(&self) -> Effects {
        let records = self.items.iter().filter_map(|(item, _)| match item {
            Item::Record(record, _) => Some(record.clone()),
            Item::Digest(_) => None,
        });
        Effects {
            records: Mutex::new(records.collect()),
            ..Effects::default()
        }
    }

    /// The machine of the snapshot.
    fn machine(&self) -> Machine {
        let mut consumer = Consumer::default();
        for frame in &self.snapshot {
            consumer.frame(frame).unwrap();
        }
        consumer.into_machine().unwrap()
    }

    /// Digest of the machine at a commit, by effects alone.
    fn digest_at(&self, seq: CommitSeq) -> StateDigest {
        let mut machine = self.machine();
        for frame in self.frames(|_| false) {
            if let Frame::Record(record) = frame
                && record.seq <= seq
            {
                machine.apply(&record, Source::Record).unwrap();
            }
        }
        machine.digest()
    }

    /// Toys that go on from the snapshot.
    fn replay(&self, how: &How, effects: Effects) -> Result<Replay, String> {
        let machine = self.machine();
        let mut troubles = std::iter::once(how.trouble).chain(std::iter::repeat(Trouble::None));
        let toys = self.programs.iter().map(|program| {
            let view = Arc::new(View::new(machine.image()).unwrap());
            let limits = Limits {
                ring: 64,
                cut_every: u64::MAX,
            };
            let cpu = ToyCpu::new(Arc::clone(program), Arc::clone(&view), 1, limits);
            (view, cpu.with_trouble(troubles.next().unwrap_or_default()))
        });
        let toys = toys.collect();
        let effects = Arc::new(effects);
        let stats = Arc::new(Stats::new(self.programs.len() as u8));
        let rerun = Rerun {
            host: None,
            settings: how.settings,
            threads: how.threads,
            fetch: Arc::clone(&effects) as Arc<dyn Fetch>,
            stats: Arc::clone(&stats),
        };
        let replayer = Replayer::start_on(toys, machine, &rerun);
        Ok(Replay {
            replayer: replayer.map_err(|error| error.to_string())?,
            effects,
            stats,
        })
    }

    /// Runs frames again on toys; gives what came out, and how often it was different.
    fn run_again(
        &self,
        how: &How,
        frames: &[Frame],
        effects: Effects,
    ) -> Result<(Vec<Output>, u64), String> {
        let mut replay = self.replay(how, effects)?;
        let mut applied = Vec::new();
        for frames in frames.chunks(how.piece) {
            let followed = replay.replayer.frames(frames, &mut applied);
            followed.map_err(|error| error.to_string())?;
        }
        let outputs: Vec<_> = applied
            .into_iter()
            .flat_map(|(_, outputs)| outputs)
            .collect();
        let counted = replay.diverged();
        assert_eq!(counted, replay.effects.asked.load(Ordering::Relaxed));
        replay
            .replayer
            .look(|machine| check_machine(machine, &self.programs))?;
        replay.replayer.into_machine().ok_or("no machine")?;
        Ok((outputs, counted))
    }
}

/// Toys that run a history again.
struct Replay {
    replayer: Replayer,
    effects: Arc<Effects>,
    stats: Arc<Stats>,
}

impl Replay {
    fn diverged(&self) -> u64 {
        let counts = DivergenceCause::ALL.map(|cause| self.diverged_by(cause));
        counts.iter().sum()
    }

    fn diverged_by(&self, cause: DivergenceCause) -> u64 {
        self.stats.divergences(cause).load(Ordering::Relaxed)
    }
}

fn setup(seed: u64) -> Setup {
    let mut setup = Setup::new(seed);
    setup.mix.fills = seed % 3 == 2;
    setup
}

/// Any number of threads, and any cut of the stream, leads to the same states.
#[test]
fn orders_alone_give_the_history() {
    for seed in 0..by_effort(6, 60) {
        let mut setup = setup(seed);
        if seed % 2 == 1 {
            // A ring that is full ends a chunk where nothing can be found again.
            setup.limits.ring = 3;
        }
        let history = record(&setup);
        let frames = history.frames(|_| true);
        let orders = frames.iter().filter_map(Frame::record);
        assert!(
            orders.filter(|record| record.is_order()).count() > 10,
            "hardly any chunk can be run again"
        );
        for (threads, piece) in [(1, 1), (2, 7), (4, usize::MAX), (16, 64)] {
            let how = How {
                threads,
                piece,
                ..How::new(setup.settings())
            };
            let run = history.run_again(&how, &frames, Effects::default());
            let (outputs, diverged) =
                run.unwrap_or_else(|error| panic!("seed {seed}, {threads} threads: {error}"));
            assert_eq!(diverged, 0, "seed {seed}");
            assert!(outputs == history.outputs(), "seed {seed}: other outputs");
        }
    }
}

/// What a stream leaves out is an error, and nobody waits for it.
#[test]
fn gaps_are_errors() {
    let setup = setup(1);
    let history = record(&setup);
    let frames = history.frames(|_| true);
    let gap = frames.len() / 2;
    for found in ["a gap", "an early digest"] {
        let mut frames = frames.clone();
        if found == "a gap" {
            let is_record = |at: &usize| frames[*at].record().is_some();
            let place = (gap..frames.len()).find(is_record).unwrap();
            frames.remove(place);
        } else {
            frames.insert(gap, history.last.clone());
        }
        let run = history.run_again(&How::new(setup.settings()), &frames, Effects::default());
        let error = run.expect_err(found);
        println!("{found}: {error}");
        assert!(error.contains("follow"), "{error}");
    }
}

/// Both forms of chunks mix, also within one vCPU.
#[test]
fn orders_and_effects_mix() {
    for seed in 0..by_effort(6, 60) {
        let setup = setup(seed);
        let history = record(&setup);
        for share in [2, 3, 7] {
            let frames = history.frames(|seq| (seq / share) % 2 == 0);
            let run = history.run_again(&How::new(setup.settings()), &frames, Effects::default());
            let (outputs, diverged) =
                run.unwrap_or_else(|error| panic!("seed {seed}, share {share}: {error}"));
            assert_eq!(diverged, 0);
            assert!(outputs == history.outputs());
        }
    }
}

/// A chunk that comes out differently is replaced by its effects, whatever it did.
#[test]
fn effects_take_the_place_of_what_diverged() {
    for seed in 0..by_effort(6, 60) {
        let setup = setup(seed);
        let history = record(&setup);
        let mut frames = history.frames(|_| true);
        let settings = Settings {
            faults: Faults {
                squash_every: 3,
                ..Faults::default()
            },
            ..setup.settings()
        };
        // Orders that nothing can come of: another digest, an end that never comes or has gone by.
        let mut spoilt = 0;
        for (index, frame) in frames.iter_mut().enumerate() {
            if let Frame::Record(Record {
                commit: Commit::Order(order),
                ..
            }) = frame
                && index % 5 == 0
                && let Some(progress) = &mut order.progress
            {
                progress.count += 1 + index as u64 % 3;
                spoilt += 1;
            }
        }
        let run = history.run_again(&How::new(settings), &frames, history.effects());
        let (outputs, diverged) = run.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(diverged >= spoilt, "{diverged} of {spoilt} noticed");
        assert!(outputs == history.outputs());
    }
}

/// Without effects a chunk that comes out differently ends the replay, and says which it was.
#[test]
fn a_divergence_without_effects_is_an_error() {
    let setup = setup(1);
    let history = record(&setup);
    let mut frames = history.frames(|_| true);
    let order = frames.iter_mut().find_map(|frame| match frame {
        Frame::Record(Record {
            seq,
            commit: Commit::Order(order),
            ..
        }) if seq.0 > 10 => Some((*seq, order)),
        _ => None,
    });
    let (seq, order) = order.unwrap();
    order.digest ^= 1;
    let run = history.run_again(&How::new(setup.settings()), &frames, Effects::default());
    let error = run.unwrap_err();
    assert!(error.contains(&format!("commit {seq} ")), "{error}");
    assert!(error.contains("came out differently"), "{error}");
}

/// A host that lets a vCPU stand still for longer than any chunk takes is busy: nothing is wrong.
#[test]
fn a_busy_host_is_waited_for() {
    let setup = setup(2);
    let history = record(&setup);
    let how = How {
        trouble: Trouble::Stands(Duration::from_millis(2500)),
        ..How::new(setup.settings())
    };
    let frames = history.frames(|_| true);
    let (outputs, diverged) = history.run_again(&how, &frames, history.effects()).unwrap();
    assert_eq!(diverged, 0);
    assert!(outputs == history.outputs());
}

/// A chunk that runs and comes nowhere is given up.
#[test]
fn a_chunk_that_never_ends_is_late() {
    let setup = setup(2);
    let history = record(&setup);
    let how = How {
        trouble: Trouble::Spins(Duration::ZERO),
        ..How::new(setup.settings())
    };
    let frames = history.frames(|_| true);
    let (outputs, diverged) = history.run_again(&how, &frames, history.effects()).unwrap();
    assert_eq!(diverged, 1);
    assert!(outputs == history.outputs());
}

/// A host that cannot run a vCPU says so before anything is asked of it.
#[test]
fn a_vcpu_that_cannot_run_is_found_out_at_the_start() {
    let setup = setup(2);
    let history = record(&setup);
    // It is attached, gets its state, runs, is asked what it wrote, and gets its state back.
    let failures = (0..5).map(|requests| (Trouble::Fails(requests), "what it had before"));
    for (trouble, why) in failures.chain([(Trouble::Panics(0), "replay0 stopped")]) {
        let how = How {
            trouble,
            ..How::new(setup.settings())
        };
        let error = history.replay(&how, history.effects()).err();
        let error = error.unwrap_or_else(|| panic!("{trouble:?} goes unnoticed"));
        assert!(error.contains(why), "{trouble:?}: {error}");
    }
}

/// A vCPU that fails at whatever moment runs no more; the effects of its chunks lead to the same.
#[test]
fn effects_take_the_place_of_what_fails() {
    let setup = setup(2);
    let history = record(&setup);
    let frames = history.frames(|_| true);
    let panics = [1, 2, 9].map(Trouble::Panics);
    let mut at = 6;
    let failures = std::iter::from_fn(|| {
        at += by_effort(1 + at / 8, 1);
        Some(Trouble::Fails(at))
    });
    let mut gave_up_count = 0;
    for trouble in panics.into_iter().chain(failures) {
        let how = How {
            trouble,
            ..How::new(setup.settings())
        };
        let mut replay = history.replay(&how, history.effects()).unwrap();
        let mut applied = Vec::new();
        for piece in frames.chunks(how.piece) {
            let followed = replay.replayer.frames(piece, &mut applied);
            followed.unwrap_or_else(|error| panic!("{trouble:?}: {error}"));
        }
        let outputs = applied.into_iter().flat_map(|(_, outputs)| outputs);
        assert!(outputs.eq(history.outputs()), "{trouble:?}: other outputs");
        let failed = replay.diverged_by(DivergenceCause::Failed);
        assert_eq!(replay.diverged(), failed, "{trouble:?}");
        let gave_up = std::mem::take(&mut *replay.effects.gave_up.lock().unwrap());
        if gave_up.is_empty() {
            // It came to its end before it would have failed.
            break;
        }
        assert_eq!(gave_up, [VcpuIndex(0)]);
        gave_up_count += 1;
    }
    assert!(gave_up_count > 10, "only {gave_up_count} failures");
}

/// Where nobody has the effects of what failed, the machine is still there, at its last commit.
#[test]
fn a_machine_outlives_what_fails() {
    let setup = setup(2);
    let history = record(&setup);
    let frames = history.frames(|_| true);
    for requests in [6, 9, 20, 40] {
        let how = How {
            trouble: Trouble::Fails(requests),
            ..How::new(setup.settings())
        };
        let mut replay = history.replay(&how, Effects::default()).unwrap();
        let error = replay.replayer.frames(&frames, &mut Vec::new());
        match error.expect_err("nothing failed") {
            error @ ConsumeError::Diverged(found) => {
                println!("{error}");
                assert_eq!(found.cause, DivergenceCause::Failed);
                assert!(!error.is_divergence());
            }
            error => panic!("{error}"),
        }
        let machine = replay.replayer.into_machine().expect("the machine is lost");
        assert_eq!(machine.digest(), history.digest_at(machine.seq()));
    }
}

/// vCPUs that ran nothing for long have missed nothing when their first order comes.
#[test]
fn orders_may_come_late() {
    for seed in 0..by_effort(6, 60) {
        let setup = setup(seed);
        let history = record(&setup);
        let last = history.frames(|_| true).len() as u64;
        for share in [0, 2, 8] {
            let first = last - last.checked_div(share).unwrap_or(0);
            let frames = history.frames(|seq| seq >= first);
            let how = How::new(setup.settings());
            let run = history.run_again(&how, &frames, Effects::default());
            let (outputs, diverged) =
                run.unwrap_or_else(|error| panic!("seed {seed}, from {first}: {error}"));
            assert_eq!(diverged, 0);
            assert!(outputs == history.outputs());
        }
    }
}
