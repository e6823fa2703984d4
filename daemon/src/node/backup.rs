//! The way to a primary: dialling it, following it, and what is left when it is gone.

use std::ops::ControlFlow;
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use samsara_machine::Output;
use samsara_replication::Retained;
use samsara_replication::protocol::{BackupEvent, DigestQuestion, Hello, Refusal, Right};
use samsara_replication::transport::{
    BackupHandle, BackupLink, DialError, Dialer, LinkEvent, StartedBackup,
};
use tokio::sync::mpsc;

use super::input::Input;
use crate::disk::{self, Disks};
use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::follower::{self, Followed, FollowedDisks, Primary, Rerunning, SharedRetained};
use crate::kvm::Kvm;
use crate::run::Base;

/// Dials the peer until it is a primary that welcomes this host.
pub(super) async fn dial(
    dialer: Dialer,
    hello: Hello,
    was_backup: bool,
    inputs: mpsc::UnboundedSender<Input>,
) {
    let mut last = String::new();
    let on_failure = |error: &DialError, pause: Duration| {
        let text = with_causes(error);
        if text != last {
            tracing::info!("{text}; trying again every {pause:?} or so");
            last = text;
        }
        if !was_backup && is_hopeless(error) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let input = match dialer.dial_until(|| hello.clone(), on_failure).await {
        Ok(link) => Input::Found(Box::new(link)),
        Err(error) => Input::CannotDial(error),
    };
    let _ = inputs.send(input);
}

/// Whether dialling again cannot help before someone changes something.
fn is_hopeless(error: &DialError) -> bool {
    match error {
        DialError::Certificate { .. } | DialError::Name { .. } | DialError::NoPeer => true,
        DialError::Refused { refusal, .. } => refusal.is_permanent(),
        _ => false,
    }
}

fn with_causes(error: &DialError) -> String {
    Failure::new(ExitCode::Network, error).message
}

/// The failure that a hopeless dial is.
pub(super) fn dial_failure(error: &DialError) -> Failure {
    use samsara_replication::protocol::RefuseReason;
    let code = match error {
        DialError::Certificate { .. } | DialError::Name { .. } => ExitCode::Certificate,
        DialError::Refused { refusal, .. } => match refusal.reason {
            RefuseReason::InputMismatch | RefuseReason::DiskMismatch => ExitCode::Input,
            RefuseReason::NewerDisk => ExitCode::Refused,
            RefuseReason::WrongVm | RefuseReason::SameName => ExitCode::Config,
            _ => ExitCode::Network,
        },
        _ => ExitCode::Network,
    };
    Failure::new(code, error)
}

/// Asks the peer, once, whether it is primary.
pub(super) async fn ask_peer(
    dialer: Dialer,
    hello: Hello,
    inputs: mpsc::UnboundedSender<Input>,
) -> Option<Refusal> {
    let refusal: Option<Refusal> = match dialer.dial(hello).await {
        Err(DialError::Refused { refusal, .. }) => Some(refusal),
        _ => None,
    };
    let _ = inputs.send(Input::PeerAsked(refusal.clone()));
    refusal
}

/// A primary that is followed, or was.
pub(super) struct Follow {
    retained: SharedRetained,
    thread: JoinHandle<Followed>,
    link: Option<BackupHandle>,
}

impl Follow {
    /// Joins a primary.
    pub(super) fn start(
        link: BackupLink,
        session: u64,
        gave_up: Option<Right>,
        (base, kvm): (&Base, &Kvm),
        inputs: &mpsc::UnboundedSender<Input>,
    ) -> Result<Self, Failure> {
        let welcome = link.welcome().clone();
        let history = welcome.disk_history;
        let StartedBackup {
            handle,
            events,
            commits,
        } = link.start(gave_up);
        let disks = &base.disks;
        let asked = answer_questions(session, disks, &handle, inputs)?;
        tokio::spawn(forward(session, events, asked, inputs.clone()));
        let disks = FollowedDisks {
            disks: Arc::clone(disks),
            history,
        };
        let retained: SharedRetained = Arc::new(Mutex::new(Retained::new()));
        let tell = inputs.clone();
        let failed = move |failure| {
            let _ = tell.send(Input::FollowFailed { session, failure });
        };
        let rerunning = Rerunning::new(kvm, base, &welcome, &handle)?;
        let thread = follower::start(
            Primary {
                commits,
                link: handle.clone(),
                rerunning,
            },
            retained.clone(),
            base.network.clone(),
            base.board.clone(),
            disks,
            failed,
        );
        let thread = thread.map_err(|error| Failure::new(ExitCode::Internal, &error))?;
        Ok(Self {
            retained,
            thread,
            link: Some(handle),
        })
    }

    /// The primary has emitted the outputs of all commits up to this one.
    pub(super) fn released(&self, seq: samsara_commitlog::CommitSeq) {
        self.retained
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .handle_released(seq);
    }

    /// Leaves the primary. What has arrived is still applied.
    pub(super) fn leave(&mut self, reason: &str) {
        if let Some(link) = self.link.take() {
            let reason = reason.to_owned();
            tokio::spawn(async move {
                // Closed already, or closed now.
                let _ = link.close(reason).await;
            });
        }
    }

    /// Waits until all that arrived is applied; gives it, with the outputs not known released.
    pub(super) async fn finish(mut self) -> (Followed, Retained<Output>) {
        self.leave("going on alone");
        let thread = self.thread;
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        let followed = match joined {
            Ok(Ok(followed)) => followed,
            _ => (None, None),
        };
        let mut retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        let retained = std::mem::replace(&mut *retained, Retained::new());
        (followed, retained)
    }
}

async fn forward(
    session: u64,
    mut events: mpsc::Receiver<LinkEvent<BackupEvent>>,
    asked: blocking::Sender<DigestQuestion>,
    inputs: mpsc::UnboundedSender<Input>,
) {
    while let Some(event) = events.recv().await {
        if let LinkEvent::Session(BackupEvent::DigestsAsked(question)) = &event {
            // The session lets no second one in before the answer is out.
            let _ = asked.send(*question);
        }
        if inputs.send(Input::Primary { session, event }).is_err() {
            return;
        }
    }
}

/// Starts the thread that tells the primary what this host's disks have; it ends with the link.
fn answer_questions(
    session: u64,
    disks: &Arc<Disks>,
    link: &BackupHandle,
    inputs: &mpsc::UnboundedSender<Input>,
) -> Result<blocking::Sender<DigestQuestion>, Failure> {
    let (asked, questions) = blocking::channel();
    let (disks, link, inputs) = (Arc::clone(disks), link.clone(), inputs.clone());
    let runtime = tokio::runtime::Handle::current();
    let body = move || {
        for question in questions {
            // A link that is gone ends the questions, too.
            let _ = match disk::answer(disks.files(), &question) {
                Some(Ok(digests)) => runtime.block_on(link.digests(digests)),
                Some(Err(error)) => {
                    let failure = Failure::text(ExitCode::Internal, error.to_string());
                    let _ = inputs.send(Input::FollowFailed { session, failure });
                    return;
                }
                None => {
                    let reason = "it asks for a part of a disk that is not there".to_owned();
                    runtime.block_on(link.close(reason))
                }
            };
        }
    };
    let thread = std::thread::Builder::new().name("digests".into());
    let started = thread.spawn(body);
    started
        .map(|_| asked)
        .map_err(|error| Failure::new(ExitCode::Internal, &error))
}
