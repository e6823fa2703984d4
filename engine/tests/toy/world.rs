//! Runs toy programs through the recorder and checks the history against the model.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use samsara_commitlog::{Commit, CommitSeq, Frame, Gpa, Input, Record, Shape, StateDigest};
use samsara_engine::{
    Consumer, EngineError, Faults, Isolation, Item, Outside, Recorder, Settings, SnapshotBounds,
    Stats, StatsSnapshot,
};
use samsara_machine::kvm::{Paging, TscControl};
use samsara_machine::memory::{Image, MemoryError, View};
use samsara_machine::vcpu::VcpuState;
use samsara_machine::{Ended, Machine, Output};

use crate::cpu::{Limits, ToyCpu};
use crate::model::Model;
use crate::program::{self, Mix, Op};
use crate::rng::Rng;

/// Everything that the recorder gave out.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) items: Mutex<Vec<(Item, Vec<Output>)>>,
    /// Nobody reads what chunks change.
    pub(crate) is_unread: AtomicBool,
    failure: Mutex<Option<String>>,
    random: AtomicU64,
}

impl Outside for World {
    fn wait_for_room(&self) {}

    fn committed(&self, _: CommitSeq, items: Vec<Item>, outputs: Vec<Output>) {
        let mut all = self.items.lock().unwrap();
        let mut outputs = Some(outputs);
        all.extend(
            items
                .into_iter()
                .map(|item| (item, outputs.take().unwrap_or_default())),
        );
    }

    fn has_readers(&self) -> bool {
        !self.is_unread.load(Ordering::Relaxed)
    }

    fn read_input(&self, offset: u64, bytes: usize) -> std::io::Result<Bytes> {
        let words =
            (0..bytes.min(program::BUFFER_BYTES as usize) / 8).map(|word| offset + word as u64);
        Ok(words.flat_map(u64::to_le_bytes).collect())
    }

    fn failed(&self, error: EngineError) {
        *self.failure.lock().unwrap() = Some(error.to_string());
    }

    fn random(&self) -> u64 {
        Rng::new(self.random.fetch_add(1, Ordering::Relaxed)).next()
    }
}

/// One run to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) vcpus: u8,
    pub(crate) mix: Mix,
    pub(crate) limits: Limits,
    pub(crate) faults: Faults,
    pub(crate) squashes_before_exclusive: u32,
    pub(crate) held_pages_max: usize,
    /// Longest chunk.
    pub(crate) chunk_max: Duration,
    pub(crate) patience: Duration,
}

impl Setup {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            vcpus: [2, 3, 4][seed as usize % 3],
            mix: Mix {
                stretches: 3,
                ops: 60,
                devices: true,
                fills: false,
            },
            limits: Limits {
                ring: 1 << 16,
                cut_every: 40,
            },
            faults: Faults::default(),
            squashes_before_exclusive: 4,
            held_pages_max: 0,
            chunk_max: Duration::from_micros(500),
            patience: Duration::from_secs(30),
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            isolation: Isolation::Parallel,
            paging: Paging::Second,
            tsc: TscControl::Movable,
            tsc_khz: None,
            counter: None,
            chunk_min: Duration::from_micros(50),
            chunk_max: self.chunk_max,
            digest_every: 16,
            held_pages_max: self.held_pages_max,
            squashes_before_exclusive: self.squashes_before_exclusive,
            faults: self.faults,
        }
    }

    pub(crate) fn programs(&self) -> Vec<Arc<[Op]>> {
        let mut rng = Rng::new(self.seed);
        let count = u64::from(self.vcpus);
        (0..count)
            .map(|vcpu| program::random_program(&mut rng, vcpu, count, self.mix).into())
            .collect()
    }
}

/// A machine that runs toy programs, and all that is needed to check it.
pub(crate) struct Run {
    pub(crate) world: Arc<World>,
    pub(crate) recorder: Recorder,
    pub(crate) stats: Arc<Stats>,
    programs: Vec<Arc<[Op]>>,
    pub(crate) snapshot: Vec<Frame>,
    patience: Duration,
}

