//! What a decider is told once.

use crate::standing::HostName;

/// When the guest may execute its first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartPolicy {
    /// When a backup is in sync, however long that takes.
    Protected,
    /// At once.
    Alone,
}

/// Who settles which host carries on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettledBy {
    /// An arbiter that both hosts ask.
    Arbiter,
    /// The operator, by `samsaractl promote`.
    Operator,
}

/// What a decider is told once, from the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This host.
    pub host: HostName,
    /// The other host.
    pub peer: HostName,
    /// When the guest may start (`failover.start`).
    pub start: StartPolicy,
    /// Who settles which host carries on (`failover.arbiter`).
    pub settled_by: SettledBy,
    /// Whether this backup has what it takes to start the guest itself: a program.
    pub can_boot: bool,
    /// How long a primary that is restarted over its own running guest leaves the backup to carry on with it.
    pub reclaim_after_ms: u64,
    /// How long a backup that is not in sync leaves a primary that has not started the guest to come back.
    pub boot_after_ms: u64,
    /// How long a primary whose guest has ended tries to record that, before it exits anyway.
    pub end_patience_ms: u64,
    #[cfg(test)]
    pub(crate) fault: Option<Fault>,
}

impl Settings {
    /// The defaults, for these two hosts.
    pub fn new(host: HostName, peer: HostName) -> Self {
        Self {
            host,
            peer,
            start: StartPolicy::Protected,
            settled_by: SettledBy::Arbiter,
            can_boot: false,
            reclaim_after_ms: 2000,
            boot_after_ms: 1000,
            end_patience_ms: 5000,
            #[cfg(test)]
            fault: None,
        }
    }

    /// Whether a guard is left out, to show that the simulation notices. Never outside this crate's tests.
    #[cfg_attr(
        not(test),
        expect(clippy::unused_self, reason = "nothing is broken in a product")
    )]
    pub(super) fn broken(&self, fault: Fault) -> bool {
        #[cfg(test)]
        {
            self.fault == Some(fault)
        }
        #[cfg(not(test))]
        {
            let _ = fault;
            false
        }
    }
}

/// A guard of the protocol that a test can leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A primary that lost its backup goes on without the arbiter.
    OpenWithoutTerm,
    /// A backup is told that it is in sync while the gate is open.
    TellBeforeGuarding,
    /// A backup is told that it is in sync before it has what left while the gate was open.
    TellBeforeCaughtUp,
    /// A backup that is not in sync goes live.
    GoLiveUnsynced,
    /// A backup keeps its right when it joins another session.
    KeepRight,
    /// A backup joins a session while its own swap may still count.
    JoinUnsettled,
    /// A primary takes any backup that joins for the one that gave up its right.
    AnyoneGaveUp,
    /// The guest runs before the arbiter knows.
    RunBeforeRecorded,
    /// A backup starts anew a guest that has run.
    BootRunningGuest,
    /// A primary that lost the term goes on.
    IgnoreLostTerm,
}
