//! A machine as frames and back.

use samsara_commitlog::{
    ByteRuns, ByteRunsBuilder, Exit, Gpa, SNAPSHOT_PAGES_BYTES, Shape, SnapshotStart, StateDigest,
};
use samsara_machine::bare::register;
use samsara_machine::machine::{SnapshotError, SnapshotLoader, Zeros, page_runs};
use samsara_machine::vcpu::VcpuState;
use samsara_machine::{Ended, Machine, Source};

use crate::apply::{chunk, machine};
use crate::devices::write;
use crate::{GIB, MIB, Rng, image};

fn frames(machine: &mut Machine) -> (SnapshotStart, Vec<ByteRuns>, StateDigest) {
    let pages = machine.snapshot_pages().map(Result::unwrap).collect();
    (machine.snapshot_start(), pages, machine.digest())
}

fn load(
    start: SnapshotStart,
    pages: &[ByteRuns],
    end: StateDigest,
) -> Result<Machine, SnapshotError> {
    let mut loader = SnapshotLoader::new(start)?;
    pages.iter().try_for_each(|piece| loader.pages(piece))?;
    loader.finish(end, Vec::new())
}

#[test]
fn sparse_memory_above_four_gib_comes_back() {
    let shape = Shape::new(2, 5 * GIB).unwrap();
    let image = image(5 * GIB);
    let mut rng = Rng(11);
    let places = [0, 4096, 3 * GIB - 8, 4 * GIB, 6 * GIB - 8, 64 * MIB + 8];
    for at in places
        .into_iter()
        .chain((0..700).map(|page| GIB + page * 8192))
    {
        image.write(Gpa(at), &rng.next().to_le_bytes()).unwrap();
    }
    // Touched, and zero again: no page of the snapshot.
    image.write(Gpa(2 * GIB), &[1]).unwrap();
    image.write(Gpa(2 * GIB), &[0]).unwrap();
    let mut machine = Machine::new(shape, image, vec![VcpuState::zeroed(&[]); 2]);
    let (start, pages, end) = frames(&mut machine);
    assert!(pages.len() > 1);
    assert!(
        pages
            .iter()
            .all(|piece| piece.encoded().len() <= SNAPSHOT_PAGES_BYTES)
    );
    let bytes: u64 = pages.iter().map(ByteRuns::run_bytes).sum();
    assert_eq!(bytes, (places.len() as u64 - 1 + 1 + 700) * 4096);
    let copy = load(start, &pages, end).unwrap();
    assert_eq!(copy.digest(), end);
    for at in places {
        let (mut old, mut new) = ([0; 8], [0; 8]);
        machine.image().read(Gpa(at), &mut old).unwrap();
        copy.image().read(Gpa(at), &mut new).unwrap();
        assert_eq!(old, new, "{at:#x}");
    }
}

/// Invariant 1: after the same records the digests are equal, wherever the snapshot was taken.
#[test]
fn copies_that_apply_the_same_records_stay_equal() {
    let mut machine = machine();
    let mut rng = Rng(5);
    let mut copies: Vec<Machine> = Vec::new();
    for round in 0..60 {
        if round % 20 == 0 {
            let (start, pages, end) = frames(&mut machine);
            copies.push(load(start, &pages, end).unwrap());
        }
        let mut memory = ByteRunsBuilder::default();
        memory.push(0x40_0000 + rng.next() % MIB, &rng.next().to_le_bytes());
        let mut vcpu = ByteRunsBuilder::default();
        vcpu.push(rng.next() % 64, &[rng.next() as u8]);
        let record = chunk(&machine, memory.finish(), vcpu.finish(), Exit::Cut);
        machine.apply(&record, Source::Record).unwrap();
        for copy in &mut copies {
            copy.apply(&record, Source::Record).unwrap();
            assert_eq!(copy.digest(), machine.digest());
        }
    }
}

