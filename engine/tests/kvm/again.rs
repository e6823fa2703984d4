//! Histories of guest programs, run again from orders alone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use samsara_commitlog::{CommitSeq, Frame, Record, VcpuIndex};
use samsara_engine::{
    Consumer, Divergence, DivergenceCause, EngineError, Faults, Fetch, Rerun, Settings, Stats,
};
use samsara_machine::kvm::{CounterKind, Host};
use samsara_testing::by_effort;

use crate::loads::elf;
use crate::privileged::{COUNT_WITHOUT_TRACE, code};
use crate::world::{Answer, Guest, PATIENCE, Recorded, host, settings, snapshot};

/// A recorded history, in both forms.
struct History {
    snapshot: Vec<Frame>,
    orders: Vec<Frame>,
    effects: Vec<Frame>,
    answer: Answer,
}

struct Effects(Vec<Frame>);

impl Fetch for Effects {
    fn effects(&self, diverged: &Divergence) -> Option<Record> {
        let mut records = self.0.iter().filter_map(Frame::record);
        records.find(|record| record.seq == diverged.seq).cloned()
    }

    fn gave_up(&self, vcpu: VcpuIndex, error: &EngineError) {
        println!("{vcpu}: {error}");
    }
}

fn counted(counter: Option<CounterKind>) -> Settings {
    Settings {
        counter,
        digest_every: 1,
        ..settings(Faults::default())
    }
}

fn record(host: &Host, guest: &Guest, settings: Settings) -> History {
    let mut machine = guest.machine(host);
    let snapshot = snapshot(&mut machine);
    let run = Recorded::start(host, guest, machine, settings).unwrap();
    if !guest.typed.is_empty() {
        run.recorder.console_input(guest.typed).unwrap();
    }
    run.world
        .wait_for_end(3 * PATIENCE)
        .unwrap_or_else(|error| panic!("{guest:?}: {error}"));
    run.recorder.stop();
    let (orders, effects) = run.world.take_both();
    History {
        snapshot,
        orders,
        effects,
        answer: run.world.answer(),
    }
}

impl History {
    fn order_count(&self) -> usize {
        let records = self.orders.iter().filter_map(Frame::record);
        let is_order = |record: &&Record| record.is_order();
        records.filter(is_order).count()
    }

    fn chunk_count(&self) -> usize {
        let records = self.effects.iter().filter_map(Frame::record);
        records.filter(|record| record.chunk().is_some()).count()
    }

    /// Follows the orders; gives how often a chunk came out differently.
    fn follow(&self, host: &Arc<Host>, settings: Settings, threads: usize) -> Result<u64, String> {
        let (mut consumer, stats) = self.consumer(host, settings, threads)?;
        follow(&mut consumer, &self.orders)?;
        self.end(consumer, &stats)
    }

    /// The same by one that is ready for orders from the snapshot on, and gets effects up to a commit.
    fn follow_late(
        &self,
        host: &Arc<Host>,
        settings: Settings,
        first_order: CommitSeq,
    ) -> Result<u64, String> {
        let is_early = |frame: &&Frame| match frame {
            Frame::Record(record) => record.seq < first_order,
            Frame::Digest(digest) => digest.seq < first_order,
            _ => false,
        };
        let effects = self.effects.iter().take_while(is_early);
        let orders = self.orders.iter().skip_while(is_early);
        let frames: Vec<_> = effects.chain(orders).cloned().collect();
        let (mut consumer, stats) = self.consumer(host, settings, 2)?;
        let ready = consumer.prepare_orders();
        ready.map_err(|error| error.to_string())?;
        follow(&mut consumer, &frames)?;
        self.end(consumer, &stats)
    }

    /// One that has the snapshot.
    fn consumer(
        &self,
        host: &Arc<Host>,
        settings: Settings,
        threads: usize,
    ) -> Result<(Consumer, Arc<Stats>), String> {
        let stats = Arc::new(Stats::new(16));
        let rerun = Rerun {
            host: Some(Arc::clone(host)),
            settings,
            threads,
            fetch: Arc::new(Effects(self.effects.clone())),
            stats: Arc::clone(&stats),
        };
        let mut consumer = Consumer::default().with_rerun(rerun);
        follow(&mut consumer, &self.snapshot)?;
        Ok((consumer, stats))
    }

