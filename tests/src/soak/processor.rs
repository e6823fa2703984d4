//! What a process had of the machine's processors, to tell one that is slow from one that others keep waiting.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::time::Duration;

/// Time of a thread, or of some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// In which it ran.
    pub ran: Duration,
    /// In which it could have, and others did.
    pub waited: Duration,
}

/// What the threads of a process have used, those that it has now.
#[derive(Clone, Debug, Default)]
pub struct Processor {
    threads: BTreeMap<OsString, Used>,
}

impl Processor {
    /// Of a running process.
    ///
    /// # Errors
    ///
    /// There is none of this number, or the system does not tell.
    pub fn of(process: u32) -> io::Result<Self> {
        let mut threads = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = thread?;
            // One that has ended since it was listed.
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else {
                continue;
            };
            let mut numbers = text.split(' ').map_while(|word| word.parse().ok());
            let mut next = || Duration::from_nanos(numbers.next().unwrap_or_default());
            let (ran, waited) = (next(), next());
            threads.insert(thread.file_name(), Used { ran, waited });
        }
        Ok(Self { threads })
    }

    /// What was used since an earlier look. That of threads which have ended is not known.
    pub fn since(&self, earlier: &Self) -> Used {
        let mut all = Used::default();
        for (thread, now) in &self.threads {
            let then = earlier.threads.get(thread).copied().unwrap_or_default();
            all.ran += now.ran.saturating_sub(then.ran);
            all.waited += now.waited.saturating_sub(then.waited);
        }
        all
    }
}

impl fmt::Display for Used {
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
        while of_this().since(&before).ran < Duration::from_millis(5) {
            assert!(begin.elapsed() < Duration::from_secs(20), "{before:?}");
        }
        let told = Used {
            ran: Duration::from_millis(1500),
            waited: Duration::from_millis(20),
        };
        assert_eq!(
            told.to_string(),
            "ran 1.5s and waited 20.0ms for a processor"
        );
        assert!(Processor::of(0).is_err());
    }
}