/// Pages that are copied while commits go on, and those again that were written meanwhile, are the state at the last
/// commit.
#[test]
fn a_snapshot_of_a_machine_that_goes_on_starts_again() {
    let mut machine = machine();
    let mut rng = Rng(23);
    let mut commits = |machine: &mut Machine| {
        for _ in 0..10 {
            let mut memory = ByteRunsBuilder::default();
            // Bytes become zero again, too.
            let word = [rng.next(), 0][rng.next() as usize % 2];
            memory.push(0x40_0000 + rng.next() % 64 * 1024, &word.to_le_bytes());
            let mut vcpu = ByteRunsBuilder::default();
            vcpu.push(rng.next() % 64, &[rng.next() as u8]);
            let record = chunk(machine, memory.finish(), vcpu.finish(), Exit::Cut);
            machine.apply(&record, Source::Record).unwrap();
        }
    };
    commits(&mut machine);
    assert_eq!(machine.take_tracked(), [], "nobody tracks them");
    machine.track_pages();
    let mut loader = SnapshotLoader::new(machine.snapshot_start()).unwrap();
    let image = machine.image().clone();
    for runs in page_runs(&image, image.touched_pages(), Zeros::Skip) {
        loader.pages(&runs.unwrap()).unwrap();
        commits(&mut machine);
    }
    for _ in 0..3 {
        let pages = machine.take_tracked();
        assert!(!pages.is_empty() && pages.is_sorted());
        commits(&mut machine);
        for runs in page_runs(&image, pages.into_iter(), Zeros::Keep) {
            loader.pages(&runs.unwrap()).unwrap();
        }
    }
    loader = loader.restart(machine.snapshot_start()).unwrap();
    let left = machine.take_tracked();
    for runs in page_runs(&image, left.into_iter(), Zeros::Keep) {
        loader.pages(&runs.unwrap()).unwrap();
    }
    let copy = loader.finish(machine.digest(), Vec::new()).unwrap();
    assert_eq!(copy.seq(), machine.seq());
    machine.untrack_pages();
    commits(&mut machine);
    assert_eq!(machine.take_tracked(), []);
}

/// A backup may join a guest that has ended, while its last outputs are held.
#[test]
fn a_machine_that_has_ended_comes_back_ended() {
    let ends = [
        (write(register::EXIT, 8, 7), Ended::Exit { status: 7 }),
        (write(register::HALT, 8, 0), Ended::Halted),
    ];
    for (exit, expected) in ends {
        let shape = Shape::new(1, 16 * MIB).unwrap();
        let mut machine = Machine::new(shape, image(16 * MIB), vec![VcpuState::zeroed(&[])]);
        let record = chunk(&machine, ByteRuns::default(), ByteRuns::default(), exit);
        machine.apply(&record, Source::Record).unwrap();
        assert_eq!(machine.ended(), Some(&expected));
        let (start, pages, end) = frames(&mut machine);
        let copy = load(start, &pages, end).unwrap();
        assert_eq!(copy.ended(), Some(&expected));
        assert_eq!(copy.digest(), end);
    }
}

type Damage = fn(&mut SnapshotStart, &mut Vec<ByteRuns>);

#[test]
fn whatever_changes_on_the_way_is_noticed() {
    let machine = machine();
    machine.image().write(Gpa(0x40_0000), b"text").unwrap();
    let mut machine = Machine::new(
        machine.shape(),
        machine.image().clone(),
        vec![machine.vcpu(samsara_commitlog::VcpuIndex(0)).clone(); 2],
    );
    let (start, pages, end) = frames(&mut machine);
    let cases: [(Damage, &str); 7] = [
        (|start, _| start.state_version += 1, "state layout"),
        (
            |start, _| drop(start.vcpus.pop()),
            "1 vCPU states for 2 vCPUs",
        ),
        (
            |start, _| start.vcpus[1] = start.vcpus[1].slice(1..),
            "does not fit layout",
        ),
        (
            |start, _| start.devices = start.devices.slice(1..),
            "device state",
        ),
        (|start, _| start.guest_time.0 += 1, "another digest"),
        (|_, pages| drop(pages.pop()), "another digest"),
        (
            |_, pages| pages.push(run(16 * MIB, 1)),
            "are not guest memory",
        ),
    ];
    for (damage, expected) in cases {
        let (mut start, mut pages) = (start.clone(), pages.clone());
        damage(&mut start, &mut pages);
        let error = load(start, &pages, end).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
    }
    assert!(load(start, &pages, end).is_ok());
}

fn run(address: u64, byte: u8) -> ByteRuns {
    let mut builder = ByteRunsBuilder::default();
    builder.push(address, &[byte]);
    builder.finish()
}
