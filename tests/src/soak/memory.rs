//! The memory of the daemons: what each uses as backup, as primary from its start and as survivor that went live, and whether it grows.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, Instant};

use crate::Status;

/// Memory is still being taken into use for so long after a process took on a role: the guest's pages become resident, views fill, pools of
/// threads and buffers reach their size.
const WARM_UP: Duration = Duration::from_secs(30);
/// With fewer samples after that nothing is said.
const SAMPLES_MIN: usize = 12;
/// What the private memory in one role may grow by from the first third of the samples to the last. A guest under mixed load commits some
/// hundred times a second: a leak of a few dozen bytes in each would be more within minutes, and an allocator keeps less.
const GROWTH_MAX_KIB: u64 = 4 << 10;
/// The same from the first lives in a role to the last.
const DRIFT_MAX_KIB: u64 = 4 << 10;

/// What a process uses, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// All that is resident.
    pub resident: u64,
    /// What of it is private: heap, stacks, the views' own copies. The rest is the guest's image, and files.
    pub private: u64,
    /// The most that was ever resident.
    pub peak: u64,
}

impl Usage {
    /// Of a running process.
    ///
    /// # Errors
    ///
    /// There is none of this number, or the system does not tell.
    pub fn of(process: u32) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        Self::parse(&text).ok_or_else(|| io::Error::other(format!("no memory in {text:?}")))
    }

    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = status.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.trim().strip_suffix(" kB")?.parse().ok()
        };
        Some(Self {
            resident: field("VmRSS")?,
            private: field("RssAnon")?,
            peak: field("VmHWM")?,
        })
    }
}

/// What a process does. A survivor has what a backup needs and what a primary needs, and so more than one that began as primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Primary from its start.
    Primary,
    /// Backup.
    Backup,
    /// Primary that was a backup.
    Survivor,
}

impl Role {
    const ALL: [Self; 3] = [Self::Primary, Self::Backup, Self::Survivor];

    /// From its status.
    pub fn of(status: &Status) -> Self {
        match status.role {
            samsara_config::Role::Backup => Self::Backup,
            _ if status.counters.failovers > 0 => Self::Survivor,
            _ => Self::Primary,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
            Self::Survivor => "survivor",
        }
    }
}

/// A process in one role.
#[derive(Clone, Debug)]
struct Life {
    host: String,
    process: u32,
    role: Role,
    from: Instant,
    samples: Vec<(Instant, Usage)>,
}

impl Life {
    /// Private memory after the warm-up: the median of the first third of the samples, and of the last.
    fn thirds(&self) -> Option<(u64, u64)> {
        let warm = self.from + WARM_UP;
        let private: Vec<u64> = self
            .samples
            .iter()
            .filter(|(at, _)| *at >= warm)
            .map(|(_, usage)| usage.private)
            .collect();
        if private.len() < SAMPLES_MIN {
            return None;
        }
        let third = private.len() / 3;
        let last = private[private.len() - third..].to_vec();
        Some((
            super::median(private[..third].to_vec())?,
            super::median(last)?,
        ))
    }

    fn last(&self) -> Option<(Duration, Usage)> {
        let (at, usage) = self.samples.last()?;
        Some((at.duration_since(self.from), *usage))
    }
}

/// All processes, each in each of its roles.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    lives: Vec<Life>,
}

impl Ledger {
    /// Notes what a process uses in its role now.
    pub fn note(&mut self, host: &str, process: u32, role: Role, at: Instant, usage: Usage) {
        let is_it = |life: &&mut Life| life.process == process && life.role == role;
        if let Some(life) = self.lives.iter_mut().find(is_it) {
            life.samples.push((at, usage));
            return;
        }
        self.lives.push(Life {
            host: host.to_owned(),
            process,
            role,
            from: at,
            samples: vec![(at, usage)],
        });
    }

