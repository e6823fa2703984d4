//! The image: committed guest memory in one memfd, mapped shared once.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use samsara_commitlog::{ByteRuns, ByteRunsBuilder, Gpa, PAGE_BYTES, Shape};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes as _, GuestAddress, GuestRegionMmap};

use super::diff::{PageCopy, changed_words, push_changed_runs};
use super::digest::{PageDigests, page_digest};
use super::dma::{DmaLog, GuestMemory};
use super::layout::{Layout, PageIndex};
use super::mapping::{Mapping, Sharing};

const NAME: &CStr = c"samsara-image";

/// Why guest memory cannot be had, or reached.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memory file cannot be made.
    #[error("cannot reserve {bytes} bytes of guest memory")]
    Create {
        /// Its size.
        bytes: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A view cannot be set up.
    #[error("cannot {action} a private view of guest memory")]
    View {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Page tables of this process cannot be read.
    #[error("cannot read /proc/self/pagemap")]
    Pagemap(#[source] io::Error),
    /// An address range is not guest memory.
    #[error("{bytes} bytes at {gpa} are not guest memory")]
    Outside {
        /// Where it starts.
        gpa: Gpa,
        /// How long it is.
        bytes: u64,
    },
    /// vm-memory refuses the mapping.
    #[error("guest memory map")]
    Map(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Committed guest memory.
///
/// Only whoever holds the commit lock writes it. Others may read it at any time and must not trust
/// what they read before they have checked, under the commit lock, that no commit came between.
#[derive(Debug)]
pub struct Image {
    file: File,
    layout: Layout,
    digests: PageDigests,
    dma: DmaLog,
    // Declared before the mapping that it points into, so dropped first.
    guest_memory: GuestMemory,
    mapping: Mapping,
}

impl Image {
    /// Memory of a machine, all zero.
    pub fn new(shape: Shape) -> Result<Self, MemoryError> {
        let layout = Layout::new(shape);
        let create = |source| MemoryError::Create {
            bytes: layout.bytes(),
            source,
        };
        let file = sealed_memfd(layout.bytes()).map_err(create)?;
        let mapping =
            Mapping::new(&file, layout.bytes() as usize, Sharing::Shared).map_err(create)?;
        mapping.forbid_huge_pages().map_err(create)?;
        let dma = DmaLog::default();
        let guest_memory = guest_memory_of(layout, &mapping, &dma)?;
        Ok(Self {
            file,
            digests: PageDigests::new(layout.page_count()),
            layout,
            dma,
            guest_memory,
            mapping,
        })
    }

    /// Where memory is.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The memory as rust-vmm crates know it: for loaders and devices. What is written through it is
    /// noted, see [`Self::take_dma`]. The writer holds the commit lock.
    pub fn guest_memory(&self) -> &GuestMemory {
        &self.guest_memory
    }

    /// Adds the pages that were written through [`Self::guest_memory`] since the last call to `written`.
    pub fn take_dma(&self, written: &mut Vec<PageIndex>) {
        self.dma.take(written);
    }

    /// Copies bytes out.
    pub fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), MemoryError> {
        self.check(gpa, out.len())?;
        self.guest_memory
            .read_slice(out, GuestAddress(gpa.0))
            .map_err(|source| MemoryError::Map(Box::new(source)))
    }

    /// Copies bytes in. The caller holds the commit lock.
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.write_noted(gpa, bytes, &mut Vec::new())
    }

    /// Copies bytes in and adds the pages that they touch to `written`. The caller holds the commit
    /// lock.
    pub(crate) fn write_noted(
        &self,
        gpa: Gpa,
        bytes: &[u8],
        written: &mut Vec<PageIndex>,
    ) -> Result<(), MemoryError> {
        let outside = || MemoryError::Outside {
            gpa,
            bytes: bytes.len() as u64,
        };
        let offset = self
            .layout
            .offset_of(gpa, bytes.len() as u64)
            .ok_or_else(outside)?;
        let target = self.mapping.at(offset, bytes.len());
        // SAFETY: the target lies in the mapping, apart from `bytes`; readers without the commit
        // lock validate what they read.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
        let pages =
            (offset / PAGE_BYTES) as u32..(offset + bytes.len()).div_ceil(PAGE_BYTES) as u32;
        for page in pages.map(PageIndex) {
            if written.last() != Some(&page) {
                written.push(page);
            }
        }
        Ok(())
    }

    /// Copies byte runs in, as [`Self::write_noted`] does.
    pub(crate) fn write_runs(
        &self,
        runs: &ByteRuns,
        written: &mut Vec<PageIndex>,
    ) -> Result<(), MemoryError> {
        runs.iter()
            .try_for_each(|(address, bytes)| self.write_noted(Gpa(address), bytes, written))
    }

    fn check(&self, gpa: Gpa, bytes: usize) -> Result<(), MemoryError> {
        match self.layout.offset_of(gpa, bytes as u64) {
            Some(_) => Ok(()),
            None => Err(MemoryError::Outside {
                gpa,
                bytes: bytes as u64,
            }),
        }
    }

    pub(super) fn copy_page(&self, page: PageIndex, out: &mut PageCopy) {
        let source = self.page(page);
        // SAFETY: both are 4096 bytes; racing commits make the copy stale, never invalid, and the
        // caller's validation throws stale ones away.
        unsafe { std::ptr::copy_nonoverlapping(source, (&raw mut out.0).cast(), PAGE_BYTES) };
    }

    /// Whether a page is the same in another image of this layout.
    pub(crate) fn page_equals(&self, other: &Self, page: PageIndex) -> bool {
        let (mut own, mut others) = (PageCopy::zeroed(), PageCopy::zeroed());
        self.copy_page(page, &mut own);
        other.copy_page(page, &mut others);
        own.0 == others.0
    }

    /// Makes a page what it is in another image of this layout. Nobody writes either meanwhile.
    pub(crate) fn adopt_page(&self, other: &Self, page: PageIndex) {
        // SAFETY: two mappings of 4096 bytes each.
        unsafe { std::ptr::copy_nonoverlapping(other.page(page), self.page(page), PAGE_BYTES) };
    }

    /// Adds the bytes of a page that are others in another image of this layout, as they are here, to `out`. Nobody writes
    /// either meanwhile.
    pub(crate) fn push_other_bytes(
        &self,
        other: &Self,
        page: PageIndex,
        out: &mut ByteRunsBuilder,
    ) {
        let (here, there) = (self.page(page).cast(), other.page(page).cast());
        // SAFETY: two pages that nobody writes.
        if let Some(changed) = unsafe { changed_words(there, here) } {
            let address = self.layout.gpa_of(page).0;
            // SAFETY: as above.
            unsafe { push_changed_runs(address, there, here, &changed, out) };
        }
    }

    /// The digest of a page at the last commit. See [`PageDigests`] for who may trust it.
    pub fn digest_of(&self, page: PageIndex) -> u128 {
        self.digests.get(page)
    }

    pub(super) fn digests(&self) -> &PageDigests {
        &self.digests
    }

    /// The digest of a page as it is. The caller holds the commit lock.
    pub(super) fn digest_page(&self, page: PageIndex) -> u128 {
        // SAFETY: a page of the mapping, which nobody writes without the commit lock.
        let bytes = unsafe { &*self.page(page).cast_const().cast() };
        page_digest(page, bytes)
    }

    pub(super) fn page(&self, page: PageIndex) -> *mut u8 {
        self.mapping.at(page.offset(), PAGE_BYTES)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn host_address(&self, offset: u64) -> u64 {
        self.mapping.base() as u64 + offset
    }

    /// Which pages have ever been written: the rest are zero and need not be looked at.
    pub(super) fn has_data(&self, from: PageIndex) -> Option<PageIndex> {
        let offset = from.offset() as i64;
        // SAFETY: a system call on our own file without pointers.
        let next = unsafe { libc::lseek(self.file.as_raw_fd(), offset, libc::SEEK_DATA) };
        let page = u32::try_from(u64::try_from(next).ok()? / PAGE_BYTES as u64).ok()?;
        (page < self.layout.page_count()).then_some(PageIndex(page))
    }

    /// Pages that may hold something other than zeros, in order.
    pub fn touched_pages(&self) -> impl Iterator<Item = PageIndex> {
        let mut next = PageIndex(0);
        std::iter::from_fn(move || {
            let page = self.has_data(next)?;
            next = PageIndex(page.0 + 1);
            Some(page)
        })
    }
}

fn sealed_memfd(bytes: u64) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string; the call returns a new descriptor or -1.
    let fd = unsafe { libc::memfd_create(NAME.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: a system call on our own file without pointers.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn guest_memory_of(
    layout: Layout,
    mapping: &Mapping,
    dma: &DmaLog,
) -> Result<GuestMemory, MemoryError> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let mut regions = Vec::new();
    for (range, offset) in layout.regions() {
        let bytes = (range.end - range.start) as usize;
        let base = mapping.at(offset as usize, bytes);
        let builder = MmapRegionBuilder::new_with_bitmap(bytes, dma.at_offset(offset as usize))
            .with_mmap_prot(protection)
            .with_mmap_flags(libc::MAP_SHARED);
        // SAFETY: the range lies inside the mapping, which outlives the guest memory in `Image`.
        let builder = unsafe { builder.with_raw_mmap_pointer(base) };
        let region = builder
            .build()
            .map_err(|source| MemoryError::Map(Box::new(source)))?;
        let region = GuestRegionMmap::new(region, GuestAddress(range.start)).ok_or(
            MemoryError::Outside {
                gpa: Gpa(range.start),
                bytes: bytes as u64,
            },
        )?;
        regions.push(region);
    }
    GuestMemory::from_regions(regions).map_err(|source| MemoryError::Map(Box::new(source)))
}
