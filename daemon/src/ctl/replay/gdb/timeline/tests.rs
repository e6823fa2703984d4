use std::path::{Path, PathBuf};

use super::super::motion::{Motion, Moved};
use super::super::stops::{Stop, Stops};
use super::super::tests::{COMMITS, long};
use super::*;
use crate::ctl::made::Made;
use samsara_commitlog::VcpuIndex;

/// A log of many commits, and the digests of all its states.
fn made(folder: &Path) -> (PathBuf, Vec<u128>) {
    let mut made = long();
    (made.write(folder), digests(&mut made))
}

fn digests(made: &mut Made) -> Vec<u128> {
    let mut consumer = Consumer::default();
    let mut digests = Vec::new();
    for frame in &made.frames {
        consumer.frame(frame).unwrap();
        if matches!(frame, Frame::SnapshotEnd(_) | Frame::Record(_)) {
            digests.push(consumer.digest().unwrap().digest);
        }
    }
    digests
}

fn source(path: &Path, kept_bytes: usize) -> Source {
    Source {
        path: path.to_owned(),
        begin: Begin::First,
        disks: Vec::new(),
        kept_bytes,
    }
}

fn open(path: &Path, kept_bytes: usize) -> Timeline {
    Timeline::open(source(path, kept_bytes)).unwrap()
}

const BACK: Motion = Motion::Backward(Moved::NotYet);

/// Goes on until there is a reason to stop.
fn run(mut motion: Motion, timeline: &mut Timeline, stops: &Stops) -> Stop {
    loop {
        if let Some(stop) = motion.advance(timeline, stops).unwrap() {
            return stop;
        }
    }
}

#[track_caller]
fn assert_at(timeline: &mut Timeline, digests: &[u128], seq: u64) {
    assert_eq!(timeline.seq(), CommitSeq(seq));
    assert_eq!(timeline.digest(), digests[seq as usize], "at commit {seq}");
}

/// With everything kept, with a few commits, and with none but the last.
const KEPT: [usize; 3] = [1 << 20, 8 << 10, 1];

#[test]
fn every_state_is_gone_to_in_both_directions() {
    let folder = tempfile::tempdir().unwrap();
    let (path, digests) = made(folder.path());
    for kept_bytes in KEPT {
        let mut timeline = open(&path, kept_bytes);
        for seq in 0..=COMMITS {
            assert_at(&mut timeline, &digests, seq);
            assert_eq!(timeline.forward().unwrap(), seq < COMMITS);
        }
        assert_eq!(
            timeline.end(),
            Some((CommitSeq(COMMITS), "the guest has ended"))
        );
        if kept_bytes > 1 << 16 {
            assert_eq!(timeline.steps.len() as u64, COMMITS);
        } else {
            assert!(
                timeline.steps.len() < 20,
                "{} are kept",
                timeline.steps.len()
            );
        }
        for seq in (0..COMMITS).rev() {
            let stop = run(Motion::StepBack, &mut timeline, &Stops::default());
            assert_eq!(stop, Stop::Stepped);
            assert_at(&mut timeline, &digests, seq);
        }
        let stop = run(Motion::StepBack, &mut timeline, &Stops::default());
        assert_eq!(stop, Stop::Begin);
        let mut seed = 7_u64;
        for _ in 0..200 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(11);
            let seq = (seed >> 33) % (COMMITS + 1);
            timeline.goto(CommitSeq(seq)).unwrap();
            assert_at(&mut timeline, &digests, seq);
            let known = timeline.record().map(|record| record.seq.0);
            assert!(known.is_none_or(|known| known == seq));
        }
        timeline.goto(CommitSeq(COMMITS + 9)).unwrap();
        assert_at(&mut timeline, &digests, COMMITS);
    }
}