    /// A line for each, in their order.
    pub fn table(&self) -> String {
        let mut table = "  memory, MiB       lasted  private: first third  last third  at its end  resident  peak\n".to_owned();
        let mib = |kib: u64| kib as f64 / 1024.0;
        for life in &self.lives {
            let Some((lasted, usage)) = life.last() else {
                continue;
            };
            let thirds = life.thirds().map_or_else(
                || format!("{:>20}  {:>10}", "-", "-"),
                |(first, last)| format!("{:20.1}  {:10.1}", mib(first), mib(last)),
            );
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "  {:<6} {:<8} {:>6.0} s  {thirds}  {:10.1}  {:8.1}  {:4.1}",
                life.host,
                life.role.as_str(),
                lasted.as_secs_f64(),
                mib(usage.private),
                mib(usage.resident),
                mib(usage.peak)
            );
        }
        table
    }

    /// Gives in how many lives memory was judged.
    ///
    /// # Errors
    ///
    /// It grew within one, or from one to the next.
    pub fn check(&self) -> Result<usize, String> {
        let judged = self
            .lives
            .iter()
            .filter_map(|life| Some((life, life.thirds()?)));
        let judged: Vec<(&Life, (u64, u64))> = judged.collect();
        for (life, (first, last)) in &judged {
            if last.saturating_sub(*first) > GROWTH_MAX_KIB {
                return Err(format!(
                    "the memory of {} as {} grew from {first} to {last} KiB",
                    life.host,
                    life.role.as_str()
                ));
            }
        }
        for role in Role::ALL {
            let of_role = judged.iter().filter(|(life, _)| life.role == role);
            check_drift(
                role.as_str(),
                &of_role.map(|(_, (_, last))| *last).collect::<Vec<_>>(),
            )?;
        }
        Ok(judged.len())
    }
}

/// From the first lives in a role to the last ones, in their order. Hosts inherit their state from each other, so what grows with the
/// history would show here.
fn check_drift(role: &str, lives: &[u64]) -> Result<(), String> {
    let third = lives.len() / 3;
    let first = super::median(lives[..third].to_vec());
    let last = super::median(lives[lives.len() - third..].to_vec());
    match first.zip(last) {
        Some((first, last)) if last.saturating_sub(first) > DRIFT_MAX_KIB => Err(format!(
            "the memory of a {role} grew from {first} KiB in the first lives to {last} KiB in the last"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A life with a sample every two seconds, of what `kib` says for the second.
    fn note(ledger: &mut Ledger, process: u32, seconds: u64, kib: impl Fn(u64) -> u64) {
        let start = Instant::now();
        for second in (0..seconds).step_by(2) {
            let private = kib(second);
            let usage = Usage {
                resident: private + 60_000,
                private,
                peak: private + 60_000,
            };
            let at = start + Duration::from_secs(second);
            ledger.note("alpha", process, Role::Primary, at, usage);
        }
    }

    #[test]
    fn a_process_tells_what_it_uses() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(
            usage.private > 0 && usage.private < usage.resident,
            "{usage:?}"
        );
        assert!(usage.peak >= usage.resident);
        assert_eq!(Usage::parse("VmRSS:\t 1 kB\n"), None);
    }

    #[test]
    fn growth_within_a_life_is_noticed() {
        let mut ledger = Ledger::default();
        // It takes 20 MiB into use at first, and is flat then.
        note(&mut ledger, 1, 180, |second| 10_000 + 1000 * second.min(20));
        assert_eq!(ledger.check(), Ok(1));
        note(&mut ledger, 2, 180, |second| 30_000 + 60 * second);
        let error = ledger.check().unwrap_err();
        assert!(error.contains("alpha as primary grew"), "{error}");
        assert_eq!(ledger.table().lines().count(), 3);
    }

    #[test]
    fn growth_from_life_to_life_is_noticed() {
        let mut ledger = Ledger::default();
        for process in 0..9 {
            note(&mut ledger, process, 120, |_| {
                30_000 + 600 * u64::from(process)
            });
        }
        assert_eq!(ledger.check(), Ok(9));
        let mut ledger = Ledger::default();
        for process in 0..9 {
            note(&mut ledger, process, 120, |_| {
                30_000 + 900 * u64::from(process)
            });
        }
        assert!(ledger.check().unwrap_err().contains("first lives"));
        // Too short to say anything.
        let mut ledger = Ledger::default();
        note(&mut ledger, 1, 40, |second| 1000 * second);
        assert_eq!(ledger.check(), Ok(0));
    }
}
