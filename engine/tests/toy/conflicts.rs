//! Who lost to whom, by which page, and where both were.

use std::sync::Arc;
use std::time::Duration;

use samsara_commitlog::{Gpa, VcpuIndex};
use samsara_engine::{Conflict, Faults, Phase, Stats, Winner};
use samsara_machine::bare::register;

use crate::cpu::Limits;
use crate::program::{self, Mix, Op};
use crate::world::{Run, Setup};

const PAGE: u64 = 4096;
/// The page that vCPU 1 writes and vCPU 2 reads.
const PLANTED: u64 = 0x70_0000;
/// Where the vCPUs work that have nothing to do with it.
const APART: u64 = 0x72_0000;

/// Runs programs in which each loss is known beforehand; gives the account of them.
fn account(programs: Vec<Arc<[Op]>>, faults: Faults) -> Arc<Stats> {
    let setup = Setup {
        vcpus: programs.len() as u8,
        limits: Limits {
            ring: 1 << 16,
            cut_every: 40,
        },
        faults: Faults {
            side_by_side: true,
            ..faults
        },
        ..Setup::new(7)
    };
    let run = Run::start(&setup, programs);
    run.wait().unwrap();
    let stats = Arc::clone(&run.stats);
    run.check().unwrap();
    stats
}

/// The same of a run in which something was lost: a thread may come too late for that.
fn account_of_losses(programs: &[Arc<[Op]>]) -> Arc<Stats> {
    let mut runs = (0..20).map(|_| account(programs.to_vec(), Faults::default()));
    let found = runs.find(|stats| stats.snapshot().squashes > 0);
    found.expect("nothing is ever lost")
}

/// vCPU 0 and 3 each on a page of its own, vCPU 1 counts on the planted page, vCPU 2 waits there for the last count.
fn planted(counts: u64) -> Vec<Arc<[Op]>> {
    let alone = |vcpu: u64| {
        let word = APART + vcpu * PAGE;
        let ops = (0..counts).flat_map(|_| [Op::Load(word), Op::Store(word)]);
        of(ops)
    };
    let counter = of((0..counts).map(|_| Op::Add(PLANTED)));
    let waiter = of([Op::Await(PLANTED, counts)].into_iter());
    vec![alone(0), counter, waiter, alone(3)]
}

fn of(ops: impl Iterator<Item = Op>) -> Arc<[Op]> {
    ops.chain([Op::Write(register::HALT, None)]).collect()
}

/// A planted conflict is attributed to its page, its two vCPUs and the places where they were, and to nothing else.
#[test]
fn a_planted_conflict_is_attributed_to_exactly_that() {
    const COUNTS: u64 = 3000;
    let stats = account_of_losses(&planted(COUNTS));
    let counts = stats.snapshot();
    let found = stats.conflicts();
    let [conflict] = found.as_slice() else {
        panic!("one conflict was planted, these were found: {found:?}");
    };
    let Conflict {
        page,
        loser,
        winner,
        squashes,
        squashes_over,
        lost,
        loser_at,
        winner_at,
    } = conflict;
    assert_eq!(
        (*page, *loser, *winner),
        (Gpa(PLANTED), VcpuIndex(2), Winner::Vcpu(VcpuIndex(1)))
    );
    assert_eq!((*squashes, *squashes_over), (counts.squashes, 0));
    assert!(*squashes > 0 && *lost > Duration::ZERO && *lost <= counts.spent_on(Phase::Lost));
    // The waiter stands at its first instruction; or behind its last, when it saw the last count as it was being committed.
    let places = [0, 2];
    assert!(
        loser_at.iter().all(|at| places.contains(&at.what)),
        "{loser_at:?}"
    );
    let counted: u64 = loser_at.iter().map(|at| at.count).sum();
    assert_eq!(counted, *squashes);
    assert!(!winner_at.is_empty());
    // Behind the instructions that count; the last chunk is behind the one that halts, too.
    let counted = 1..=COUNTS + 1;
    assert!(winner_at.iter().all(|at| counted.contains(&at.what)));
}

/// What a device writes for one vCPU, and another reads meanwhile, is lost to no vCPU.
#[test]
fn conflicts_with_devices_are_told_apart() {
    const READS: u64 = 300;
    let [descriptor, _] = program::descriptors(0);
    let [buffer, _] = program::buffers(0);
    let reader = (0..READS).map(|_| Op::Write(register::INPUT, Some(descriptor)));
    // Each read begins where the one before it ended, and the file's words are their offsets.
    let last = (READS - 1) * program::BUFFER_BYTES;
    let waiter = [Op::Await(buffer, last)].into_iter();
    let stats = account_of_losses(&[of(reader), of(waiter)]);
    let found = stats.conflicts();
    let [conflict] = found.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!(conflict.page, Gpa(buffer / PAGE * PAGE));
    assert_eq!(
        (conflict.loser, conflict.winner),
        (VcpuIndex(1), Winner::Input)
    );
    assert_eq!(conflict.squashes, stats.snapshot().squashes);
    assert_eq!(conflict.winner_at, []);
}

/// A squash that no commit made necessary is nobody's win.
#[test]
fn squashes_without_a_conflict_are_attributed_to_nobody() {
    let programs = planted(500).into_iter().step_by(3).collect();
    let faults = Faults {
        squash_every: 3,
        ..Faults::default()
    };
    let stats = account(programs, faults);
    assert!(stats.snapshot().squashes > 10);
    assert_eq!(stats.conflicts(), []);
}

/// Random programs: whatever is accounted for is a page that its winner may write.
#[test]
fn the_account_is_of_other_vcpus_and_of_all_squashes() {
    let (mut accounted, mut squashed) = (0, 0);
    for seed in 0..10 {
        let mix = Mix {
            stretches: 3,
            ops: 60,
            devices: false,
            fills: false,
        };
        let setup = Setup {
            mix,
            ..Setup::new(seed)
        };
        let run = Run::start(&setup, setup.programs());
        run.wait().unwrap();
        let stats = Arc::clone(&run.stats);
        run.check().unwrap();
        let found = stats.conflicts();
        for conflict in &found {
            let Winner::Vcpu(winner) = conflict.winner else {
                panic!("nothing came from outside: {conflict:?}");
            };
            assert!(winner != conflict.loser && winner.0 < setup.vcpus);
            assert!(conflict.page.0.is_multiple_of(PAGE));
        }
        accounted += found.iter().map(|found| found.squashes).sum::<u64>();
        squashed += stats.snapshot().squashes;
    }
    assert!(
        accounted >= squashed && squashed > 0,
        "{accounted} of {squashed} squashes are accounted for"
    );
}
