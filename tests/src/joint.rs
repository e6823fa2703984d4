//! Whether what several hosts released, one after the other, is one output without a gap.
//!
//! A host that takes over may repeat what the one before released last, because it cannot know whether that left; it
//! may not leave anything out, and what it repeats must be the same. Everything else is broken.

/// How the pieces fit together.
#[derive(Debug, PartialEq, Eq)]
pub enum Joint {
    /// They are the output: of each piece but the first, so many bytes are a repetition.
    Whole {
        /// Repeated bytes, by joint.
        repeated_bytes: Vec<usize>,
    },
    /// They are not.
    Broken {
        /// What is wrong, in words.
        why: String,
    },
}

impl Joint {
    /// Fits pieces together. Each must continue where the ones before it ended, or begin earlier and repeat.
    pub fn of(expected: &[u8], pieces: &[&[u8]]) -> Self {
        let (mut end, mut repeated_bytes) = (0, Vec::new());
        for (index, piece) in pieces.iter().enumerate() {
            let Some(start) = place(expected, piece, end) else {
                return Self::Broken {
                    why: why(expected, piece, index, end),
                };
            };
            if index > 0 {
                // An empty piece, or one that repeats only what was there, moves nothing.
                repeated_bytes.push((end - start).min(piece.len()));
            }
            end = end.max(start + piece.len());
        }
        if end < expected.len() {
            let missing = excerpt(&expected[end..]);
            return Self::Broken {
                why: format!(
                    "{} bytes are missing at the end, from {missing}",
                    expected.len() - end
                ),
            };
        }
        Self::Whole { repeated_bytes }
    }

    /// Whether the pieces are the output, perhaps with repetitions.
    pub const fn is_whole(&self) -> bool {
        matches!(self, Self::Whole { .. })
    }
}

/// The last place up to `end` where `piece` is what is expected.
fn place(expected: &[u8], piece: &[u8], end: usize) -> Option<usize> {
    (0..=end)
        .rev()
        .find(|start| expected[*start..].starts_with(piece))
}

fn why(expected: &[u8], piece: &[u8], index: usize, end: usize) -> String {
    let shown = excerpt(piece);
    let wanted = excerpt(&expected[end..]);
    if let Some(start) = place(expected, piece, expected.len()) {
        let missing = start - end;
        return format!(
            "piece {index} begins with {shown}: {missing} bytes from {wanted} are missing"
        );
    }
    let good = (0..=end)
        .map(|start| common(&expected[start..], piece))
        .max()
        .unwrap_or_default();
    let turn = excerpt(&piece[good..]);
    format!(
        "piece {index} begins with {shown} after {end} bytes, and from its byte {good} on ({turn}) \
         it is not what is expected ({wanted})"
    )
}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    let end = if bytes.len() > SHOWN { "..." } else { "" };
    format!(
        "{:?}{end}",
        String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &[u8] = b"line 0\nline 1\nline 2\nline 3\n";

    fn repeated(pieces: &[&[u8]]) -> Vec<usize> {
        match Joint::of(LINES, pieces) {
            Joint::Whole { repeated_bytes } => repeated_bytes,
            Joint::Broken { why } => panic!("{why}"),
        }
    }

    #[test]
    fn a_repetition_at_the_joint_is_allowed_and_measured() {
        assert_eq!(repeated(&[LINES, b""]), [0]);
        assert_eq!(repeated(&[b"", LINES]), [0]);
        assert_eq!(repeated(&[&LINES[..9], &LINES[9..]]), [0]);
        assert_eq!(repeated(&[&LINES[..9], &LINES[7..]]), [2]);
        assert_eq!(repeated(&[LINES, LINES]), [LINES.len()]);
        assert_eq!(
            repeated(&[&LINES[..16], &LINES[14..21], &LINES[21..]]),
            [2, 0]
        );
    }

    #[test]
    fn gaps_and_other_bytes_are_told() {
        let broken: [(&[&[u8]], &str); 5] = [
            (&[&LINES[..7], &LINES[14..]], "7 bytes from"),
            (
                &[&LINES[..7], b"line 1\nline 2\nlime 3\n"],
                "from its byte 16",
            ),
            (&[&LINES[..7], &LINES[7..21]], "missing at the end"),
            (&[&LINES[7..]], "are missing"),
            (&[LINES, b"line 4\n"], "not what is expected"),
        ];
        for (pieces, part) in broken {
            let Joint::Broken { why } = Joint::of(LINES, pieces) else {
                panic!("{pieces:?}")
            };
            assert!(why.contains(part), "{why}");
        }
    }
}
