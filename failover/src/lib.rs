//! Roles, terms, failure detection, arbiters: which host may run the guest and release its outputs.
//!
//! Two hosts, one VM. A [`Decider`] on each decides from what it is told and says what to do; a [`Detector`] finds out
//! whether the peer is alive; an [`Arbiter`] keeps the [`Standing`], the one record that settles every dispute. The
//! deciders and the detector do no I/O and read no clock; the arbiters block.

#![forbid(unsafe_code)]

mod arbiter;
mod decider;
mod detector;
mod moment;
#[cfg(test)]
mod simulation;
mod standing;

pub use arbiter::{
    Arbiter, ArbiterAnswer, ArbiterError, ArbiterRequest, FileArbiter, ManualArbiter, Swap,
};
pub use decider::{
    Action, Change, Decider, Event, GateMode, GaveUp, PromoteRefused, SessionId, Settings,
    SettledBy, Situation, StartPolicy, Status, StopReason, SyncMark,
};
pub use detector::{Detector, LossCause, Verdict};
pub use moment::Moment;
pub use standing::{
    BadHostName, HostName, MAX_HOST_NAME_BYTES, Phase, Revision, Standing, Term, Versioned,
};
