//! A host of a pair: what the decider decides is carried out here.
//!
//! Everything that happens comes in as an [`Input`] through one channel; the loop hands it to the
//! [`Decider`](samsara_failover::Decider) and carries its actions out in order. Tasks of their own
//! wait for the network, the arbiter and the machine's threads.
//!
//! - [`event_loop`]: the loop; [`actions`]: what the decider decides.
//! - [`primary`]: the way to a backup: listener, snapshot, acknowledgements.
//! - [`backup`]: the way to a primary: dialling, following, going live.
//! - [`disks`]: what its disks allow a host to do.

mod actions;
mod backup;
mod disks;
mod event_loop;
mod input;
mod primary;
mod setup;

use samsara_commitlog::StateDigest;
use samsara_config::Role;
use samsara_replication::QueueLimits;
use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::run::Base;

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The guest's exit status.
    pub(crate) status: u8,
    /// In words.
    pub(crate) how: String,
    /// The guest was stopped for what it did.
    pub(crate) is_fault: bool,
    /// The whole committed state, where this host has it.
    pub(crate) digest: Option<StateDigest>,
}

/// The operator says that this host may go on alone.
#[derive(Debug)]
pub(crate) struct Promotion {
    /// Whether that was possible.
    pub(crate) reply: oneshot::Sender<Result<(), String>>,
}

/// Runs a host of a pair until its guest ends, or it must stop.
pub(crate) async fn run(base: Base, role: Role, limits: QueueLimits) -> Result<Ended, Failure> {
    let mut node = setup::node(base, role, limits)?;
    let result = node.run().await;
    node.shut_down(result).await
}
