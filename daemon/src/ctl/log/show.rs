//! `samsaractl log show`: a line for each snapshot, record and digest.

use std::io::Write;
use std::path::Path;

use samsara_commitlog::{
    ByteRuns, Chunk, Commit, CommitSeq, Effects, Frame, GuestTime, Record, SnapshotStart,
    StateDigest,
};
use serde_json::{Value, json};

use super::words::{boundary, exit_json, exit_text, input_json, input_text};
use super::{Series, tail_text, tail_word};
use crate::ctl::CtlError;
use crate::ctl::render::{bytes, one_line};

/// The commits that are shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    from: CommitSeq,
    until: CommitSeq,
}

impl Range {
    pub(super) fn new(from: Option<u64>, until: Option<u64>) -> Result<Self, CtlError> {
        let (from, until) = (from.unwrap_or(0), until.unwrap_or(u64::MAX));
        if from > until {
            let text = format!("--from {from} is after --until {until}: exchange them");
            return Err(CtlError::Usage(text));
        }
        Ok(Self {
            from: CommitSeq(from),
            until: CommitSeq(until),
        })
    }
}

/// Prints what a log has of these commits.
pub(super) fn show(
    path: &Path,
    range: Range,
    is_json: bool,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let mut log = Series::open(path)?;
    log.begin_at(range.from);
    if !is_json {
        out.write_all(HEADINGS.as_bytes())?;
    }
    let mut snapshot = None;
    while let Some(frame) = log.next_frame()? {
        let Some(line) = line_of(frame, &mut snapshot) else {
            continue;
        };
        if line.seq() > range.until {
            return Ok(());
        }
        if line.seq() >= range.from {
            line.print(is_json, out)?;
        }
    }
    print_end(&log, is_json, out)
}

/// A line, and what is in it.
enum Line {
    Snapshot(Snapshot, StateDigest),
    Record(Record),
    Digest(StateDigest),
}

/// A snapshot as far as it was read.
struct Snapshot {
    start: SnapshotStart,
    page_bytes: u64,
}

/// The line that is complete with a frame, if one is.
fn line_of(frame: Frame, snapshot: &mut Option<Snapshot>) -> Option<Line> {
    match frame {
        Frame::SnapshotStart(start) => {
            // One of a machine that ran starts more than once.
            let page_bytes = snapshot.take().map_or(0, |begun| begun.page_bytes);
            *snapshot = Some(Snapshot { start, page_bytes });
            None
        }
        Frame::SnapshotPages(runs) => {
            if let Some(snapshot) = snapshot {
                snapshot.page_bytes += runs.run_bytes();
            }
            None
        }
        Frame::DiskRange(_) => None,
        Frame::SnapshotEnd(digest) => Some(Line::Snapshot(snapshot.take()?, digest)),
        Frame::Record(record) => Some(Line::Record(record)),
        Frame::Digest(digest) => Some(Line::Digest(digest)),
    }
}

const HEADINGS: &str = "    commit   guest time s  source    boundary     after    memory   vCPU  digest            what\n";

/// The columns of a line. Cells that do not apply are empty.
#[derive(Default)]
struct Cells {
    seq: CommitSeq,
    time: Option<GuestTime>,
    source: String,
    boundary: &'static str,
    after: Option<CommitSeq>,
    /// Bytes of memory and of a vCPU's state.
    changed: Option<[u64; 2]>,
    digest: Option<u64>,
    what: String,
}

impl Cells {
    fn text(&self) -> String {
        let text = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
        let time = self.time.map_or(String::new(), |time| {
            format!("{}.{:09}", time.0 / 1_000_000_000, time.0 % 1_000_000_000)
        });
        let digest = self
            .digest
            .map_or(String::new(), |digest| format!("{digest:016x}"));
        let [memory, vcpu] = self.changed.map_or([None; 2], |bytes| bytes.map(Some));
        let line = format!(
            "{:>10}  {time:>13}  {:<8}  {:<8}{:>10}{:>10}{:>7}  {digest:<16}  {}",
            self.seq.0,
            self.source,
            self.boundary,
            text(self.after.map(|seq| seq.0)),
            text(memory),
            text(vcpu),
            one_line(&self.what)
        );
        format!("{}\n", line.trim_end())
    }
}

impl Line {
    fn seq(&self) -> CommitSeq {
        match self {
            Self::Record(record) => record.seq,
            Self::Snapshot(_, digest) | Self::Digest(digest) => digest.seq,
        }
    }

    fn print(&self, is_json: bool, out: &mut dyn Write) -> Result<(), CtlError> {
        if is_json {
            return Ok(writeln!(out, "{}", self.json())?);
        }
        Ok(out.write_all(self.cells().text().as_bytes())?)
    }

