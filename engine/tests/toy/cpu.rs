//! A made-up vCPU: interprets a program on a real view, as KVM would run a guest on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use samsara_commitlog::{Gpa, Progress};
use samsara_engine::Cpu;
use samsara_machine::kvm::{Harvest, KvmError, RawExit, Restore};
use samsara_machine::memory::{PageIndex, Residency, View};
use samsara_machine::vcpu::VcpuState;

use crate::program::{Memory, Op, Regs, finish_read, step};
use crate::rng::Rng;

pub(crate) struct ToyCpu {
    program: Arc<[Op]>,
    regs: Regs,
    memory: ViewMemory,
    /// Entries that fit before the ring must be reset.
    ring_max: usize,
    kicked: Arc<AtomicBool>,
    /// Decides where chunks are cut; not part of the state.
    rng: Rng,
    /// Cuts a chunk after so many instructions, about.
    cut_every: u64,
    load_waits: bool,
    /// Instructions since the count began.
    counted: u64,
    trouble: Trouble,
}

/// What a host does to a vCPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Trouble {
    #[default]
    None,
    /// It lets runs stand still for so long in all.
    Stands(Duration),
    /// It comes nowhere, however long it runs, until it is taken back. So long it has run.
    Spins(Duration),
    /// So many requests are granted, and none after them.
    Fails(u64),
    /// A run after so many finds an invariant broken.
    Panics(u64),
}

struct ViewMemory {
    view: Arc<View>,
    ring: Vec<PageIndex>,
    taken: usize,
}

impl Memory for ViewMemory {
    fn load(&mut self, address: u64) -> u64 {
        self.view.load(Gpa(address)).unwrap()
    }

    /// Reports a page once, as the dirty ring does: when it becomes private.
    fn store(&mut self, address: u64, value: u64) {
        let page = self.view.layout().page_of(Gpa(address)).unwrap();
        let mut before = Residency::Absent;
        self.view
            .residency(&[page], |_, found| before = found)
            .unwrap();
        self.view.store(Gpa(address), value).unwrap();
        if before != Residency::Private {
            self.ring.push(page);
        }
    }
}

impl ToyCpu {
    pub(crate) fn new(program: Arc<[Op]>, view: Arc<View>, seed: u64, limits: Limits) -> Self {
        Self {
            program,
            regs: Regs {
                pc: 0,
                mix: 0,
                temp: 0,
                steps: 0,
            },
            memory: ViewMemory {
                view,
                ring: Vec::new(),
                taken: 0,
            },
            ring_max: limits.ring,
            kicked: Arc::default(),
            rng: Rng::new(seed),
            cut_every: limits.cut_every,
            load_waits: false,
            counted: 0,
            trouble: Trouble::None,
        }
    }

    pub(crate) fn with_trouble(self, trouble: Trouble) -> Self {
        Self { trouble, ..self }
    }

    /// The host is asked for something.
    fn ask(&mut self) -> Result<(), KvmError> {
        match &mut self.trouble {
            Trouble::Fails(0) => Err(KvmError::Missing("what it had before")),
            Trouble::Fails(left) => {
                *left -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether a run that may last until `end` comes nowhere.
    fn is_held_up(&mut self, end: Instant) -> bool {
        match &mut self.trouble {
            Trouble::Stands(left) if !left.is_zero() => {
                let rest = end.saturating_duration_since(Instant::now()).min(*left);
                *left -= rest;
                std::thread::sleep(rest);
                true
            }
            Trouble::Spins(ran) => {
                let began = Instant::now();
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
                *ran += began.elapsed();
                true
            }
            Trouble::Panics(0) => panic!("a test breaks an invariant"),
            Trouble::Panics(left) => {
                *left -= 1;
                false
            }
            _ => false,
        }
    }

    /// Runs until something ends the chunk, or so many instructions have been counted.
    fn go(&mut self, target: Option<u64>, end: Instant) -> Result<RawExit, KvmError> {
        self.ask()?;
        assert!(!self.load_waits, "a run while a load waits for its value");
        if self.is_held_up(end) {
            return Ok(RawExit::Cut);
        }
        loop {
            if self.memory.ring.len() + self.memory.taken >= self.ring_max {
                return Ok(RawExit::RingFull);
            }
            let is_there = target == Some(self.counted);
            let is_cut = target.is_none() && self.rng.below(self.cut_every) == 0;
            if is_there || is_cut || self.kicked.load(Ordering::SeqCst) || Instant::now() >= end {
                return Ok(RawExit::Cut);
            }
            let before = self.regs.pc;
            self.counted += 1;
            if let Some(exit) = step(&self.program, &mut self.regs, &mut self.memory) {
                self.load_waits = matches!(exit, RawExit::Read { .. });
                return Ok(exit);
            }
            if self.regs.pc == before || self.rng.below(32) == 0 {
                std::thread::yield_now();
            }
        }
    }
}

/// What ends a toy's chunks besides its program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) ring: usize,
    pub(crate) cut_every: u64,
}

impl Cpu for ToyCpu {
    fn attach(&mut self) -> Result<(), KvmError> {
        self.ask()
    }

    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        let kicked = Arc::clone(&self.kicked);
        Box::new(move || kicked.store(true, Ordering::SeqCst))
    }

    fn forget_kicks(&mut self) {
        self.kicked.store(false, Ordering::SeqCst);
    }

    fn start_count(&mut self) {
        self.counted = 0;
    }

    fn progress(&self) -> Option<Progress> {
        Some(Progress {
            count: self.counted,
            place: None,
        })
    }

    fn run_to(&mut self, progress: Progress, latest: Instant) -> Result<RawExit, KvmError> {
        self.go(Some(progress.count), latest)
    }

    fn run(&mut self, limit: Duration) -> Result<RawExit, KvmError> {
        self.go(None, Instant::now() + limit)
    }

    fn complete_read(&mut self, value: u64) -> Result<RawExit, KvmError> {
        self.ask()?;
        assert!(
            std::mem::take(&mut self.load_waits),
            "no load waits for a value"
        );
        finish_read(&self.program, &mut self.regs, &mut self.memory, value);
        Ok(RawExit::Cut)
    }

    fn rip(&self) -> u64 {
        self.regs.pc
    }

    fn capture(&mut self, state: &mut VcpuState) -> Result<(), KvmError> {
        self.ask()?;
        assert!(
            !self.load_waits,
            "a capture while a load waits for its value"
        );
        self.regs.put(state);
        Ok(())
    }

    fn restore(&mut self, state: &VcpuState, _: Restore) -> Result<(), KvmError> {
        self.ask()?;
        assert!(
            !self.load_waits,
            "a restore while a load waits for its value"
        );
        self.regs = Regs::of(state);
        // The run with which it was tried is no chunk.
        if matches!(self.trouble, Trouble::Spins(ran) if ran > Duration::from_millis(100)) {
            self.trouble = Trouble::None;
        }
        Ok(())
    }

    fn take_written(&mut self, page: &mut dyn FnMut(PageIndex)) -> Result<Harvest, KvmError> {
        self.ask()?;
        self.memory.taken += self.memory.ring.len();
        self.memory.ring.drain(..).for_each(page);
        Ok(Harvest::Complete)
    }

    fn want_window(&mut self, _wanted: bool) {}

    fn set_events(&mut self, _state: &VcpuState) -> Result<(), KvmError> {
        panic!("a bare guest takes no interrupts")
    }

    fn forget_translations(&mut self) {}

    fn expect_privileged_code(&mut self) {}

    fn reset_ring(&mut self) -> Result<(), KvmError> {
        self.ask()?;
        self.memory.taken = 0;
        Ok(())
    }
}
