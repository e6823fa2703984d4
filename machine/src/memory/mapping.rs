//! An owned mapping of the memory file, kept in the state that residency tracking relies on.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// How a mapping relates to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Stores reach the file.
    Shared,
    /// Stores make private copies (copy on write).
    Private,
}

/// A mapping of a whole file; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory that lives until drop; all access goes through raw pointers
// by code that argues about its own races.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(file: &File, bytes: usize, sharing: Sharing) -> io::Result<Self> {
        let flags = match sharing {
            Sharing::Shared => libc::MAP_SHARED,
            Sharing::Private => libc::MAP_PRIVATE,
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel picks a fresh place; no existing memory is touched.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                flags | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { base, bytes })
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Pointer to the byte at `offset`. Panics outside the mapping.
    pub(crate) fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(
            offset
                .checked_add(bytes)
                .is_some_and(|end| end <= self.bytes)
        );
        // SAFETY: just checked to lie inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Pages of 4 KiB only: a page of any other size would make residency lie about its size.
    pub(crate) fn forbid_huge_pages(&self) -> io::Result<()> {
        self.advise(0, self.bytes, libc::MADV_NOHUGEPAGE)
    }

    /// Nothing that was read may leave the page table while a chunk runs: reclaim would take a page
    /// out of the read set.
    pub(crate) fn lock_on_fault(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping.
        let result =
            unsafe { libc::mlock2(self.base().cast(), self.bytes, libc::MLOCK_ONFAULT as _) };
        check(result)
    }

    pub(crate) fn drop_pages(&self, offset: usize, bytes: usize) -> io::Result<()> {
        self.advise(offset, bytes, libc::MADV_DONTNEED_LOCKED)
    }

    fn advise(&self, offset: usize, bytes: usize, advice: i32) -> io::Result<()> {
        let start = self.at(offset, bytes);
        // SAFETY: the range lies inside this mapping, and nothing holds references into it.
        let result = unsafe { libc::madvise(start.cast(), bytes, advice) };
        check(result)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping, and nothing uses it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    bytes: u64,
    mode: u64,
    ioctls: u64,
}

/// Turns fault-around off for a mapping while it lives. A fault then maps the one page that the
/// guest touched, so neighbours do not join the read set. No page is ever write-protected, so no
/// event is ever delivered.
#[derive(Debug)]
pub(crate) struct NoFaultAround {
    _userfaultfd: OwnedFd,
}

impl NoFaultAround {
    pub(crate) fn new(mapping: &Mapping) -> io::Result<Self> {
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let userfaultfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let mut api = UffdioApi {
            api: UFFD_API,
            features: UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
            ioctls: 0,
        };
        // SAFETY: the request takes a pointer to this structure.
        check(unsafe { libc::ioctl(userfaultfd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        let mut register = UffdioRegister {
            start: mapping.base() as u64,
            bytes: mapping.bytes as u64,
            mode: UFFDIO_REGISTER_MODE_WP,
            ioctls: 0,
        };
        // SAFETY: the request takes a pointer to this structure, which names this mapping.
        check(unsafe { libc::ioctl(userfaultfd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) })?;
        Ok(Self {
            _userfaultfd: userfaultfd,
        })
    }
}
