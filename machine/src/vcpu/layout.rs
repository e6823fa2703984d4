//! Structures of the KVM API as bytes.

use std::arch::x86_64::__cpuid_count;
use std::ops::Range;
use std::sync::OnceLock;

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
    /// Which components are not in their initial state: two words.
    const IN_USE: usize = 512 / 4;
    /// x87 and SSE: what the area has of them counts always.
    const LEGACY: u64 = 3;

    /// The area in the one form that a state has. The processor may say of a component in its initial state that it
    /// is in use or not, as it likes.
    pub(crate) fn from_kvm(xsave: &kvm_xsave) -> Self {
        let mut area = Self(xsave.region);
        let [low, high] = [area.0[Self::IN_USE], area.0[Self::IN_USE + 1]];
        let mut in_use = u64::from(low) | u64::from(high) << 32;
        for component in extended_components() {
            let words = area.0.get(component.words.clone());
            if words.is_some_and(|words| words.iter().all(|&word| word == 0)) {
                in_use &= !component.bit;
            }
        }
        in_use |= Self::LEGACY;
        area.0[Self::IN_USE] = in_use as u32;
        area.0[Self::IN_USE + 1] = (in_use >> 32) as u32;
        area
    }

    pub(crate) fn to_kvm(self) -> kvm_xsave {
        kvm_xsave {
            region: self.0,
            ..Default::default()
        }
    }
}

/// A component of the XSAVE area behind its header. Zeros are its initial state.
struct Component {
    bit: u64,
    words: Range<usize>,
}

/// Those that this processor has.
fn extended_components() -> &'static [Component] {
    static COMPONENTS: OnceLock<Vec<Component>> = OnceLock::new();
    COMPONENTS.get_or_init(|| {
        let found = (2..63).filter_map(|number| {
            let leaf = __cpuid_count(0xd, number);
            let (size, offset) = (leaf.eax as usize, leaf.ebx as usize);
            (size > 0 && offset > 0).then(|| Component {
                bit: 1 << number,
                words: offset / 4..(offset + size) / 4,
            })
        });
        found.collect()
    })
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
