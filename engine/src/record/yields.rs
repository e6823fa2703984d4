//! Where in its program a vCPU yields because it waits for another, and where only to publish what it did.
//!
//! Told by what came of it: a chunk that follows a YIELD with no news from others, and only yields once more, has looked
//! in vain. A vCPU that yields where that is usual need not look before others have committed.

/// Places that are known at a time.
const PLACES_MAX: usize = 8;
/// From so many looks in vain on, less those that were not, a place is one where the vCPU waits.
const WAITS: u8 = 2;
/// More than these say nothing new.
const LOOKS_MAX: u8 = 4;

#[derive(Clone, Copy, Debug)]
struct Place {
    rip: u64,
    /// Looks in vain, less those that were not.
    in_vain: u8,
}

/// The places where one vCPU yields.
#[derive(Debug, Default)]
pub(super) struct Yields {
    places: Vec<Place>,
    /// Where the last chunk that committed ended, if it yielded.
    last: Option<u64>,
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

    /// Whether the vCPU that yields there waits for another.
    pub(super) fn is_wait(&self, rip: u64) -> bool {
        let place = self.places.iter().find(|place| place.rip == rip);
        place.is_some_and(|place| place.in_vain >= WAITS)
    }

    fn count(&mut self, rip: u64, was_in_vain: bool) {
        if let Some(place) = self.places.iter_mut().find(|place| place.rip == rip) {
            place.in_vain = if was_in_vain {
                (place.in_vain + 1).min(LOOKS_MAX)
            } else {
                place.in_vain.saturating_sub(1)
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
        for _ in 0..3 {
            look(&mut yields, 7, false, false);
        }
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
    fn few_places_are_known_at_a_time() {
        let mut yields = Yields::default();
        for rip in 0..1000 {
            look(&mut yields, rip, true, false);
            look(&mut yields, rip, true, false);
        }
        assert_eq!(yields.places.len(), PLACES_MAX);
    }
}
