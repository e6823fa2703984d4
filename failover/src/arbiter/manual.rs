//! The operator as arbiter.

use super::{Arbiter, ArbiterError, FileArbiter, Swap};
use crate::standing::{Phase, Revision, Standing, Versioned};

/// Grants come from the operator only: `samsaractl promote` on the host that is to carry on.
///
/// Each host keeps its own record, in a directory of its own, of what it held and of what its primary told it. So
/// terms keep rising across restarts, and a backup that is restarted as a primary by mistake is refused: its record
/// says that the other host holds the term. But the two records do not know each other: **promoting both hosts while
/// they cannot see each other makes two primaries**, and nothing but the operator prevents it. Before promoting one,
/// make sure that the other is down, or its outputs are cut off. Starting, and recording the end of the guest, need no
/// grant; taking the term from a guest that runs does, on the primary that lost its backup as well as on the backup.
#[derive(Debug)]
pub struct ManualArbiter {
    record: FileArbiter,
    permitted: bool,
}

impl ManualArbiter {
    /// An arbiter that keeps what this host knows in `record`, whose directory belongs to this host alone.
    pub fn new(record: FileArbiter) -> Self {
        Self {
            record,
            permitted: false,
        }
    }
}

impl Arbiter for ManualArbiter {
    fn read(&mut self) -> Result<Option<Versioned<Standing>>, ArbiterError> {
        self.record.read()
    }

    fn compare_and_swap(
        &mut self,
        expected: Option<Revision>,
        next: &Standing,
    ) -> Result<Swap, ArbiterError> {
        // A permit is for this swap, whatever becomes of it: one that stayed would decide a later question.
        let permitted = std::mem::take(&mut self.permitted);
        let current = self.record.read()?;
        if needs_operator(current.as_ref().map(|current| &current.value), next) && !permitted {
            return Err(ArbiterError::NeedsOperator);
        }
        self.record.compare_and_swap(expected, next)
    }

    fn observe(&mut self, told: &Standing) -> Result<(), ArbiterError> {
        let current = self.record.read()?;
        if current
            .as_ref()
            .is_none_or(|current| current.value.term < told.term)
        {
            // Lost means that somebody else of this host wrote a newer one: that is the one to keep.
            self.record
                .compare_and_swap(current.map(|current| current.revision), told)?;
        }
        Ok(())
    }

    fn permit(&mut self) {
        self.permitted = true;
    }
}

/// Whether `next` takes the guest, or the right to go on alone with it, from a term that is in force.
fn needs_operator(current: Option<&Standing>, next: &Standing) -> bool {
    current.is_some_and(|current| {
        current.phase != Phase::Ended
            && next.term > current.term
            && (next.phase == Phase::Running || next.holder != current.holder)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standing::{HostName, Term};

    fn standing(term: u64, holder: &str, phase: Phase) -> Standing {
        Standing::new(Term::new(term), HostName::new(holder).unwrap(), phase)
    }

    fn manual(directory: &std::path::Path) -> ManualArbiter {
        let host = HostName::new("beta").unwrap();
        ManualArbiter::new(FileArbiter::new(directory, "vm", host))
    }

    #[test]
    fn a_running_guest_is_taken_only_with_the_operators_word_for_that_swap() {
        let directory = tempfile::tempdir().unwrap();
        let mut arbiter = manual(directory.path());
        arbiter
            .observe(&standing(4, "alpha", Phase::Running))
            .unwrap();
        let revision = arbiter.read().unwrap().unwrap().revision;
        let next = standing(5, "beta", Phase::Running);
        let refused = arbiter.compare_and_swap(Some(revision), &next).unwrap_err();
        assert!(
            refused.to_string().contains("samsaractl promote"),
            "{refused}"
        );
        arbiter.permit();
        assert!(matches!(
            arbiter.compare_and_swap(Some(revision), &next),
            Ok(Swap::Won(_))
        ));
        let revision = arbiter.read().unwrap().unwrap().revision;
        let again = standing(6, "beta", Phase::Running);
        assert!(
            arbiter.compare_and_swap(Some(revision), &again).is_err(),
            "a permit is used once"
        );
    }

    #[test]
    fn starting_and_ending_need_no_operator_and_knowledge_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut arbiter = manual(directory.path());
        for (expected, phase) in [
            (None, Phase::Starting),
            (Some(1), Phase::Running),
            (Some(2), Phase::Ended),
        ] {
            let next = standing(1, "beta", phase);
            let swap = arbiter
                .compare_and_swap(expected.map(Revision), &next)
                .unwrap();
            assert!(matches!(swap, Swap::Won(_)), "{phase}");
        }
        let mut restarted = manual(directory.path());
        let known = restarted.read().unwrap().unwrap();
        assert_eq!(known.value, standing(1, "beta", Phase::Ended));
        restarted
            .observe(&standing(1, "alpha", Phase::Running))
            .unwrap();
        assert_eq!(
            restarted.read().unwrap().unwrap(),
            known,
            "an old word changes nothing"
        );
    }
}
