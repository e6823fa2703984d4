//! What a view shows that others have overwritten, and who they are.

use std::time::Duration;

use samsara_machine::memory::{Layout, PageIndex, Residency};

use super::lane::{By, Published};
use crate::conflicts::{Cause, Conflicts, Winner};

/// Pages of one squash that are accounted for. Of more, which are data rather than a lock, so many are taken from
/// all over them: what a squash costs stays the same.
const CAUSES_MAX: usize = 8;

/// Pages that others committed and that a view shows, and the commits that told of them.
#[derive(Debug)]
pub(super) struct Stale {
    pub(super) pages: Vec<(PageIndex, Residency)>,
    commits: Vec<Published>,
}

impl Stale {
    /// Of these commits, oldest first, the view shows these pages.
    pub(super) fn new(pages: Vec<(PageIndex, Residency)>, commits: Vec<Published>) -> Self {
        Self { pages, commits }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Accounts for a squash of a chunk that stood at `loser_at` and has cost `lost`.
    pub(super) fn note(
        &self,
        conflicts: &mut Conflicts,
        layout: Layout,
        loser_at: u64,
        lost: Duration,
    ) {
        let step = self.pages.len().div_ceil(CAUSES_MAX).max(1);
        for &(page, _) in self.pages.iter().step_by(step) {
            let (winner, winner_at) = self.winner(page);
            let cause = Cause {
                page: layout.gpa_of(page),
                winner,
                winner_at,
            };
            conflicts.note(cause, loser_at, lost);
        }
    }

    /// Who committed a page first, and where that chunk ended: from then on the loser's was lost.
    fn winner(&self, page: PageIndex) -> (Winner, Option<u64>) {
        let mut commits = self.commits.iter();
        let first = commits.find(|commit| commit.pages.binary_search(&page).is_ok());
        match first.and_then(|commit| commit.by) {
            Some(By::Chunk { vcpu, rip, .. }) => (Winner::Vcpu(vcpu), Some(rip)),
            Some(By::Input) => (Winner::Input, None),
            None => (Winner::Several, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use samsara_commitlog::{Gpa, PAGE_BYTES, Shape, VcpuIndex};

    use super::super::lane::LaneIndex;
    use super::*;

    fn by(vcpu: u8) -> By {
        By::Chunk {
            lane: LaneIndex(vcpu.into()),
            vcpu: VcpuIndex(vcpu),
            rip: 1000 + u64::from(vcpu),
        }
    }

    fn published(by: impl Into<Option<By>>, pages: &[u32]) -> Published {
        Published {
            pages: pages.iter().copied().map(PageIndex).collect(),
            by: by.into(),
            voids_translations: false,
        }
    }

    /// The conflicts of a squash by these pages after these commits: page, winner, where the winner was.
    fn noted(pages: &[u32], commits: Vec<Published>) -> Vec<(u64, Winner, Vec<u64>)> {
        let layout = Layout::new(Shape {
            vcpu_count: 4,
            memory_bytes: 5 << 30,
        });
        let pages = pages
            .iter()
            .map(|&page| (PageIndex(page), Residency::Image));
        let mut conflicts = Conflicts::default();
        let stale = Stale::new(pages.collect(), commits);
        stale.note(&mut conflicts, layout, 7, Duration::from_micros(50));
        let found = conflicts.of(VcpuIndex(0)).map(|found| {
            assert_eq!(found.loser_at[0].what, 7);
            let winner_at = found.winner_at.iter().map(|place| place.what).collect();
            (found.page.0, found.winner, winner_at)
        });
        found.collect()
    }

    #[test]
    fn the_first_commit_of_a_page_wins_it() {
        let commits = vec![
            published(by(3), &[1, 9]),
            published(by(1), &[5, 7]),
            published(by(2), &[5, 9]),
            published(By::Input, &[11]),
            published(None, &[12]),
        ];
        let page = |number: u64| number * PAGE_BYTES as u64;
        let vcpu = |index| Winner::Vcpu(VcpuIndex(index));
        assert_eq!(
            noted(&[5, 9, 11, 12], commits),
            [
                (page(5), vcpu(1), vec![1001]),
                (page(9), vcpu(3), vec![1003]),
                (page(11), Winner::Input, vec![]),
                (page(12), Winner::Several, vec![]),
            ]
        );
    }

    /// What is told is an address, also above the hole below 4 GiB.
    #[test]
    fn high_pages_are_told_by_their_address() {
        let page = (3_u32 << 30) / PAGE_BYTES as u32;
        let found = noted(&[page], vec![published(by(1), &[page])]);
        assert_eq!(Gpa(found[0].0), Gpa(4 << 30));
    }

    #[test]
    fn many_pages_are_sampled_all_over() {
        let pages: Vec<u32> = (100..1100).collect();
        let found = noted(&pages, vec![published(by(1), &pages)]);
        assert!(found.len() <= CAUSES_MAX && found.len() > CAUSES_MAX / 2);
        let addresses = found.iter().map(|found| found.0 / PAGE_BYTES as u64);
        assert!(addresses.clone().min() < Some(300) && addresses.max() > Some(900));
    }

    /// Time for the account of a squash by so many pages that the last of so many commits wrote, by two vCPUs in turn, so
    /// that none of them is known and no place is free.
    fn time_of_a_note(pages: u32, commits: usize) -> Duration {
        const ROUNDS: u32 = 20_000;
        let layout = Layout::new(Shape {
            vcpu_count: 2,
            memory_bytes: 1 << 30,
        });
        let told: Vec<_> = (0..pages * 200).map(|page| page * 1000).collect();
        let mut all: Vec<_> = (1..commits).map(|_| published(by(1), &[1, 3, 5])).collect();
        all.push(published(by(1), &told));
        let stale = (0..pages).map(|page| (PageIndex(page * 1000), Residency::Image));
        let mut stale = Stale::new(stale.collect(), all);
        let mut conflicts = Conflicts::default();
        let began = std::time::Instant::now();
        for round in 0..ROUNDS {
            for (place, (page, _)) in (0..).zip(&mut stale.pages) {
                page.0 = (place * 200 + round % 200) * 1000;
            }
            let at = u64::from(round);
            stale.note(&mut conflicts, layout, at, Duration::from_micros(50));
        }
        began.elapsed() / ROUNDS
    }

    #[test]
    #[ignore = "a measurement, for the release profile; run with --ignored --nocapture"]
    fn what_a_note_costs() {
        for (pages, commits) in [(1, 1), (1, 4), (8, 4), (8, 64)] {
            let time = time_of_a_note(pages, commits);
            println!("{pages} pages, {commits} commits: {time:?}");
        }
    }
}
