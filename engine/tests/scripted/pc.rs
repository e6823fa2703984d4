//! The PC around the scripted vCPUs, and what lies outside it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use samsara_commitlog::{Commit, CommitSeq, Input, Record, Shape, VcpuIndex};
use samsara_engine::{EngineError, Faults, Isolation, Item, Outside, Recorder, Settings, Stats};
use samsara_machine::kvm::{Paging, TscControl};
use samsara_machine::memory::{Image, View};
use samsara_machine::pc::virtio::{Blocks, Device};
use samsara_machine::pc::{ConsoleDevice, Pc};
use samsara_machine::{Machine, Output};

use crate::cpu::{Script, ScriptedCpu, start_state};

const MEMORY_BYTES: u64 = 16 << 20;
/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(1);

/// What the recorder gave out, as far as these tests look at it.
#[derive(Default)]
pub(crate) struct World {
    last: AtomicU64,
    clock_commits: AtomicU64,
    gaps: Mutex<Vec<(u64, u64)>>,
    failure: Mutex<Option<String>>,
    refuses_console: AtomicBool,
}

impl World {
    /// Panics when it is given what was typed.
    pub(crate) fn refuse_console(&self) {
        self.refuses_console.store(true, Ordering::SeqCst);
    }

    /// The last commit.
    pub(crate) fn last(&self) -> u64 {
        self.last.load(Ordering::SeqCst)
    }

    /// Commits that only moved the clock.
    pub(crate) fn clock_commits(&self) -> u64 {
        self.clock_commits.load(Ordering::SeqCst)
    }

    /// Commits, each with the one before it, between which one is missing.
    pub(crate) fn gaps(&self) -> Vec<(u64, u64)> {
        self.gaps.lock().unwrap().clone()
    }

    /// The error that the recorder ended by.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap().clone()
    }
}

impl Outside for World {
    fn wait_for_room(&self) {}

    fn committed(&self, seq: CommitSeq, items: Vec<Item>, _: Vec<Output>) {
        let last = self.last.swap(seq.0, Ordering::SeqCst);
        if seq.0 != last + 1 {
            self.gaps.lock().unwrap().push((last, seq.0));
        }
        let inputs = items.iter().filter_map(|item| match item {
            Item::Record(
                Record {
                    commit: Commit::Input(input),
                    ..
                },
                _,
            ) => Some(input),
            _ => None,
        });
        let is_typed = |input: &Input| matches!(input, Input::Console(_));
        let is_refused = self.refuses_console.load(Ordering::SeqCst);
        assert!(!is_refused || !inputs.clone().any(is_typed), "on purpose");
        if inputs.into_iter().any(|input| *input == Input::Clock) {
            self.clock_commits.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn read_input(&self, _: u64, _: usize) -> std::io::Result<Bytes> {
        Ok(Bytes::new())
    }

    fn failed(&self, error: EngineError) {
        *self.failure.lock().unwrap() = Some(error.to_string());
    }

    fn random(&self) -> u64 {
        4
    }
}

/// A PC to record.
pub(crate) struct Setup {
    image: Arc<Image>,
    scripts: Vec<Script>,
    devices: Vec<Device>,
    disks: Vec<Arc<dyn Blocks>>,
    isolation: Isolation,
    squash_every: u64,
}

impl Setup {
    /// Without disks, and vCPUs beside each other.
    pub(crate) fn new(scripts: &[Script]) -> Self {
        let shape = shape(scripts.len());
        Self {
            image: Arc::new(Image::new(shape).unwrap()),
            scripts: scripts.to_vec(),
            devices: Vec::new(),
            disks: Vec::new(),
            isolation: Isolation::Parallel,
            squash_every: 0,
        }
    }

    pub(crate) fn with_isolation(self, isolation: Isolation) -> Self {
        Self { isolation, ..self }
    }

    /// Squashes chunks without need, so that vCPUs take turns.
    pub(crate) fn with_squashes(self, squash_every: u64) -> Self {
        Self {
            squash_every,
            ..self
        }
    }

    /// With one more device, a disk.
    pub(crate) fn with_disk(mut self, disk: Arc<dyn Blocks>) -> Self {
        let device = Device::block(disk.bytes(), disk.is_read_only(), [0; 20]);
        self.devices.push(device);
        self.disks.push(disk);
        self
    }

    /// With one more device, a console.
    pub(crate) fn with_console(mut self) -> Self {
        self.devices.push(Device::console());
        self
    }

    /// Guest memory as the PC starts.
    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    /// Starts to record it.
    pub(crate) fn start(self) -> Recording {
        let settings = self.settings();
        let Self {
            image,
            scripts,
            devices,
            disks,
            ..
        } = self;
        let count = scripts.len();
        let pc = Pc::new(count as u8, 0, devices, ConsoleDevice::Serial);
        let start = vec![start_state(); count];
        let machine = Machine::new_pc(shape(count), Arc::clone(&image), start, pc, disks);
        let world = Arc::new(World::default());
        let outside = Arc::clone(&world) as Arc<dyn Outside>;
        let stats = Arc::new(Stats::new(count as u8));
        let new_view = || Arc::new(View::new(&image).unwrap());
        let recorder = match settings.isolation {
            Isolation::Parallel => {
                let cpus = scripts.into_iter().map(|script| {
                    let view = new_view();
                    let cpu = ScriptedCpu::new(script, &view);
                    (view, cpu)
                });
                Recorder::start_on(cpus.collect(), machine, outside, stats, settings)
            }
            Isolation::Serial => {
                let view = new_view();
                let cpus = scripts
                    .into_iter()
                    .map(|script| ScriptedCpu::new(script, &view));
                let cpus = cpus.collect();
                Recorder::start_together(view, cpus, machine, outside, stats, settings)
            }
        };
        Recording {
            recorder: recorder.unwrap(),
            world,
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            isolation: self.isolation,
            paging: Paging::Second,
            tsc: TscControl::Movable,
            tsc_khz: None,
            counter: None,
            chunk_min: Duration::from_micros(50),
            chunk_max: Duration::from_micros(500),
            digest_every: 0,
            held_pages_max: 0,
            squashes_before_exclusive: 4,
            faults: Faults {
                squash_every: self.squash_every,
                ..Faults::default()
            },
        }
    }
}

fn shape(vcpus: usize) -> Shape {
    Shape::new(vcpus as u8, MEMORY_BYTES).unwrap()
}

/// A PC that is being recorded.
pub(crate) struct Recording {
    pub(crate) recorder: Recorder,
    pub(crate) world: Arc<World>,
}

impl Recording {
    /// How far a vCPU has committed its script.
    pub(crate) fn step_of(&self, vcpu: u8) -> u64 {
        let vcpu = VcpuIndex(vcpu);
        self.recorder.peek(|machine| machine.vcpu(vcpu).regs().rip)
    }

    /// Waits until something holds, or for so long; tells whether it does.
    pub(crate) fn wait_until(&self, bound: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + bound;
        while !holds(self) {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}
