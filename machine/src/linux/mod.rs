//! Linux guests: putting a kernel into memory, and the tables that tell it what the machine has.
//!
//! A kernel is entered in the way that its file offers: PVH for an ELF file with that note, the 64-bit boot
//! protocol for other ELF files and for bzImages. It finds out about processors and interrupt controllers from ACPI
//! tables or, where it was built without ACPI, from an MP table; about virtio devices from ACPI or its command line
//! ([`VirtioSlot::kernel_parameter`]).

mod acpi;
mod boot;
mod bzimage;
mod elf;
mod entry;
mod error;
mod kernel;
mod map;
mod mp_table;
mod slots;

pub use boot::boot;
pub use entry::{after_init, after_sipi};
pub use error::{BootError, KernelError};
pub use kernel::{CMDLINE_MAX, Kernel};
pub use slots::{VIRTIO_SLOTS_MAX, VirtioSlot};
