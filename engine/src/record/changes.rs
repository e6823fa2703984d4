//! The write set of a chunk, by value.

use std::sync::{Arc, Mutex, PoisonError};

use samsara_commitlog::{ByteRuns, ByteRunsBuilder, Effects, PAGE_BYTES};
use samsara_machine::machine::{Changed, ChunkDigest};
use samsara_machine::memory::{ChangedWords, PageIndex, View};

use super::buffers::Buffers;
use super::held::{HeldPages, Known};
use super::job::Job;
use super::rotation::Rotation;

/// Pages that one thread compares at a time.
const PART: usize = 64;

/// From so many on, others that wait are asked to help: waking them takes as long as comparing a hundred or two.
const SHARED_PAGES: usize = 256;

/// Words of a page, of 512, whose change makes it a dense one. It travels as a whole: the other words cost less to copy than to leave
/// out. And it is expected to be one the next time, too.
const DENSE_WORDS: u32 = 384;

/// Pages that the instruction of a load may still write when it gets its value.
const LOAD_PAGES_MAX: usize = 2;
/// The most pages that a chunk may have changed when it ends.
const PAGES_MAX: usize = Effects::PAGES_MAX - LOAD_PAGES_MAX;

/// The memory that a chunk changed.
pub(super) struct Changes {
    /// The bytes, where somebody reads them.
    pub(super) runs: Option<ByteRuns>,
    pub(super) pages: Vec<Changed>,
    pub(super) digest: ChunkDigest,
    /// So many bytes are in the words that changed.
    pub(super) bytes: u64,
    /// So many of the pages were held before the chunk: writing them cost no fault.
    pub(super) rewritten: usize,
    /// What others translated by the pages may be wrong once they see the changes.
    pub(super) voids_translations: bool,
}

/// How to look for changes.
pub(super) struct Search<'a> {
    pub(super) view: &'a Arc<View>,
    /// vCPUs that wait do a part of the work.
    pub(super) helpers: Option<&'a Rotation>,
    /// Whether there may be page tables that others have translations of among the pages.
    pub(super) may_be_tables: bool,
    /// Where the bytes are encoded into, if somebody reads them.
    pub(super) encode_in: Option<&'a Buffers>,
    /// How many bytes the last chunk's took: this one's may be as many.
    pub(super) room: usize,
}

/// A page that has changed.
struct Found {
    page: Changed,
    /// Nothing if it was not compared.
    words: Option<ChangedWords>,
}

impl Found {
    fn is_dense(&self) -> bool {
        let words = self.words.as_ref();
        words.is_none_or(|words| words.count() >= DENSE_WORDS)
    }

    fn bytes(&self) -> u64 {
        let words = self.words.as_ref();
        words.map_or(PAGE_BYTES as u64, |words| u64::from(words.count()) * 8)
    }

    fn encode(&self, view: &View, out: &mut ByteRunsBuilder) {
        match &self.words {
            Some(words) if !self.is_dense() => view.push_changes(self.page.page, words, out),
            _ => view.push_page(self.page.page, out),
        }
    }
}

/// Looks at a page: what is found if it has changed. Of a page that changed as a whole the last time a few words tell, as a rule, that it
/// has changed; that it has not, only comparing it tells.
fn look(view: &View, known: Known, may_be_tables: bool) -> Option<Found> {
    let Known { page, is_dense } = known;
    let found = |digest, words| Found {
        page: Changed { page, digest },
        words,
    };
    if is_dense && !may_be_tables && view.differs_here_and_there(page) {
        return Some(found(view.digest_page(page), None));
    }
    let words = view.changed_words(page)?;
    Some(found(view.digest_page(page), Some(words)))
}

impl Search<'_> {
    /// The pages of those held that differ from the image.
    pub(super) fn changes(&self, held: &mut HeldPages) -> Changes {
        let mut runs = self.encode_in.map(|buffers| buffers.builder(self.room));
        let (mut pages, mut are_dense) = (Vec::new(), Vec::new());
        let mut digest = ChunkDigest::default();
        let (mut bytes, mut voids_translations) = (0, false);
        let mut add = |found: Found| {
            if let Some(runs) = &mut runs {
                found.encode(self.view, runs);
            }
            voids_translations |= self.voids_translations(&found);
            bytes += found.bytes();
            digest.moved(self.view.digest_before(found.page.page), found.page.digest);
            are_dense.push(found.is_dense());
            pages.push(found.page);
        };
        match self.helpers {
            Some(rotation) if held.count() >= SHARED_PAGES && rotation.has_helpers() => {
                let parts = self.look_together(held.known().collect(), rotation);
                parts.into_iter().flatten().for_each(add);
            }
            _ => held
                .known()
                .filter_map(|known| look(self.view, known, self.may_be_tables))
                .for_each(&mut add),
        }
        let changed = pages.iter().map(|changed| changed.page).zip(are_dense);
        let rewritten = held.changed(changed);
        Changes {
            runs: runs
                .zip(self.encode_in)
                .map(|(runs, buffers)| buffers.finish(runs)),
            pages,
            digest,
            bytes,
            rewritten,
            voids_translations,
        }
    }

    fn voids_translations(&self, found: &Found) -> bool {
        let words = found.words.as_ref().filter(|_| self.may_be_tables);
        words.is_some_and(|words| self.view.voids_translations(found.page.page, words))
    }

    /// Looks at pages in parts, with those that wait.
    fn look_together(&self, pages: Vec<Known>, rotation: &Rotation) -> Vec<Vec<Found>> {
        let found: Arc<[Mutex<Option<Vec<_>>>]> =
            pages.chunks(PART).map(|_| Mutex::default()).collect();
        let may_be_tables = self.may_be_tables;
        rotation.share(Job::new(found.len(), {
            let (view, found) = (Arc::clone(self.view), Arc::clone(&found));
            move |number| {
                let part = pages.chunks(PART).nth(number).unwrap_or_default();
                let looks = part.iter();
                let changed = looks.filter_map(|&known| look(&view, known, may_be_tables));
                let changed = changed.collect();
                *found[number].lock().unwrap_or_else(PoisonError::into_inner) = Some(changed);
            }
        }));
        let take = |part: &Mutex<Option<_>>| part.lock().ok()?.take();
        let parts = found.iter().map(take);
        parts
            .collect::<Option<_>>()
            .expect("invariant 6: every held page has been compared")
    }
}