/// Which commits change a word, an address that vCPUs come to, a commit: the same in both directions.
#[test]
fn what_stops_a_way_forward_stops_the_way_back() {
    let folder = tempfile::tempdir().unwrap();
    let (path, digests) = made(folder.path());
    // Commit 23 is vCPU 1's, and writes at 0x500000 + 23 * 4000; made-up vCPUs have no paging.
    let address = 0x50_0000 + 23 * 4000;
    for kept_bytes in KEPT {
        let mut timeline = open(&path, kept_bytes);
        let mut stops = Stops::default();
        assert!(stops.watch(timeline.machine(), VcpuIndex(0), address, 4));
        stops
            .commits()
            .extend([10, 23, 40, COMMITS + 5].map(CommitSeq));
        let hit = Stop::Watch {
            vcpu: Some(VcpuIndex(1)),
            address,
        };
        for (seq, stop) in [
            (10, Stop::Commit),
            (23, hit),
            (40, Stop::Commit),
            (COMMITS, Stop::End),
        ] {
            assert_eq!(run(Motion::Forward, &mut timeline, &stops), stop);
            assert_at(&mut timeline, &digests, seq);
        }
        // Back, it is the state before the commit.
        for (seq, stop) in [
            (40, Stop::Commit),
            (23, Stop::Commit),
            (22, hit),
            (10, Stop::Commit),
            (0, Stop::Begin),
        ] {
            assert_eq!(run(BACK, &mut timeline, &stops), stop, "{seq}");
            assert_at(&mut timeline, &digests, seq);
        }
        assert!(stops.unwatch(address, 4) && !stops.unwatch(address, 4));
        stops.commits().clear();
        assert_eq!(run(Motion::Forward, &mut timeline, &stops), Stop::End);
        assert_eq!(run(BACK, &mut timeline, &stops), Stop::Begin);
        assert_at(&mut timeline, &digests, 0);
    }
}

/// States that are stopped at are the same in both directions, wherever the log begins anew.
#[test]
fn the_way_back_stops_at_the_states_of_the_way_forward() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = long();
    let path = made.write(folder.path());
    made.write_segments(folder.path(), &[20, 21, 40]);
    for path in [path, folder.path().to_owned()] {
        for kept_bytes in KEPT {
            let mut timeline = open(&path, kept_bytes);
            let mut stops = Stops::default();
            // Where all vCPUs are that are made up: so at every commit but those of inputs.
            stops.add_address(0);
            stops.commits().extend([10, 25].map(CommitSeq));
            let mut all = |motion| {
                let mut found = Vec::new();
                loop {
                    let stop = run(motion, &mut timeline, &stops);
                    if matches!(stop, Stop::Begin | Stop::End) {
                        return found;
                    }
                    found.push((timeline.seq().0, stop));
                }
            };
            let forward = all(Motion::Forward);
            let mut back = all(BACK);
            back.reverse();
            assert_eq!(forward.len() as u64, COMMITS - COMMITS / 5 + 1 + 2);
            assert_eq!(back, forward[..forward.len() - 1]);
        }
    }
}

#[test]
fn only_memory_that_there_is_can_be_watched() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = made(folder.path());
    let timeline = open(&path, 1 << 20);
    let mut stops = Stops::default();
    let mut watch = |address, bytes| stops.watch(timeline.machine(), VcpuIndex(0), address, bytes);
    assert!(watch(0x50_0ffc, 8));
    assert!(watch(0, 1 << 20));
    assert!(!watch((16 << 20) - 4, 8));
    assert!(!watch(u64::MAX - 3, 8));
    assert!(!watch(0x50_0000, 0));
    assert!(!watch(0, (1 << 20) + 1));
}

