//! The write set of a chunk, by value.

use std::sync::{Arc, Mutex, PoisonError};

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
    /// So many of the pages were held before the chunk: writing them cost no fault.
    pub(super) rewritten: usize,
    /// What others translated by the pages may be wrong once they see the changes.
    pub(super) voids_translations: bool,
}

impl Changes {
    /// The bytes in which the held pages differ from the image. `room` is how many bytes the last
    /// chunk's encoded runs took, and then this one's: they may be as many. With `helpers`, vCPUs that
    /// wait for their turn compare a part of the pages. Only where there `may_be_tables` among the pages is that looked at.
    pub(super) fn find(
        view: &Arc<View>,
        held: &mut HeldPages,
        room: &mut usize,
        helpers: Option<&Rotation>,
        may_be_tables: bool,
    ) -> Self {
        let mut runs = ByteRunsBuilder::with_capacity(*room);
        let mut pages = Vec::new();
        let mut voids_translations = false;
        let mut add = |(page, changed)| {
            voids_translations |= may_be_tables && view.voids_translations(page, &changed);
            view.push_changes(page, &changed, &mut runs);
            pages.push(page);
        };
        match helpers {
            Some(rotation) if held.count() > PART => {
                let parts = compare_together(view, held.pages().collect(), rotation);
                parts.into_iter().flatten().for_each(&mut add);
            }
            _ => changed_pages(view, held.pages()).for_each(&mut add),
        }
        let rewritten = held.changed(&pages);
        *room = runs.encoded_bytes();
        let runs = runs.finish();
        let digest = ChunkDigest::new(&runs);
        Self {
            runs,
            pages,
            digest,
            rewritten,
            voids_translations,
        }
    }
}

/// Those of `pages` that differ from the image, in the same order.
fn changed_pages(
    view: &View,
    pages: impl Iterator<Item = PageIndex>,
) -> impl Iterator<Item = (PageIndex, ChangedWords)> {
    pages.filter_map(|page| Some((page, view.changed_words(page)?)))
}

/// The same, by parts, with those that wait for their turn.
fn compare_together(
    view: &Arc<View>,
    pages: Vec<PageIndex>,
    rotation: &Rotation,
) -> Vec<Vec<(PageIndex, ChangedWords)>> {
    let found: Arc<[Mutex<Option<Vec<_>>>]> =
        pages.chunks(PART).map(|_| Mutex::default()).collect();
    rotation.share(Job::new(found.len(), {
        let (view, found) = (Arc::clone(view), Arc::clone(&found));
        move |number| {
            let part = pages.chunks(PART).nth(number).unwrap_or_default();
            let changed = changed_pages(&view, part.iter().copied()).collect();
            *found[number].lock().unwrap_or_else(PoisonError::into_inner) = Some(changed);
        }
    }));
    let take = |part: &Mutex<Option<_>>| part.lock().ok()?.take();
    let parts = found.iter().map(take);
    parts
        .collect::<Option<_>>()
        .expect("invariant 6: every held page has been compared")
}

/// Whether a chunk changed more than a record carries.
pub(super) fn are_too_many(view: &View, held: &HeldPages) -> bool {
    let changed = || held.pages().filter(|&page| !view.equals_image(page));
    held.count() > PAGES_MAX && changed().count() > PAGES_MAX
}
