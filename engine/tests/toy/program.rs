//! Small programs for made-up vCPUs, and what their instructions do to registers and memory.

use samsara_commitlog::Space;
use samsara_machine::bare::{DEVICE_PAGE, register};
use samsara_machine::kvm::RawExit;
use samsara_machine::vcpu::VcpuState;

use crate::rng::Rng;

/// An instruction. Each is one step; those that wait repeat themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Mixes a word into the accumulator, so that the accumulator knows all that was loaded.
    Load(u64),
    /// Stores the accumulator.
    Store(u64),
    /// Stores it to every word of a page, mixed with the word's place.
    Fill(u64),
    /// Adds one atomically, and mixes the old value in.
    Add(u64),
    /// Waits until the lock is free and takes it.
    Lock(u64),
    Unlock(u64),
    /// Loads into the second register; [`Op::Put`] stores it plus one.
    Take(u64),
    Put(u64),
    /// Waits until the word has at least this value.
    Await(u64, u64),
    /// Loads a device register into the accumulator.
    Read(u64),
    /// Loads a device register and stores it, mixed with the accumulator: one instruction that ends a chunk and writes memory.
    ReadTo(u64, u64),
    /// Stores to a device register: the accumulator, or an address.
    Write(u64, Option<u64>),
}

/// Registers. All of them live in the captured state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Regs {
    pub(crate) pc: u64,
    pub(crate) mix: u64,
    pub(crate) temp: u64,
    /// Instructions done, waiting ones too: names every boundary exactly.
    pub(crate) steps: u64,
}

impl Regs {
    pub(crate) fn of(state: &VcpuState) -> Self {
        let regs = state.regs();
        Self {
            pc: regs.rip,
            mix: regs.rax,
            temp: regs.rbx,
            steps: regs.r15,
        }
    }

    pub(crate) fn put(self, state: &mut VcpuState) {
        let mut regs = state.regs();
        (regs.rip, regs.rax, regs.rbx, regs.r15) = (self.pc, self.mix, self.temp, self.steps);
        state.set_regs(&regs);
    }

    fn advance(&mut self, mixed: u64) {
        self.mix = (self.mix ^ mixed)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(23);
        self.pc += 1;
        self.steps += 1;
    }
}

/// Memory as a program sees it.
pub(crate) trait Memory {
    fn load(&mut self, address: u64) -> u64;
    fn store(&mut self, address: u64, value: u64);
}

/// Does one instruction; the exit if it accesses a device. A load is done by [`finish_read`].
pub(crate) fn step(program: &[Op], regs: &mut Regs, memory: &mut impl Memory) -> Option<RawExit> {
    let Some(&op) = program.get(regs.pc as usize) else {
        return Some(RawExit::Halt);
    };
    let space = Space::Mmio;
    match op {
        Op::Load(address) => regs.advance(memory.load(address)),
        Op::Store(address) => {
            memory.store(address, regs.mix);
            regs.advance(0);
        }
        Op::Fill(page) => {
            for word in 0..PAGE / 8 {
                memory.store(page + word * 8, regs.mix.rotate_left(word as u32) ^ word);
            }
            regs.advance(0);
        }
        Op::Add(address) => {
            let old = memory.load(address);
            memory.store(address, old + 1);
            regs.advance(old);
        }
        Op::Lock(address) if memory.load(address) != 0 => regs.steps += 1,
        Op::Lock(address) => {
            memory.store(address, 1);
            regs.advance(0);
        }
        Op::Unlock(address) => {
            memory.store(address, 0);
            regs.advance(0);
        }
        Op::Take(address) => {
            regs.temp = memory.load(address);
            regs.advance(regs.temp);
        }
        Op::Put(address) => {
            memory.store(address, regs.temp + 1);
            regs.advance(0);
        }
        Op::Await(address, least) if memory.load(address) < least => regs.steps += 1,
        Op::Await(..) => regs.advance(0),
        Op::Read(offset) | Op::ReadTo(offset, _) => {
            return Some(RawExit::Read {
                space,
                address: DEVICE_PAGE + offset,
                size: 8,
            });
        }
        Op::Write(offset, address) => {
            let value = address.unwrap_or(regs.mix);
            regs.advance(0);
            return Some(RawExit::Write {
                space,
                address: DEVICE_PAGE + offset,
                size: 8,
                value,
            });
        }
    }
    None
}

/// Ends the load that [`step`] stopped at.
pub(crate) fn finish_read(program: &[Op], regs: &mut Regs, memory: &mut impl Memory, value: u64) {
    if let Op::ReadTo(_, address) = program[regs.pc as usize] {
        memory.store(address, value ^ regs.mix);
    }
    regs.advance(value);
}

