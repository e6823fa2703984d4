//! Records that do not follow are errors, and never panics.

use std::sync::Arc;

use bytes::Bytes;
use samsara_commitlog::{
    Boundary, ByteRuns, ByteRunsBuilder, Chunk, Commit, CommitSeq, Effects, Exit, Gpa, GuestTime,
    Input, Record, Shape, VcpuIndex,
};
use samsara_machine::bare::register;
use samsara_machine::machine::{Changed, ChunkDigest, SnapshotLoader};
use samsara_machine::memory::View;
use samsara_machine::vcpu::VcpuState;
use samsara_machine::{ApplyError, Machine, Source};

use crate::devices::write;
use crate::{MIB, image};

pub(crate) fn machine() -> Machine {
    let shape = Shape::new(2, 16 * MIB).unwrap();
    Machine::new(shape, image(16 * MIB), vec![VcpuState::zeroed(&[0x10]); 2])
}

fn runs(address: u64, bytes: &[u8]) -> ByteRuns {
    let mut builder = ByteRunsBuilder::default();
    builder.push(address, bytes);
    builder.finish()
}

/// A chunk of vCPU 0 as the next record of `machine`.
pub(crate) fn chunk(machine: &Machine, memory: ByteRuns, vcpu: ByteRuns, exit: Exit) -> Record {
    let mut state = machine.vcpu(VcpuIndex(0)).clone();
    let _ = state.apply(&vcpu);
    let digest = ChunkDigest::of_runs(machine.image(), &memory).unwrap_or_default();
    let chunk = Chunk {
        vcpu: VcpuIndex(0),
        started_after: machine.seq(),
        boundary: Boundary::Timer,
        exit,
        digest: digest.finish(&state),
        effects: Effects { memory, vcpu },
    };
    let guest_time = GuestTime(machine.guest_time().0 + 1);
    Record {
        seq: machine.seq().next(),
        guest_time,
        commit: Commit::Chunk(chunk),
    }
}

fn plain(machine: &Machine, exit: Exit) -> Record {
    chunk(machine, runs(0x40_0ffe, &[1, 2, 3, 4]), runs(0, &[5]), exit)
}

#[test]
fn a_chunk_changes_what_it_says_and_nothing_else() {
    let mut machine = machine();
    let before = machine.digest();
    let record = plain(&machine, Exit::Cut);
    let applied = machine.apply(&record, Source::Record).unwrap();
    assert_eq!(
        applied
            .written
            .iter()
            .map(|page| page.0)
            .collect::<Vec<_>>(),
        [0x400, 0x401]
    );
    assert_eq!(machine.vcpu(VcpuIndex(0)).as_bytes()[0], 5);
    assert_eq!(machine.vcpu(VcpuIndex(1)), &VcpuState::zeroed(&[0x10]));
    assert_ne!(machine.digest().digest, before.digest);
}

type Damage = fn(&mut Record, &mut Chunk);

#[test]
fn records_that_do_not_follow_are_refused() {
    let cases: [(Damage, &str); 8] = [
        (
            |record, _| record.seq = CommitSeq(5),
            "cannot follow commit 0",
        ),
        (
            |record, _| record.seq = CommitSeq(0),
            "cannot follow commit 0",
        ),
        (
            |_, chunk| chunk.vcpu = VcpuIndex(2),
            "vCPU 2, which cannot run",
        ),
        (
            |_, chunk| chunk.vcpu = VcpuIndex(255),
            "vCPU 255, which cannot run",
        ),
        (|_, chunk| chunk.digest ^= 1, "has digest"),
        (
            |_, chunk| set_memory(chunk, 16 * MIB - 1),
            "are not guest memory",
        ),
        (
            |_, chunk| set_memory(chunk, u64::MAX - 3),
            "are not guest memory",
        ),
        (|_, chunk| set_state(chunk, 1 << 40), "does not fit layout"),
    ];
    for (damage, expected) in cases {
        let mut machine = machine();
        let mut record = plain(&machine, Exit::Cut);
        let Commit::Chunk(mut chunk) = record.commit.clone() else {
            unreachable!()
        };
        damage(&mut record, &mut chunk);
        record.commit = Commit::Chunk(chunk);
        let error = machine
            .apply(&record, Source::Record)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
    }
}

fn set_memory(chunk: &mut Chunk, address: u64) {
    let effects = &mut chunk.effects;
    effects.memory = runs(address, &[1, 2]);
}

