//! `samsaractl log stats`: what a log is made of.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use samsara_commitlog::{
    Boundary, Commit, Frame, GuestTime, Input, Record, SnapshotStart, VcpuIndex,
};
use serde::Serialize;

use super::show::changed_bytes;
use super::words::{boundary, exit_kind, input_kind};
use super::{Series, name_text, tail_text, tail_word};
use crate::ctl::CtlError;
use crate::ctl::render::{Row, aligned, bytes, percent};

/// What a log is made of. Bytes of a log are those of encoded frames, bytes changed those of the guest.
#[derive(Debug, Default, Serialize)]
struct Stats {
    segments: usize,
    file_bytes: u64,
    valid_bytes: u64,
    tail: &'static str,
    vcpus: u8,
    memory_bytes: u64,
    snapshot_seq: u64,
    last_seq: u64,
    /// Frames of snapshots.
    snapshot_bytes: u64,
    /// Frames of disk contents; none in what `--record` writes.
    disk_bytes: u64,
    record_bytes: u64,
    digests: u64,
    guest_start_ns: u64,
    guest_end_ns: u64,
    chunks: Chunks,
    by_vcpu: Vec<Chunks>,
    by_boundary: BTreeMap<&'static str, u64>,
    by_exit: BTreeMap<String, u64>,
    inputs: BTreeMap<&'static str, u64>,
    inputs_by_device: BTreeMap<u8, u64>,
    input_bytes: u64,
    rates: Rates,
}

/// Some chunks.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Chunks {
    count: u64,
    log_bytes: u64,
    largest_log_bytes: u64,
    /// Those that are orders to run them again.
    orders: u64,
    order_log_bytes: u64,
    mean_order_log_bytes: f64,
    memory_bytes: u64,
    vcpu_bytes: u64,
    mean_log_bytes: f64,
    log_bytes_per_guest_second: f64,
}

/// Per second of guest time; 0 where none has passed.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Rates {
    guest_seconds: f64,
    commits: f64,
    chunks: f64,
    log_bytes: f64,
    log_bytes_per_vcpu: f64,
}

/// Reads a log and prints what it is made of.
pub(super) fn print(path: &Path, is_json: bool, out: &mut dyn Write) -> Result<(), CtlError> {
    let mut log = Series::open(path)?;
    let mut stats = Stats::default();
    while let Some(frame) = log.next_frame()? {
        stats.count(&frame, log.frame_bytes());
    }
    stats.last_seq = log.check_snapshot()?.0;
    stats.segments = log.segment_count();
    stats.file_bytes = log.file_bytes();
    stats.valid_bytes = log.valid_bytes();
    stats.finish();
    let Some(tail) = log.tail() else {
        return Ok(());
    };
    stats.tail = tail_word(tail);
    if is_json {
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&stats)?)?);
    }
    let file_bytes = bytes(stats.file_bytes);
    let mut rows: Vec<Row> = vec![(
        "log",
        format!(
            "{}, {file_bytes}, {}",
            name_text(&log),
            tail_text(&log, tail)
        ),
    )];
    rows.extend(stats.rows());
    out.write_all(aligned(&rows).as_bytes())?;
    Ok(out.write_all(stats.vcpu_table().as_bytes())?)
}

impl Stats {
    fn count(&mut self, frame: &Frame, frame_bytes: u64) {
        match frame {
            Frame::SnapshotStart(start) => {
                self.snapshot_bytes += frame_bytes;
                self.begin(start);
            }
            Frame::SnapshotPages(_) | Frame::SnapshotEnd(_) => self.snapshot_bytes += frame_bytes,
            Frame::DiskRange(_) => self.disk_bytes += frame_bytes,
            Frame::Digest(_) => self.digests += 1,
            Frame::Record(record) => self.count_record(record, frame_bytes),
        }
    }

