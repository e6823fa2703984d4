//! Runs one guest program, and keeps all that it gives out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use samsara_commitlog::{Commit, CommitSeq, Frame, OrderChunk, Record, Shape};
use samsara_engine::{
    Consumer, EngineError, Faults, Isolation, Item, NativeRun, Outside, Recorder, Settings, Stats,
    StatsSnapshot,
};
use samsara_machine::bare::{Program, boot};
use samsara_machine::kvm::{Host, Paging, TscControl};
use samsara_machine::linux::{self, Kernel};
use samsara_machine::memory::Image;
use samsara_machine::pc::{ConsoleDevice, Delivery, Pc};
use samsara_machine::{Ended, Machine, Output, Platform};

/// Longer than any run here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// KVM, or `None` after saying that the test is skipped.
pub(crate) fn host() -> Option<Host> {
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped: no /dev/kvm");
        return None;
    }
    Some(Host::open().unwrap())
}

/// A program to run, or a kernel whose command line are the parameters, and on what.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) name: &'static str,
    pub(crate) platform: Platform,
    pub(crate) path: PathBuf,
    pub(crate) params: String,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u64,
    pub(crate) input: Vec<u8>,
    pub(crate) typed: &'static [u8],
}

impl Guest {
    pub(crate) fn new(name: &'static str, params: &str, vcpus: u8) -> Self {
        let path = samsara_guests::program(name).unwrap().path.into();
        let (params, input) = (params.into(), Vec::new());
        Self {
            name,
            platform: Platform::Bare,
            path,
            params,
            vcpus,
            memory_mib: 16,
            input,
            typed: b"",
        }
    }

    /// With memory for programs that work on more.
    pub(crate) fn large(name: &'static str, params: &str, vcpus: u8) -> Self {
        Self {
            memory_mib: 64,
            ..Self::new(name, params, vcpus)
        }
    }

    pub(crate) fn machine(&self, host: &Host) -> Machine {
        let shape = Shape::new(self.vcpus, self.memory_mib << 20).unwrap();
        let image = Arc::new(Image::new(shape).unwrap());
        if self.platform == Platform::Pc {
            let kernel = Kernel::open(&self.path, None, &self.params).unwrap();
            let vcpus = linux::boot(host, &image, shape, &kernel, &[]).unwrap();
            let pc = Pc::new(self.vcpus, 0, Vec::new(), ConsoleDevice::Serial);
            return Machine::new_pc(shape, image, vcpus, pc, Vec::new());
        }
        let program = Program::open(&self.path).unwrap();
        let vcpus = boot(host, &image, self.vcpus, &program, &self.params).unwrap();
        Machine::new(shape, image, vcpus)
    }
}

/// The outside of a machine.
#[derive(Default)]
pub(crate) struct World {
    input: Vec<u8>,
    seen: Mutex<Seen>,
    changed: Condvar,
    random: AtomicU64,
}

#[derive(Default)]
struct Seen {
    console: Vec<u8>,
    frames: Vec<Frame>,
    orders: BTreeMap<CommitSeq, OrderChunk>,
    ended: Option<Ended>,
    failure: Option<String>,
}

impl Outside for World {
    fn wait_for_room(&self) {}

    fn committed(&self, _: CommitSeq, items: Vec<Item>, outputs: Vec<Output>) {
        let mut seen = self.seen.lock().unwrap();
        let Seen { frames, orders, .. } = &mut *seen;
        frames.extend(items.into_iter().map(|item| match item {
            Item::Record(record, order) => {
                orders.extend(order.map(|order| (record.seq, order)));
                Frame::Record(record)
            }
            Item::Digest(digest) => Frame::Digest(digest),
        }));
        for output in outputs {
            match output {
                Output::Console(bytes) => seen.console.extend_from_slice(&bytes),
                Output::Frame { .. } => {}
                Output::Ended(ended) => seen.ended = Some(ended),
            }
        }
        self.changed.notify_all();
    }

    fn read_input(&self, offset: u64, bytes: usize) -> std::io::Result<Bytes> {
        let start = self.input.len().min(offset as usize);
        let end = self.input.len().min(start + bytes);
        Ok(Bytes::copy_from_slice(&self.input[start..end]))
    }

    fn failed(&self, error: EngineError) {
        self.seen.lock().unwrap().failure = Some(error.to_string());
        self.changed.notify_all();
    }

    fn random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut word = self
            .random
            .fetch_add(STEP, Ordering::Relaxed)
            .wrapping_add(STEP);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

impl World {
    pub(crate) fn of(guest: &Guest) -> Arc<Self> {
        Arc::new(Self {
            input: guest.input.clone(),
            ..Self::default()
        })
    }

