//! A KVM virtual machine: slots over the image or a view.

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
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
    tracks_writes: bool,
}

impl Vm {
    /// A VM on a view, for one vCPU, whose written pages are reported.
    pub fn on_view(host: &Host, view: &View) -> Result<Self, KvmError> {
        host.check_recording()?;
        let vm = Self::create(host, view.layout(), true)?;
        let cap = kvm_enable_cap {
            cap: KVM_CAP_DIRTY_LOG_RING,
            args: [RING_BYTES as u64, 0, 0, 0],
            ..Default::default()
        };
        vm.fd
            .enable_cap(&cap)
            .map_err(KvmError::request("KVM_CAP_DIRTY_LOG_RING"))?;
        vm.add_slots(KVM_MEM_LOG_DIRTY_PAGES, |offset| view.host_address(offset))?;
        Ok(vm)
    }

    /// A VM on the image itself, for all vCPUs, with nothing tracked.
    pub fn on_image(host: &Host, image: &Image) -> Result<Self, KvmError> {
        let vm = Self::create(host, image.layout(), false)?;
        vm.add_slots(0, |offset| image.host_address(offset))?;
        Ok(vm)
    }

    fn create(host: &Host, layout: Layout, tracks_writes: bool) -> Result<Self, KvmError> {
        let fd = host
            .kvm
            .create_vm()
            .map_err(KvmError::request("KVM_CREATE_VM"))?;
        fd.set_tss_address(TSS_ADDRESS)
            .map_err(KvmError::request("KVM_SET_TSS_ADDR"))?;
        Ok(Self {
            fd,
            layout,
            tracks_writes,
        })
    }

    fn add_slots(&self, flags: u32, address: impl Fn(u64) -> u64) -> Result<(), KvmError> {
        for (slot, (range, offset)) in self.layout.regions().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags,
                guest_phys_addr: range.start,
                memory_size: range.end - range.start,
                userspace_addr: address(offset),
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
