//! What a host decides by its disks, and by what it hears of the other's.

use std::sync::{Arc, PoisonError};

use samsara_failover::{Phase, Standing};
use samsara_replication::protocol::{Hello, Refusal, RefuseReason};

use super::event_loop::{Guest, Node, Outgoing, Session, Way};
use super::primary::Sending;
use crate::disk::SyncError;
use crate::exit::ExitCode;
use crate::failure::Failure;

impl Node {
    /// From here on this host's disks are what this host's guest makes of them.
    pub(super) fn establish_disks(&self) -> Result<(), Failure> {
        let world = self.base.world.clone();
        let committed = Arc::new(move || world.positions()[0]);
        self.base.disks.establish(committed)
    }

    /// A guest that has not run is not started from disks older than its backup's.
    pub(super) fn check_disks_of(&self, hello: &Hello) -> Result<(), Failure> {
        let Some(theirs) = hello.disk_position else {
            return Ok(());
        };
        let mine = self.base.disks.position();
        let has_run = matches!(self.guest, Guest::Running(_));
        if has_run || !theirs.is_newer_than(mine.as_ref()) {
            return Ok(());
        }
        let mine = mine.map_or_else(|| "no known place".to_owned(), |mine| mine.to_string());
        let host = &hello.host;
        // The term stays this host's: a backup that can start the guest takes it for that.
        let next = if hello.can_boot {
            format!("{host} starts the guest instead; start this host with --role backup")
        } else {
            format!(
                "give {host} the guest and clear the arbiter's record, then start it as the primary"
            )
        };
        let message =
            format!("the disk of {host} ({theirs}) is newer than this host's ({mine}): {next}");
        Err(Failure::text(ExitCode::Refused, message))
    }

    /// Lets another host start the guest that did not run here: an arbiter would keep the term for this one.
    pub(super) fn give_back_term(&self) {
        let mut arbiter = self.arbiter.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(Some(current)) = arbiter.read() else {
            return;
        };
        let Standing {
            term,
            holder,
            phase,
        } = current.value;
        if holder.as_str() == self.base.host && phase == Phase::Starting {
            let given_back = Standing::new(term, holder, Phase::Ended);
            if let Err(error) = arbiter.compare_and_swap(Some(current.revision), &given_back) {
                tracing::warn!("the arbiter keeps the guest's start for this host: {error}");
            }
        }
    }

    /// The disks of a backup are nearly up to date, or will not be.
    pub(super) fn handle_disks(
        &mut self,
        session: u64,
        result: Result<Box<Sending>, SyncError>,
    ) -> Result<(), Failure> {
        let is_current = self
            .session
            .as_ref()
            .is_some_and(|current| current.id == session);
        match result {
            Ok(sending) if is_current => self.send_snapshot(*sending),
            // Lost meanwhile, or about to be.
            Ok(_) | Err(SyncError::Closed) => {}
            Err(SyncError::Disk(error)) => return Err(Failure::new(ExitCode::Input, &error)),
            Err(error) => self.refuse(session, &error),
        }
        Ok(())
    }

    /// A backup's disks cannot be brought up to date.
    fn refuse(&mut self, session: u64, error: &SyncError) {
        let Some(Session {
            way: Way::SendingDisks(Outgoing { handle, .. }),
            ..
        }) = self
            .session
            .as_ref()
            .filter(|current| current.id == session)
        else {
            return;
        };
        tracing::error!("the backup's disks cannot be brought up to date: {error}");
        let refusal = Refusal {
            reason: RefuseReason::DiskMismatch,
            term: self.decider.status().term.number(),
            text: error.to_string(),
        };
        let handle = handle.clone();
        tokio::spawn(async move {
            // Closed already, or closed now.
            let _ = handle.refuse(refusal).await;
        });
    }
}

/// That the other host does not say that it has the newer disks.
pub(super) fn disks_are_newest(refusal: Option<&Refusal>) -> Result<(), Failure> {
    match refusal {
        Some(refusal) if refusal.reason == RefuseReason::NewerDisk => {
            Err(Failure::new(ExitCode::Refused, refusal))
        }
        _ => Ok(()),
    }
}
