//! Arbiters: what settles who may run the guest, by compare-and-swap of one [`Standing`].
//!
//! The calls block. The daemon runs them on a thread of their own, one at a time and in the order in which the
//! decider asked ([`ArbiterRequest::run`]), and feeds the answer back in.

mod file;
mod manual;

use std::path::PathBuf;

pub use file::FileArbiter;
pub use manual::ManualArbiter;

use crate::standing::{Revision, Standing, Versioned};

/// Keeps one standing and changes it by compare-and-swap only.
///
/// What it promises: of all the swaps that expect the same revision at most one is ever won, and what it has once
/// reported as current or won is never forgotten.
pub trait Arbiter: Send {
    /// The current standing; none if there never was one.
    fn read(&mut self) -> Result<Option<Versioned<Standing>>, ArbiterError>;

    /// Replaces the standing if its revision is still `expected` (none: if there is no standing yet).
    fn compare_and_swap(
        &mut self,
        expected: Option<Revision>,
        next: &Standing,
    ) -> Result<Swap, ArbiterError>;

    /// Tells an arbiter that has only local knowledge what the peer said it holds. Others look for themselves.
    fn observe(&mut self, _told: &Standing) -> Result<(), ArbiterError> {
        Ok(())
    }

    /// The operator's word for the very next swap. Means nothing where the arbiter itself decides.
    fn permit(&mut self) {}
}

/// How a compare-and-swap ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The new standing is in force, under this revision.
    Won(Revision),
    /// It is not: this one was there first (none: there is no standing at all).
    Lost(Option<Versioned<Standing>>),
}

/// Why an arbiter gave no answer. The one-line text says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// It cannot be asked at present, and nothing has changed.
    #[error("arbiter directory {} is not usable ({source}): mount or create it, and let this user write there", path.display())]
    Unreachable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The swap was on its way when the answer failed to come: it may count, now or later, or never.
    #[error("whether the arbiter took {next} is not known: {reason}")]
    Unsettled {
        /// What was to be the new standing.
        next: Standing,
        /// What went wrong.
        reason: String,
    },
    /// A record is not one of ours, or damaged.
    #[error("arbiter record {} is not usable: {reason}; move it away if no host runs this VM", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The arbiter is the operator, who has not spoken yet.
    #[error(
        "waiting for the operator: run `samsaractl promote` on the one host that is to carry on, and on no other"
    )]
    NeedsOperator,
    /// Any other arbiter's trouble that certainly changed nothing.
    #[error("arbiter: {0}")]
    Other(String),
}

impl ArbiterError {
    /// Whether the swap that failed so may have happened, or may still happen.
    pub fn is_unsettled(&self) -> bool {
        matches!(self, Self::Unsettled { .. })
    }
}

/// What a decider wants of the arbiter. One is out at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArbiterRequest {
    /// Read the standing.
    Read {
        /// What the peer said it holds, for an arbiter that has only local knowledge.
        told: Option<Standing>,
    },
    /// Replace the standing.
    Swap {
        /// The revision it must still have.
        expected: Option<Revision>,
        /// The new standing.
        next: Standing,
        /// Whether the operator has asked for it.
        permit: bool,
    },
}

/// The answer to an [`ArbiterRequest`], to be handed to the decider that asked.
#[derive(Debug)]
pub enum ArbiterAnswer {
    /// To a read.
    Read(Result<Option<Versioned<Standing>>, ArbiterError>),
    /// To a swap.
    Swap(Result<Swap, ArbiterError>),
}

impl ArbiterRequest {
    /// Asks the arbiter; blocks as long as the arbiter does.
    pub fn run(self, arbiter: &mut dyn Arbiter) -> ArbiterAnswer {
        match self {
            Self::Read { told } => ArbiterAnswer::Read(
                told.map_or(Ok(()), |told| arbiter.observe(&told))
                    .and_then(|()| arbiter.read()),
            ),
            Self::Swap {
                expected,
                next,
                permit,
            } => {
                if permit {
                    arbiter.permit();
                }
                ArbiterAnswer::Swap(arbiter.compare_and_swap(expected, &next))
            }
        }
    }
}
