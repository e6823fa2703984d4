//! The write set of a chunk, by value.

use samsara_commitlog::{ByteRuns, ByteRunsBuilder, Effects};
use samsara_machine::machine::ChunkDigest;
use samsara_machine::memory::{PageIndex, View};

use super::held::HeldPages;

/// Pages that the instruction of a load may still write when it gets its value.
const LOAD_PAGES_MAX: usize = 2;
/// The most pages that a chunk may have changed when it ends.
const PAGES_MAX: usize = Effects::PAGES_MAX - LOAD_PAGES_MAX;

/// The memory that a chunk changed.
pub(super) struct Changes {
    pub(super) runs: ByteRuns,
    pub(super) pages: Vec<PageIndex>,
    pub(super) digest: ChunkDigest,
}

impl Changes {
    /// The bytes in which the held pages differ from the image. `room` is how many bytes the last
    /// chunk's encoded runs took, and then this one's: they may be as many.
    pub(super) fn find(view: &View, held: &mut HeldPages, room: &mut usize) -> Self {
        let mut runs = ByteRunsBuilder::with_capacity(*room);
        let mut pages = Vec::new();
        held.visit(|page| {
            let is_changed = view.push_changes(page, &mut runs);
            if is_changed {
                pages.push(page);
            }
            is_changed
        });
        *room = runs.encoded_bytes();
        let runs = runs.finish();
        let digest = ChunkDigest::new(&runs);
        Self {
            runs,
            pages,
            digest,
        }
    }
}

/// Whether a chunk changed more than a record carries.
pub(super) fn are_too_many(view: &View, held: &HeldPages) -> bool {
    let changed = || held.pages().filter(|&page| !view.equals_image(page));
    held.count() > PAGES_MAX && changed().count() > PAGES_MAX
}
