//! A kernel's file, its initrd and its command line, read and checked.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use samsara_commitlog::{Gpa, PAGE_BYTES};

use super::bzimage::BzImage;
use super::elf::ElfKernel;
use super::error::KernelError;
use super::map::{KERNEL_START, low_end};
use crate::memory::{Image, Layout, MemoryError};

/// Longest command line, without its NUL: x86 kernels cut off what is longer.
pub const CMDLINE_MAX: usize = 2047;
/// Largest kernel file: a bound for what is read into this process.
const KERNEL_BYTES_MAX: u64 = 512 << 20;
/// Largest initrd: what fits below [`INITRD_ADDRESS_MAX`].
const INITRD_BYTES_MAX: u64 = INITRD_ADDRESS_MAX + 1;
/// The highest address that an initrd may have a byte at, where the kernel's header does not say less.
pub(super) const INITRD_ADDRESS_MAX: u64 = 0x7fff_ffff;

/// How a kernel's file is loaded.
#[derive(Debug)]
pub(super) enum Format {
    Elf(ElfKernel),
    BzImage(BzImage),
}

/// A checked kernel with what it is given.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    file: Vec<u8>,
    format: Format,
    initrd: Option<(PathBuf, Vec<u8>)>,
    cmdline: String,
}

impl Kernel {
    /// Reads and checks a kernel, its initrd and its command line.
    pub fn open(path: &Path, initrd: Option<&Path>, cmdline: &str) -> Result<Self, KernelError> {
        let file = read(path, "the kernel (vm.kernel)", KERNEL_BYTES_MAX)?;
        let unfit = |problem: String| KernelError::Unfit {
            path: path.into(),
            problem,
        };
        let format = if file.starts_with(&::elf::abi::ELFMAGIC) {
            Format::Elf(ElfKernel::parse(&file).map_err(unfit)?)
        } else if BzImage::is_one(&file) {
            Format::BzImage(BzImage::parse(&file).map_err(unfit)?)
        } else {
            return Err(unfit(
                "is neither an ELF file nor a bzImage; vm.kernel names a Linux kernel for x86-64 \
                 (vmlinuz or vmlinux), uncompressed where it is an ELF file"
                    .into(),
            ));
        };
        let most = match &format {
            Format::Elf(_) => CMDLINE_MAX,
            Format::BzImage(image) => image.cmdline_max().min(CMDLINE_MAX),
        };
        if cmdline.len() > most || cmdline.contains('\0') {
            return Err(KernelError::Cmdline {
                path: path.into(),
                bytes: cmdline.len(),
                most,
            });
        }
        let initrd = initrd
            .map(|path| {
                let bytes = read(path, "the initrd (vm.initrd)", INITRD_BYTES_MAX)?;
                Ok((path.to_path_buf(), bytes))
            })
            .transpose()?;
        Ok(Self {
            path: path.into(),
            file,
            format,
            initrd,
            cmdline: cmdline.into(),
        })
    }

    pub(super) fn format(&self) -> &Format {
        &self.format
    }

    pub(super) fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// Copies the kernel into memory, which is zero where its file does not fill it. Gives where its memory ends.
    pub(super) fn load(&self, image: &Image) -> Result<u64, KernelError> {
        let end = match &self.format {
            Format::Elf(elf) => elf.end(),
            Format::BzImage(image) => image.end(),
        };
        let memory_end = low_end(image.layout());
        if end > memory_end {
            return Err(self.unfit(format!(
                "needs memory up to {end:#x}, but this machine's memory for kernels ends at {memory_end:#x}: give \
                 vm.memory more"
            )));
        }
        let result = match &self.format {
            Format::Elf(elf) => elf.load(&self.file, image),
            Format::BzImage(kernel) => image.write(Gpa(KERNEL_START), kernel.code(&self.file)),
        };
        result.map_err(|error: MemoryError| self.unfit(error.to_string()))?;
        Ok(end)
    }

    /// Copies the initrd to the top of memory, above the kernel, which ends at `kernel_end`. Gives where it is.
    pub(super) fn load_initrd(
        &self,
        image: &Image,
        kernel_end: u64,
    ) -> Result<Option<Initrd>, KernelError> {
        let Some((path, bytes)) = &self.initrd else {
            return Ok(None);
        };
        let place = self.initrd_place(bytes.len() as u64, image.layout(), kernel_end);
        let unfit = |problem| KernelError::Unfit {
            path: path.clone(),
            problem,
        };
        if bytes.is_empty() {
            return Err(unfit("is empty: name an initrd or remove vm.initrd".into()));
        }
        let address = place.map_err(unfit)?;
        let result = image.write(Gpa(address), bytes);
        result.map_err(|error| unfit(error.to_string()))?;
        Ok(Some(Initrd {
            address,
            bytes: bytes.len() as u64,
        }))
    }

    fn initrd_place(&self, bytes: u64, layout: Layout, kernel_end: u64) -> Result<u64, String> {
        let last = match &self.format {
            Format::Elf(_) => INITRD_ADDRESS_MAX,
            Format::BzImage(image) => image.initrd_address_max().min(INITRD_ADDRESS_MAX),
        };
        let end = low_end(layout).min(last + 1);
        let page = PAGE_BYTES as u64;
        let start = end.checked_sub(bytes).map(|start| start / page * page);
        start.filter(|&start| start >= kernel_end).ok_or_else(|| {
            format!(
                "has {bytes} bytes, but between the kernel, which ends at {kernel_end:#x}, and {end:#x} there is not \
                 that much memory: give vm.memory more or make the initrd smaller"
            )
        })
    }

    fn unfit(&self, problem: String) -> KernelError {
        KernelError::Unfit {
            path: self.path.clone(),
            problem,
        }
    }
}

/// Where an initrd is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Initrd {
    pub(super) address: u64,
    pub(super) bytes: u64,
}

fn read(path: &Path, what: &'static str, most: u64) -> Result<Vec<u8>, KernelError> {
    let unreadable = |source| KernelError::Read {
        what,
        path: path.into(),
        source,
    };
    // Opening a pipe would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        let source = io::Error::other("it is not a regular file");
        return Err(unreadable(source));
    }
    let too_large = || {
        let source = io::Error::other(format!("it is larger than {most} bytes"));
        unreadable(source)
    };
    if metadata.len() > most {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    let file = File::open(path).map_err(unreadable)?;
    let read = file.take(most + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(too_large());
    }
    Ok(bytes)
}