fn set_state(chunk: &mut Chunk, address: u64) {
    let effects = &mut chunk.effects;
    effects.vcpu = runs(address, &[1]);
}

#[test]
fn time_and_ends_are_final() {
    let mut machine = machine();
    let mut record = plain(&machine, Exit::Cut);
    record.guest_time = GuestTime(100);
    machine.apply(&record, Source::Record).unwrap();
    let mut back = plain(&machine, Exit::Cut);
    back.guest_time = GuestTime(99);
    assert!(matches!(
        machine.apply(&back, Source::Record),
        Err(ApplyError::TimeMovesBack(_))
    ));

    let mut machine = self::machine();
    let record = plain(&machine, write(register::EXIT, 8, 3));
    assert_eq!(
        machine
            .apply(&record, Source::Record)
            .unwrap()
            .outputs
            .len(),
        1
    );
    let after = plain(&machine, Exit::Cut);
    assert!(matches!(
        machine.apply(&after, Source::Record),
        Err(ApplyError::AfterEnd(_))
    ));
}

#[test]
fn vcpus_that_have_halted_or_wait_do_not_run() {
    for exit in [
        write(register::HALT, 8, 0),
        write(register::OUTPUT, 8, 0x30_0000),
    ] {
        let mut machine = machine();
        let record = plain(&machine, exit);
        machine.apply(&record, Source::Record).unwrap();
        let next = plain(&machine, Exit::Cut);
        let error = machine.apply(&next, Source::Record).unwrap_err();
        assert!(matches!(error, ApplyError::NoSuchVcpu { .. }), "{error}");
    }
}

#[test]
fn inputs_that_nobody_waits_for_are_refused() {
    let inputs = [
        Input::File {
            vcpu: VcpuIndex(0),
            bytes: Bytes::from_static(b"x"),
        },
        Input::OutputStep { vcpu: VcpuIndex(9) },
        Input::Console(vec![0; 1 << 20].into()),
    ];
    for input in inputs {
        let mut machine = machine();
        let (seq, guest_time) = (machine.seq().next(), GuestTime(1));
        let record = Record {
            seq,
            guest_time,
            commit: Commit::Input(input),
        };
        let error = machine.apply(&record, Source::Record).unwrap_err();
        assert!(matches!(error, ApplyError::Device { .. }), "{error}");
    }
}

/// Invariant 49: the digest that is kept is that of the memory as it is, whoever wrote it.
#[test]
fn the_digest_follows_every_write() {
    const DESCRIPTOR: u64 = 0x30_0000;
    let mut machine = machine();
    let check = |machine: &Machine| {
        let mut loader = SnapshotLoader::new(machine.snapshot_start()).unwrap();
        for runs in machine.snapshot_pages() {
            loader.pages(&runs.unwrap()).unwrap();
        }
        loader.finish(machine.digest(), Vec::new()).unwrap();
    };
    let words = [0x40_0ff0, 100].map(u64::to_le_bytes);
    let describe = runs(DESCRIPTOR, words.as_flattened());
    let start = write(register::INPUT, 8, DESCRIPTOR);
    let record = chunk(&machine, describe, ByteRuns::default(), start);
    machine.apply(&record, Source::Record).unwrap();
    check(&machine);
    let record = Record {
        seq: machine.seq().next(),
        guest_time: machine.guest_time(),
        commit: Commit::Input(Input::File {
            vcpu: VcpuIndex(0),
            bytes: vec![7; 100].into(),
        }),
    };
    let applied = machine.apply(&record, Source::Record).unwrap();
    assert_eq!(
        applied.by_devices.len(),
        3,
        "two pages of the buffer, and the descriptor's"
    );
    check(&machine);
    // Zeros again.
    let record = chunk(
        &machine,
        runs(0x40_0ff0, &[0; 100]),
        ByteRuns::default(),
        Exit::Cut,
    );
    machine.apply(&record, Source::Record).unwrap();
    check(&machine);
    // From a view.
    let view = Arc::new(View::new(machine.image()).unwrap());
    view.store(Gpa(0x41_0000), 5).unwrap();
    let page = view.layout().page_of(Gpa(0x41_0000)).unwrap();
    let changed = Changed {
        page,
        digest: view.digest_page(page),
    };
    let record = plain(&machine, Exit::Cut);
    machine
        .apply(&record, Source::View(&view, &[changed]))
        .unwrap();
    check(&machine);
}