impl Run {
    pub(crate) fn start(setup: &Setup, programs: Vec<Arc<[Op]>>) -> Self {
        let memory_bytes = if setup.held_pages_max > 4096 {
            128 << 20
        } else {
            16 << 20
        };
        let shape = Shape::new(setup.vcpus, memory_bytes).unwrap();
        let image = Arc::new(Image::new(shape).unwrap());
        for (address, value) in boot_words(setup.vcpus) {
            image.write(Gpa(address), &value.to_le_bytes()).unwrap();
        }
        let vcpus = vec![VcpuState::zeroed(&[]); setup.vcpus.into()];
        Self::resume(setup, programs, Machine::new(shape, image, vcpus))
    }

    /// Goes on with a machine that has run before.
    pub(crate) fn resume(setup: &Setup, programs: Vec<Arc<[Op]>>, machine: Machine) -> Self {
        let snapshot = snapshot(&machine);
        let toys = programs.iter().enumerate().map(|(index, program)| {
            let view = Arc::new(View::new(machine.image()).unwrap());
            let seed = setup.seed.wrapping_mul(31).wrapping_add(index as u64);
            let cpu = ToyCpu::new(Arc::clone(program), Arc::clone(&view), seed, setup.limits);
            (view, cpu)
        });
        let toys = toys.collect();
        let (world, stats) = (
            Arc::new(World::default()),
            Arc::new(Stats::new(setup.vcpus)),
        );
        let outside = Arc::clone(&world) as Arc<dyn Outside>;
        let recorder =
            Recorder::start_on(toys, machine, outside, Arc::clone(&stats), setup.settings());
        let patience = setup.patience;
        Self {
            world,
            recorder: recorder.unwrap(),
            stats,
            programs,
            snapshot,
            patience,
        }
    }

    /// A snapshot of the running machine, unless it has ended.
    pub(crate) fn snapshot(&self, bounds: SnapshotBounds) -> Option<(Vec<Frame>, StateDigest)> {
        let (mut frames, mut heard) = (Vec::new(), None);
        let mut take = |frame, _| {
            frames.push(frame);
            Ok::<_, MemoryError>(())
        };
        let mut at = |digest| heard = Some(digest);
        let taken = self.recorder.snapshot(bounds, &mut take, &mut at);
        let digest = taken.unwrap()?;
        assert_eq!(heard, Some(digest));
        Some((frames, digest))
    }

    /// What was committed after this commit, so far.
    pub(crate) fn since(&self, seq: CommitSeq) -> Vec<Frame> {
        let items = self.world.items.lock().unwrap();
        let frames = items.iter().map(|(item, _)| match item.clone() {
            Item::Record(record, _) => (record.seq, Frame::Record(record)),
            Item::Digest(digest) => (digest.seq, Frame::Digest(digest)),
        });
        frames
            .filter(|(at, _)| *at > seq)
            .map(|(_, frame)| frame)
            .collect()
    }

    pub(crate) fn commits(&self) -> usize {
        self.world.items.lock().unwrap().len()
    }

