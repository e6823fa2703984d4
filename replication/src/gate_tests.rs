use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::Retained;

fn drain(gate: &mut OutputGate<u32>, now: Instant) -> Vec<u32> {
    std::iter::from_fn(|| gate.poll_release(now).map(|(_, output)| output)).collect()
}

#[test]
fn guarded_outputs_leave_with_their_commit() {
    let start = Instant::now();
    let mut gate = OutputGate::new(AckLevel::Verified, 100);
    gate.guard(CommitSeq(4));
    gate.hold(CommitSeq(5), 50, 10, start);
    gate.hold(CommitSeq(7), 70, 10, start);
    assert_eq!(drain(&mut gate, start), []);

    gate.handle_ack(CommitSeq(7), CommitSeq(6));
    assert_eq!(drain(&mut gate, start + Duration::from_millis(3)), [50]);
    assert_eq!((gate.held_bytes(), gate.released()), (10, CommitSeq(5)));
    assert_eq!(gate.hold_times().summary().max, 3_000_000);

    gate.handle_ack(CommitSeq(7), CommitSeq(2));
    assert_eq!(drain(&mut gate, start), [], "an old position frees nothing");
    gate.handle_ack(CommitSeq(7), CommitSeq(7));
    assert_eq!(drain(&mut gate, start), [70]);
}

#[test]
fn received_is_enough_when_so_configured() {
    let mut gate = OutputGate::new(AckLevel::Received, 100);
    gate.guard(CommitSeq::BOOT);
    gate.hold(CommitSeq(1), 1, 1, Instant::now());
    gate.handle_ack(CommitSeq(1), CommitSeq(0));
    assert_eq!(drain(&mut gate, Instant::now()), [1]);
}

#[test]
fn held_lets_nothing_through_not_even_what_was_acknowledged() {
    let now = Instant::now();
    let mut gate = OutputGate::new(AckLevel::Verified, 2);
    gate.guard(CommitSeq::BOOT);
    gate.hold(CommitSeq(1), 1, 2, now);
    gate.handle_ack(CommitSeq(1), CommitSeq(1));
    gate.hold_all();
    assert_eq!(drain(&mut gate, now), []);
    assert!(gate.is_full());
    gate.open();
    assert_eq!(drain(&mut gate, now), [1]);
    assert!(!gate.is_full());
}

#[test]
fn outputs_of_a_byte_each_fill_it_by_what_they_take() {
    const LIMIT: usize = 1 << 20;
    let now = Instant::now();
    let mut gate = OutputGate::new(AckLevel::Verified, LIMIT as u64);
    for seq in 1.. {
        if gate.is_full() {
            break;
        }
        gate.hold(CommitSeq(seq), vec![0u8], 1, now);
    }
    let taken = gate.held_count() * size_of::<HeldOutput<Vec<u8>>>();
    assert!(
        taken <= LIMIT,
        "{taken} bytes for {} held",
        gate.held_bytes()
    );
}

#[test]
fn a_new_backup_does_not_inherit_the_acknowledgements_of_the_old_one() {
    let now = Instant::now();
    let mut gate = OutputGate::new(AckLevel::Verified, 100);
    gate.guard(CommitSeq::BOOT);
    gate.handle_ack(CommitSeq(9), CommitSeq(9));
    gate.hold_all();
    gate.guard(CommitSeq(3));
    gate.hold(CommitSeq(5), 5, 1, now);
    assert_eq!(drain(&mut gate, now), []);
    assert_eq!(gate.oldest_held(), Some(CommitSeq(5)));
}

#[test]
fn a_commit_counts_as_released_when_its_last_output_is() {
    let now = Instant::now();
    let mut gate = OutputGate::new(AckLevel::Verified, 100);
    gate.open();
    gate.hold(CommitSeq(3), 1, 1, now);
    gate.hold(CommitSeq(3), 2, 1, now);
    assert!(gate.poll_release(now).is_some());
    assert_eq!(gate.released(), CommitSeq(2));
    assert!(gate.poll_release(now).is_some());
    assert_eq!(gate.released(), CommitSeq(3));
}

#[test]
#[should_panic(expected = "output of commit 1 after one of 2")]
fn outputs_out_of_order_are_a_bug() {
    let mut gate = OutputGate::new(AckLevel::Verified, 100);
    gate.hold(CommitSeq(2), (), 1, Instant::now());
    gate.hold(CommitSeq(1), (), 1, Instant::now());
}

#[derive(Clone, Debug)]
enum Step {
    Commit { outputs: u8 },
    Ack { behind: u64 },
    Release,
    Tell,
    Mode(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..3).prop_map(|outputs| Step::Commit { outputs }),
        (0u64..4).prop_map(|behind| Step::Ack { behind }),
        Just(Step::Release),
        Just(Step::Tell),
        (0u8..8).prop_map(Step::Mode),
    ]
}

proptest! {
    /// Whenever the primary dies, what it has emitted and what the backup still retains make
    /// up the whole history: no gap, and nothing emitted that the backup had not acknowledged.
    #[test]
    fn no_gap_at_any_moment(steps in prop::collection::vec(step(), 1..80)) {
        let now = Instant::now();
        let mut gate = OutputGate::new(AckLevel::Verified, u64::MAX);
        let mut retained = Retained::new();
        gate.guard(CommitSeq::BOOT);
        let (mut seq, mut acked, mut next_output) = (0, 0, 0u32);
        let mut emitted = Vec::new();
        for step in steps {
            match step {
                Step::Commit { outputs } => {
                    seq += 1;
                    for _ in 0..outputs {
                        gate.hold(CommitSeq(seq), next_output, 1, now);
                        retained.hold(CommitSeq(seq), next_output, 1);
                        next_output += 1;
                    }
                }
                Step::Ack { behind } => {
                    acked = acked.max(seq.saturating_sub(behind));
                    gate.handle_ack(CommitSeq(seq), CommitSeq(acked));
                }
                Step::Release => if let Some((at, output)) = gate.poll_release(now) {
                    prop_assert!(gate.mode() == GateMode::Guarded && at.0 <= acked);
                    emitted.push(output);
                },
                Step::Tell => retained.handle_released(gate.released()),
                Step::Mode(0) => gate.hold_all(),
                Step::Mode(_) => gate.guard(CommitSeq(acked)),
            }
            prop_assert_eq!(gate.held_bytes(), gate.held_count() as u64);
            let rest: Vec<u32> = retained.iter().map(|(_, output)| *output).collect();
            let first_kept = rest.first().copied().unwrap_or(next_output);
            prop_assert!(first_kept as usize <= emitted.len(), "a gap before {first_kept}");
            prop_assert!(rest.iter().copied().eq(first_kept..next_output));
            prop_assert!(emitted.iter().copied().eq(0..emitted.len() as u32));
        }
    }
}
