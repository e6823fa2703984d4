//! A KVM virtual machine: slots over the image or a view.

use std::ops::Range;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_X86_USER_SPACE_MSR, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{MsrExitReason, VmFd};
use samsara_commitlog::VcpuIndex;

use super::capture::Privilege;
use super::dirty_ring::{DirtyRing, RING_BYTES};
use super::host::{Host, KvmError};
use super::vcpu::Vcpu;
use crate::memory::{Image, Layout, View};

/// Where KVM keeps three pages of its own on hosts that cannot run real mode natively: in the hole,
/// above the device page, where no guest memory is.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A KVM virtual machine.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    layout: Layout,
    /// Where its memory is in this process.
    base: u64,
    tracks_writes: bool,
}

impl Vm {
    /// A VM on a view whose written pages are reported by each vCPU.
    pub fn on_view(host: &Host, view: &View) -> Result<Self, KvmError> {
        host.check_recording()?;
        let vm = Self::create(host, view.layout(), view.host_address(0), true)?;
        let cap = kvm_enable_cap {
            cap: KVM_CAP_DIRTY_LOG_RING,
            args: [RING_BYTES as u64, 0, 0, 0],
            ..Default::default()
        };
        vm.fd
            .enable_cap(&cap)
            .map_err(KvmError::request("KVM_CAP_DIRTY_LOG_RING"))?;
        vm.add_slots()?;
        Ok(vm)
    }

    /// A VM on the image itself, for all vCPUs, with nothing tracked.
    pub fn on_image(host: &Host, image: &Image) -> Result<Self, KvmError> {
        let vm = Self::create(host, image.layout(), image.host_address(0), false)?;
        vm.add_slots()?;
        Ok(vm)
    }

    fn create(
        host: &Host,
        layout: Layout,
        base: u64,
        tracks_writes: bool,
    ) -> Result<Self, KvmError> {
        let fd = host
            .kvm
            .create_vm()
            .map_err(KvmError::request("KVM_CREATE_VM"))?;
        fd.set_tss_address(TSS_ADDRESS)
            .map_err(KvmError::request("KVM_SET_TSS_ADDR"))?;
        // The local APIC's registers as MSRs are ours: KVM has none, and would refuse them.
        let cap = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [MsrExitReason::Inval.bits().into(), 0, 0, 0],
            ..Default::default()
        };
        fd.enable_cap(&cap)
            .map_err(KvmError::request("KVM_CAP_X86_USER_SPACE_MSR"))?;
        Ok(Self {
            fd,
            layout,
            base,
            tracks_writes,
        })
    }

    fn add_slots(&self) -> Result<(), KvmError> {
        self.set_slots(|range| range.end - range.start)
    }

    /// Deletes the memory slots and makes them anew, while no vCPU of this VM runs.
    ///
    /// KVM forgets all translations with them. Where it keeps shadow page tables, nothing less makes it see that page
    /// tables were changed from outside ([`Paging::Shadow`](super::Paging::Shadow)). Pages that a vCPU holds are
    /// reported once more when it next writes them.
    pub fn rebuild_slots(&self) -> Result<(), KvmError> {
        self.set_slots(|_| 0)?;
        self.add_slots()
    }

    /// Sets each slot's size; a size of 0 deletes it.
    fn set_slots(&self, size: impl Fn(&Range<u64>) -> u64) -> Result<(), KvmError> {
        let flags = if self.tracks_writes {
            KVM_MEM_LOG_DIRTY_PAGES
        } else {
            0
        };
        for (slot, (range, offset)) in self.layout.regions().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags,
                guest_phys_addr: range.start,
                memory_size: size(&range),
                userspace_addr: self.base + offset,
            };
            // SAFETY: the memory belongs to a view or image that the owner of this VM keeps alive
            // for as long as its vCPUs run, and no Rust reference points into it.
            unsafe { self.fd.set_user_memory_region(region) }
                .map_err(KvmError::request("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Creates a vCPU for code of this privilege.
    pub fn vcpu(
        &self,
        host: &Host,
        index: VcpuIndex,
        privilege: Privilege,
    ) -> Result<Vcpu, KvmError> {
        let vcpu = self
            .fd
            .create_vcpu(index.0.into())
            .map_err(KvmError::request("KVM_CREATE_VCPU"))?;
        let ring = if self.tracks_writes {
            Some(DirtyRing::new(&vcpu, &self.fd)?)
        } else {
            None
        };
        Vcpu::new(host, vcpu, index, ring, privilege)
    }
}
