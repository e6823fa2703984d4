//! What a process had of the machine's processors, to tell one that is slow from one that others keep waiting.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Sub;
use std::time::Duration;

/// Time of all threads that a process has now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// In which they ran.
    pub ran: Duration,
    /// In which they could have, and others did.
    pub waited: Duration,
}

impl Processor {
    /// Of a running process.
    ///
    /// # Errors
    ///
    /// There is none of this number, or the system does not tell.
    pub fn of(process: u32) -> io::Result<Self> {
        let mut all = Self::default();
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            // One that has ended since it was listed.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
                continue;
            };
            let mut numbers = text.split(' ').map_while(|word| word.parse().ok());
            all.ran += Duration::from_nanos(numbers.next().unwrap_or_default());
            all.waited += Duration::from_nanos(numbers.next().unwrap_or_default());
        }
        Ok(all)
    }
}

impl Sub for Processor {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(earlier.ran),
            waited: self.waited.saturating_sub(earlier.waited),
        }
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ran, waited } = self;
        write!(f, "ran {ran:.1?} and waited {waited:.1?} for a processor")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_a_process_ran_is_counted() {
        let of_this = || Processor::of(std::process::id()).unwrap();
        let (before, begin) = (of_this(), Instant::now());
        // Its own time is added at a tick of the system at the latest.
        while (of_this() - before).ran < Duration::from_millis(5) {
            assert!(begin.elapsed() < Duration::from_secs(20), "{}", of_this());
        }
        assert!(Processor::of(0).is_err());
    }
}
