//! Looking for whole frames behind a damaged one.

use std::fs::File;
use std::hash::Hasher as _;
use std::io;
use std::os::unix::fs::FileExt;

use twox_hash::xxhash3_64;

use crate::codec::{FRAME_HEADER_BYTES, FrameHeader, is_chain};

/// How much of the file is looked at a time.
const WINDOW_BYTES: usize = 64 << 10;

/// How many whole headers with a damaged body are met before that alone counts as frames that
/// follow. An unfinished write leaves one or two; without a bound, a made-up file could have every
/// byte of it hashed once for every header in it.
const DAMAGED_BODIES_MAX: usize = 16;

/// So many compact frames in a row count as frames that follow: each is checked by 16 bits only.
const CHAIN: usize = 4;

/// Where the first whole frame at or after `from` starts, wherever frames may start.
pub(super) fn find_frame(file: &File, from: u64) -> io::Result<Option<u64>> {
    let file_bytes = file.metadata()?.len();
    let mut window = vec![0; WINDOW_BYTES];
    let mut damaged_bodies = 0;
    let mut at = from;
    loop {
        let filled = read_up_to(file, &mut window, at)?;
        if filled < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let starts = filled - FRAME_HEADER_BYTES + 1;
        for start in 0..starts {
            let offset = at + start as u64;
            if is_chain(&window[start..filled], CHAIN) {
                return Ok(Some(offset));
            }
            let Some(header) = header_at(&window[start..filled]) else {
                continue;
            };
            if offset + header.frame_bytes() as u64 > file_bytes {
                continue;
            }
            damaged_bodies += 1;
            if damaged_bodies > DAMAGED_BODIES_MAX || body_is_whole(file, offset, header)? {
                return Ok(Some(offset));
            }
        }
        at += starts as u64;
    }
}

fn header_at(bytes: &[u8]) -> Option<FrameHeader> {
    let header = bytes.first_chunk()?;
    if !FrameHeader::is_plausible(header) {
        return None;
    }
    FrameHeader::decode(header).ok()
}

/// Whether the body of the frame at `offset` has the checksum that its header names.
fn body_is_whole(file: &File, offset: u64, header: FrameHeader) -> io::Result<bool> {
    let mut hash = xxhash3_64::Hasher::new();
    let mut at = offset + FRAME_HEADER_BYTES as u64;
    let mut left = header.body_bytes;
    let mut piece = vec![0; WINDOW_BYTES];
    while left > 0 {
        let wanted = left.min(WINDOW_BYTES);
        let count = read_up_to(file, &mut piece[..wanted], at)?;
        if count == 0 {
            return Ok(false);
        }
        hash.write(&piece[..count]);
        at += count as u64;
        left -= count;
    }
    Ok(header.matches(hash.finish()))
}

/// Fills `buffer` from `offset` on as far as the file goes.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
