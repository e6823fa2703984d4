//! A KVM vCPU: runs until an exit, its timer or a kick.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, kvm_msr_entry};
use kvm_ioctls::{VcpuExit, VcpuFd};
use samsara_commitlog::{Space, VcpuIndex};

use super::capture::Privilege;
use super::counter::{Stepper, Stepping};
use super::dirty_ring::{DirtyRing, Harvest};
use super::exit::RawExit;
use super::host::{Host, KvmError};
use super::kick::{Attachment, Kicker};
use crate::memory::PageIndex;
use crate::vcpu::StateError;

/// Exits that one instruction may take. KVM lets a repeated one go on after 1024 steps.
const PIECES_MAX: usize = 4096;
/// A run whose forerunner ended by itself will do so too, and may last so many times longer than its
/// limit says: ending one from outside, when it was not needed, costs as much as a short run.
const LATENESS: u32 = 3;

/// What can go wrong with a vCPU.
#[derive(Debug, thiserror::Error)]
pub enum VcpuFault {
    /// KVM refused a request.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A state from outside does not fit.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A KVM vCPU. Fields are declared in the order in which they must be dropped.
#[derive(Debug)]
pub struct Vcpu {
    attachment: Option<Attachment>,
    ring: Option<DirtyRing>,
    pub(super) fd: VcpuFd,
    pub(super) msr_indices: Vec<u32>,
    kicker: Arc<Kicker>,
    /// The run page does not yet show the state that was restored.
    pub(super) restored: bool,
    pub(super) privilege: Privilege,
    /// How far the guest's TSC is ahead of the host's, once that was asked.
    pub(super) tsc_ahead: Option<u64>,
    /// So many runs have ended by themselves, one after the other.
    own_ends: u32,
    /// What counts its progress.
    pub(super) stepper: Option<Stepper>,
    /// Steps since the count began.
    pub(super) steps: u64,
}

impl Vcpu {
    pub(super) fn new(
        host: &Host,
        fd: VcpuFd,
        index: VcpuIndex,
        ring: Option<DirtyRing>,
        privilege: Privilege,
    ) -> Result<Self, KvmError> {
        // Hosts whose TSC has no steady rate do not say one.
        let tsc_khz = fd.get_tsc_khz().ok().filter(|&khz| khz > 0);
        let leaves = host.cpu.for_vcpu(index, tsc_khz);
        let cpuid = CpuId::from_entries(&leaves)
            .map_err(|_| KvmError::Missing("room for the processor's leaves"))?;
        fd.set_cpuid2(&cpuid)
            .map_err(KvmError::request("KVM_SET_CPUID2"))?;
        let msr_indices = usable_msrs(&fd, &host.msr_indices);
        let kicker = Arc::new(Kicker::new());
        let mut vcpu = Self {
            attachment: None,
            ring,
            fd,
            msr_indices,
            kicker,
            restored: true,
            privilege,
            tsc_ahead: None,
            own_ends: 0,
            stepper: None,
            steps: 0,
        };
        vcpu.request_sync_registers();
        Ok(vcpu)
    }

    /// Makes the calling thread the one that runs this vCPU. Call once, before the first run.
    pub fn attach(&mut self) -> Result<(), KvmError> {
        let run = self.fd.get_kvm_run();
        let immediate_exit = &raw mut run.immediate_exit;
        self.attachment = Some(Attachment::new(&self.kicker, immediate_exit)?);
        Ok(())
    }

    /// What ends this vCPU's runs from other threads.
    pub fn kicker(&self) -> Arc<Kicker> {
        Arc::clone(&self.kicker)
    }

    /// The MSRs that are part of the state on this host.
    pub fn msr_indices(&self) -> &[u32] {
        &self.msr_indices
    }

    /// Runs until an exit, a kick, or until `limit` has passed; after a run that ended by itself a
    /// few times that. A store is complete when this returns; a load waits for [`Self::complete_read`].
    pub fn run(&mut self, limit: Option<Duration>) -> Result<RawExit, KvmError> {
        if let Some(attachment) = &self.attachment {
            attachment.focus();
        }
        let deadline = limit.map(|limit| Instant::now() + limit);
        let slack = limit.unwrap_or_default() * self.lateness();
        let latest = deadline.map(|deadline| deadline + slack);
        let exit = loop {
            let exit = match &self.stepper {
                Some(stepper) if stepper.stepping == Stepping::Always => {
                    self.step_until(None, latest)?
                }
                _ => self.run_until(latest)?,
            };
            // Without a kick, and in time, the timer was still set for an earlier run.
            let is_early = deadline.is_some_and(|deadline| Instant::now() < deadline);
            if exit != RawExit::Cut || !is_early || self.kicker.is_requested() {
                break exit;
            }
        };
        self.own_ends = match exit {
            RawExit::Cut | RawExit::RingFull => 0,
            _ => self.own_ends.saturating_add(1),
        };
        self.finish(exit)
    }

