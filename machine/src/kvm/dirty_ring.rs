//! KVM's dirty ring: the pages that a vCPU wrote for the first time since it was last reset.
//!
//! Where KVM emulates stores it reports each, and an instruction that stores much may overfill the ring
//! before KVM looks at how full it is. Then reports are lost, and KVM's place in the ring is not ours any
//! more: [`Harvest::Incomplete`] says so, and the ring finds KVM's place again by what it writes next.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::kvm_dirty_gfn;
use kvm_ioctls::{VcpuFd, VmFd};

use super::host::KvmError;
use crate::memory::{HOLE_START, PageIndex};
use samsara_commitlog::PAGE_BYTES;

/// As many entries as KVM allows. Entries can only be given back all together, which write-protects
/// their pages again, and each page then costs a fault at its next write: a ring that is smaller
/// than what the guest keeps writing would fault without end.
const ENTRIES: u32 = 65536;
/// Size of the ring; KVM wants it in bytes.
pub(super) const RING_BYTES: usize = ENTRIES as usize * size_of::<kvm_dirty_gfn>();
/// Where the ring is mapped, in pages of the vCPU's file.
const RING_PAGE_OFFSET: i64 = 64;
const FLAG_DIRTY: u32 = 1;
const FLAG_HARVESTED: u32 = 2;
/// Signals that may come while entries are given back.
const RESETS_MAX: u32 = 64;
/// Harvested entries are given back when so many are taken, before the ring is full.
const GIVE_BACK_AT: u32 = ENTRIES / 4 * 3;
const KVM_RESET_DIRTY_RINGS: u64 = 0xaec7;

/// What the ring told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harvest {
    /// All that was written.
    Complete,
    /// Some of it: reports were lost.
    Incomplete,
}

/// The ring of one vCPU.
#[derive(Debug)]
pub(super) struct DirtyRing {
    entries: NonNull<kvm_dirty_gfn>,
    next: u32,
    /// Taken and not given back.
    taken: u32,
    /// KVM's place in the ring is not known to be `next`.
    lost_place: bool,
    /// What the last harvest took.
    last_taken: u32,
    vm: RawFd,
}