    /// Waits for the end of the machine.
    pub(crate) fn wait(&self) -> Result<(), String> {
        let started = Instant::now();
        while started.elapsed() < self.patience {
            if let Some(failure) = self.world.failure.lock().unwrap().take() {
                return Err(failure);
            }
            if self.recorder.peek(|machine| machine.ended().is_some()) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err("the machine does not come to its end".into())
    }

    /// Stops the machine and follows its history: with a consumer, and with the model.
    pub(crate) fn check(self) -> Result<(Consumer, StatsSnapshot), String> {
        self.recorder.stop();
        if let Some(failure) = self.world.failure.lock().unwrap().take() {
            return Err(failure);
        }
        let mut consumer = Consumer::default();
        for frame in &self.snapshot {
            consumer.frame(frame).map_err(|error| error.to_string())?;
        }
        let mut model = Model::new(&self.programs);
        for (address, value) in boot_words(self.programs.len() as u8) {
            model.store(address, value);
        }
        let is_fresh = consumer.seq() == Some(CommitSeq::BOOT);
        for (item, outputs) in self.world.items.lock().unwrap().drain(..) {
            match item {
                Item::Record(record, _) if is_fresh => {
                    follow(&mut model, &mut consumer, &record, &outputs)?;
                }
                Item::Record(record, _) => {
                    consumer
                        .frame(&Frame::Record(record))
                        .map_err(|error| error.to_string())?;
                }
                Item::Digest(digest) => {
                    consumer
                        .frame(&Frame::Digest(digest))
                        .map_err(|error| error.to_string())?;
                }
            }
        }
        let last = self.recorder.paused(|machine| machine.digest());
        consumer
            .frame(&Frame::Digest(last))
            .map_err(|error| error.to_string())?;
        if is_fresh {
            let checked = consumer.look(|machine| model.check_memory(machine));
            checked.ok_or("no machine")??;
        }
        Ok((consumer, self.stats.snapshot()))
    }
}

fn follow(
    model: &mut Model,
    consumer: &mut Consumer,
    record: &Record,
    outputs: &[Output],
) -> Result<(), String> {
    if let Commit::Input(Input::OutputStep { vcpu }) = record.commit {
        model.check_output(vcpu, outputs)?;
    }
    let followed = consumer.look(|machine| model.follow(record, machine));
    followed.ok_or("no machine")??;
    let same = consumer
        .frame(&Frame::Record(record.clone()))
        .map_err(|error| error.to_string())?;
    if same == outputs {
        Ok(())
    } else {
        Err(format!("commit {}: other outputs", record.seq))
    }
}

/// A machine as frames.
pub(crate) fn snapshot(machine: &Machine) -> Vec<Frame> {
    let mut frames = vec![Frame::SnapshotStart(machine.snapshot_start())];
    frames.extend(
        machine
            .snapshot_pages()
            .map(|piece| Frame::SnapshotPages(piece.unwrap())),
    );
    frames.push(Frame::SnapshotEnd(machine.digest()));
    frames
}

fn boot_words(vcpus: u8) -> Vec<(u64, u64)> {
    let mut words = Vec::new();
    for vcpu in 0..u64::from(vcpus) {
        for (descriptor, buffer) in program::descriptors(vcpu)
            .into_iter()
            .zip(program::buffers(vcpu))
        {
            words.extend([
                (descriptor, buffer),
                (descriptor + 8, program::BUFFER_BYTES),
            ]);
        }
    }
    words
}

/// Runs random programs to their end and checks everything about them.
pub(crate) fn run(setup: &Setup) -> Result<StatsSnapshot, String> {
    let programs = setup.programs();
    let run = Run::start(setup, programs.clone());
    run.wait()?;
    let (consumer, stats) = run.check()?;
    check_end(&consumer, &programs)?;
    Ok(stats)
}

/// All vCPUs have halted, and no step under a lock was lost.
pub(crate) fn check_end(consumer: &Consumer, programs: &[Arc<[Op]>]) -> Result<(), String> {
    let checked = consumer.look(|machine| check_machine(machine, programs));
    checked.ok_or("no machine")?
}

/// The same of a machine.
pub(crate) fn check_machine(machine: &Machine, programs: &[Arc<[Op]>]) -> Result<(), String> {
    if machine.ended() != Some(&Ended::Halted) {
        return Err(format!("the machine ended by {:?}", machine.ended()));
    }
    for word in program::guarded() {
        let puts = programs.iter().flat_map(|program| program.iter());
        let expected = puts
            .filter(|op| matches!(op, Op::Put(at) if *at == word))
            .count() as u64;
        let mut found = [0; 8];
        machine.image().read(Gpa(word), &mut found).unwrap();
        if u64::from_le_bytes(found) != expected {
            return Err(format!(
                "{word:#x}: {found:?} for {expected} increments under a lock"
            ));
        }
    }
    Ok(())
}
