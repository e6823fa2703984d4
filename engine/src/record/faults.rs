//! Mistakes that can be planted in the recorder, so that tests show that each is noticed.

use samsara_machine::memory::{PageIndex, Residency};

/// What the recorder does wrong on purpose. For tests only.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A mistake that lets a guest compute nonsense.
    pub mistake: Option<Mistake>,
    /// The check at chunk starts is left out, so that a mistake reaches the guest.
    pub unchecked: bool,
    /// Every chunk whose number is a multiple of this is squashed, lost or not; 0 for none.
    pub squash_every: u64,
    /// No vCPU takes turns: conflicts are as many as can be.
    pub side_by_side: bool,
    /// Nobody keeps account of who lost to whom: to measure what that costs.
    pub unaccounted: bool,
}

/// A mistake.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Validation overlooks pages that are resident and not private: the read set is lost.
    IgnoreResidency,
    /// Validation overlooks pages that are private.
    IgnoreHeld,
    /// The last page of each write set is not told to the others.
    ForgetWritten,
    /// Stale pages stay in a view when a chunk starts.
    SkipSettle,
    /// A squash leaves the held pages as the chunk left them.
    SkipRestoreMemory,
    /// A squash leaves the vCPU as the chunk left it.
    SkipRestoreState,
    /// What was translated through page tables holds on when they change from outside, or by a squash.
    SkipForgetTranslations,
}

impl Faults {
    /// Whether this mistake is to be made.
    pub(super) fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Whether validation counts a page with this residency as read.
    pub(super) fn counts(&self, found: Residency) -> bool {
        match found {
            Residency::Absent => false,
            Residency::Image => !self.makes(Mistake::IgnoreResidency),
            Residency::Private => !self.makes(Mistake::IgnoreHeld),
        }
    }

    /// The part of a write set that the others are told of.
    pub(super) fn told<'a>(&self, written: &'a [PageIndex]) -> &'a [PageIndex] {
        match written.split_last() {
            Some((_, rest)) if self.makes(Mistake::ForgetWritten) => rest,
            _ => written,
        }
    }

    /// Whether the chunk with this number, from 1, is squashed without need.
    pub(super) fn squashes(&self, number: u64) -> bool {
        self.squash_every != 0 && number.is_multiple_of(self.squash_every)
    }
}
