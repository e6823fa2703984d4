//! Which pages cost vCPUs their chunks: who lost them to whom, and where in the guest's code both were.
//!
//! Each vCPU keeps account of what it lost itself, in a table of fixed size, and only when it squashes a chunk. So memory is
//! bounded by [`CONFLICTS_MAX`] a vCPU, whatever the guest does, and a chunk that commits pays nothing.

use std::time::Duration;

use samsara_commitlog::{Gpa, VcpuIndex};

use crate::top::Top;

/// Conflicts that are kept of each vCPU: a page, and who won. Of all that it lost by, whatever was a cause of more
/// than one in so many is among them.
pub const CONFLICTS_MAX: usize = 64;
/// Places in the guest's code that are kept of each conflict, for either side.
pub const PLACES_MAX: usize = 4;

/// Who committed what a chunk had read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// A chunk of this vCPU, or a device as part of that chunk's commit.
    Vcpu(VcpuIndex),
    /// A device, or something from outside.
    Input,
    /// One of so many commits that they were not kept apart.
    Several,
}

/// How often something was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted<T> {
    /// What.
    pub what: T,
    /// How often, at most.
    pub count: u64,
    /// The count may be so much too high.
    pub over: u64,
}

/// Chunks of one vCPU that were lost to another's commits by one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Address of the page.
    pub page: Gpa,
    /// Whose chunks were lost.
    pub loser: VcpuIndex,
    /// Whose commits they were lost to.
    pub winner: Winner,
    /// Squashes that it was a cause of, at most. One that several pages caused counts for each of them.
    pub squashes: u64,
    /// The count may be so much too high.
    pub squashes_over: u64,
    /// What those squashes cost: the chunks' time, and the time to undo them.
    pub lost: Duration,
    /// Where the loser was (RIP) when it was stopped: a sample, not the instruction that read. Most frequent first.
    pub loser_at: Vec<Counted<u64>>,
    /// Where the winner's chunks ended (RIP), not the instruction that wrote. Most frequent first.
    pub winner_at: Vec<Counted<u64>>,
}

/// A squash, as far as one page caused it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cause {
    pub(crate) page: Gpa,
    pub(crate) winner: Winner,
    /// Where the winner's chunk ended, if it was one chunk.
    pub(crate) winner_at: Option<u64>,
}

type Places = Top<u64, (), PLACES_MAX>;

#[derive(Debug, Default)]
struct Detail {
    lost: Duration,
    loser_at: Places,
    winner_at: Places,
}

/// What one vCPU lost its chunks by.
#[derive(Debug, Default)]
pub struct Conflicts {
    table: Top<(Gpa, Winner), Detail, CONFLICTS_MAX>,
}

impl Conflicts {
    /// A chunk was squashed that stood at `loser_at` and cost `lost`.
    pub(crate) fn note(&mut self, cause: Cause, loser_at: u64, lost: Duration) {
        let detail = self.table.note((cause.page, cause.winner));
        detail.lost += lost;
        detail.loser_at.note(loser_at);
        if let Some(place) = cause.winner_at {
            detail.winner_at.note(place);
        }
    }

    /// All that are known, in any order.
    pub(crate) fn of(&self, loser: VcpuIndex) -> impl Iterator<Item = Conflict> {
        self.table.iter().map(move |ranked| {
            let (page, winner) = ranked.key;
            Conflict {
                page,
                loser,
                winner,
                squashes: ranked.count,
                squashes_over: ranked.over,
                lost: ranked.value.lost,
                loser_at: sorted(&ranked.value.loser_at),
                winner_at: sorted(&ranked.value.winner_at),
            }
        })
    }
}

fn sorted(places: &Places) -> Vec<Counted<u64>> {
    let mut places: Vec<_> = places
        .iter()
        .map(|ranked| Counted {
            what: ranked.key,
            count: ranked.count,
            over: ranked.over,
        })
        .collect();
    places.sort_by_key(|place| (std::cmp::Reverse(place.count), place.what));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_page_and_winner_has_its_own_account() {
        let mut conflicts = Conflicts::default();
        let cause = |page, winner, winner_at| Cause {
            page: Gpa(page),
            winner,
            winner_at,
        };
        let other = Winner::Vcpu(VcpuIndex(2));
        for (winner_at, loser_at) in [(10, 1), (11, 2), (11, 2)] {
            conflicts.note(cause(0x5000, other, Some(winner_at)), loser_at, SECOND);
        }
        conflicts.note(cause(0x5000, Winner::Input, None), 3, SECOND);
        conflicts.note(cause(0x6000, other, Some(12)), 4, SECOND);
        let mut found: Vec<_> = conflicts.of(VcpuIndex(1)).collect();
        found.sort_by_key(|conflict| std::cmp::Reverse(conflict.squashes));
        assert_eq!(found.len(), 3);
        let worst = &found[0];
        let counted = |what, count| Counted {
            what,
            count,
            over: 0,
        };
        assert_eq!((worst.page, worst.winner), (Gpa(0x5000), other));
        assert_eq!((worst.loser, worst.squashes), (VcpuIndex(1), 3));
        assert_eq!(worst.lost, 3 * SECOND);
        assert_eq!(worst.loser_at, [counted(2, 2), counted(1, 1)]);
        assert_eq!(worst.winner_at, [counted(11, 2), counted(10, 1)]);
        assert!(
            found
                .iter()
                .any(|one| one.winner == Winner::Input && one.winner_at.is_empty())
        );
    }

    #[test]
    fn a_guest_cannot_make_it_grow() {
        let mut conflicts = Conflicts::default();
        for number in 0..100_000_u64 {
            let cause = Cause {
                page: Gpa(number % 1000 * 4096),
                winner: Winner::Vcpu(VcpuIndex((number % 16) as u8)),
                winner_at: Some(number),
            };
            conflicts.note(cause, number, SECOND);
        }
        let found: Vec<_> = conflicts.of(VcpuIndex(0)).collect();
        assert_eq!(found.len(), CONFLICTS_MAX);
        for conflict in &found {
            assert!(conflict.loser_at.len() <= PLACES_MAX);
            assert!(conflict.winner_at.len() <= PLACES_MAX);
            assert!(conflict.squashes_over <= 100_000 / CONFLICTS_MAX as u64);
        }
    }
}
