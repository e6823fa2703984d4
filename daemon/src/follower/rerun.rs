//! Chunks that travel as orders: run again here, and where that comes out differently, fetched from the primary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use samsara_commitlog::{Frame, Limits, Record, Shape, VcpuIndex};
use samsara_engine::{Divergence, EngineError, Fetch, Isolation, Rerun};
use samsara_replication::protocol::Welcome;
use samsara_replication::transport::BackupHandle;
use tokio::runtime::Handle;

use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::guest;
use crate::kvm::Kvm;
use crate::run::Base;

/// A primary that does not answer for so long is as good as gone.
const FETCH_TIME: Duration = Duration::from_secs(10);

/// How a backup runs chunks again.
pub(crate) struct Rerunning {
    pub(crate) rerun: Rerun,
    pub(crate) effects: Arc<FromPrimary>,
    /// The primary may ask for it.
    pub(crate) is_expected: bool,
}

impl Rerunning {
    pub(crate) fn new(
        kvm: &Kvm,
        base: &Base,
        welcome: &Welcome,
        link: &BackupHandle,
    ) -> Result<Self, Failure> {
        let mut kvm = kvm.another()?;
        kvm.set_vcpu_count(welcome.vcpu_count)?;
        let shape = Shape::new(welcome.vcpu_count, welcome.memory_bytes).ok();
        let effects = Arc::new(FromPrimary {
            link: link.clone(),
            limits: shape.map_or(Limits::BEFORE_SNAPSHOT, Limits::of),
            runtime: Handle::current(),
            is_gone: AtomicBool::new(false),
        });
        let rerun = Rerun {
            settings: guest::settings(&kvm, &base.config, Isolation::Parallel),
            host: Some(Arc::new(kvm.host)),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            fetch: Arc::clone(&effects) as Arc<dyn Fetch>,
            stats: Arc::clone(&base.board.following.reruns),
        };
        Ok(Self {
            rerun,
            effects,
            is_expected: !welcome.effects_only,
        })
    }
}

/// Effects that the primary has until they are verified here.
pub(crate) struct FromPrimary {
    link: BackupHandle,
    limits: Limits,
    runtime: Handle,
    is_gone: AtomicBool,
}

impl FromPrimary {
    /// Whether the primary could not be asked any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }
}

impl Fetch for FromPrimary {
    fn effects(&self, diverged: &Divergence) -> Option<Record> {
        tracing::debug!("{diverged}: its effects are fetched");
        let seq = diverged.seq;
        let asked = async { tokio::time::timeout(FETCH_TIME, self.link.effects(seq)).await };
        let Ok(Ok(encoded)) = self.runtime.block_on(asked) else {
            self.is_gone.store(true, Ordering::SeqCst);
            return None;
        };
        match Frame::decode(&encoded, self.limits) {
            Ok(Frame::Record(record)) => Some(record),
            _ => None,
        }
    }

    fn gave_up(&self, vcpu: VcpuIndex, error: &EngineError) {
        let why = Failure::new(ExitCode::Kvm, error);
        tracing::warn!("vCPU {vcpu} runs no more chunks here, all are fetched: {why}");
    }
}
