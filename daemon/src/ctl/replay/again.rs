//! `--reexecute`: chunks run again on this host's KVM.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use samsara_commitlog::{
    Boundary, Chunk, Commit, Exit, Frame, OrderChunk, Record, Shape, VcpuIndex,
};
use samsara_engine::{
    Divergence, DivergenceCause, EngineError, Faults, Fetch, Isolation, Rerun, Settings, Stats,
};
use samsara_machine::kvm::{Cpu, CpuModel, Host, HostTraits, KvmError, X2Apic, probe};
use samsara_machine::vcpu::VcpuState;

use crate::ctl::CtlError;
use crate::exit::ExitCode;
use crate::failure::Failure;

/// Records in effects form that are kept for chunks that come out differently: more than are ever followed
/// together.
const KEPT: usize = 1024;

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reexecute {
    pub(super) threads: Option<NonZeroUsize>,
}

/// How chunks are run again.
#[derive(Debug)]
pub(super) struct Again {
    host: Arc<Host>,
    traits: HostTraits,
    threads: usize,
    stats: Arc<Stats>,
    pub(super) effects: Arc<Kept>,
}

impl Again {
    /// On this host's KVM, for a machine of this shape.
    pub(super) fn open(asked: Reexecute, shape: Shape) -> Result<Self, CtlError> {
        let kvm = |error: KvmError| CtlError::Replay(Failure::new(ExitCode::Kvm, &error));
        let mut host = Host::open().map_err(kvm)?;
        host.check_recording().map_err(kvm)?;
        let traits = probe(&host).map_err(kvm)?;
        let cpu = Cpu {
            model: CpuModel::Baseline,
            vcpu_count: shape.vcpu_count,
            x2apic: X2Apic::Shown,
        };
        host.set_cpu(cpu).map_err(kvm)?;
        let processors = std::thread::available_parallelism();
        Ok(Self {
            host: Arc::new(host),
            traits,
            threads: asked.threads.or(processors.ok()).map_or(1, usize::from),
            stats: Arc::new(Stats::new(shape.vcpu_count)),
            effects: Arc::default(),
        })
    }

    pub(super) fn rerun(&self) -> Rerun {
        let settings = Settings {
            isolation: Isolation::Parallel,
            paging: self.traits.paging,
            tsc: self.traits.tsc,
            tsc_khz: None,
            counter: None,
            chunk_min: Duration::from_micros(200),
            chunk_max: Duration::from_millis(5),
            digest_every: 0,
            held_pages_max: 0,
            squashes_before_exclusive: 1,
            faults: Faults::default(),
        };
        Rerun {
            host: Some(Arc::clone(&self.host)),
            settings,
            threads: self.threads,
            fetch: Arc::clone(&self.effects) as Arc<dyn Fetch>,
            stats: Arc::clone(&self.stats),
        }
    }

    /// Chunks that came out differently, by cause, where there were any.
    pub(super) fn divergences(&self) -> BTreeMap<&'static str, u64> {
        let counts = DivergenceCause::ALL.map(|cause| {
            let count = self.stats.divergences(cause).load(Ordering::Relaxed);
            (cause.as_str(), count)
        });
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

/// The effects of chunks that are run again, as far as the log has them.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<VecDeque<Record>>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, record: Record) {
        let mut kept = self.lock();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(record);
    }
}

impl Fetch for Kept {
    fn effects(&self, diverged: &Divergence) -> Option<Record> {
        let kept = self.lock();
        let record = kept.iter().find(|record| record.seq == diverged.seq)?;
        eprintln!("samsaractl: {diverged}");
        Some(record.clone())
    }

    fn gave_up(&self, vcpu: VcpuIndex, error: &EngineError) {
        let why = Failure::new(ExitCode::Kvm, error);
        eprintln!("samsaractl: vCPU {vcpu} runs no more chunks here: {why}");
    }
}

/// Makes orders of chunks in effects form, where their ends can be found without a counter.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// Each vCPU at its last commit, for its TSC; nothing of one in whose history a chunk had no effects.
    vcpus: Vec<Option<VcpuState>>,
}

impl Orders {
    /// Replaces a chunk by the order to run it, and keeps what it changed.
    pub(super) fn replace(&mut self, frame: &mut Frame, effects: &Kept, is_bare: bool) {
        match frame {
            Frame::SnapshotStart(start) => {
                let states = start.vcpus.iter();
                self.vcpus = states
                    .map(|bytes| VcpuState::from_bytes(bytes).ok())
                    .collect();
            }
            Frame::Record(record) if is_bare => {
                if let Some(order) = self.order(record) {
                    let whole = Record {
                        commit: Commit::Order(order),
                        ..record.clone()
                    };
                    effects.keep(std::mem::replace(record, whole));
                }
            }
            _ => {}
        }
    }

    fn order(&mut self, record: &Record) -> Option<OrderChunk> {
        match &record.commit {
            Commit::Chunk(chunk) => self.order_of(chunk),
            Commit::Order(order) => {
                let state = self.vcpus.get_mut(usize::from(order.vcpu.0))?;
                let tsc = state.as_ref()?.tsc();
                if let (Some(state), Some(tsc)) = (state, tsc) {
                    state.set_tsc(tsc.wrapping_add(order.tsc_gain));
                }
                None
            }
            Commit::Input(_) => None,
        }
    }

    fn order_of(&mut self, chunk: &Chunk) -> Option<OrderChunk> {
        let state = self.vcpus.get_mut(usize::from(chunk.vcpu.0))?.as_mut()?;
        let before = state.tsc();
        state.apply(&chunk.effects.vcpu).ok()?;
        let gain = before.zip(state.tsc());
        let input = match &chunk.exit {
            Exit::Fatal { .. } => return None,
            Exit::Read { input, .. } => *input,
            _ => None,
        };
        let has_end = chunk.boundary == Boundary::Exit && chunk.exit != Exit::Cut;
        has_end.then(|| OrderChunk {
            vcpu: chunk.vcpu,
            started_after: chunk.started_after,
            boundary: chunk.boundary,
            progress: None,
            tsc_gain: gain.map_or(0, |(before, after)| after.wrapping_sub(before)),
            input,
            digest: chunk.digest,
        })
    }
}
