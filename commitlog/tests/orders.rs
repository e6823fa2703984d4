//! Chunks in order form: compact frames among the others.

mod common;

use std::fs;

use common::{any_history, history, order, snapshot, stream};
use proptest::prelude::*;
use samsara_commitlog::{
    DecodeError, Fault, Frame, FrameEncoder, FrameReader, LogError, LogReader, LogWriter, Tail,
};
use tempfile::TempDir;

fn read_all(bytes: &[u8]) -> (Vec<Frame>, Result<(), DecodeError>) {
    let mut reader = FrameReader::new();
    reader.push(bytes);
    let mut frames = Vec::new();
    loop {
        match reader.poll_frame() {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, reader.finish()),
            Err(error) => return (frames, Err(error)),
        }
    }
}

proptest! {
    #[test]
    fn every_history_comes_back(frames in any_history()) {
        let (bytes, _) = stream(&frames);
        let (found, end) = read_all(&bytes);
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(found, frames);
    }

    /// Whatever a peer sends, it is refused or it is a record that could be.
    #[test]
    fn nothing_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..200), forge in any::<bool>()) {
        let (mut all, _) = stream(&snapshot(7));
        if forge && bytes.len() > 3 {
            let body = bytes.len().min(130) - 3;
            bytes[0] = 0x80 | body as u8;
            let check = twox_hash::XxHash3_64::oneshot(&[&bytes[..1], &bytes[3..3 + body]].concat());
            bytes[1..3].copy_from_slice(&(check as u16).to_le_bytes());
        }
        all.extend(bytes);
        let (frames, _) = read_all(&all);
        let mut encoder = FrameEncoder::default();
        for frame in &frames {
            encoder.encode(frame);
        }
    }
}

#[test]
fn an_order_takes_twenty_bytes() {
    let (_, starts) = stream(&history());
    let sizes: Vec<_> = history()
        .iter()
        .zip(starts.windows(2))
        .filter(|(frame, _)| {
            let record = frame.record();
            record.is_some_and(|record| record.chunk().is_none() && record.chunk_vcpu().is_some())
        })
        .map(|(_, place)| place[1] - place[0])
        .collect();
    assert_eq!(sizes.len(), 2);
    assert!(sizes.iter().all(|&size| size <= 20), "{sizes:?}");
}

#[test]
fn an_order_needs_a_record_before_it() {
    let (bytes, starts) = stream(&history());
    let orders = starts[starts.len() - 4];
    let mut reader = FrameReader::resume(0, common::LIMITS);
    reader.push(&bytes[orders..]);
    let error = reader.poll_frame().unwrap_err();
    assert_eq!(error.fault, Fault::NothingBefore);
}

/// Damage before whole orders is known as damage, not taken for an unfinished write.
#[test]
fn damage_before_orders_is_damage() {
    let mut frames = snapshot(7);
    frames.extend((8..40).map(|seq| order(seq, None)));
    let (bytes, starts) = stream(&frames);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    for damaged in 3..30 {
        let mut flipped = bytes.clone();
        flipped[starts[damaged] + 5] ^= 4;
        fs::write(&path, &flipped).unwrap();
        let mut reader = LogReader::open(&path).unwrap();
        let end = std::iter::from_fn(|| reader.next_frame().transpose()).find_map(Result::err);
        match end {
            Some(LogError::Damaged { error, follows, .. }) => {
                assert_eq!(error.offset, starts[damaged] as u64);
                assert_eq!(follows, starts[damaged + 1] as u64);
            }
            other => panic!("{damaged}: {other:?}"),
        }
    }
}

#[test]
fn a_writer_writes_orders() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    let mut writer = LogWriter::create(&path).unwrap();
    for frame in history() {
        writer.append(&frame).unwrap();
    }
    drop(writer);
    let mut reader = LogReader::open(&path).unwrap();
    let found: Vec<_> = std::iter::from_fn(|| reader.next_frame().unwrap()).collect();
    assert_eq!(found, history());
    assert_eq!(reader.tail(), Some(Tail::Clean));
}
