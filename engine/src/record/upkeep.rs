//! Keeping a vCPU's view in step with committed memory: before a chunk, after a squash, and of pages that went cold.

use std::time::Duration;

use samsara_commitlog::CommitSeq;
use samsara_machine::Platform;
use samsara_machine::kvm::{Paging, RawExit, Restore};
use samsara_machine::machine::Changed;
use samsara_machine::memory::{MemoryError, PageIndex, Residency};

use super::chunk::ChunkRunner;
use super::committer::Isolation;
use super::faults::Mistake;
use super::lane::{Published, merge};
use super::stale::Stale;
use crate::EngineError;
use crate::cpu::Cpu;
use crate::stats::count;

/// What a page costs that is dropped and then read again.
const READ_FAULT: Duration = Duration::from_micros(25);
/// Held pages that have not changed for so many chunks are cold.
const COLD_AGE: u32 = 256;
/// Chunks between two looks for cold pages.
const RELEASE_EVERY: u64 = 8;
/// Comparing so many pages is nothing beside a chunk.
const FEW_PAGES: usize = 64;
/// How many held pages are compared with the image at a chunk's start, where that is checked.
const CHECKED_PAGES: usize = 256;

/// The stale pages that a squash does something about: all that are private, and of those that show the image, which
/// only count as read, so many that dropping them costs no more than what the chunk has `lost`. If the vCPU does not read
/// them any more, others go the next time.
pub(super) fn affordable(
    stale: &[(PageIndex, Residency)],
    lost: Duration,
    squashes: u64,
) -> Vec<(PageIndex, Residency)> {
    let is_clean = |&(_, found): &(PageIndex, Residency)| found != Residency::Private;
    let clean = stale.iter().filter(|page| is_clean(page)).count() as u64;
    let few = (lost.as_micros() / READ_FAULT.as_micros()) as u64;
    let step = clean.div_ceil(few.max(1)).max(1);
    let mut count = squashes;
    let mut is_due = || {
        count += 1;
        count.is_multiple_of(step)
    };
    let chosen = stale.iter().filter(|page| !is_clean(page) || is_due());
    chosen.copied().collect()
}

impl<C: Cpu> ChunkRunner<C> {
    /// Invariant 4: a chunk starts on a view that shows committed memory. Held pages that others
    /// have overwritten since [`Self::settle`] are for validation to find.
    pub(super) fn check_start(&self) {
        let lane = self.lane();
        let _machine = self.shared.machine();
        let incoming = lane.peek_incoming();
        let step = self.held.count() / CHECKED_PAGES + 1;
        for page in self
            .held
            .pages()
            .skip(self.chunks as usize % step)
            .step_by(step)
        {
            assert!(
                lane.view.equals_image(page) || incoming.binary_search(&page).is_ok(),
                "invariant 4: vCPU {} starts a chunk with a stale page, number {}",
                self.seat.index,
                page.0
            );
        }
    }

    /// The pages that others committed and that this view shows: the chunk may have read them.
    pub(super) fn stale_pages(&mut self) -> Result<Stale, MemoryError> {
        let commits = self.lane().take_incoming();
        self.had_news |= !commits.is_empty();
        let incoming = merge(&commits);
        self.follow_page_tables(&commits);
        let faults = self.shared.settings.faults;
        if incoming.iter().any(|&page| self.guarded.contains(page)) {
            self.seat.cpu.expect_privileged_code();
        }
        let lane = self.lane();
        let (held, others): (Vec<_>, Vec<_>) = incoming
            .into_iter()
            .partition(|&page| lane.held.contains(page));
        // Held pages are resident: no need to ask.
        let held = held.into_iter().map(|page| (page, Residency::Private));
        let mut stale: Vec<_> = held.filter(|&(_, found)| faults.counts(found)).collect();
        if !others.is_empty() {
            lane.view.residency(&others, |page, found| {
                if faults.counts(found) {
                    stale.push((page, found));
                }
            })?;
        }
        Ok(Stale::new(stale, commits))
    }

    /// Whether KVM keeps translations that others' commits can make wrong.
    pub(super) fn keeps_translations(&self) -> bool {
        self.platform == Platform::Pc
            && self.shared.isolation == Isolation::Parallel
            && self.shared.settings.paging == Paging::Shadow
    }

    /// Forgets translations if these commits may have made some wrong. That costs a tenth of a millisecond, and every page
    /// that the guest then touches a fault.
    fn follow_page_tables(&mut self, commits: &[Published]) {
        let faults = self.shared.settings.faults;
        if !self.keeps_translations() || faults.makes(Mistake::SkipForgetTranslations) {
            return;
        }
        let is_void = commits.iter().any(|commit| commit.voids_translations);
        self.has_overlooked |= !commits.is_empty();
        // Whether a commit voids translations is told for long mode alone.
        if is_void || (self.has_overlooked && !self.seat.start.is_in_long_mode()) {
            self.has_overlooked = false;
            self.seat.cpu.forget_translations();
        }
    }

