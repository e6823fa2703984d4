//! The SHA-256 tree of a file, computed here: what the guest `sha256tree` must answer.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// Bytes of a leaf; the last one may have fewer.
pub const LEAF_BYTES: usize = 65536;

type Node = [u8; 32];

/// The line that `sha256tree` ends with for this file: `root HEX bytes COUNT`.
pub fn root_line(path: &Path) -> io::Result<String> {
    let (leaves, bytes) = leaves(path)?;
    let mut line = "root ".to_owned();
    for byte in root(leaves) {
        // Writing to a string does not fail.
        let _ = write!(line, "{byte:02x}");
    }
    Ok(format!("{line} bytes {bytes}"))
}

/// All that `sha256tree` says: sixteen lines of progress, then the root.
pub fn guest_output(root_line: &str) -> String {
    let mut output = String::new();
    for step in 1..=16 {
        // Writing to a string does not fail.
        let _ = writeln!(output, "progress {step}/16");
    }
    output + root_line + "\n"
}

fn leaves(path: &Path) -> io::Result<(Vec<Node>, u64)> {
    let mut file = File::open(path)?;
    let (mut leaves, mut bytes) = (Vec::new(), 0);
    loop {
        let mut leaf = Vec::with_capacity(LEAF_BYTES);
        let count = file
            .by_ref()
            .take(LEAF_BYTES as u64)
            .read_to_end(&mut leaf)?;
        // An empty file is one empty leaf.
        if count > 0 || leaves.is_empty() {
            leaves.push(
                Sha256::new()
                    .chain_update([0])
                    .chain_update(&leaf)
                    .finalize()
                    .into(),
            );
        }
        bytes += count as u64;
        if count < LEAF_BYTES {
            return Ok((leaves, bytes));
        }
    }
}

/// Level by level; an odd node goes up unchanged.
fn root(mut level: Vec<Node>) -> Node {
    while level.len() > 1 {
        let parent = |pair: &[Node]| match pair {
            [left, right] => Sha256::new()
                .chain_update([1])
                .chain_update(left)
                .chain_update(right)
                .finalize()
                .into(),
            odd => odd[0],
        };
        level = level.chunks(2).map(parent).collect();
    }
    level[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(parts: &[&[u8]]) -> Node {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize().into()
    }

    fn of(data: &[u8]) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, data).unwrap();
        let (leaves, bytes) = leaves(&path).unwrap();
        assert_eq!(bytes, data.len() as u64);
        root(leaves)
    }

    #[test]
    fn small_trees_as_their_definition_says() {
        let data: Vec<u8> = (0..3 * LEAF_BYTES + 5).map(|i| (i % 251) as u8).collect();
        let leaf = |i: usize| {
            let end = ((i + 1) * LEAF_BYTES).min(data.len());
            hash(&[&[0], &data[i * LEAF_BYTES..end]])
        };
        assert_eq!(of(b""), hash(&[&[0]]));
        assert_eq!(of(&data[..LEAF_BYTES]), leaf(0));
        let pair = hash(&[&[1], &leaf(0), &leaf(1)]);
        assert_eq!(of(&data[..3 * LEAF_BYTES]), hash(&[&[1], &pair, &leaf(2)]));
        let right = hash(&[&[1], &leaf(2), &leaf(3)]);
        assert_eq!(of(&data), hash(&[&[1], &pair, &right]));
    }
}
