//! The write set of a chunk, by value.

use std::sync::{Arc, OnceLock};

use samsara_commitlog::{ByteRuns, ByteRunsBuilder, Effects};
use samsara_machine::machine::ChunkDigest;
use samsara_machine::memory::{ChangedWords, PageIndex, View};

use super::held::HeldPages;
use super::job::Job;
use super::rotation::Rotation;

/// Pages that one thread compares at a time.
const PART: usize = 64;

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
    /// chunk's encoded runs took, and then this one's: they may be as many. Vcpus that wait for their
    /// turn help to compare.
    pub(super) fn find(
        view: &Arc<View>,
        held: &mut HeldPages,
        room: &mut usize,
        rotation: &Rotation,
    ) -> Self {
        let mut runs = ByteRunsBuilder::with_capacity(*room);
        let mut pages = Vec::new();
        for (page, changed) in changed_pages(view, held.pages().collect(), rotation) {
            view.push_changes(page, &changed, &mut runs);
            pages.push(page);
        }
        held.changed(&pages);
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

/// Those of `pages` that differ from the image, in the same order.
fn changed_pages(
    view: &Arc<View>,
    pages: Vec<PageIndex>,
    rotation: &Rotation,
) -> Vec<(PageIndex, ChangedWords)> {
    let parts: Arc<[OnceLock<Vec<_>>]> = pages.chunks(PART).map(|_| OnceLock::new()).collect();
    rotation.share(Job::new(parts.len(), {
        let (view, parts) = (Arc::clone(view), Arc::clone(&parts));
        move |number| {
            let part = pages.chunks(PART).nth(number).unwrap_or_default();
            let changed = part
                .iter()
                .filter_map(|&page| Some((page, view.changed_words(page)?)));
            parts[number].get_or_init(|| changed.collect());
        }
    }));
    let found = |part: &OnceLock<Vec<_>>| part.get().cloned().expect("every part has been done");
    parts.iter().flat_map(found).collect()
}

/// Whether a chunk changed more than a record carries.
pub(super) fn are_too_many(view: &View, held: &HeldPages) -> bool {
    let changed = || held.pages().filter(|&page| !view.equals_image(page));
    held.count() > PAGES_MAX && changed().count() > PAGES_MAX
}