// SAFETY: the mapping lives until drop and is used by whoever owns the vCPU.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring. `vm` must outlive it; its descriptor is used to give entries back.
    pub(super) fn new(vcpu: &VcpuFd, vm: &VmFd) -> Result<Self, KvmError> {
        // SAFETY: the kernel picks a fresh place in our address space.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RING_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                RING_PAGE_OFFSET * PAGE_BYTES as i64,
            )
        };
        let entries = NonNull::new(base.cast()).filter(|_| base != libc::MAP_FAILED);
        let entries = entries.ok_or_else(|| KvmError::Signal {
            what: "the dirty ring",
            source: io::Error::last_os_error(),
        })?;
        Ok(Self {
            entries,
            next: 0,
            taken: 0,
            lost_place: false,
            last_taken: 0,
            vm: vm.as_raw_fd(),
        })
    }

    /// Takes what is new in the ring.
    pub(super) fn harvest(&mut self, mut page: impl FnMut(PageIndex)) -> Result<Harvest, KvmError> {
        self.note_resets();
        if self.lost_place {
            self.find_place();
        }
        self.last_taken = 0;
        while self.flags(self.next).load(Ordering::Acquire) & FLAG_DIRTY != 0 {
            page(self.page(self.next));
            self.flags(self.next)
                .store(FLAG_HARVESTED, Ordering::Release);
            self.next = self.next.wrapping_add(1);
            self.taken += 1;
            self.last_taken += 1;
        }
        // KVM ends a run before the ring is full. If it is, it was not asked in time.
        let is_overfull = self.taken >= ENTRIES;
        let first = self.next.wrapping_sub(self.taken);
        if self.taken >= GIVE_BACK_AT {
            self.give_back()?;
        }
        if is_overfull {
            // All of the ring went back, from the first entry that was taken to the one before it.
            self.next = first;
        }
        self.lost_place |= is_overfull;
        Ok(if is_overfull {
            Harvest::Incomplete
        } else {
            Harvest::Complete
        })
    }

    /// Looks where KVM writes. The entries between our place and that one were written over by reports
    /// that we have taken: they only are to be given back.
    fn find_place(&mut self) {
        let is_dirty = |place: u32| self.flags(place).load(Ordering::Acquire) & FLAG_DIRTY != 0;
        // Entries are written one after the other: the first is the one with none before it.
        let is_first = |&ahead: &u32| {
            let place = self.next.wrapping_add(ahead);
            is_dirty(place) && !is_dirty(place.wrapping_sub(1))
        };
        let Some(ahead) = (0..ENTRIES).find(is_first) else {
            return;
        };
        self.skip(ahead);
        self.lost_place = false;
    }

    /// Moves our place, so that KVM gets the entries before it back.
    fn skip(&mut self, count: u32) {
        for _ in 0..count {
            self.flags(self.next)
                .store(FLAG_HARVESTED, Ordering::Release);
            self.next = self.next.wrapping_add(1);
        }
    }

    fn entry(&self, place: u32) -> *mut kvm_dirty_gfn {
        // SAFETY: the index is below the number of entries in the mapping.
        unsafe { self.entries.as_ptr().add((place % ENTRIES) as usize) }
    }

    fn flags(&self, place: u32) -> &AtomicU32 {
        let entry = self.entry(place);
        // SAFETY: entry points into the mapping.
        let flags = unsafe { &raw mut (*entry).flags };
        // SAFETY: the kernel and we share this word, and both use atomic accesses; the mapping outlives
        // the result.
        unsafe { AtomicU32::from_ptr(flags) }
    }

    /// The page of a dirty entry.
    fn page(&self, place: u32) -> PageIndex {
        let entry = self.entry(place);
        // SAFETY: entry points into the mapping; the acquire of its flags orders this read.
        let slot = unsafe { (*entry).slot };
        // SAFETY: as above.
        let offset = unsafe { (*entry).offset };
        let first = if slot as u16 == 0 {
            0
        } else {
            HOLE_START / PAGE_BYTES as u64
        };
        PageIndex((first + offset) as u32)
    }

    /// Makes room after KVM said that the ring is full.
    pub(super) fn make_room(&mut self) -> Result<(), KvmError> {
        self.note_resets();
        if self.last_taken == 0 && self.taken == 0 {
            // Everything was given back, and still it is full: KVM is ahead by about a whole ring, or by more.
            // Half of one is surely not too much.
            self.skip(ENTRIES / 2);
            self.lost_place = true;
        }
        self.give_back()
    }

    /// Entries go back for all rings of a VM at once: another ring may have given back this one's.
    fn note_resets(&mut self) {
        while self.taken > 0 && !self.is_harvested(self.next.wrapping_sub(self.taken)) {
            self.taken -= 1;
        }
    }

    fn is_harvested(&self, place: u32) -> bool {
        self.flags(place).load(Ordering::Acquire) & FLAG_HARVESTED != 0
    }

    /// Gives all harvested entries back to KVM. It stops in between, and does not say so, when a signal
    /// is pending: a kick, or the chunk timer.
    fn give_back(&mut self) -> Result<(), KvmError> {
        let last = self.next.wrapping_sub(1);
        for _ in 0..RESETS_MAX {
            // SAFETY: a request on our VM without pointers.
            if unsafe { libc::ioctl(self.vm, KVM_RESET_DIRTY_RINGS) } < 0 {
                let source = kvm_ioctls::Error::last();
                return Err(KvmError::Request {
                    request: "KVM_RESET_DIRTY_RINGS",
                    source,
                });
            }
            // They go back in their order.
            if !self.is_harvested(last) {
                self.taken = 0;
                return Ok(());
            }
        }
        // What was not given back still counts as taken.
        self.note_resets();
        Ok(())
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unused from here on.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), RING_BYTES) };
    }
}
