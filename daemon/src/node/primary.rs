//! The way to a backup.

use std::sync::Arc;
use std::time::Duration;

use samsara_commitlog::CommitSeq;
use samsara_machine::Machine;
use samsara_replication::protocol::{Admission, PrimaryEvent, RefuseReason};
use samsara_replication::transport::{
    LinkEvent, ListenError, Listener, ListenerEvent, PrimaryLink,
};
use samsara_replication::{CommitQueue, QueueLimits};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::input::Input;
use crate::failure::Failure;
use crate::snapshot;
use crate::world::World;

/// Pause between two messages of the same stranger.
const STRANGER_PAUSE: Duration = Duration::from_secs(5);

/// Listens for backups for as long as the process lives.
pub(super) async fn listen(
    mut listener: Listener,
    mut admissions: watch::Receiver<Admission>,
    inputs: mpsc::UnboundedSender<Input>,
) {
    let mut last_told: Option<(String, std::time::Instant)> = None;
    loop {
        tokio::select! {
            changed = admissions.changed() => {
                if changed.is_err() {
                    return;
                }
                listener.set_admission(admissions.borrow_and_update().clone());
            }
            event = listener.next() => match event {
                ListenerEvent::Backup(link) => {
                    tokio::spawn(await_join(link, inputs.clone()));
                }
                ListenerEvent::Rejected { error: ListenError::Refused(refusal), .. }
                    if refusal.reason == RefuseReason::NotPrimary => {}
                ListenerEvent::Rejected { remote, error } => {
                    let text = format!("a host at {remote} was not taken as backup: {error}");
                    let is_new = last_told
                        .as_ref()
                        .is_none_or(|(told, at)| *told != text || at.elapsed() > STRANGER_PAUSE);
                    if is_new {
                        tracing::warn!("{text}");
                        last_told = Some((text, std::time::Instant::now()));
                    }
                }
            }
        }
    }
}

async fn await_join(mut link: Box<PrimaryLink>, inputs: mpsc::UnboundedSender<Input>) {
    match link.joined().await {
        Ok(gave_up) => {
            // The loop is gone when the daemon ends.
            let _ = inputs.send(Input::Joined { link, gave_up });
        }
        Err(reason) => tracing::debug!("{} did not join: {reason}", link.hello().host),
    }
}

/// Starts a link with a snapshot of a machine that stands still; commits that follow go to it.
pub(super) fn start_sync(
    machine: &mut Machine,
    link: PrimaryLink,
    session: u64,
    world: &Arc<World>,
    limits: QueueLimits,
    inputs: &mpsc::UnboundedSender<Input>,
) -> Result<(), Failure> {
    let base = machine.seq();
    let queue = Arc::new(CommitQueue::new(limits, base));
    let (handle, events) = link.start(Arc::clone(&queue), base);
    let forward = forward(session, events, Arc::clone(world), inputs.clone());
    Handle::current().spawn(forward);
    snapshot::push_stream(machine, &queue)?;
    world.attach(session, queue, handle, base);
    Ok(())
}

/// Takes acknowledgements to the gate at once, and tells the loop of everything.
async fn forward(
    session: u64,
    mut events: mpsc::Receiver<LinkEvent<PrimaryEvent>>,
    world: Arc<World>,
    inputs: mpsc::UnboundedSender<Input>,
) {
    while let Some(event) = events.recv().await {
        match &event {
            LinkEvent::Session(PrimaryEvent::Ack { received, verified }) => {
                world.acknowledge(session, *received, *verified);
            }
            LinkEvent::Session(PrimaryEvent::SyncDone { seq }) => {
                world.acknowledge(session, *seq, CommitSeq::BOOT);
            }
            _ => {}
        }
        if inputs.send(Input::Backup { session, event }).is_err() {
            return;
        }
    }
}
