//! The ACPI tables: processors, interrupt controllers, power management registers, devices.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use samsara_commitlog::Gpa;

use super::map::ACPI;
use super::slots::{SLOT_BYTES, VirtioSlot};
use crate::memory::{Image, MemoryError};

pub(super) const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
pub(super) const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
pub(super) const IOAPIC_ID: u8 = 0;
/// The IOAPIC pin of the ISA timer interrupt, which is line 0.
pub(super) const TIMER_PIN: u8 = 2;

const OEM_ID: [u8; 6] = *b"SAMSAR";
const OEM_TABLE_ID: [u8; 8] = *b"SAMSARAD";
const OEM_REVISION: u32 = 1;
const TABLE_HEADER_BYTES: u32 = 36;
/// FACS must be aligned so; the others may be.
const ALIGNMENT: u64 = 64;

/// Ports of the power management registers.
const PM1_EVENT: u32 = 0x600;
const PM1_EVENT_BYTES: u8 = 4;
const PM1_CONTROL: u32 = 0x604;
const PM1_CONTROL_BYTES: u8 = 2;
const PM_TIMER: u32 = 0x608;
const PM_TIMER_BYTES: u8 = 4;
const RESET_PORT: u64 = 0xcf9;
const RESET_VALUE: u8 = 6;
/// The interrupt line of power management events.
const SCI_LINE: u8 = 9;
/// `SLP_TYP` of PM1 control that switches the machine off.
const SLEEP_OFF: u8 = 5;
/// Boot architecture: devices on ISA, a keyboard controller, no VGA.
const LEGACY_DEVICES: u16 = 1;
const KEYBOARD_CONTROLLER: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;

const COM1_PORT: u16 = 0x3f8;
const COM1_LINE: u32 = 4;
const PVPANIC_PORT: u16 = 0x505;

/// MADT: this machine also has an ISA interrupt controller pair.
const PCAT_COMPAT: u32 = 1;
const LOCAL_APIC_ENABLED: u32 = 1;
/// Polarity and trigger of an interrupt: those of its bus; active high and level.
const AS_THE_BUS: u16 = 0;
const HIGH_LEVEL: u16 = 0b1101;
const EVERY_PROCESSOR: u8 = 0xff;

/// Where the root pointer is: at the start, where kernels search for it.
pub(super) const ROOT_POINTER: u64 = ACPI.start;

/// Writes the tables.
pub(super) fn write(
    image: &Image,
    vcpu_count: u8,
    devices: &[VirtioSlot],
) -> Result<(), MemoryError> {
    let mut next = ACPI.start + ALIGNMENT;
    let mut put = |table: &[u8]| {
        let address = next;
        next = (next + table.len() as u64).next_multiple_of(ALIGNMENT);
        image.write(Gpa(address), table)?;
        Ok::<u64, MemoryError>(address)
    };
    let facs = put(&bytes_of(&FACS::new()))?;
    let dsdt = put(dsdt(devices).as_slice())?;
    let fadt = put(&bytes_of(&fadt(facs, dsdt)))?;
    let madt = put(madt(vcpu_count).as_slice())?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&bytes_of(&xsdt))?;
    image.write(Gpa(ROOT_POINTER), &bytes_of(&Rsdp::new(OEM_ID, xsdt)))
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The fixed registers. No SMI command port: the machine is in ACPI mode from the start.
fn fadt(facs: u64, dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::from(SCI_LINE).into();
    fadt.pm1a_evt_blk = PM1_EVENT.into();
    fadt.pm1_evt_len = PM1_EVENT_BYTES;
    fadt.pm1a_cnt_blk = PM1_CONTROL.into();
    fadt.pm1_cnt_len = PM1_CONTROL_BYTES;
    fadt.pm_tmr_blk = PM_TIMER.into();
    fadt.pm_tmr_len = PM_TIMER_BYTES;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | KEYBOARD_CONTROLLER | NO_VGA).into();
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        RESET_PORT,
    );
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

fn madt(vcpu_count: u8) -> Sdt {
    let mut madt = table(*b"APIC");
    let mut put = |bytes: &[u8]| madt.append_slice(bytes);
    put(&LOCAL_APIC_ADDRESS.to_le_bytes());
    put(&PCAT_COMPAT.to_le_bytes());
    for index in 0..vcpu_count {
        put(&[0, 8, index, index]);
        put(&LOCAL_APIC_ENABLED.to_le_bytes());
    }
    put(&[1, 12, IOAPIC_ID, 0]);
    put(&IOAPIC_ADDRESS.to_le_bytes());
    put(&0_u32.to_le_bytes());
    for (line, pin, flags) in [(0, TIMER_PIN, AS_THE_BUS), (SCI_LINE, SCI_LINE, HIGH_LEVEL)] {
        put(&[2, 10, 0, line]);
        put(&u32::from(pin).to_le_bytes());
        put(&flags.to_le_bytes());
    }
    let [low, high] = AS_THE_BUS.to_le_bytes();
    put(&[4, 6, EVERY_PROCESSOR, low, high, 1]);
    madt
}

fn dsdt(devices: &[VirtioSlot]) -> Sdt {
    let mut dsdt = table(*b"DSDT");
    let sleep_type: &dyn Aml = &SLEEP_OFF;
    let off = Package::new(vec![sleep_type, sleep_type, &0_u8, &0_u8]);
    dsdt.append_slice(&bytes_of(&Name::new("_S5_".into(), &off)));
    let mut children = bytes_of(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0_u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(COM1_PORT, COM1_PORT, 1, 8),
                    &rising_edge(COM1_LINE),
                ]),
            ),
        ],
    ));
    children.extend(bytes_of(&Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1)]),
            ),
        ],
    )));
    for (number, slot) in (0_u8..).zip(devices) {
        children.extend(virtio(number, *slot));
    }
    dsdt.append_slice(&Scope::raw("_SB_".into(), children));
    dsdt
}

fn virtio(number: u8, slot: VirtioSlot) -> Vec<u8> {
    let registers = Memory32Fixed::new(true, slot.address as u32, SLOT_BYTES as u32);
    let line = rising_edge(slot.line.into());
    bytes_of(&Device::new(
        Path::new(&format!("VR{number:02X}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &number),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&registers, &line]),
            ),
        ],
    ))
}

/// An interrupt of one device, raised when its line rises.
fn rising_edge(line: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, line)
}

fn table(signature: [u8; 4]) -> Sdt {
    let revision = if signature == *b"DSDT" { 2 } else { 3 };
    Sdt::new(
        signature,
        TABLE_HEADER_BYTES,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    )
}
