//! `samsaractl log verify`: every frame whole, and all of them one history.

use std::io::Write;
use std::path::Path;

use samsara_commitlog::{LogHistory, LogSummary, verify};
use serde_json::json;

use super::{tail_text, tail_word};
use crate::ctl::CtlError;
use crate::ctl::render::{aligned, bytes};

/// Checks a log and prints what was found.
pub(super) fn print(path: &Path, is_json: bool, out: &mut dyn Write) -> Result<(), CtlError> {
    let summary = verify(path)?;
    let (Some(first), Some(last)) = (summary.snapshot_seq, summary.last_seq) else {
        return Err(CtlError::NoSnapshot(path.to_owned()));
    };
    let file_bytes = LogHistory::open(path)?.reader().file_bytes()?;
    if is_json {
        return Ok(writeln!(out, "{:#}", json(&summary, file_bytes))?);
    }
    let commits = match last.0 - first.0 {
        0 => format!("none after the snapshot at commit {first}"),
        _ => format!(
            "{} to {last}, after the snapshot at commit {first}",
            first.next()
        ),
    };
    let rows = [
        ("file", format!("{}, {}", path.display(), bytes(file_bytes))),
        ("frames", tail_text(summary.tail, file_bytes)),
        ("commits", commits),
        (
            "states",
            format!(
                "{} digests, not compared here: samsaractl replay does",
                summary.digest_count + 1
            ),
        ),
    ];
    Ok(out.write_all(aligned(&rows).as_bytes())?)
}

fn json(summary: &LogSummary, file_bytes: u64) -> serde_json::Value {
    json!({
        "file_bytes": file_bytes,
        "valid_bytes": summary.valid_bytes,
        "tail": tail_word(summary.tail),
        "snapshot_seq": summary.snapshot_seq.map(|seq| seq.0),
        "last_seq": summary.last_seq.map(|seq| seq.0),
        "chunks": summary.chunk_count,
        "inputs": summary.input_count,
        "digests": summary.digest_count,
        "effect_bytes": summary.effect_bytes,
        "disk_bytes": summary.disk_bytes,
    })
}
