//! Structures of the KVM API as bytes.

use kvm_bindings::{
    kvm_debugregs, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

use crate::pc::apic::LocalApic;

/// A structure without invalid bit patterns, whose padding the kernel or `Default` has zeroed.
///
/// # Safety
/// Every bit pattern is a valid value, and values are made from zeroed memory.
pub unsafe trait Pod: Copy {}

// SAFETY: integers and arrays of integers; KVM's explicit padding is part of the structures.
unsafe impl Pod for kvm_regs {}
// SAFETY: as above.
unsafe impl Pod for kvm_sregs {}
// SAFETY: as above.
unsafe impl Pod for kvm_vcpu_events {}
// SAFETY: as above.
unsafe impl Pod for kvm_debugregs {}
// SAFETY: as above.
unsafe impl Pod for kvm_xcrs {}
// SAFETY: as above.
unsafe impl Pod for kvm_msr_entry {}
// SAFETY: as above; the flexible tail has no size.
unsafe impl Pod for XsaveArea {}

// SAFETY: integers and arrays of integers, all of 32 bits: no padding.
unsafe impl Pod for LocalApic {}

// SAFETY: bytes.
unsafe impl Pod for [u8; 512] {}

/// The 4 KiB XSAVE area of `KVM_GET_XSAVE`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct XsaveArea(pub [u32; 1024]);

impl XsaveArea {
    pub(crate) fn from_kvm(xsave: &kvm_xsave) -> Self {
        Self(xsave.region)
    }

    pub(crate) fn to_kvm(self) -> kvm_xsave {
        kvm_xsave {
            region: self.0,
            ..Default::default()
        }
    }
}

/// Copies a structure into the front of `out`.
pub(crate) fn store<T: Pod>(value: &T, out: &mut [u8]) {
    assert!(out.len() >= size_of::<T>());
    // SAFETY: the length was just checked; T is plain data.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const *value).cast(), out.as_mut_ptr(), size_of::<T>());
    };
}

/// Reads a structure from the front of `bytes`.
pub(crate) fn load<T: Pod>(bytes: &[u8]) -> T {
    assert!(bytes.len() >= size_of::<T>());
    // SAFETY: the length was just checked; every bit pattern is a valid T.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}
