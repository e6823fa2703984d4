//! The account of conflicts, on a real guest whose pages and code have names.

use std::sync::Arc;
use std::time::{Duration, Instant};

use samsara_commitlog::Gpa;
use samsara_engine::{
    Conflict, Counted, Faults, NativeRun, Outside, Phase, Settings, StatsSnapshot, Winner,
};
use samsara_machine::kvm::{CounterKind, Host};
use samsara_machine::symbols::Symbols;

use crate::world::{Guest, PATIENCE, Recorded, World, host, settings};

/// All vCPUs beside each other, so that as many chunks are lost as can be.
const SIDE_BY_SIDE: Faults = Faults {
    mistake: None,
    unchecked: true,
    squash_every: 0,
    side_by_side: true,
    unaccounted: false,
};

/// Two vCPUs that count by atomics on one page lose by that page, to each other, while they count.
#[test]
fn a_contended_counter_is_found_by_name() {
    let Some(host) = host() else { return };
    let guest = Guest::new("counter", "n=12000000 mode=atomic", 2);
    let symbols = Symbols::open(&guest.path).unwrap();
    let run = Recorded::start(&host, &guest, guest.machine(&host), settings(SIDE_BY_SIDE));
    let run = run.unwrap();
    run.world.wait_for_end(PATIENCE).unwrap();
    let stats = Arc::clone(&run.stats);
    run.stop().unwrap();
    let found = stats.conflicts();
    let worst = found.first().expect("nothing was lost");
    assert_eq!(
        symbols.objects_in(worst.page, 4),
        (vec!["shared".to_owned()], 0)
    );
    let Winner::Vcpu(winner) = worst.winner else {
        panic!("{worst:?}")
    };
    assert_eq!(winner.0 + worst.loser.0, 1, "{worst:?}");
    for places in [&worst.loser_at, &worst.winner_at] {
        // Not always the first: the barrier before it is on the same page, and a busy host makes it long.
        let mut functions = places
            .iter()
            .filter_map(|place| symbols.function_at(place.what));
        assert!(
            functions.any(|(function, _)| function == "program_run"),
            "{worst:?}"
        );
    }
    // Pages that conflicted otherwise are the program's, too: its barrier, its end.
    let program = Gpa(2 << 20)..Gpa(3 << 20);
    assert!(
        found.iter().all(|found| program.contains(&found.page)),
        "{found:?}"
    );
}

/// Places are the guest's own while it is stepped, too: not those of the handler that tells of each step.
#[test]
fn a_stepped_guest_is_found_in_its_own_code() {
    let Some(host) = host() else { return };
    let guest = Guest::new("counter", "n=300 mode=atomic", 2);
    let symbols = Symbols::open(&guest.path).unwrap();
    let settings = Settings {
        counter: Some(CounterKind::SingleStep),
        ..settings(SIDE_BY_SIDE)
    };
    let run = Recorded::start(&host, &guest, guest.machine(&host), settings).unwrap();
    run.world.wait_for_end(PATIENCE).unwrap();
    let stats = Arc::clone(&run.stats);
    run.stop().unwrap();
    let found = stats.conflicts();
    let places = |of: fn(&Conflict) -> &Vec<Counted<u64>>| {
        let places: Vec<_> = found.iter().flat_map(of).map(|place| place.what).collect();
        assert!(!places.is_empty(), "nothing was lost: {found:?}");
        for place in &places {
            let function = symbols.function_at(*place);
            assert!(function.is_some(), "{place:#x} is not the guest's");
        }
    };
    places(|conflict| &conflict.loser_at);
    places(|conflict| &conflict.winner_at);
}

/// Invariant 37: one vCPU at a time loses nothing to another.
#[test]
fn serial_isolation_has_nothing_to_account_for() {
    let Some(host) = host() else { return };
    let guest = Guest::new("counter", "n=100000 mode=atomic", 2);
    let settings = Settings {
        isolation: samsara_engine::Isolation::Serial,
        ..settings(Faults::default())
    };
    let run = Recorded::start(&host, &guest, guest.machine(&host), settings).unwrap();
    run.world.wait_for_end(PATIENCE).unwrap();
    let stats = Arc::clone(&run.stats);
    run.stop().unwrap();
    assert_eq!(stats.conflicts(), []);
    assert_eq!(stats.snapshot().squashes, 0);
}

/// The clock of a guest that has ended says how long it ran.
#[test]
fn the_native_clock_stands_still_after_the_end() {
    let Some(host) = host() else { return };
    let guest = Guest::new("hello", "", 2);
    let world = World::of(&guest);
    let outside = Arc::clone(&world) as Arc<dyn Outside>;
    let run = NativeRun::start(&host, guest.machine(&host), outside).unwrap();
    world.wait_for_end(PATIENCE).unwrap();
    let time = run.time();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(run.time(), time);
    assert!(time.0 > 0);
}

/// Runs a guest that loses as many chunks as can be; how long it took.
fn lose(host: &Host, guest: &Guest, faults: Faults) -> (Duration, StatsSnapshot) {
    let settings = Settings {
        digest_every: 0,
        ..settings(faults)
    };
    let run = Recorded::start(host, guest, guest.machine(host), settings).unwrap();
    let began = Instant::now();
    run.world.wait_for_end(PATIENCE).unwrap();
    (began.elapsed(), run.stats.snapshot())
}

/// The price of the account, with and without it in turn: prints ratios of times and of what a squash costs.
#[test]
#[ignore = "a measurement, for the release profile; run with --ignored --nocapture"]
fn what_the_account_costs() {
    const ROUNDS: usize = 15;
    let Some(host) = host() else { return };
    for (name, params) in [
        ("counter", "n=40000000 mode=atomic"),
        ("litmus", "test=falseshare iters=20000000"),
        ("radix", "n=1000000 passes=4"),
    ] {
        let guest = Guest {
            memory_mib: 64,
            ..Guest::new(name, params, 2)
        };
        let (mut times, mut squash_costs) = (Vec::new(), Vec::new());
        let (mut squashes, mut lost) = (0, Duration::ZERO);
        for _ in 0..ROUNDS {
            let (with, counts) = lose(&host, &guest, SIDE_BY_SIDE);
            let without = Faults {
                unaccounted: true,
                ..SIDE_BY_SIDE
            };
            let (without, bare) = lose(&host, &guest, without);
            times.push(with.as_secs_f64() / without.as_secs_f64());
            let each = |counts: &StatsSnapshot| {
                counts.spent_on(Phase::Lost).as_secs_f64() / counts.squashes.max(1) as f64
            };
            squash_costs.push(each(&counts) / each(&bare));
            squashes += counts.squashes;
            lost += counts.spent_on(Phase::Lost);
        }
        times.sort_by(f64::total_cmp);
        squash_costs.sort_by(f64::total_cmp);
        println!(
            "{name}: {} squashes a run, {:?} each; time with over without: median {:.3} ({:.3}..{:.3}); a squash: median {:.3}",
            squashes / ROUNDS as u64,
            lost / squashes.max(1) as u32,
            times[ROUNDS / 2],
            times[0],
            times[ROUNDS - 1],
            squash_costs[ROUNDS / 2],
        );
    }
}