/// Whether a page is among these.
pub(super) fn has(changed: &[Changed], page: PageIndex) -> bool {
    changed
        .binary_search_by_key(&page, |changed| changed.page)
        .is_ok()
}

/// Pages as they are in a view, whatever of them has changed.
pub(super) fn whole_pages(view: &View, pages: &[Changed]) -> ByteRuns {
    let mut runs = ByteRunsBuilder::default();
    for changed in pages {
        view.push_page(changed.page, &mut runs);
    }
    runs.finish()
}

/// Whether a chunk changed more than a record carries.
pub(super) fn are_too_many(view: &View, held: &HeldPages) -> bool {
    let changed = || held.pages().filter(|&page| !view.equals_image(page));
    held.count() > PAGES_MAX && changed().count() > PAGES_MAX
}

#[cfg(test)]
mod tests {
    use samsara_commitlog::{Gpa, Shape};
    use samsara_machine::memory::Image;

    use super::super::held::{DOUBT_EVERY, PageSet};
    use super::*;

    const PAGE: PageIndex = PageIndex(3);
    const AT: u64 = PAGE.0 as u64 * PAGE_BYTES as u64;

    struct Fixture {
        view: Arc<View>,
        held: HeldPages,
        buffers: Buffers,
    }

    impl Fixture {
        fn new() -> Self {
            let image = Image::new(Shape {
                vcpu_count: 1,
                memory_bytes: 16 << 20,
            });
            let image = Arc::new(image.unwrap());
            let view = Arc::new(View::new(&image).unwrap());
            let set = PageSet::new(view.layout().page_count());
            let mut held = HeldPages::default();
            held.insert(&set, PAGE);
            let buffers = Buffers::new(1);
            Self {
                view,
                held,
                buffers,
            }
        }

        /// Has the words of the page differ from the image, up to this one.
        fn store(&self, words: u64, value: u64) {
            for word in 0..512 {
                let value = if word < words { value } else { 0 };
                self.view.store(Gpa(AT + 8 * word), value).unwrap();
            }
        }

        fn changes(&mut self) -> Changes {
            self.held.end_chunk();
            let search = Search {
                view: &self.view,
                helpers: None,
                may_be_tables: false,
                encode_in: Some(&self.buffers),
                room: 0,
            };
            search.changes(&mut self.held)
        }

        /// Bytes in the runs of the next chunk, whose digest is that of a page with these words.
        fn run_bytes(&mut self, words: u64, value: u64) -> u64 {
            self.store(words, value);
            let found = self.changes();
            assert_eq!(found.pages.len(), 1);
            let mut fresh = Self::new();
            fresh.store(words, value);
            assert_eq!(fresh.changes().digest, found.digest);
            let runs = found.runs.unwrap();
            assert_eq!(runs.iter().next().unwrap().0, AT);
            runs.run_bytes()
        }
    }

    #[test]
    fn a_dense_page_is_taken_whole_until_it_is_looked_at() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.run_bytes(1, 1), 1);
        assert_eq!(fixture.run_bytes(400, 2), PAGE_BYTES as u64);
        let run_bytes: Vec<_> = (0..DOUBT_EVERY).map(|_| fixture.run_bytes(40, 1)).collect();
        let split = run_bytes
            .iter()
            .position(|&bytes| bytes < PAGE_BYTES as u64);
        let (whole, rest) = run_bytes.split_at(split.expect("a look"));
        assert!(whole.iter().all(|&bytes| bytes == PAGE_BYTES as u64));
        assert!(rest.iter().all(|&bytes| bytes == 39 * 8 + 1), "{rest:?}");
    }

    #[test]
    fn a_dense_page_that_has_not_changed_is_none_of_the_changes() {
        let mut fixture = Fixture::new();
        fixture.run_bytes(400, 2);
        for _ in 0..DOUBT_EVERY {
            fixture.store(0, 0);
            let found = fixture.changes();
            assert!(found.pages.is_empty());
            assert_eq!(found.digest, ChunkDigest::default());
        }
    }

    #[test]
    fn a_dense_page_of_which_one_word_changed_is_found() {
        let mut fixture = Fixture::new();
        fixture.run_bytes(400, 2);
        assert_eq!(fixture.run_bytes(1, 1), 1);
    }

    #[test]
    fn without_readers_nothing_is_encoded() {
        let mut fixture = Fixture::new();
        fixture.store(2, 7);
        fixture.held.end_chunk();
        let search = Search {
            view: &fixture.view,
            helpers: None,
            may_be_tables: false,
            encode_in: None,
            room: 0,
        };
        let found = search.changes(&mut fixture.held);
        assert!(found.runs.is_none());
        assert_eq!(found.bytes, 16);
        let late = whole_pages(&fixture.view, &found.pages);
        assert_eq!(late.run_bytes(), PAGE_BYTES as u64);
    }
}
