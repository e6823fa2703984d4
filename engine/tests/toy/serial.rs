//! Committed history is serializable, whatever cuts, squashes and contention do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use samsara_commitlog::{Frame, TIME_STEP};
use samsara_engine::{Consumer, Faults, Item, Mistake, SnapshotBounds};
use samsara_machine::Machine;
use samsara_machine::bare::register;
use samsara_testing::{by_effort, number_from_env};

use crate::cpu::Limits;
use crate::program::{Mix, Op};
use crate::world::{Run, Setup, check_end, run, snapshot};

/// Invariants 1, 8, 10 and 11. `SAMSARA_SEEDS=n` tries n seeds.
#[test]
fn random_programs_are_serializable() {
    let (mut squashes, mut digests) = (0, 0);
    let seeds = number_from_env("SAMSARA_SEEDS").unwrap_or_else(|| by_effort(30, 60));
    for seed in 0..seeds {
        let stats = run(&Setup::new(seed)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        squashes += stats.squashes;
        digests += stats.digests;
    }
    assert!(
        squashes > 100,
        "no contention to speak of: {squashes} squashes"
    );
    assert!(digests > 100, "{digests} digests");
}

/// Invariants 1 and 50: pages that change as a whole now and a little then, of one vCPU and of several.
#[test]
fn pages_that_are_filled_are_serializable() {
    for seed in 300..300 + by_effort(12, 60) {
        let setup = Setup::new(seed);
        let faults = Faults {
            squash_every: [0, 5][seed as usize % 2],
            ..Faults::default()
        };
        let mix = Mix {
            fills: true,
            ..setup.mix
        };
        let setup = Setup {
            mix,
            faults,
            ..setup
        };
        run(&setup).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// Invariant 5: a squash restores everything, at every kind of chunk end.
#[test]
fn squashes_leave_no_trace() {
    for seed in 0..30 {
        let faults = Faults {
            squash_every: 2 + seed % 3,
            ..Faults::default()
        };
        let setup = Setup {
            faults,
            ..Setup::new(seed)
        };
        let stats = run(&setup).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(
            stats.squashes > 20,
            "seed {seed}: {} squashes",
            stats.squashes
        );
    }
}

/// Invariant 9: chunks that always lose run alone in the end.
#[test]
fn adversarial_conflicts_make_progress() {
    for seed in 0..4 {
        let faults = Faults {
            squash_every: 1,
            ..Faults::default()
        };
        let mix = Mix {
            stretches: 2,
            ops: 15,
            devices: true,
            fills: false,
        };
        let setup = Setup {
            faults,
            mix,
            squashes_before_exclusive: 2,
            ..Setup::new(seed)
        };
        let stats = run(&setup).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(
            stats.exclusive_chunks,
            stats.chunks_by_vcpu.iter().sum::<u64>()
        );
        assert!(stats.squashes >= 2 * stats.exclusive_chunks);
    }
}

/// Invariant 11: how much is typed is decided at its commit, so typists cannot overrun the queue.
#[test]
fn many_type_at_once() {
    (0..12).for_each(|seed| typists(&Setup::new(seed)));
}

fn typists(setup: &Setup) {
    let programs = setup.programs();
    let run = Run::start(setup, programs.clone());
    let room = run.recorder.peek(Machine::console_room);
    let typist = || {
        let mut total = 0;
        while total < room {
            match run.recorder.console_input(&[7; 1000]).unwrap() {
                0 => break,
                taken => total += taken,
            }
        }
        total
    };
    let typed: usize = std::thread::scope(|scope| {
        let typists: Vec<_> = (0..4).map(|_| scope.spawn(typist)).collect();
        typists
            .into_iter()
            .map(|typist| typist.join().unwrap())
            .sum()
    });
    run.wait().unwrap();
    let (consumer, _) = run.check().unwrap();
    let left = consumer.look(Machine::console_room);
    assert_eq!(left, Some(room - typed));
    check_end(&consumer, &programs).unwrap();
}

/// Orders have the guest time of chunks in a byte or two; that of inputs is exact, and chunks do not go back behind it.
#[test]
fn chunks_commit_at_steps_of_guest_time() {
    let mut exact_inputs = 0;
    for seed in 0..6 {
        let setup = Setup::new(seed);
        let run = Run::start(&setup, setup.programs());
        run.wait().unwrap();
        run.recorder.stop();
        let mut last = 0;
        for (item, _) in run.world.items.lock().unwrap().iter() {
            let Item::Record(record, _) = item else {
                continue;
            };
            let time = record.guest_time.0;
            assert!(time >= last, "seed {seed}: time goes back");
            let is_step = time.is_multiple_of(TIME_STEP);
            if record.chunk().is_some() {
                assert!(is_step || time == last, "seed {seed}: {time} ns");
            } else {
                exact_inputs += u64::from(!is_step);
            }
            last = time;
        }
        assert!(last > 0, "seed {seed}: no time passed");
    }
    assert!(exact_inputs > 0, "no input came between two steps");
}

#[test]
fn a_full_ring_ends_the_chunk() {
    for seed in 0..6 {
        let limits = Limits {
            ring: 3,
            cut_every: 1000,
        };
        run(&Setup {
            limits,
            ..Setup::new(seed)
        })
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// Held pages beyond what the view may hold are dropped, coldest first.
#[test]
fn few_held_pages_are_enough() {
    for seed in 0..6 {
        let setup = Setup {
            held_pages_max: 4,
            ..Setup::new(seed)
        };
        run(&setup).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// A chunk that writes more pages than a record may carry is squashed and comes again, shorter.
#[test]
fn a_chunk_too_large_for_a_record_is_cut() {
    let pages = samsara_commitlog::Effects::PAGES_MAX as u64 + 2000;
    let mut ops: Vec<Op> = (0..pages)
        .map(|page| Op::Store((4 << 20) + page * 4096))
        .collect();
    ops.push(Op::Write(register::HALT, None));
    let programs: Vec<Arc<[Op]>> = vec![ops.into()];
    let setup = Setup {
        vcpus: 1,
        limits: Limits {
            ring: 1 << 16,
            cut_every: u64::MAX,
        },
        held_pages_max: 16000,
        chunk_max: Duration::from_secs(4),
        ..Setup::new(1)
    };
    let run = Run::start(&setup, programs.clone());
    run.wait().unwrap();
    let (consumer, stats) = run.check().unwrap();
    check_end(&consumer, &programs).unwrap();
    assert!(stats.commits > 1);
}

/// A machine can be stopped between commits anywhere, copied, and both carried on.
#[test]
fn pausing_and_carrying_on_elsewhere() {
    for seed in 100..106 {
        let setup = Setup::new(seed);
        let programs = setup.programs();
        let run = Run::start(&setup, programs.clone());
        let until = Instant::now() + Duration::from_secs(20);
        while run.commits() < 40 && Instant::now() < until {
            std::thread::yield_now();
        }
        let copy = run.recorder.paused(|machine| {
            let before = machine.seq();
            let frames = snapshot(machine);
            std::thread::sleep(Duration::from_millis(3));
            assert_eq!(
                machine.seq(),
                before,
                "a commit while everything stands still"
            );
            frames
        });
        run.wait().unwrap();
        let (consumer, _) = run
            .check()
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        check_end(&consumer, &programs).unwrap();
        carry_on(&setup, &programs, &copy);
    }
}

/// Snapshots of a machine that runs are states of its history, and the rest of it follows from them: with
/// little or nothing copied under the lock, and with the machine stopped in the end.
#[test]
fn snapshots_of_a_running_machine() {
    let bounds = [(1024, 12), (3, 4), (0, 2), (0, 0)];
    let (mut taken, mut rounds) = (0, 0);
    for seed in 200..216 {
        let setup = Setup::new(seed);
        let (last_pages, rounds_max) = bounds[seed as usize % bounds.len()];
        let bounds = SnapshotBounds {
            last_pages,
            rounds_max,
        };
        let run = Run::start(&setup, setup.programs());
        let snapshots: Vec<_> = std::iter::from_fn(|| run.snapshot(bounds))
            .take(20)
            .collect();
        run.wait().unwrap();
        run.recorder.stop();
        let end = run.recorder.paused(|machine| machine.digest());
        for (frames, digest) in snapshots {
            let mut consumer = Consumer::default();
            let rest = run.since(digest.seq);
            for frame in frames.iter().chain(&rest) {
                let followed = consumer.frame(frame);
                followed.unwrap_or_else(|error| panic!("seed {seed}, {digest:?}: {error}"));
            }
            assert_eq!(consumer.digest(), Some(end), "seed {seed}");
            taken += 1;
            rounds += frames.len();
        }
        run.check().unwrap();
    }
    assert!(taken > 32, "{taken} snapshots");
    println!("{taken} snapshots, {rounds} frames");
}

/// Whoever begins to read while the machine runs gets everything from there on, also of chunks that were ready to commit by then.
#[test]
fn readers_come_and_go() {
    let mut followed = 0;
    for seed in 400..400 + by_effort(12, 60) {
        let setup = Setup::new(seed);
        let mix = Mix {
            fills: true,
            ..setup.mix
        };
        let setup = Setup { mix, ..setup };
        let run = Run::start(&setup, setup.programs());
        let is_unread = |value| run.world.is_unread.store(value, Ordering::Relaxed);
        for _ in 0..20 {
            is_unread(true);
            std::thread::sleep(Duration::from_micros(300));
            // Between two commits, with chunks under way.
            let (frames, base) = run.recorder.peek(|machine| {
                is_unread(false);
                (snapshot(machine), machine.seq())
            });
            std::thread::sleep(Duration::from_micros(300));
            let rest = run.recorder.paused(|machine| {
                is_unread(true);
                let mut rest = run.since(base);
                rest.push(Frame::Digest(machine.digest()));
                rest
            });
            let mut consumer = Consumer::default();
            for frame in frames.iter().chain(&rest) {
                let taken = consumer.frame(frame);
                taken.unwrap_or_else(|error| panic!("seed {seed}, from {base}: {error}"));
            }
            followed += rest.len() - 1;
        }
        run.wait().unwrap();
    }
    assert!(followed > 200, "{followed} records");
}

fn carry_on(setup: &Setup, programs: &[Arc<[Op]>], copy: &[Frame]) {
    let mut consumer = Consumer::default();
    for frame in copy {
        consumer.frame(frame).unwrap();
    }
    let machine = consumer.into_machine().unwrap();
    let run = Run::resume(setup, programs.to_vec(), machine);
    run.wait().unwrap();
    let (consumer, _) = run.check().unwrap();
    check_end(&consumer, programs).unwrap();
}

/// How long a machine with a mistake is waited for: much longer than machines take without it, here and now.
fn impatience(squash_every: u64) -> Duration {
    const RUNS: u64 = 4;
    let started = Instant::now();
    for seed in 0..RUNS {
        let faults = Faults {
            unchecked: true,
            squash_every,
            ..Faults::default()
        };
        let setup = Setup {
            faults,
            ..Setup::new(seed)
        };
        run(&setup).unwrap_or_else(|error| panic!("without a mistake: seed {seed}: {error}"));
    }
    Duration::from_millis(200) + 10 * started.elapsed()
}

/// Each mistake is noticed: the history is not serializable, or the machine does not end.
fn noticed(mistake: Mistake, squash_every: u64) {
    let faults = Faults {
        mistake: Some(mistake),
        unchecked: true,
        squash_every,
        ..Faults::default()
    };
    let patience = impatience(squash_every);
    let found = (0..200).find_map(|seed| {
        let setup = Setup {
            faults,
            patience,
            ..Setup::new(seed)
        };
        run(&setup).err().map(|error| (seed, error))
    });
    let (seed, error) = found.unwrap_or_else(|| panic!("{mistake:?} goes unnoticed"));
    println!("{mistake:?}: seed {seed}: {error}");
}

#[test]
fn lost_residency_is_noticed() {
    noticed(Mistake::IgnoreResidency, 0);
}

#[test]
fn lost_held_pages_are_noticed() {
    noticed(Mistake::IgnoreHeld, 0);
}

#[test]
fn a_forgotten_written_page_is_noticed() {
    noticed(Mistake::ForgetWritten, 0);
}

#[test]
fn stale_pages_at_a_start_are_noticed() {
    noticed(Mistake::SkipSettle, 0);
}

#[test]
fn memory_that_a_squash_leaves_is_noticed() {
    noticed(Mistake::SkipRestoreMemory, 3);
}

#[test]
fn registers_that_a_squash_leaves_are_noticed() {
    noticed(Mistake::SkipRestoreState, 3);
}

/// Invariant 4 has an assertion of its own, which comes before any wrong result.
#[test]
#[cfg(debug_assertions)]
fn a_stale_start_stops_the_machine() {
    let faults = Faults {
        mistake: Some(Mistake::SkipSettle),
        ..Faults::default()
    };
    let found = (0..200).find_map(|seed| {
        run(&Setup {
            faults,
            ..Setup::new(seed)
        })
        .err()
    });
    assert!(found.is_some_and(|error| error.contains("broken invariant")));
}
