//! Putting a Linux guest into memory, and its vCPUs into their entry state.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use samsara_commitlog::{Gpa, Shape, VcpuIndex};
use vm_memory::ByteValued;

use super::acpi;
use super::bzimage::BzImage;
use super::entry::{self, Entry};
use super::error::BootError;
use super::kernel::{Format, Initrd, Kernel};
use super::map::{self, memory_map};
use super::mp_table;
use super::slots::VirtioSlot;
use crate::kvm::{Host, Privilege, Vm};
use crate::memory::{HOLE_END, Image, MemoryError};
use crate::vcpu::VcpuState;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// The version whose fields this loader fills in where a kernel's file has no header.
const PROTOCOL_VERSION: u16 = 0x20c;
/// A boot loader without a number of its own.
const LOADER_OTHER: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x20_0000;
const START_INFO_VERSION: u32 = 1;

/// Present, writable, accessed; a large page, dirty.
const TABLE: u64 = 0x23;
const LARGE_PAGE: u64 = 0xe3;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// Loads a kernel into memory, which must be fresh, and gives the state in which each vCPU starts: the first at the
/// kernel's entry point, the others as INIT leaves them, waiting for the first to start them.
pub fn boot(
    host: &Host,
    image: &Image,
    shape: Shape,
    kernel: &Kernel,
    devices: &[VirtioSlot],
) -> Result<Vec<VcpuState>, BootError> {
    let kernel_end = kernel.load(image)?;
    let initrd = kernel.load_initrd(image, kernel_end)?;
    let mut cmdline = kernel.cmdline().as_bytes().to_vec();
    cmdline.push(0);
    image.write(Gpa(map::CMDLINE), &cmdline)?;
    mp_table::write(image, shape.vcpu_count)?;
    acpi::write(image, shape.vcpu_count, devices)?;
    let entry = write_boot_data(image, kernel, initrd)?;
    for (place, descriptor) in (0..).zip(entry::descriptors(entry)) {
        image.write(Gpa(map::GDT + place * 8), &descriptor.to_le_bytes())?;
    }
    let vm = Vm::on_image(host, image)?;
    let vcpus = (0..shape.vcpu_count).map(VcpuIndex);
    vcpus
        .map(|index| {
            let mut vcpu = vm.vcpu(host, index, Privilege::Kernel)?;
            let mut state = VcpuState::zeroed(vcpu.msr_indices());
            vcpu.capture(&mut state)?;
            entry::settle(&mut state, index);
            if index.0 > 0 {
                return Ok(entry::after_init(&state));
            }
            entry::enter(&mut state, entry);
            Ok(state)
        })
        .collect()
}

/// Writes what the kernel is told at its entry.
fn write_boot_data(
    image: &Image,
    kernel: &Kernel,
    initrd: Option<Initrd>,
) -> Result<Entry, MemoryError> {
    let (header, entry) = match kernel.format() {
        Format::Elf(elf) => {
            if let Some(entry) = elf.pvh_entry {
                write_start_info(image, initrd)?;
                return Ok(Entry::Pvh(entry.into()));
            }
            (default_header(), elf.entry)
        }
        Format::BzImage(kernel) => (kernel.header, BzImage::entry()),
    };
    write_zero_page(image, header, initrd)?;
    write_page_tables(image)?;
    Ok(Entry::Long(entry))
}

fn write_start_info(image: &Image, initrd: Option<Initrd>) -> Result<(), MemoryError> {
    let map: Vec<_> = memory_map(image.layout())
        .into_iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.end - entry.start,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: START_INFO_VERSION,
        cmdline_paddr: map::CMDLINE,
        rsdp_paddr: acpi::ROOT_POINTER,
        memmap_paddr: map::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(initrd) = initrd {
        info.nr_modules = 1;
        info.modlist_paddr = map::MODULES;
        let module = hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.bytes,
            ..Default::default()
        };
        image.write(Gpa(map::MODULES), module.as_slice())?;
    }
    let map: Vec<u8> = map.iter().flat_map(ByteValued::as_slice).copied().collect();
    image.write(Gpa(map::MEMORY_MAP), &map)?;
    image.write(Gpa(map::START_INFO), info.as_slice())
}

/// The header for a kernel whose file has none.
fn default_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: PROTOCOL_VERSION,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..Default::default()
    }
}

fn write_zero_page(
    image: &Image,
    mut header: setup_header,
    initrd: Option<Initrd>,
) -> Result<(), MemoryError> {
    header.type_of_loader = LOADER_OTHER;
    header.cmd_line_ptr = map::CMDLINE as u32;
    header.code32_start = map::KERNEL_START as u32;
    // Lists that a file brought would be followed as addresses of memory.
    header.setup_data = 0;
    if let Some(initrd) = initrd {
        // Both are below 2 GiB.
        header.ramdisk_image = initrd.address as u32;
        header.ramdisk_size = initrd.bytes as u32;
    }
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: acpi::ROOT_POINTER,
        ..Default::default()
    };
    let map = memory_map(image.layout());
    params.e820_entries = map.len() as u8;
    for (place, entry) in map.iter().enumerate() {
        params.e820_table[place] = boot_e820_entry {
            addr: entry.start,
            size: entry.end - entry.start,
            r#type: entry.kind as u32,
        };
    }
    image.write(Gpa(map::ZERO_PAGE), params.as_slice())
}

/// Maps the first 4 GiB to themselves, in large pages.
fn write_page_tables(image: &Image) -> Result<(), MemoryError> {
    let mut put = {
        let mut next = map::PAGE_TABLES;
        move |entries: &[u64]| {
            let bytes: Vec<u8> = entries
                .iter()
                .flat_map(|entry| entry.to_le_bytes())
                .collect();
            image.write(Gpa(next), &bytes)?;
            next += PAGE;
            Ok::<(), MemoryError>(())
        }
    };
    let pointers = map::PAGE_TABLES + PAGE;
    let directories = pointers + PAGE;
    put(&[pointers | TABLE])?;
    let count = HOLE_END >> 30;
    let tables: Vec<u64> = (0..count)
        .map(|table| (directories + table * PAGE) | TABLE)
        .collect();
    put(&tables)?;
    for table in 0..count {
        let start = table << 30;
        let pages = (0..512).map(|page| (start + page * LARGE_PAGE_BYTES) | LARGE_PAGE);
        put(&pages.collect::<Vec<_>>())?;
    }
    Ok(())
}
