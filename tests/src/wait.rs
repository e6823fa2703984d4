//! Waiting for a value, with a bound.

use std::time::{Duration, Instant};

use crate::HarnessError;

/// Pause between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(2);

/// Looks until `look` gives something.
///
/// # Errors
///
/// What `look` fails with, or [`HarnessError::TimedOut`] after `bound`, with what `seen` says then.
pub fn until<T>(
    what: &str,
    bound: Duration,
    mut look: impl FnMut() -> Result<Option<T>, HarnessError>,
    seen: impl FnOnce() -> String,
) -> Result<T, HarnessError> {
    let deadline = Instant::now() + bound;
    loop {
        // Looks once more after the deadline: a machine that stood still is no failure.
        let is_last = Instant::now() >= deadline;
        if let Some(value) = look()? {
            return Ok(value);
        }
        if is_last {
            return Err(HarnessError::TimedOut {
                what: what.to_owned(),
                bound,
                seen: seen(),
            });
        }
        std::thread::sleep(LOOK);
    }
}
