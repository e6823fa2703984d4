//! `samsaractl log verify`: every frame whole, and all of them one history.

use std::io::Write;
use std::path::Path;

use samsara_commitlog::{CommitSeq, Frame, Tail};
use serde_json::json;

use super::{Series, name_text, tail_text, tail_word};
use crate::ctl::CtlError;
use crate::ctl::render::{aligned, bytes};

/// What a log that was checked has in it.
#[derive(Default)]
struct Found {
    first: CommitSeq,
    snapshots: u64,
    chunks: u64,
    inputs: u64,
    digests: u64,
}

/// Checks a log and prints what was found.
pub(super) fn print(path: &Path, is_json: bool, out: &mut dyn Write) -> Result<(), CtlError> {
    let mut log = Series::open(path)?;
    let mut found = Found::default();
    while let Some(frame) = log.next_frame()? {
        found.count(&frame);
    }
    let last = log.check_snapshot()?;
    let Some(tail) = log.tail() else {
        return Ok(());
    };
    if is_json {
        return Ok(writeln!(out, "{:#}", found.json(&log, last, tail))?);
    }
    let first = found.first;
    let commits = if last == first {
        format!("none after the snapshot at commit {first}")
    } else {
        format!(
            "{} to {last}, after the snapshot at commit {first}",
            first.next()
        )
    };
    let states = format!(
        "{} digests, not compared here: samsaractl replay does",
        found.digests + found.snapshots
    );
    let rows = [
        (
            "log",
            format!("{}, {}", name_text(&log), bytes(log.file_bytes())),
        ),
        ("frames", tail_text(&log, tail)),
        ("commits", commits),
        ("states", states),
    ];
    Ok(out.write_all(aligned(&rows).as_bytes())?)
}

impl Found {
    fn count(&mut self, frame: &Frame) {
        match frame {
            Frame::SnapshotEnd(digest) => {
                if self.snapshots == 0 {
                    self.first = digest.seq;
                }
                self.snapshots += 1;
            }
            Frame::Digest(_) => self.digests += 1,
            Frame::Record(record) if record.chunk().is_some() => self.chunks += 1,
            Frame::Record(_) => self.inputs += 1,
            Frame::SnapshotStart(_) | Frame::SnapshotPages(_) | Frame::DiskRange(_) => {}
        }
    }

    fn json(&self, log: &Series, last: CommitSeq, tail: Tail) -> serde_json::Value {
        json!({
            "segments": log.segment_count(),
            "file_bytes": log.file_bytes(),
            "valid_bytes": log.valid_bytes(),
            "tail": tail_word(tail),
            "snapshot_seq": self.first.0,
            "last_seq": last.0,
            "snapshots": self.snapshots,
            "chunks": self.chunks,
            "inputs": self.inputs,
            "digests": self.digests,
        })
    }
}