    /// Lets a store of the last run, if there was one, come to its end.
    pub(super) fn finish(&mut self, exit: RawExit) -> Result<RawExit, KvmError> {
        match exit {
            RawExit::Write { address, .. } => self.finish_access(address, exit),
            other => Ok(other),
        }
    }

    fn lateness(&self) -> u32 {
        if self.own_ends < 8 { 0 } else { LATENESS }
    }

    pub(super) fn run_until(&mut self, latest: Option<Instant>) -> Result<RawExit, KvmError> {
        self.fd.set_kvm_immediate_exit(0);
        if let (Some(attachment), Some(latest)) = (&mut self.attachment, latest) {
            attachment.fire_by(latest);
        }
        // A kick from before the flag was cleared would otherwise be lost.
        if self.kicker.is_requested() {
            self.fd.set_kvm_immediate_exit(1);
        }
        self.enter()
    }

    /// Answers the load that ended the last run, and lets the instruction finish.
    pub fn complete_read(&mut self, value: u64) -> Result<RawExit, KvmError> {
        let run = self.fd.get_kvm_run();
        let bytes = value.to_le_bytes();
        let base = (&raw mut *run).cast::<u8>();
        let address = if run.exit_reason == kvm_bindings::KVM_EXIT_X86_RDMSR {
            // SAFETY: the exit reason says that this is the member of the union in use.
            let msr = unsafe { &mut run.__bindgen_anon_1.msr };
            msr.data = value;
            msr.index.into()
        } else if run.exit_reason == kvm_bindings::KVM_EXIT_MMIO {
            // SAFETY: the exit reason says that this is the member of the union in use.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            mmio.data = bytes;
            mmio.phys_addr
        } else {
            // SAFETY: as above: the only other exit that waits for a value is port input.
            let io = unsafe { run.__bindgen_anon_1.io };
            let length = usize::from(io.size).min(bytes.len());
            // SAFETY: the kernel places the data inside the mapped run area.
            let data = unsafe { base.add(io.data_offset as usize) };
            // SAFETY: as above, for `length` bytes.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, length) };
            io.port.into()
        };
        let finished = self.finish_access(address, RawExit::Cut)?;
        self.end_stepped_load()?;
        Ok(finished)
    }

    /// Lets KVM finish the instruction of the last device access without running the guest.
    fn finish_access(&mut self, address: u64, exit: RawExit) -> Result<RawExit, KvmError> {
        let mut result = exit;
        for _ in 0..PIECES_MAX {
            self.fd.set_kvm_immediate_exit(1);
            if self.enter()? == RawExit::Cut {
                return Ok(result);
            }
            // The rest of a longer access: KVM must be done with it too, or it would finish it
            // inside the next run, on top of a state that was restored.
            result = RawExit::Fatal(format!(
                "an instruction makes more than one device access, the first at {address:#x}"
            ));
        }
        Err(KvmError::Unfinished { address })
    }

    fn enter(&mut self) -> Result<RawExit, KvmError> {
        self.restored = false;
        loop {
            let result = match self.fd.run() {
                Ok(VcpuExit::X86Rdmsr(exit)) if !is_apic_msr(exit.index) => {
                    *exit.error = 1;
                    continue;
                }
                Ok(VcpuExit::X86Wrmsr(exit)) if !is_apic_msr(exit.index) => {
                    *exit.error = 1;
                    continue;
                }
                Err(error) => match error.errno() {
                    libc::EINTR => Ok(RawExit::Cut),
                    libc::EAGAIN => continue,
                    _ => Ok(RawExit::Refused(format!("KVM_RUN: {error}"))),
                },
                Ok(VcpuExit::Unsupported(kvm_bindings::KVM_EXIT_DIRTY_RING_FULL)) => {
                    Ok(RawExit::RingFull)
                }
                Ok(exit) => Ok(translate(exit)),
            };
            return result.map(|exit| self.refuse_strings(exit));
        }
    }