    /// A snapshot starts: what comes before the first record says where the log begins.
    fn begin(&mut self, start: &SnapshotStart) {
        if self.record_bytes > 0 {
            return;
        }
        (self.vcpus, self.memory_bytes) = (start.shape.vcpu_count, start.shape.memory_bytes);
        self.by_vcpu = vec![Chunks::default(); self.vcpus.into()];
        self.snapshot_seq = start.seq.0;
        (self.guest_start_ns, self.guest_end_ns) = (start.guest_time.0, start.guest_time.0);
    }

    fn count_record(&mut self, record: &Record, frame_bytes: u64) {
        let GuestTime(now) = record.guest_time;
        self.guest_end_ns = now;
        self.record_bytes += frame_bytes;
        match &record.commit {
            Commit::Chunk(chunk) => {
                let changed = changed_bytes(chunk);
                self.count_chunk(chunk.vcpu, chunk.boundary, |of| {
                    of.count(changed, frame_bytes);
                });
                *self.by_exit.entry(exit_kind(&chunk.exit)).or_default() += 1;
            }
            Commit::Order(order) => {
                self.count_chunk(order.vcpu, order.boundary, |of| of.count_order(frame_bytes));
            }
            Commit::Input(input) => self.count_input(input),
        }
    }

    fn count_chunk(&mut self, vcpu: VcpuIndex, ended_by: Boundary, count: impl Fn(&mut Chunks)) {
        count(&mut self.chunks);
        if let Some(of_vcpu) = self.by_vcpu.get_mut(usize::from(vcpu.0)) {
            count(of_vcpu);
        }
        *self.by_boundary.entry(boundary(ended_by)).or_default() += 1;
    }

    fn count_input(&mut self, input: &Input) {
        *self.inputs.entry(input_kind(input)).or_default() += 1;
        match input {
            Input::Console(bytes) | Input::File { bytes, .. } => {
                self.input_bytes += bytes.len() as u64;
            }
            Input::Device { device, bytes } => {
                *self.inputs_by_device.entry(device.0).or_default() += 1;
                self.input_bytes += bytes.len() as u64;
            }
            Input::OutputStep { .. } | Input::Clock => {}
        }
    }

    /// Everything was counted: works out the rest.
    fn finish(&mut self) {
        let seconds = (self.guest_end_ns - self.guest_start_ns) as f64 / 1e9;
        self.chunks.finish(seconds);
        for of_vcpu in &mut self.by_vcpu {
            of_vcpu.finish(seconds);
        }
        let log_bytes = per(self.record_bytes, seconds);
        self.rates = Rates {
            guest_seconds: seconds,
            commits: per(self.last_seq - self.snapshot_seq, seconds),
            chunks: per(self.chunks.count, seconds),
            log_bytes,
            log_bytes_per_vcpu: log_bytes / f64::from(self.vcpus.max(1)),
        };
    }

    fn input_count(&self) -> u64 {
        self.inputs.values().sum()
    }

    fn rows(&self) -> Vec<Row> {
        let Rates { guest_seconds, .. } = self.rates;
        let history = format!(
            "commits {} to {}, {guest_seconds:.3} s of guest time",
            self.snapshot_seq, self.last_seq
        );
        let records = format!(
            "{} chunks, {} inputs; {} digests of the state between them",
            self.chunks.count,
            self.input_count(),
            self.digests
        );
        let disks = match self.disk_bytes {
            0 => String::new(),
            count => format!(", disks {}", bytes(count)),
        };
        let made_of = format!(
            "snapshots {}, records {}{disks}",
            bytes(self.snapshot_bytes),
            bytes(self.record_bytes)
        );
        let memory = bytes(self.memory_bytes);
        let mut rows = vec![
            (
                "machine",
                format!("{} vCPU, {memory} of memory", self.vcpus),
            ),
            ("history", history),
            ("records", records),
            ("bytes", made_of),
        ];
        rows.extend(self.rate_rows());
        rows.extend(self.chunk_rows());
        rows.extend(self.input_rows());
        rows
    }

