//! `--role standalone`: a VM without a backup, recorded or not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use samsara_config::{RecordingMode, Role};
use samsara_engine::{NativeRun, Recorder};
use samsara_machine::Machine;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::guest;
use crate::node::Ended;
use crate::run::Base;
use crate::status;
use crate::world::{Notice, exit_status};

/// The loop turns at least this often, for the service manager's watchdog.
const TURN: Duration = Duration::from_millis(250);

enum Running {
    Recorded(Arc<Recorder>),
    Native(Arc<NativeRun>),
}

/// Runs the guest to its end.
pub(crate) async fn run(mut base: Base) -> Result<Ended, Failure> {
    let recorded = base.config.recording.mode == RecordingMode::On;
    base.disks.check_whole()?;
    let source = guest::Source::open(&base.config)?;
    let source = source.ok_or_else(|| {
        Failure::text(ExitCode::Config, "neither vm.program nor vm.kernel is set")
    })?;
    let mut kvm = guest::Kvm::open(&base.config, recorded)?;
    kvm.introduce(&base, Some(source.platform()));
    let machine = guest::boot(&kvm, &base, &source)?;
    base.world.open();
    base.board.update(|status| {
        status.gate.mode = status::GateMode::Open;
        status.gate.why = "standalone".into();
        status.set_state("standalone: the guest runs without protection");
    });
    base.board.role_changed(Role::Standalone, 0, "started");
    // Whatever the other host has of the VM's history goes on without this.
    base.disks.begin_history(0)?;
    let world = base.world.clone();
    base.disks
        .establish(Arc::new(move || world.positions()[0]))?;
    base.leftovers.clear()?;
    let running = start(&mut base, &mut kvm, machine, recorded)?;
    base.notifier.ready();
    base.notifier.status("standalone, unprotected");
    let result = wait(&mut base).await;
    let digest = match &running {
        Running::Recorded(guest) => {
            guest.stop();
            Some(guest.paused(|machine| machine.digest()))
        }
        Running::Native(native) => {
            native.stop();
            None
        }
    };
    drop(running);
    base.world.stop();
    if let Err(failure) = base.disks.settle(base.world.positions()[0]) {
        tracing::warn!("{failure}");
    }
    if let Some(log) = base.log {
        log.end()?;
    }
    result.map(|ended| Ended { digest, ..ended })
}

fn start(
    base: &mut Base,
    kvm: &mut guest::Kvm,
    mut machine: Machine,
    recorded: bool,
) -> Result<Running, Failure> {
    if recorded {
        if let Some(log) = &mut base.log {
            let queue = log.begin(&mut machine)?;
            let base_of = (machine.seq(), machine.guest_time());
            base.world.attach_log(queue, base_of);
        }
        let guest = guest::run(kvm, base, machine)?;
        if let Some(log) = &mut base.log {
            log.follow(&guest)?;
        }
        return Ok(Running::Recorded(guest));
    }
    if base.log.is_some() {
        let message = "--record needs recording.mode = \"on\"";
        return Err(Failure::text(ExitCode::Config, message));
    }
    guest::run_native(kvm, base, machine).map(Running::Native)
}

async fn wait(base: &mut Base) -> Result<Ended, Failure> {
    let internal = |error: std::io::Error| Failure::new(ExitCode::Internal, &error);
    let mut terminate = signal(SignalKind::terminate()).map_err(internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(internal)?;
    let mut ended = None;
    loop {
        let notice = tokio::select! {
            notice = base.notices.recv() => notice,
            _ = terminate.recv() => return Err(stopped()),
            _ = interrupt.recv() => return Err(stopped()),
            () = tokio::time::sleep(TURN) => {
                base.alive.store(true, Ordering::Relaxed);
                continue;
            }
            // Without a control socket nobody ever asks.
            Some(request) = base.promotions.recv() => {
                let _ = request.reply.send(Err("a standalone host has no backup role".into()));
                continue;
            }
        };
        match notice {
            Some(Notice::GuestEnded(how)) => {
                let (status, how_text) = exit_status(&how);
                let is_fault = !how.is_orderly();
                base.board.update(|shown| {
                    shown.ended = Some(status::Ended {
                        exit_status: (!is_fault).then_some(status),
                        how: how_text.clone(),
                    });
                });
                ended = Some(Ended {
                    status,
                    how: how_text,
                    is_fault,
                    digest: None,
                });
            }
            Some(Notice::Drained) => {
                if let Some(ended) = ended.take() {
                    return Ok(ended);
                }
            }
            Some(Notice::EngineFailed(error)) => return Err(error.into()),
            Some(Notice::OutputFailed(error)) => {
                let message = format!("cannot write console output: {error}");
                return Err(Failure::text(ExitCode::Output, message));
            }
            None => {
                return Err(Failure::text(
                    ExitCode::Internal,
                    "the machine's threads are gone",
                ));
            }
        }
    }
}

/// SIGTERM or SIGINT.
pub(crate) fn stopped() -> Failure {
    Failure::text(
        ExitCode::Stopped,
        "stopped by a signal before the guest ended",
    )
}
