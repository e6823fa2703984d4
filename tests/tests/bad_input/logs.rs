//! Commit logs that were cut or damaged after the daemon wrote them.

use std::fs;
use std::path::Path;

use samsara_commitlog::{LogError, Tail, verify};
use samsara_tests::{Guest, Site, kvm_shared_or_skip};

use crate::ran::{samsarad, sets};

/// A log of a whole run.
pub(crate) fn recorded(site: &Site) -> Vec<u8> {
    let path = site.path("run.log");
    let settings = Guest::new(site, "outputs", "n=200")
        .expect("guest")
        .memory("16MiB")
        .settings();
    let mut arguments = vec!["--role".to_owned(), "standalone".to_owned()];
    arguments.extend(sets(&settings));
    arguments.extend(["--record".to_owned(), path.display().to_string()]);
    let ran = samsarad(&arguments);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    fs::read(path).expect("the log")
}

fn look(path: &Path, bytes: &[u8]) -> Result<samsara_commitlog::LogSummary, String> {
    fs::write(path, bytes).expect("written");
    verify(path).map_err(|error: LogError| {
        let mut line = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            line = format!("{line}: {cause}");
            source = cause.source();
        }
        assert!(
            line.contains(&*path.to_string_lossy()) && !line.contains('\n'),
            "{line}"
        );
        line
    })
}

#[test]
fn cut_anywhere_it_is_whole_up_to_there() {
    let Some(_machine) = kvm_shared_or_skip("cut logs") else {
        return;
    };
    let site = Site::new().expect("site");
    let log = recorded(&site);
    let path = site.path("cut.log");
    let whole = look(&path, &log).expect("a whole log");
    assert_eq!(
        (whole.tail, whole.valid_bytes),
        (Tail::Clean, log.len() as u64)
    );
    let mut last = None;
    for end in (0..log.len())
        .step_by(log.len() / 64)
        .chain(log.len() - 40..log.len())
    {
        // A file without even its header may be refused.
        let Ok(summary) = look(&path, &log[..end]) else {
            assert!(end < 64, "a cut at {end} makes the rest unreadable");
            continue;
        };
        assert!(summary.valid_bytes <= end as u64);
        assert!(summary.last_seq >= last, "more bytes, fewer commits");
        last = summary.last_seq;
    }
    assert!(last.is_some() && last <= whole.last_seq);
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let Some(_machine) = kvm_shared_or_skip("damaged logs") else {
        return;
    };
    let site = Site::new().expect("site");
    let log = recorded(&site);
    let path = site.path("damaged.log");
    let whole = look(&path, &log).expect("a whole log");
    let mut seed: u64 = 0x5eed;
    for _ in 0..60 {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bit = (seed >> 16) as usize % (log.len() * 8);
        let mut damaged = log.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match look(&path, &damaged) {
            Err(line) => assert!(line.contains("offset") || line.contains("log"), "{line}"),
            // Damage to the very last frame looks like a write that was not finished.
            Ok(summary) => {
                assert!(
                    matches!(summary.tail, Tail::Torn { .. }),
                    "bit {bit} of {}",
                    log.len() * 8
                );
                assert!(
                    summary.last_seq < whole.last_seq || summary.valid_bytes < whole.valid_bytes
                );
            }
        }
    }
}