    fn rate_rows(&self) -> Vec<Row> {
        let rates = self.rates;
        let text = format!(
            "{:.0} commits, {} of log, {} a vCPU, in a second of guest time",
            rates.commits,
            bytes(rates.log_bytes as u64),
            bytes(rates.log_bytes_per_vcpu as u64)
        );
        vec![("rate", text)]
    }

    fn chunk_rows(&self) -> Vec<Row> {
        let Chunks {
            count,
            mean_log_bytes,
            largest_log_bytes,
            memory_bytes,
            vcpu_bytes,
            orders,
            mean_order_log_bytes,
            ..
        } = self.chunks;
        if count == 0 {
            return Vec::new();
        }
        let share =
            |(name, part): (&str, &u64)| format!("{name} {part} ({})", percent(*part, count));
        let ends: Vec<_> = self
            .by_boundary
            .iter()
            .map(|(name, part)| share((name, part)))
            .collect();
        let exits: Vec<_> = self
            .by_exit
            .iter()
            .map(|(name, part)| share((name, part)))
            .collect();
        vec![
            (
                "chunk",
                format!(
                    "{mean_log_bytes:.1} bytes on average, {} at most",
                    bytes(largest_log_bytes)
                ),
            ),
            (
                "orders",
                format!(
                    "{orders} ({}), {mean_order_log_bytes:.1} bytes on average",
                    percent(orders, count)
                ),
            ),
            (
                "changed",
                format!(
                    "{} of memory, {} of vCPU state",
                    bytes(memory_bytes),
                    bytes(vcpu_bytes)
                ),
            ),
            ("boundary", ends.join(", ")),
            ("exit", exits.join(", ")),
        ]
    }

    fn input_rows(&self) -> Vec<Row> {
        if self.inputs.is_empty() {
            return Vec::new();
        }
        let mut kinds: Vec<_> = self
            .inputs
            .iter()
            .map(|(kind, count)| format!("{} {count}", kind.replace('_', " ")))
            .collect();
        let devices = self.inputs_by_device.iter();
        kinds.extend(devices.map(|(device, count)| format!("device {device}: {count}")));
        let text = format!("{}; {}", kinds.join(", "), bytes(self.input_bytes));
        vec![("input", text)]
    }

    /// What each vCPU has in the log.
    fn vcpu_table(&self) -> String {
        let heading =
            "\n  vCPU      chunks         log   per chunk    a second      memory  vCPU state\n";
        let line = |(index, of): (usize, &Chunks)| {
            format!(
                "{index:>6}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}\n",
                of.count,
                bytes(of.log_bytes),
                format!("{:.1} B", of.mean_log_bytes),
                bytes(of.log_bytes_per_guest_second as u64),
                bytes(of.memory_bytes),
                bytes(of.vcpu_bytes)
            )
        };
        let lines = self.by_vcpu.iter().enumerate().map(line);
        std::iter::once(heading.to_owned()).chain(lines).collect()
    }
}

impl Chunks {
    fn count(&mut self, [memory_bytes, vcpu_bytes]: [u64; 2], frame_bytes: u64) {
        self.count_frame(frame_bytes);
        self.memory_bytes += memory_bytes;
        self.vcpu_bytes += vcpu_bytes;
    }

    fn count_order(&mut self, frame_bytes: u64) {
        self.count_frame(frame_bytes);
        self.orders += 1;
        self.order_log_bytes += frame_bytes;
    }

    fn count_frame(&mut self, frame_bytes: u64) {
        self.count += 1;
        self.log_bytes += frame_bytes;
        self.largest_log_bytes = self.largest_log_bytes.max(frame_bytes);
    }

    fn finish(&mut self, seconds: f64) {
        self.mean_order_log_bytes = per(self.order_log_bytes, self.orders as f64);
        self.mean_log_bytes = per(self.log_bytes, self.count as f64);
        self.log_bytes_per_guest_second = per(self.log_bytes, seconds);
    }
}

fn per(amount: u64, of: f64) -> f64 {
    if of > 0.0 { amount as f64 / of } else { 0.0 }
}
