//! Where the vCPUs' threads spend their time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a vCPU's thread is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Running the guest in a chunk that was committed.
    Guest,
    /// Finding what the chunk did: its state, the pages and bytes that it changed.
    Find,
    /// Waiting for the commit lock.
    Lock,
    /// Committing, under it.
    Commit,
    /// Keeping the view in step: stale pages before a chunk, cold pages after it.
    Upkeep,
    /// Running chunks that were squashed, and undoing them.
    Lost,
    /// Waiting for a turn, or for others to let it run alone.
    Turn,
    /// Waiting for the backup, which is as far behind as it may be, or for outputs to be released.
    Backup,
    /// Waiting for something to do: the vCPU has halted, yielded or waits for a device.
    Rest,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Guest,
        Self::Find,
        Self::Lock,
        Self::Commit,
        Self::Upkeep,
        Self::Lost,
        Self::Turn,
        Self::Backup,
        Self::Rest,
    ];

    /// A name, for tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Find => "find",
            Self::Lock => "lock",
            Self::Commit => "commit",
            Self::Upkeep => "upkeep",
            Self::Lost => "lost",
            Self::Turn => "turn",
            Self::Backup => "backup",
            Self::Rest => "rest",
        }
    }
}

/// Times by phase.
pub type Times = [Duration; Phase::ALL.len()];

/// Times by phase, of which somebody keeps account while others read.
#[derive(Debug, Default)]
pub struct Spent([AtomicU64; Phase::ALL.len()]);

impl Spent {
    fn add(&self, phase: Phase, time: Duration) {
        self.0[phase as usize].fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// What there is so far.
    pub fn read(&self) -> Times {
        std::array::from_fn(|phase| Duration::from_nanos(self.0[phase].load(Ordering::Relaxed)))
    }
}

/// A stop watch of one thread. What a chunk took counts once it is known whether it was lost.
#[derive(Debug)]
pub(crate) struct Laps {
    last: Instant,
    chunk: Times,
}

impl Laps {
    pub(crate) fn start() -> Self {
        Self {
            last: Instant::now(),
            chunk: Times::default(),
        }
    }

    /// The time since the last lap went into this.
    pub(crate) fn lap(&mut self, phase: Phase) {
        let now = Instant::now();
        self.chunk[phase as usize] += now - self.last;
        self.last = now;
    }

    /// The chunk was committed.
    pub(crate) fn committed(&mut self, spent: &Spent) {
        let chunk = std::mem::take(&mut self.chunk);
        for (phase, time) in Phase::ALL.into_iter().zip(chunk) {
            spent.add(phase, time);
        }
    }

    /// The chunk was lost.
    pub(crate) fn lost(&mut self, spent: &Spent) {
        let chunk = std::mem::take(&mut self.chunk);
        for (phase, time) in Phase::ALL.into_iter().zip(chunk) {
            let phase = match phase {
                Phase::Turn | Phase::Backup | Phase::Rest => phase,
                _ => Phase::Lost,
            };
            spent.add(phase, time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_in_their_order() {
        for (place, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, place, "{}", phase.as_str());
        }
    }

    #[test]
    fn what_a_lost_chunk_took_is_lost_but_not_what_it_waited() {
        let spent = Spent::default();
        let mut laps = Laps::start();
        let time = |phase: Phase| spent.read()[phase as usize];
        laps.lap(Phase::Turn);
        laps.lap(Phase::Guest);
        let [turn, guest] = [Phase::Turn, Phase::Guest].map(|phase| laps.chunk[phase as usize]);
        laps.lost(&spent);
        assert_eq!((time(Phase::Turn), time(Phase::Lost)), (turn, guest));
        assert_eq!(time(Phase::Guest), Duration::ZERO);
        laps.lap(Phase::Guest);
        let guest = laps.chunk[Phase::Guest as usize];
        laps.committed(&spent);
        assert_eq!(time(Phase::Guest), guest);
    }
}