    /// Whether the guest may run code of its own at CPL 0.
    pub fn may_run_kernel(&self) -> bool {
        self.privilege == Privilege::Kernel
    }

    /// Whether the next runs end as soon as the vCPU can take an interrupt.
    pub fn want_window(&mut self, wanted: bool) {
        self.fd.get_kvm_run().request_interrupt_window = wanted.into();
    }

    /// A string of port accesses looks like one wide access, and is not.
    fn refuse_strings(&mut self, exit: RawExit) -> RawExit {
        let (RawExit::Read { space, address, .. } | RawExit::Write { space, address, .. }) = exit
        else {
            return exit;
        };
        let run = self.fd.get_kvm_run();
        // SAFETY: port accesses are told in this member of the union.
        if space == Space::Port && unsafe { run.__bindgen_anon_1.io.count } > 1 {
            return RawExit::Fatal(format!("string access to port {address:#x}"));
        }
        exit
    }

    /// Takes the pages that were written for the first time since their last report.
    pub fn take_written(&mut self, page: impl FnMut(PageIndex)) -> Result<Harvest, KvmError> {
        match &mut self.ring {
            Some(ring) => ring.harvest(page),
            None => Ok(Harvest::Complete),
        }
    }

    /// Makes room in the ring after [`RawExit::RingFull`].
    pub fn reset_ring(&mut self) -> Result<(), KvmError> {
        match &mut self.ring {
            Some(ring) => ring.make_room(),
            None => Ok(()),
        }
    }
}

/// Whether an MSR is a register of the local APIC. KVM refuses others by its own judgement.
fn is_apic_msr(index: u32) -> bool {
    (0x800..0x900).contains(&index)
}

fn translate(exit: VcpuExit<'_>) -> RawExit {
    match exit {
        VcpuExit::MmioWrite(address, data) => access(Space::Mmio, address, data, true),
        VcpuExit::MmioRead(address, data) => access(Space::Mmio, address, data, false),
        VcpuExit::IoOut(port, data) => access(Space::Port, port.into(), data, true),
        VcpuExit::IoIn(port, data) => access(Space::Port, port.into(), data, false),
        VcpuExit::Hlt => RawExit::Halt,
        VcpuExit::IrqWindowOpen => RawExit::Window,
        VcpuExit::Intr | VcpuExit::SetTpr => RawExit::Cut,
        VcpuExit::X86Rdmsr(exit) => RawExit::Read {
            space: Space::Msr,
            address: exit.index.into(),
            size: 8,
        },
        VcpuExit::X86Wrmsr(exit) => RawExit::Write {
            space: Space::Msr,
            address: exit.index.into(),
            size: 8,
            value: exit.data,
        },
        VcpuExit::Shutdown => RawExit::Fatal("triple fault".into()),
        VcpuExit::InternalError => {
            RawExit::Fatal("KVM cannot emulate the instruction (internal error)".into())
        }
        VcpuExit::FailEntry(reason, _) => {
            RawExit::Refused(format!("KVM refuses the vCPU state (reason {reason:#x})"))
        }
        other => RawExit::Fatal(format!("KVM exit {other:?}")),
    }
}

fn access(space: Space, address: u64, data: &[u8], is_write: bool) -> RawExit {
    if data.len() > 8 {
        return RawExit::Fatal(format!("string access to port {address:#x}"));
    }
    let mut bytes = [0; 8];
    bytes[..data.len()].copy_from_slice(data);
    let size = data.len() as u8;
    if is_write {
        RawExit::Write {
            space,
            address,
            size,
            value: u64::from_le_bytes(bytes),
        }
    } else {
        RawExit::Read {
            space,
            address,
            size,
        }
    }
}

/// The MSRs of the list that this vCPU lets us read and write back.
fn usable_msrs(fd: &VcpuFd, indices: &[u32]) -> Vec<u32> {
    let works = |index: u32| {
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut msrs = kvm_bindings::Msrs::from_entries(&[entry]).ok()?;
        (fd.get_msrs(&mut msrs).ok()? == 1).then_some(())?;
        (fd.set_msrs(&msrs).ok()? == 1).then_some(index)
    };
    indices.iter().copied().filter_map(works).collect()
}