    fn end(&self, consumer: Consumer, stats: &Stats) -> Result<u64, String> {
        let machine = consumer.into_machine().ok_or("no machine")?;
        assert_eq!(machine.ended().cloned(), self.answer.ended);
        let counts = DivergenceCause::ALL.map(|cause| {
            let count = stats.divergences(cause).load(Ordering::Relaxed);
            if count > 0 {
                println!("{count} x {}", cause.as_str());
            }
            count
        });
        Ok(counts.iter().sum())
    }
}

fn follow(consumer: &mut Consumer, frames: &[Frame]) -> Result<(), String> {
    frames.chunks(64).try_for_each(|frames| {
        let followed = consumer.frames(frames, &mut Vec::new());
        followed.map_err(|error| error.to_string())
    })
}

/// Those whose time is their own: stepped, an instruction takes as long as thousands.
fn cases(vcpus: u8) -> Vec<Guest> {
    let guest = |name, params| Guest::new(name, params, vcpus);
    let large = |name, params| Guest::large(name, params, vcpus);
    vec![
        guest("counter", "n=60 mode=lock"),
        guest("hello", "via=byte"),
        guest("status", "status=7"),
        large("litmus", "test=sb iters=2 batch=2"),
        large("private", "n=300"),
        Guest {
            typed: b"one\ntwo\nq\n",
            ..guest("console", "")
        },
        guest("counter", "n=300 mode=atomic"),
        guest("counter", "n=4 mode=ticket"),
        guest("hello", "via=dma"),
        large("litmus", "test=mp iters=2 batch=2"),
        guest("outputs", "n=10"),
        guest("registers", "n=3 loops=20"),
    ]
}

fn replays_stepped(vcpus: u8) {
    let Some(host) = host() else { return };
    let host = Arc::new(host);
    let settings = counted(Some(CounterKind::SingleStep));
    let cases = cases(vcpus);
    let count = by_effort(3, cases.len());
    for guest in cases.into_iter().take(count) {
        let started = Instant::now();
        let history = record(&host, &guest, settings);
        let recorded = started.elapsed();
        assert_eq!(history.order_count(), history.chunk_count(), "{guest:?}");
        for threads in [1, usize::from(vcpus)] {
            let diverged = history
                .follow(&host, settings, threads)
                .unwrap_or_else(|error| panic!("{guest:?}, {threads} threads: {error}"));
            assert_eq!(diverged, 0, "{guest:?}, {threads} threads");
        }
        println!(
            "{} {}: {:?}, {} chunks, recorded in {recorded:?}, all in {:?}",
            guest.name,
            guest.params,
            history.answer,
            history.chunk_count(),
            started.elapsed()
        );
    }
}

#[test]
fn stepped_histories_on_two_vcpus() {
    replays_stepped(2);
}

#[test]
fn stepped_histories_on_four_vcpus() {
    if by_effort(false, true) {
        replays_stepped(4);
    }
}

/// Chunks that end by exits of their own need no counter.
#[test]
fn a_guest_that_yields_needs_no_counter() {
    let Some(host) = host() else { return };
    let host = Arc::new(host);
    let settings = counted(None);
    let n = by_effort(600, 3000);
    let guest = Guest::new("registers", &format!("n={n} loops=2000"), 2);
    let history = record(&host, &guest, settings);
    let orders = history.order_count();
    assert!(orders >= 1000, "{orders} orders");
    assert!(orders * 10 >= history.chunk_count() * 9);
    assert_eq!(history.follow(&host, settings, 2), Ok(0));
    for first_order in [0, 100, orders as u64 - 100, u64::MAX] {
        let followed = history.follow_late(&host, settings, CommitSeq(first_order));
        assert_eq!(followed, Ok(0), "orders from {first_order} on");
    }
    println!("{orders} of {} chunks", history.chunk_count());
}

/// A guest has become privileged while it came as effects: its first orders capture and restore everything.
#[test]
fn a_guest_that_has_become_privileged_is_run_as_such() {
    let Some(host) = host() else { return };
    let host = Arc::new(host);
    let program = elf(&code(COUNT_WITHOUT_TRACE));
    let guest = Guest {
        path: program.path().into(),
        ..Guest::new("status", "", 1)
    };
    let settings = counted(None);
    let history = record(&host, &guest, settings);
    let orders = history.order_count() as u64;
    assert!(orders >= 200, "{orders} orders");
    for first_order in [0, 20, orders - 20] {
        let followed = history.follow_late(&host, settings, CommitSeq(first_order));
        assert_eq!(followed, Ok(0), "orders from {first_order} on");
    }
}
