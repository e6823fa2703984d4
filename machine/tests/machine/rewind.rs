//! States that a machine has had are those that it comes back to.

use samsara_commitlog::{
    ByteRuns, ByteRunsBuilder, Commit, Exit, Gpa, GuestTime, Input, Record, Space, StateDigest,
    VcpuIndex,
};
use samsara_machine::bare::register;
use samsara_machine::machine::{Change, Rewindable};
use samsara_machine::pc::{ConsoleDevice, Pc};
use samsara_machine::vcpu::VcpuState;
use samsara_machine::{Machine, Source};

use crate::apply::{chunk, machine};
use crate::devices::write;
use crate::{MIB, Rng, image};

const DESCRIPTOR: u64 = 0x30_0000;
const BUFFER: u64 = 0x70_0ff0;

/// A machine, what follows it, the changes that lead back from its states, and the digests of them all.
struct History {
    machine: Machine,
    here: Rewindable,
    back: Vec<Change>,
    digests: Vec<StateDigest>,
}

impl History {
    fn new(machine: Machine) -> Self {
        let here = Rewindable::new(&machine).unwrap();
        let digests = vec![machine.digest()];
        Self {
            machine,
            here,
            back: Vec::new(),
            digests,
        }
    }

    fn commit(&mut self, record: &Record) {
        let applied = self.machine.apply(record, Source::Record).unwrap();
        let back = self.here.follow(&self.machine, &applied.written);
        assert_eq!(back.seq(), self.digests.last().unwrap().seq);
        self.back.push(back);
        self.digests.push(self.machine.digest());
    }

    fn chunk(&mut self, rng: &mut Rng, exit: Exit) {
        let mut memory = ByteRunsBuilder::default();
        // Some stores change nothing; some lie in two pages.
        memory.push(
            0x40_0000 + rng.next() % 16 * 1023,
            &(rng.next() % 3).to_le_bytes(),
        );
        let mut vcpu = ByteRunsBuilder::default();
        vcpu.push(rng.next() % 64, &[rng.next() as u8]);
        self.commit(&chunk(&self.machine, memory.finish(), vcpu.finish(), exit));
    }

    fn input(&mut self, input: Input) {
        self.commit(&Record {
            seq: self.machine.seq().next(),
            guest_time: GuestTime(self.machine.guest_time().0 + 1000),
            commit: Commit::Input(input),
        });
    }

    /// Goes back all the way and forth again, and checks every state.
    fn check(mut self) {
        let mut forth = Vec::new();
        for _ in 0..2 {
            while let Some(back) = self.back.pop() {
                let change = self.here.go(&back).unwrap();
                assert_same_bytes(&change, &back);
                forth.push(change);
                assert_eq!(self.here.digest(), self.digests[self.back.len()]);
            }
            while let Some(change) = forth.pop() {
                let back = self.here.go(&change).unwrap();
                assert_same_bytes(&change, &back);
                self.back.push(back);
                assert_eq!(self.here.digest(), self.digests[self.back.len()]);
            }
        }
    }
}

/// The way back is as long as the way forth.
#[track_caller]
fn assert_same_bytes(one: &Change, other: &Change) {
    let ranges = |change: &Change| {
        let runs = change.memory().iter();
        runs.map(|(at, bytes)| (at, bytes.len()))
            .collect::<Vec<_>>()
    };
    assert_eq!(ranges(one), ranges(other));
}

#[test]
fn a_bare_machine_goes_back_to_every_state() {
    let mut rng = Rng(17);
    let mut history = History::new(machine());
    let words = [BUFFER, 40].into_iter().flat_map(u64::to_le_bytes);
    let mut descriptor = ByteRunsBuilder::default();
    descriptor.push(DESCRIPTOR, &words.collect::<Vec<_>>());
    let descriptor = descriptor.finish();
    for round in 0..40 {
        let exit = match rng.below(4) {
            0 => write(register::CONSOLE, 1, b'x'.into()),
            1 => write(register::MARK, 8, rng.next()),
            _ => Exit::Cut,
        };
        history.chunk(&mut rng, exit);
        if round % 8 == 3 {
            history.input(Input::Console(vec![round; 5].into()));
        }
        if round % 8 == 5 {
            // What a device writes, too.
            let exit = write(register::INPUT, 8, DESCRIPTOR);
            let record = chunk(
                &history.machine,
                descriptor.clone(),
                ByteRuns::default(),
                exit,
            );
            history.commit(&record);
            let (vcpu, bytes) = (VcpuIndex(0), vec![round; 40].into());
            history.input(Input::File { vcpu, bytes });
            let mut found = [0; 40];
            history
                .machine
                .image()
                .read(Gpa(BUFFER), &mut found)
                .unwrap();
            assert_eq!(found, [round; 40]);
        }
    }
    history.chunk(&mut rng, write(register::EXIT, 8, 7));
    assert!(history.machine.ended().is_some());
    history.check();
}

/// Its devices change the states of vCPUs, and with time alone.
#[test]
fn a_pc_goes_back_to_every_state() {
    const APIC: u64 = 0xfee0_0000;
    let shape = samsara_commitlog::Shape::new(2, 16 * MIB).unwrap();
    let mut state = VcpuState::zeroed(&[0x10]);
    let mut sregs = state.sregs();
    sregs.apic_base = APIC | 1 << 11;
    state.set_sregs(&sregs);
    let pc = Pc::new(2, 0, Vec::new(), ConsoleDevice::Serial);
    let machine = Machine::new_pc(shape, image(16 * MIB), vec![state; 2], pc, Vec::new());
    let mut rng = Rng(18);
    let mut history = History::new(machine);
    let store = |register: u64, value| Exit::Write {
        space: Space::Mmio,
        address: APIC + register,
        size: 4,
        value,
    };
    // On; a timer of 10 microseconds, again and again, at vector 0x41.
    for (register, value) in [
        (0xf0, 0x1ff),
        (0x3e0, 0xb),
        (0x320, 0x2_0041),
        (0x380, 10_000),
    ] {
        history.chunk(&mut rng, store(register, value));
    }
    for round in 0..60 {
        match round % 3 {
            0 => history.input(Input::Clock),
            1 => history.chunk(&mut rng, store(0xb0, 0)),
            _ => history.chunk(&mut rng, store(0x300, 0x4_0050)),
        }
    }
    history.check();
}
