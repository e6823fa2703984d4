//! The write set of a chunk, by value.

use std::sync::{Arc, Mutex, PoisonError};

use samsara_commitlog::{ByteRuns, ByteRunsBuilder, Effects};
use samsara_machine::machine::ChunkDigest;
use samsara_machine::memory::{ChangedWords, PageIndex, View};

use super::buffers::Buffers;
use super::held::HeldPages;
use super::job::Job;
use super::rotation::Rotation;

/// Pages that one thread compares at a time.
const PART: usize = 64;

/// Words of a page, of 512, whose change makes it one that travels as a whole: the others cost less to copy than to leave out.
const DENSE_WORDS: u32 = 384;

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

/// Changes as they are found: each page is compared, encoded and digested while it is in the processor's cache.
struct Finding<'a> {
    view: &'a View,
    /// Whether there may be page tables that others have translations of among the pages.
    may_be_tables: bool,
    runs: ByteRunsBuilder,
    digest: ChunkDigest,
    pages: Vec<PageIndex>,
    voids_translations: bool,
}

impl Finding<'_> {
    /// Adds the words of a page that have changed. What is encoded follows from the chunk alone: whoever runs it again must
    /// come to the same digest.
    fn add(&mut self, page: PageIndex, changed: &ChangedWords) {
        self.voids_translations |=
            self.may_be_tables && self.view.voids_translations(page, changed);
        let begin = self.runs.encoded().len();
        if changed.count() >= DENSE_WORDS {
            self.view.push_page(page, &mut self.runs);
        } else {
            self.view.push_changes(page, changed, &mut self.runs);
        }
        self.digest.add(&self.runs.encoded()[begin..]);
        self.pages.push(page);
    }
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
        buffers: &Buffers,
    ) -> Self {
        let mut finding = Finding {
            view,
            may_be_tables,
            runs: buffers.builder(*room),
            digest: ChunkDigest::default(),
            pages: Vec::new(),
            voids_translations: false,
        };
        match helpers {
            Some(rotation) if held.count() > PART && rotation.has_line() => {
                let parts = compare_together(view, held.pages().collect(), rotation);
                let changed = parts.into_iter().flatten();
                changed.for_each(|(page, changed)| finding.add(page, &changed));
            }
            _ => changed_pages(view, held.pages())
                .for_each(|(page, changed)| finding.add(page, &changed)),
        }
        let Finding {
            runs,
            digest,
            pages,
            voids_translations,
            ..
        } = finding;
        let rewritten = held.changed(&pages);
        *room = runs.encoded().len();
        Self {
            runs: buffers.finish(runs),
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

#[cfg(test)]
mod tests {
    use samsara_commitlog::{Gpa, PAGE_BYTES, Shape};
    use samsara_machine::memory::Image;

    use super::super::held::PageSet;
    use super::*;

    const PAGE: PageIndex = PageIndex(3);
    const AT: u64 = PAGE.0 as u64 * PAGE_BYTES as u64;

    fn changes(view: &Arc<View>, held: &mut HeldPages) -> Changes {
        held.end_chunk();
        Changes::find(view, held, &mut 0, None, false, &Buffers::new(1))
    }

    /// A page that changed nearly as a whole is taken as a whole, whatever it did before.
    #[test]
    fn dense_pages_are_taken_whole() {
        let image = Image::new(Shape {
            vcpu_count: 1,
            memory_bytes: 16 << 20,
        });
        let image = Arc::new(image.unwrap());
        let view = Arc::new(View::new(&image).unwrap());
        let set = PageSet::new(view.layout().page_count());
        let mut held = HeldPages::default();
        held.insert(&set, PAGE);
        let store = |words: u64, value| {
            for word in 0..words {
                view.store(Gpa(AT + 8 * word), value).unwrap();
            }
        };
        // The image stays as it is: what differs from it adds up.
        store(1, 1);
        assert_eq!(changes(&view, &mut held).runs.run_bytes(), 1);
        store(400, 2);
        for _ in 0..2 {
            let found = changes(&view, &mut held);
            assert_eq!(found.pages, [PAGE]);
            assert_eq!(found.runs.iter().next().unwrap().0, AT);
            assert_eq!(found.runs.run_bytes(), PAGE_BYTES as u64);
        }
        store(400, 0);
        assert!(changes(&view, &mut held).pages.is_empty());
    }
}