    fn cells(&self) -> Cells {
        let seq = self.seq();
        match self {
            Self::Snapshot(Snapshot { start, page_bytes }, digest) => Cells {
                seq,
                time: Some(start.guest_time),
                source: "snapshot".to_owned(),
                what: format!(
                    "{} vCPU, {} of memory, {} of pages, digest {:032x}",
                    start.shape.vcpu_count,
                    bytes(start.shape.memory_bytes),
                    bytes(*page_bytes),
                    digest.digest
                ),
                ..Cells::default()
            },
            Self::Record(record) => record_cells(record),
            Self::Digest(digest) => Cells {
                seq,
                source: "digest".to_owned(),
                what: format!("of the whole state: {:032x}", digest.digest),
                ..Cells::default()
            },
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Snapshot(Snapshot { start, page_bytes }, digest) => json!({
                "kind": "snapshot",
                "seq": start.seq.0,
                "guest_time_ns": start.guest_time.0,
                "vcpus": start.shape.vcpu_count,
                "memory_bytes": start.shape.memory_bytes,
                "page_bytes": page_bytes,
                "state_version": start.state_version,
                "digest": format!("{:032x}", digest.digest),
            }),
            Self::Record(record) => record_json(record),
            Self::Digest(digest) => json!({
                "kind": "digest",
                "seq": digest.seq.0,
                "digest": format!("{:032x}", digest.digest),
            }),
        }
    }
}

/// A record's line under the headings of its columns, for people.
pub(in crate::ctl) fn record_line(record: &Record) -> String {
    format!("{HEADINGS}{}", record_cells(record).text())
}

fn record_cells(record: &Record) -> Cells {
    let cells = Cells {
        seq: record.seq,
        time: Some(record.guest_time),
        ..Cells::default()
    };
    match &record.commit {
        Commit::Chunk(chunk) => Cells {
            source: format!("vCPU {}", chunk.vcpu),
            boundary: boundary(chunk.boundary),
            after: Some(chunk.started_after),
            changed: Some(changed_bytes(chunk)),
            digest: Some(chunk.digest),
            what: exit_text(&chunk.exit),
            ..cells
        },
        Commit::Order(order) => Cells {
            source: format!("vCPU {}", order.vcpu),
            boundary: boundary(order.boundary),
            after: Some(order.started_after),
            digest: Some(order.digest),
            what: match order.progress {
                None => "order: to its next exit".to_owned(),
                Some(progress) => format!("order: {} steps", progress.count),
            },
            ..cells
        },
        Commit::Input(input) => Cells {
            source: "input".to_owned(),
            what: input_text(input),
            ..cells
        },
    }
}

fn record_json(record: &Record) -> Value {
    let (seq, guest_time_ns) = (record.seq.0, record.guest_time.0);
    match &record.commit {
        Commit::Chunk(chunk) => {
            let [memory_bytes, vcpu_bytes] = changed_bytes(chunk);
            json!({
                "kind": "chunk",
                "seq": seq,
                "guest_time_ns": guest_time_ns,
                "vcpu": chunk.vcpu.0,
                "boundary": boundary(chunk.boundary),
                "started_after": chunk.started_after.0,
                "exit": exit_json(&chunk.exit),
                "memory_bytes": memory_bytes,
                "vcpu_bytes": vcpu_bytes,
                "digest": format!("{:016x}", chunk.digest),
            })
        }
        Commit::Order(order) => json!({
            "kind": "order",
            "seq": seq,
            "guest_time_ns": guest_time_ns,
            "vcpu": order.vcpu.0,
            "boundary": boundary(order.boundary),
            "started_after": order.started_after.0,
            "steps": order.progress.map(|progress| progress.count),
            "tsc_gain": order.tsc_gain,
            "digest": format!("{:016x}", order.digest),
        }),
        Commit::Input(input) => json!({
            "kind": "input",
            "seq": seq,
            "guest_time_ns": guest_time_ns,
            "input": input_json(input),
        }),
    }
}

/// Bytes of memory, and of the vCPU's state, that a chunk changed.
pub(super) fn changed_bytes(chunk: &Chunk) -> [u64; 2] {
    let Effects { memory, vcpu } = &chunk.effects;
    [memory, vcpu].map(ByteRuns::run_bytes)
}

fn print_end(log: &Series, is_json: bool, out: &mut dyn Write) -> Result<(), CtlError> {
    let Some(tail) = log.tail() else {
        return Ok(());
    };
    if is_json {
        let line = json!({
            "kind": "end",
            "seq": log.seq().map(|seq| seq.0),
            "file_bytes": log.file_bytes(),
            "valid_bytes": log.valid_bytes(),
            "tail": tail_word(tail),
        });
        return Ok(writeln!(out, "{line}")?);
    }
    let last = log.seq().map_or_else(
        || "inside its snapshot".to_owned(),
        |seq| format!("at commit {seq}"),
    );
    let how = tail_text(log, tail);
    Ok(writeln!(out, "the log ends {last}: {how}")?)
}