/// Far back, only the checkpoint before it is begun from; what comes before the first is not there.
#[test]
fn segments_are_one_history_backward_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = long();
    made.write_segments(folder.path(), &[20, 40]);
    let digests = digests(&mut made);
    for (begin, at) in [(Begin::First, 0), (Begin::Checkpoint(CommitSeq(45)), 40)] {
        for kept_bytes in KEPT {
            let source = Source {
                begin,
                ..source(folder.path(), kept_bytes)
            };
            let mut timeline = Timeline::open(source).unwrap();
            assert_at(&mut timeline, &digests, at);
            let mut stops = Stops::default();
            stops.commits().extend([5, 20, 33].map(CommitSeq));
            assert_eq!(timeline.first(), CommitSeq(0));
            while timeline.forward().unwrap() {}
            for (seq, stop) in [
                (33, Stop::Commit),
                (20, Stop::Commit),
                (5, Stop::Commit),
                (0, Stop::Begin),
            ] {
                assert_eq!(run(BACK, &mut timeline, &stops), stop);
                assert_at(&mut timeline, &digests, seq);
            }
        }
    }
    // A recorder that runs removes the oldest.
    let mut timeline = open(folder.path(), 1);
    timeline.goto(CommitSeq(30)).unwrap();
    let oldest = folder
        .path()
        .join("run-0000000009/00000000000000000000.log");
    std::fs::remove_file(oldest).unwrap();
    assert_eq!(run(BACK, &mut timeline, &Stops::default()), Stop::Begin);
    assert_at(&mut timeline, &digests, 20);
    assert_eq!(timeline.first(), CommitSeq(20));
}

/// What there is before damage can still be looked at.
#[test]
fn damage_is_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = long();
    let digests = digests(&mut made);
    made.frames
        .retain(|frame| frame.record().is_none_or(|record| record.seq.0 != 31));
    let path = made.write(folder.path());
    for kept_bytes in KEPT {
        let mut timeline = open(&path, kept_bytes);
        let stops = Stops::default();
        assert_eq!(run(Motion::Forward, &mut timeline, &stops), Stop::End);
        assert_at(&mut timeline, &digests, 30);
        let (last, why) = timeline.end().unwrap();
        assert_eq!(last, CommitSeq(30));
        assert!(why.contains("run.log"), "{why}");
        assert!(!timeline.forward().unwrap());
        assert_eq!(run(Motion::StepBack, &mut timeline, &stops), Stop::Stepped);
        assert_at(&mut timeline, &digests, 29);
        assert_eq!(run(Motion::Step, &mut timeline, &stops), Stop::Stepped);
        assert_eq!(run(Motion::Step, &mut timeline, &stops), Stop::End);
        assert_at(&mut timeline, &digests, 30);
    }
}

/// The way back ends at a gap, and the way forth from there is as it was; what is before the gap can be gone to.
#[test]
fn a_gap_is_not_gone_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = long();
    made.write_segments(folder.path(), &[20, 40]);
    let digests = digests(&mut made);
    let middle = folder
        .path()
        .join("run-0000000009/00000000000000000020.log");
    std::fs::remove_file(&middle).unwrap();
    let stops = Stops::default();
    for kept_bytes in KEPT {
        for (back, at) in [(BACK, 45), (Motion::StepBack, 40)] {
            let source = Source {
                begin: Begin::Checkpoint(CommitSeq(45)),
                ..source(folder.path(), kept_bytes)
            };
            let mut timeline = Timeline::open(source).unwrap();
            timeline.goto(CommitSeq(at)).unwrap();
            assert_eq!(run(back, &mut timeline, &stops), Stop::Begin);
            assert_at(&mut timeline, &digests, 40);
            assert_eq!(run(Motion::Forward, &mut timeline, &stops), Stop::End);
            assert_at(&mut timeline, &digests, COMMITS);
        }
        let mut timeline = open(folder.path(), kept_bytes);
        assert_eq!(run(Motion::Forward, &mut timeline, &stops), Stop::End);
        assert_at(&mut timeline, &digests, 20);
        assert!(timeline.end().unwrap().1.contains("is missing"));
        timeline.goto(CommitSeq(50)).unwrap();
        assert_at(&mut timeline, &digests, 50);
        timeline.goto(CommitSeq(10)).unwrap();
        assert_at(&mut timeline, &digests, 10);
    }
}
