//! Logs made without KVM, for tests: what a recorder would have written, of vCPUs that are made up.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use samsara_commitlog::{
    Boundary, ByteRuns, ByteRunsBuilder, Chunk, Commit, Effects, Exit, Frame, Gpa, GuestTime,
    Input, LogWriter, Record, Shape, Space, StateDigest, VcpuIndex,
};
use samsara_machine::bare::{DEVICE_PAGE, register};
use samsara_machine::machine::ChunkDigest;
use samsara_machine::memory::Image;
use samsara_machine::vcpu::VcpuState;
use samsara_machine::{Machine, Source};

/// A store of 8 bytes to a register of a bare guest's devices.
pub(super) fn store(register: u64, value: u64) -> Exit {
    Exit::Write {
        space: Space::Mmio,
        address: DEVICE_PAGE + register,
        size: 8,
        value,
    }
}

/// A machine and its log so far.
pub(super) struct Made {
    pub(super) machine: Machine,
    pub(super) frames: Vec<Frame>,
}

impl Made {
    /// Two vCPUs with 16 MiB, at a snapshot before the first commit.
    pub(super) fn new() -> Self {
        let shape = Shape::new(2, 16 << 20).unwrap();
        let image = Arc::new(Image::new(shape).unwrap());
        image.write(Gpa(0x40_0000), b"program").unwrap();
        let vcpus = vec![VcpuState::zeroed(&[0x10]); 2];
        let machine = Machine::new(shape, image, vcpus);
        let frames = Vec::new();
        let mut made = Self { machine, frames };
        made.snapshot();
        made
    }

    /// A whole run of seven commits: a program says "hi", ends with status 7.
    pub(super) fn run() -> Self {
        let mut made = Self::new();
        made.chunk(0, Boundary::Exit, store(register::CONSOLE, b'h'.into()));
        made.chunk(1, Boundary::Timer, Exit::Cut);
        made.input(Input::Console("typed".into()));
        made.digest();
        made.chunk(0, Boundary::Exit, store(register::CONSOLE, b'i'.into()));
        made.chunk(1, Boundary::Kick, Exit::Cut);
        made.chunk(1, Boundary::Exit, store(register::MARK, 5));
        made.chunk(0, Boundary::Exit, store(register::EXIT, 7));
        made
    }

    pub(super) fn snapshot(&mut self) {
        let start = Frame::SnapshotStart(self.machine.snapshot_start());
        let pages = self.machine.snapshot_pages();
        let pages: Vec<_> = pages
            .map(|runs| Frame::SnapshotPages(runs.unwrap()))
            .collect();
        let end = Frame::SnapshotEnd(self.machine.digest());
        self.frames
            .extend([start].into_iter().chain(pages).chain([end]));
    }

    /// A chunk that changes 8 bytes of memory and 2 of its vCPU.
    pub(super) fn chunk(&mut self, vcpu: u8, boundary: Boundary, exit: Exit) {
        let vcpu = VcpuIndex(vcpu);
        let seq = self.machine.seq().next();
        let memory = runs(0x50_0000 + seq.0 * 4000, &seq.0.to_le_bytes());
        let changes = runs(seq.0 * 2, &[seq.0 as u8; 2]);
        let mut state = self.machine.vcpu(vcpu).clone();
        state.apply(&changes).unwrap();
        let chunk = Chunk {
            vcpu,
            started_after: self.machine.seq(),
            boundary,
            exit,
            digest: ChunkDigest::of_runs(self.machine.image(), &memory)
                .unwrap()
                .finish(&state),
            effects: Effects {
                memory,
                vcpu: changes,
            },
        };
        self.commit(Commit::Chunk(chunk));
    }

    /// A record that the machine has not applied: what comes of it, a reader finds out.
    pub(super) fn claim(&mut self, commit: Commit) {
        let seq = match self.frames.last() {
            Some(Frame::Record(record)) => record.seq.next(),
            _ => self.machine.seq().next(),
        };
        self.frames.push(Frame::Record(Record {
            seq,
            guest_time: GuestTime(seq.0),
            commit,
        }));
    }

    pub(super) fn input(&mut self, input: Input) {
        self.commit(Commit::Input(input));
    }

    fn commit(&mut self, commit: Commit) {
        let record = Record {
            seq: self.machine.seq().next(),
            guest_time: GuestTime(self.machine.guest_time().0 + 250_000),
            commit,
        };
        self.machine.apply(&record, Source::Record).unwrap();
        self.frames.push(Frame::Record(record));
    }

    pub(super) fn digest(&mut self) -> StateDigest {
        let digest = self.machine.digest();
        self.frames.push(Frame::Digest(digest));
        digest
    }

    /// Writes the log into the directory of a run, in segments: the first one, and others that begin after these commits.
    pub(super) fn write_segments(&mut self, folder: &Path, begin_after: &[u64]) {
        let run = folder.join("run-0000000009");
        std::fs::create_dir(&run).unwrap();
        let create = |seq: u64| LogWriter::create(run.join(format!("{seq:020}.log"))).unwrap();
        let mut writer = create(0);
        let mut consumer = samsara_engine::Consumer::default();
        for (at, frame) in self.frames.iter().enumerate() {
            writer.append(frame).unwrap();
            consumer.frame(frame).unwrap();
            let is_digest_next = matches!(self.frames.get(at + 1), Some(Frame::Digest(_)));
            let Some(seq) = consumer.seq().filter(|_| !is_digest_next) else {
                continue;
            };
            if begin_after.contains(&seq.0) {
                writer = create(seq.0);
                let digest = consumer.digest().unwrap();
                let machine = consumer.machine().unwrap();
                let start = Frame::SnapshotStart(machine.snapshot_start());
                let pages = machine
                    .snapshot_pages()
                    .map(|runs| Frame::SnapshotPages(runs.unwrap()));
                let frames = [start.clone(), start].into_iter().chain(pages);
                for frame in frames.chain([Frame::SnapshotEnd(digest)]) {
                    writer.append(&frame).unwrap();
                }
            }
        }
    }

    /// Writes the log into a folder.
    pub(super) fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("run.log");
        let mut writer = LogWriter::create(&path).unwrap();
        for frame in &self.frames {
            writer.append(frame).unwrap();
        }
        writer.sync().unwrap();
        path
    }
}

fn runs(address: u64, bytes: &[u8]) -> ByteRuns {
    let mut builder = ByteRunsBuilder::default();
    builder.push(address, bytes);
    builder.finish()
}

/// What samsaractl writes, and the status that it exits with.
pub(super) fn ctl(words: &[&str]) -> Result<(u8, Vec<u8>), super::CtlError> {
    use clap::Parser as _;
    let all = ["samsaractl"].iter().chain(words);
    let arguments = super::Arguments::try_parse_from(all);
    let arguments = arguments.unwrap_or_else(|error| panic!("{error}"));
    let mut out = Vec::new();
    let status = arguments.run(&mut out)?;
    Ok((status, out))
}