const PAGE: u64 = 4096;
const SHARED: u64 = 0x40_0000;
const SHARED_PAGES: u64 = 5;
const LOCKS: u64 = 0x50_0000;
const GUARDED: u64 = 0x51_0000;
const LOCK_COUNT: u64 = 2;
const BARRIER: u64 = 0x52_0000;
const OWN: u64 = 0x60_0000;
const OWN_PAGES: u64 = 16;
const FRESH: u64 = 0x80_0000;
const FRESH_BYTES: u64 = 0x10_0000;

/// Where the INPUT and OUTPUT descriptors of a vCPU are: on one page, so that DMA conflicts.
pub(crate) fn descriptors(vcpu: u64) -> [u64; 2] {
    let first = 0x53_0000 + vcpu * 64;
    [first, first + 32]
}

/// Buffers of the same, in the shared pages.
pub(crate) fn buffers(vcpu: u64) -> [u64; 2] {
    [
        SHARED + vcpu % SHARED_PAGES * PAGE + 128,
        SHARED + (vcpu + 1) % SHARED_PAGES * PAGE,
    ]
}

/// Bytes of each buffer.
pub(crate) const BUFFER_BYTES: u64 = 64;

/// Words guarded by the locks: each ends as the number of [`Op::Put`] to it.
pub(crate) fn guarded() -> impl Iterator<Item = u64> {
    (0..LOCK_COUNT).map(|lock| GUARDED + lock * PAGE)
}

/// What a program is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    /// Random stretches between barriers.
    pub(crate) stretches: u64,
    /// Instructions of a stretch, about.
    pub(crate) ops: u64,
    /// Whether devices are used.
    pub(crate) devices: bool,
    /// Whether pages are filled, too.
    pub(crate) fills: bool,
}

/// A random program for one of `count` vCPUs. It ends by halting.
pub(crate) fn random_program(rng: &mut Rng, vcpu: u64, count: u64, mix: Mix) -> Vec<Op> {
    let mut ops = Vec::new();
    for stretch in 1..=mix.stretches {
        for _ in 0..mix.ops {
            random_op(rng, vcpu, mix, &mut ops);
        }
        ops.extend([Op::Add(BARRIER), Op::Await(BARRIER, stretch * count)]);
    }
    ops.push(Op::Write(register::HALT, None));
    ops
}

fn random_op(rng: &mut Rng, vcpu: u64, mix: Mix, ops: &mut Vec<Op>) {
    let shared = SHARED + rng.below(SHARED_PAGES) * PAGE + rng.below(24) * 8;
    let own = OWN + (vcpu * OWN_PAGES + rng.below(OWN_PAGES)) * PAGE + rng.below(512) * 8;
    if mix.fills && rng.below(6) == 0 {
        // Of those that others use, too, and of its own ones, of which other stores change a word.
        let page = [shared, own][rng.below(2) as usize] / PAGE * PAGE;
        ops.push(Op::Fill(page));
        return;
    }
    match rng.below(if mix.devices { 44 } else { 40 }) {
        0..12 => ops.push(Op::Load(shared)),
        12..20 => ops.push(Op::Store(shared)),
        20..26 => ops.push(Op::Add(shared)),
        26..36 => ops.extend([Op::Load(own), Op::Store(own)]),
        36..40 => {
            let lock = rng.below(LOCK_COUNT);
            let word = GUARDED + lock * PAGE;
            let lock = LOCKS + lock * PAGE;
            ops.extend([
                Op::Lock(lock),
                Op::Take(word),
                Op::Put(word),
                Op::Unlock(lock),
            ]);
        }
        40 => ops.push(Op::Read(
            [register::CLOCK, register::RANDOM][rng.below(2) as usize],
        )),
        41 => {
            let fresh = FRESH + vcpu * FRESH_BYTES + ops.len() as u64 * PAGE % FRESH_BYTES;
            let target = [shared, own, fresh][rng.below(3) as usize];
            ops.extend([Op::Load(target), Op::ReadTo(register::RANDOM, target)]);
        }
        42 => ops.push(Op::Write(
            [register::MARK, register::YIELD][rng.below(2) as usize],
            None,
        )),
        _ => {
            let which = rng.below(2) as usize;
            let register = [register::INPUT, register::OUTPUT][which];
            ops.push(Op::Write(register, Some(descriptors(vcpu)[which])));
        }
    }
}
