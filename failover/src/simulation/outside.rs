//! The outside world: sees what the hosts release, and complains.

use std::collections::BTreeMap;

use crate::standing::Term;

/// Which process of which host.
pub(super) type Emitter = (usize, u64);

/// Everything that was ever released, as seen from outside.
#[derive(Debug, Default)]
pub(super) struct Outside {
    /// The guest whose outputs these are.
    guest: Option<u32>,
    seen: Vec<u64>,
    /// The next output of whoever emits now; none before its first.
    next: Option<usize>,
    /// Who let a guest run, in the term in which it began.
    reigns: BTreeMap<Term, Emitter>,
    /// Guests before this one were given up.
    first_guest: u32,
    pub(super) failovers: u64,
    pub(super) late_repeats: u64,
    pub(super) total: u64,
}

impl Outside {
    /// The arbiter has taken a host that an operator told to be primary at its word: guests before `next` are given up.
    pub(super) fn give_up(&mut self, next: u32) {
        self.first_guest = next;
    }

    /// A guest is made.
    pub(super) fn boot(&mut self, guest: u32) -> Result<(), String> {
        let heard = !self.seen.is_empty() && self.guest.is_some_and(|old| old >= self.first_guest);
        if heard {
            return Err(format!(
                "guest {guest} made anew, though {:?} was heard",
                self.guest
            ));
        }
        self.first_guest = guest;
        Ok(())
    }

    /// A process lets a guest run, from its start or from the last commit.
    pub(super) fn run(&mut self, emitter: Emitter, term: Term) -> Result<(), String> {
        if let Some(before) = self.reigns.get(&term).filter(|&&before| before != emitter) {
            return Err(format!("term {term} used by {before:?} and {emitter:?}"));
        }
        // One that hears late of an earlier term takes nothing over.
        if self
            .reigns
            .last_key_value()
            .is_none_or(|(&last, _)| last < term)
        {
            self.failovers += u64::from(!self.reigns.is_empty());
            self.next = None;
        }
        self.reigns.insert(term, emitter);
        Ok(())
    }

    /// A backup goes live with this guest, after these commits.
    pub(super) fn go_live(&self, guest: Option<u32>, commits: &[u64]) -> Result<(), String> {
        if guest.is_none_or(|guest| guest < self.first_guest) {
            return Err(format!(
                "live with guest {guest:?}, replaced by {}",
                self.first_guest
            ));
        }
        if guest == self.guest && !commits.starts_with(&self.seen) {
            return Err(format!(
                "live without what the outside has seen of guest {guest:?}"
            ));
        }
        Ok(())
    }

    /// Output `index` of `guest` has left.
    pub(super) fn emit(
        &mut self,
        emitter: Emitter,
        guest: u32,
        index: usize,
        value: u64,
    ) -> Result<(), String> {
        let what = format!("output {index} of guest {guest} from {emitter:?}");
        if guest < self.first_guest {
            return Err(format!(
                "{what}: that guest was replaced by {}",
                self.first_guest
            ));
        }
        if self.guest != Some(guest) {
            self.guest = Some(guest);
            self.seen.clear();
        }
        let current = self.reigns.last_key_value().map(|(_, &current)| current);
        if current != Some(emitter) {
            return self.late(&what, current, index, value);
        }
        if *self.next.get_or_insert(index) != index {
            return Err(format!(
                "{what}: repeated or left out, {:?} was next",
                self.next
            ));
        }
        self.next = Some(index + 1);
        self.total += 1;
        match self.seen.get(index) {
            Some(&before) if before != value => Err(format!("{what}: another history was seen")),
            Some(_) => Ok(()),
            None if index == self.seen.len() => {
                self.seen.push(value);
                Ok(())
            }
            None => Err(format!("{what}: a gap, {} were seen", self.seen.len())),
        }
    }

    /// A primary that was suspended finds acknowledgements in its queue when it wakes, and releases what they are
    /// for before it learns that it was replaced. Its successor has released the same: only a repeat is harmless.
    fn late(
        &mut self,
        what: &str,
        current: Option<Emitter>,
        index: usize,
        value: u64,
    ) -> Result<(), String> {
        if self.seen.get(index) == Some(&value) {
            self.late_repeats += 1;
            return Ok(());
        }
        Err(format!(
            "{what}: {current:?} runs the guest, and this was not seen"
        ))
    }
}
