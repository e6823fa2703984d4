//! Where in its program a vCPU yields because it waits for another, and where only to publish what it did.
//!
//! Told by what came of it: a chunk that follows a YIELD with no news from others, and only yields once more, has looked
//! in vain. A vCPU that yields where that is usual need not look before others have committed. But one that yields to tell
//! how far it has come looks the same: who rests for nothing again and again does so less and less often.

/// Places that are known at a time.
const PLACES_MAX: usize = 8;
/// From so many looks in vain in a row on, a place is one where the vCPU waits.
const WAITS: u8 = 2;
/// Rests in a row that brought no news, after which a vCPU does without for some YIELDs: so many the first time, and twice
/// as many each time after that, up to this.
const RESTS_FOR_NOTHING: u32 = 4;
const WITHOUT_MIN: u32 = 64;
const WITHOUT_MAX: u32 = 1 << 14;

#[derive(Clone, Copy, Debug)]
struct Place {
    rip: u64,
    /// Looks in vain, in a row.
    in_vain: u8,
}

/// The places where one vCPU yields.
#[derive(Debug, Default)]
pub(super) struct Yields {
    places: Vec<Place>,
    /// Where the last chunk that committed ended, if it yielded.
    last: Option<u64>,
    /// Rests in a row that brought no news.
    for_nothing: u32,
    /// YIELDs after which the vCPU does not rest, still and the next time.
    without_left: u32,
    without: u32,
}

/// What a chunk that committed tells.
pub(super) struct Seen {
    /// Where it ended, if it yielded.
    pub(super) yielded_at: Option<u64>,
    /// It did nothing but look whether it may go on, and may not.
    pub(super) was_in_vain: bool,
    /// Others had committed since the last one that did.
    pub(super) had_news: bool,
}

impl Yields {
    pub(super) fn committed(&mut self, seen: &Seen) {
        let last = std::mem::replace(&mut self.last, seen.yielded_at);
        if let Some(rip) = last.filter(|_| !seen.had_news) {
            self.count(rip, seen.was_in_vain);
        }
    }

    /// Whether the vCPU that has yielded there rests.
    pub(super) fn rests(&mut self, rip: u64) -> bool {
        if self.without_left > 0 {
            self.without_left -= 1;
            return false;
        }
        self.is_wait(rip)
    }

    /// Whether the vCPU that yields there waits for another.
    fn is_wait(&self, rip: u64) -> bool {
        let place = self.places.iter().find(|place| place.rip == rip);
        place.is_some_and(|place| place.in_vain >= WAITS)
    }

    /// The vCPU has rested, and there was news or none.
    pub(super) fn rested(&mut self, had_news: bool) {
        if had_news {
            self.for_nothing = 0;
            self.without = 0;
            return;
        }
        self.for_nothing += 1;
        if self.for_nothing == RESTS_FOR_NOTHING {
            self.for_nothing = 0;
            self.without = (self.without * 2).clamp(WITHOUT_MIN, WITHOUT_MAX);
            self.without_left = self.without;
        }
    }

    fn count(&mut self, rip: u64, was_in_vain: bool) {
        if let Some(place) = self.places.iter_mut().find(|place| place.rip == rip) {
            place.in_vain = if was_in_vain {
                place.in_vain.saturating_add(1)
            } else {
                0
            };
        } else if was_in_vain {
            if self.places.len() == PLACES_MAX {
                // The one that has been known for longest.
                self.places.remove(0);
            }
            self.places.push(Place { rip, in_vain: 1 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(yields: &mut Yields, rip: u64, was_in_vain: bool, had_news: bool) {
        yields.committed(&Seen {
            yielded_at: Some(rip),
            was_in_vain,
            had_news,
        });
    }

    #[test]
    fn a_place_is_one_to_wait_at_once_looks_from_there_were_in_vain() {
        let mut yields = Yields::default();
        look(&mut yields, 7, false, false);
        look(&mut yields, 7, true, false);
        assert!(!yields.is_wait(7), "once may be chance");
        look(&mut yields, 7, true, true);
        assert!(!yields.is_wait(7), "what others did may have been in vain");
        look(&mut yields, 7, true, false);
        assert!(yields.is_wait(7));
        assert!(!yields.is_wait(8));
        look(&mut yields, 7, false, false);
        assert!(!yields.is_wait(7));
    }

    #[test]
    fn where_it_goes_on_the_vcpu_does_not_wait() {
        let mut yields = Yields::default();
        for _ in 0..100 {
            // It publishes at 3, goes on, and waits at 7.
            look(&mut yields, 3, true, true);
            look(&mut yields, 7, false, false);
            look(&mut yields, 7, true, false);
        }
        assert!(yields.is_wait(7));
        assert!(!yields.is_wait(3));
    }

    #[test]
    fn who_rests_for_nothing_does_so_less_and_less_often() {
        let mut yields = Yields::default();
        look(&mut yields, 7, true, false);
        look(&mut yields, 7, true, false);
        look(&mut yields, 7, true, false);
        let mut rests = |news: bool, count: u32| {
            let mut rested = 0;
            for _ in 0..count {
                if yields.rests(7) {
                    yields.rested(news);
                    rested += 1;
                }
            }
            rested
        };
        assert_eq!(rests(false, 4 + 64), 4);
        assert_eq!(rests(false, 4 + 128), 4);
        assert_eq!(rests(false, 4 + 256), 4);
        assert_eq!(rests(true, 100), 100);
        assert_eq!(rests(false, 4 + 64), 4, "news were a new beginning");
        assert!(rests(false, 1_000_000) < 400);
    }

    #[test]
    fn few_places_are_known_at_a_time() {
        let mut yields = Yields::default();
        for rip in 0..1000 {
            look(&mut yields, rip, true, false);
            look(&mut yields, rip, true, false);
        }
        assert_eq!(yields.places.len(), PLACES_MAX);
    }
}