    /// Waits until `is_there` holds, with a bound.
    fn wait(&self, patience: Duration, is_there: impl Fn(&Seen) -> bool) -> Result<(), String> {
        let until = Instant::now() + patience;
        let mut seen = self.seen.lock().unwrap();
        while !is_there(&seen) {
            if let Some(failure) = &seen.failure {
                return Err(failure.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("the guest does not come to its end".into());
            }
            seen = self.changed.wait_timeout(seen, left).unwrap().0;
        }
        Ok(())
    }

    pub(crate) fn wait_for_end(&self, patience: Duration) -> Result<(), String> {
        self.wait(patience, |seen| seen.ended.is_some())
    }

    pub(crate) fn wait_for_frames(&self, count: usize) -> Result<(), String> {
        self.wait(PATIENCE, |seen| {
            seen.ended.is_some() || seen.frames.len() >= count
        })
    }

    pub(crate) fn take_frames(&self) -> Vec<Frame> {
        std::mem::take(&mut self.seen.lock().unwrap().frames)
    }

    /// The frames so far: with chunks in order form where they can be run again, and as they are.
    pub(crate) fn take_both(&self) -> (Vec<Frame>, Vec<Frame>) {
        let orders = std::mem::take(&mut self.seen.lock().unwrap().orders);
        let effects = self.take_frames();
        let ordered = effects.iter().map(|frame| match frame {
            Frame::Record(record) => Frame::Record(Record {
                commit: match orders.get(&record.seq) {
                    Some(order) => Commit::Order(*order),
                    None => record.commit.clone(),
                },
                ..record.clone()
            }),
            frame => frame.clone(),
        });
        (ordered.collect(), effects)
    }

    pub(crate) fn answer(&self) -> Answer {
        let mut seen = self.seen.lock().unwrap();
        Answer {
            console: std::mem::take(&mut seen.console),
            ended: seen.ended.clone(),
        }
    }
}

/// What a run shows to the outside.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) console: Vec<u8>,
    pub(crate) ended: Option<Ended>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} after {:?}",
            self.ended,
            String::from_utf8_lossy(&self.console)
        )
    }
}

impl Answer {
    pub(crate) fn is_right(&self) -> bool {
        self.ended
            == Some(Ended::Exit {
                status: samsara_guests::STATUS_RIGHT,
            })
    }

    /// This run's part, then another's.
    pub(crate) fn then(mut self, next: Answer) -> Answer {
        self.console.extend(next.console);
        Answer {
            console: self.console,
            ended: next.ended,
        }
    }
}

pub(crate) fn settings(faults: Faults) -> Settings {
    Settings {
        isolation: Isolation::Parallel,
        paging: Paging::Second,
        tsc: TscControl::Movable,
        tsc_khz: None,
        counter: None,
        chunk_min: Duration::from_micros(200),
        chunk_max: Duration::from_millis(5),
        digest_every: 64,
        held_pages_max: 0,
        squashes_before_exclusive: 4,
        faults,
    }
}

/// Runs a guest in one ordinary VM.
pub(crate) fn native(host: &Host, guest: &Guest) -> Result<Answer, String> {
    let machine = guest.machine(host);
    let world = World::of(guest);
    let outside = Arc::clone(&world) as Arc<dyn Outside>;
    let run = NativeRun::start(host, machine, outside).map_err(|error| error.to_string())?;
    assert_eq!(run.console_input(guest.typed).unwrap(), guest.typed.len());
    world.wait_for_end(PATIENCE)?;
    drop(run);
    Ok(world.answer())
}

/// A machine as frames.
pub(crate) fn snapshot(machine: &mut Machine) -> Vec<Frame> {
    let mut frames = vec![Frame::SnapshotStart(machine.snapshot_start())];
    frames.extend(
        machine
            .snapshot_pages()
            .map(|piece| Frame::SnapshotPages(piece.unwrap())),
    );
    frames.push(Frame::SnapshotEnd(machine.digest()));
    frames
}

pub(crate) fn feed(consumer: &mut Consumer, frames: &[Frame]) -> Result<(), String> {
    frames.iter().try_for_each(|frame| {
        consumer
            .frame(frame)
            .map(drop)
            .map_err(|error| error.to_string())
    })
}

/// A recorded run.
pub(crate) struct Recorded {
    pub(crate) world: Arc<World>,
    pub(crate) recorder: Recorder,
    pub(crate) stats: Arc<Stats>,
    pub(crate) consumer: Consumer,
}

impl Recorded {
    /// Starts a machine, with a consumer that has its snapshot.
    pub(crate) fn start(
        host: &Host,
        guest: &Guest,
        mut machine: Machine,
        settings: Settings,
    ) -> Result<Self, String> {
        machine.set_delivery(match settings.isolation {
            Isolation::Parallel => Delivery::OwnCommits,
            Isolation::Serial => Delivery::AllCommits,
        });
        let mut consumer = Consumer::default();
        feed(&mut consumer, &snapshot(&mut machine))?;
        let (world, stats) = (World::of(guest), Arc::new(Stats::new(guest.vcpus)));
        let outside = Arc::clone(&world) as Arc<dyn Outside>;
        let recorder = Recorder::start(host, machine, outside, Arc::clone(&stats), settings);
        let recorder = recorder.map_err(|error| error.to_string())?;
        Ok(Self {
            world,
            recorder,
            stats,
            consumer,
        })
    }

    /// Stops the machine at its last commit and follows its history to there.
    pub(crate) fn stop(mut self) -> Result<(Answer, Consumer, StatsSnapshot), String> {
        self.recorder.stop();
        feed(&mut self.consumer, &self.world.take_frames())?;
        let last = self.recorder.paused(|machine| machine.digest());
        feed(&mut self.consumer, &[Frame::Digest(last)])?;
        Ok((self.world.answer(), self.consumer, self.stats.snapshot()))
    }
}

/// Records a guest to its end; a consumer follows and agrees.
pub(crate) fn recorded(
    host: &Host,
    guest: &Guest,
    settings: Settings,
    patience: Duration,
) -> Result<(Answer, StatsSnapshot), String> {
    let run = Recorded::start(host, guest, guest.machine(host), settings)?;
    if !guest.typed.is_empty() {
        run.recorder
            .console_input(guest.typed)
            .ok_or("the console takes nothing")?;
    }
    run.world.wait_for_end(patience)?;
    let (answer, consumer, stats) = run.stop()?;
    let digests = stats
        .commits
        .checked_div(settings.digest_every)
        .unwrap_or(0)
        + 1;
    assert_eq!(consumer.digests_compared(), digests);
    Ok((answer, stats))
}