    /// Makes sure that no page of the view is stale; gives the last commit that it then shows.
    pub(super) fn settle(&mut self) -> Result<CommitSeq, MemoryError> {
        let published = self.shared.published();
        let mut stale = self.stale_pages()?;
        // The image's own pages always show the image.
        stale
            .pages
            .retain(|&(_, found)| found == Residency::Private);
        self.settle_pages(&stale.pages)?;
        Ok(published)
    }

    /// Brings stale pages, in any order, up to date. A held page is refreshed: a copy; dropping it
    /// would cost a hundred times that in faults when it is written again. Others are dropped.
    pub(super) fn settle_pages(
        &mut self,
        stale: &[(PageIndex, Residency)],
    ) -> Result<(), MemoryError> {
        if self.shared.settings.faults.makes(Mistake::SkipSettle) {
            return Ok(());
        }
        let mut dropped = Vec::new();
        for &(page, _) in stale {
            if self.lane().held.contains(page) {
                self.lane().view.refresh(page);
            } else {
                dropped.push(page);
            }
        }
        dropped.sort_unstable();
        self.drop_pages(&dropped)
    }

    pub(super) fn drop_pages(&mut self, pages: &[PageIndex]) -> Result<(), MemoryError> {
        let lane = self.shared.lane(self.lane);
        lane.view.drop_pages(pages)?;
        self.held.remove(&lane.held, pages);
        Ok(())
    }

    /// Undoes the chunk. `changed` are the pages that it changed, where that is known.
    pub(super) fn squash(
        &mut self,
        raw: &RawExit,
        stale: &[(PageIndex, Residency)],
        changed: Option<&[Changed]>,
    ) -> Result<(), EngineError> {
        if matches!(raw, RawExit::Read { .. }) {
            // KVM would finish the load inside the next run, on top of the restored state.
            self.seat.cpu.complete_read(0)?;
            self.harvest()?;
        }
        let faults = self.shared.settings.faults;
        if !faults.makes(Mistake::SkipRestoreState) {
            self.seat.cpu.restore(&self.seat.start, Restore::KeepTime)?;
            self.seat.apic = self.seat.start.apic();
        }
        if !faults.makes(Mistake::SkipRestoreMemory) {
            let view = &self.shared.lane(self.lane).view;
            match changed {
                Some(changed) => changed
                    .iter()
                    .for_each(|changed| view.refresh(changed.page)),
                None => self.held.pages().for_each(|page| view.refresh(page)),
            }
        }
        self.forget_translations()?;
        self.settle_pages(stale)?;
        self.release()?;
        count(&self.stats().squashes, 1);
        Ok(())
    }

    /// A squash leaves no translation behind: the chunk may have changed page tables.
    fn forget_translations(&mut self) -> Result<(), MemoryError> {
        let faults = self.shared.settings.faults;
        if self.platform == Platform::Bare || faults.makes(Mistake::SkipForgetTranslations) {
            return Ok(());
        }
        self.seat.cpu.forget_translations();
        // Where the processor walks the tables itself, KVM flushes what it knows of a view that loses a
        // page.
        let any = self.held.pages().next();
        any.map_or(Ok(()), |page| self.drop_pages(&[page]))
    }

    /// Drops pages that have not changed for long: now and then once there are many, because each
    /// is compared at the end of every chunk, and at once when the view holds too many.
    pub(super) fn release(&mut self) -> Result<(), MemoryError> {
        if self.held.count() > FEW_PAGES && self.chunks.is_multiple_of(RELEASE_EVERY) {
            let cold = self.held.colder_than(COLD_AGE);
            self.drop_pages(&cold)?;
        }
        let mut age = COLD_AGE;
        while self.held.count() > self.held_pages_max {
            let cold = self.held.colder_than(age);
            self.drop_pages(&cold)?;
            age /= 2;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stale(count: u32, found: Residency) -> Vec<(PageIndex, Residency)> {
        (0..count).map(|page| (PageIndex(page), found)).collect()
    }

    #[test]
    fn a_squash_deals_with_all_private_pages_and_drops_what_it_can_afford() {
        let lost = READ_FAULT * 10;
        let private = stale(1000, Residency::Private);
        assert_eq!(affordable(&private, Duration::ZERO, 7), private);
        let clean = stale(1000, Residency::Image);
        assert_eq!(affordable(&clean, lost, 7).len(), 10);
        assert_eq!(affordable(&clean, lost * 1000, 7), clean);
        let mixed = [private, clean].concat();
        assert_eq!(affordable(&mixed, lost, 7).len(), 1010);
    }

    #[test]
    fn what_a_squash_could_not_afford_another_drops() {
        let clean = stale(1000, Residency::Image);
        let mut dropped: Vec<_> = (0..100)
            .flat_map(|squashes| affordable(&clean, READ_FAULT * 10, squashes))
            .map(|(page, _)| page)
            .collect();
        dropped.sort_unstable();
        dropped.dedup();
        assert_eq!(dropped.len(), clean.len());
    }
}
