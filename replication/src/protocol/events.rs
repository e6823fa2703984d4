//! Events of a session on their way to the application.

use std::collections::VecDeque;

/// An event that may take in the one that follows it.
pub(super) trait Merge: Sized {
    /// Only shows that the peer lives, as every other event does too.
    fn is_bare_sign(&self) -> bool;
    /// Takes in `next` if one of the two says it all; returns it otherwise.
    fn merge(&mut self, next: Self) -> Result<(), Self>;
}

/// A queue in which news of the same kind are one event, however slowly it is read.
#[derive(Debug)]
pub(super) struct Events<E>(VecDeque<E>);

impl<E: Merge> Events<E> {
    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn push(&mut self, event: E) {
        if event.is_bare_sign() && !self.0.is_empty() {
            return;
        }
        match self.0.back_mut() {
            Some(last) if last.is_bare_sign() => *last = event,
            Some(last) => {
                if let Err(event) = last.merge(event) {
                    self.0.push_back(event);
                }
            }
            None => self.0.push_back(event),
        }
    }

    pub(super) fn pop(&mut self) -> Option<E> {
        self.0.pop_front()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
