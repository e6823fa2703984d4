//! Registers of a local APIC, by their offset in the xAPIC page; the x2APIC's MSR 0x800 + n is the
//! register at n * 16. (Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller".)

/// Local APIC id.
pub const ID: u16 = 0x020;
/// Version and number of local vectors.
pub const VERSION: u16 = 0x030;
/// Task priority.
pub const TPR: u16 = 0x080;
/// Arbitration priority; xAPIC only, and 0 since the Pentium 4.
pub const APR: u16 = 0x090;
/// Processor priority.
pub const PPR: u16 = 0x0a0;
/// End of interrupt.
pub const EOI: u16 = 0x0b0;
/// Remote read; xAPIC only, and 0 since the Pentium 4.
pub const RRD: u16 = 0x0c0;
/// Logical destination.
pub const LDR: u16 = 0x0d0;
/// Destination format; xAPIC only.
pub const DFR: u16 = 0x0e0;
/// Spurious interrupt vector, and software enable.
pub const SVR: u16 = 0x0f0;
/// The first of 8 in-service registers.
pub const ISR: u16 = 0x100;
/// The last of the in-service registers.
pub const ISR_LAST: u16 = ISR + 0x70;
/// The first of 8 trigger mode registers.
pub const TMR: u16 = 0x180;
/// The last of the trigger mode registers.
pub const TMR_LAST: u16 = TMR + 0x70;
/// The first of 8 interrupt request registers.
pub const IRR: u16 = 0x200;
/// The last of the interrupt request registers.
pub const IRR_LAST: u16 = IRR + 0x70;
/// Error status.
pub const ESR: u16 = 0x280;
/// Interrupt command; 64 bits in x2APIC mode.
pub const ICR: u16 = 0x300;
/// Interrupt command, upper half; xAPIC only.
pub const ICR_HIGH: u16 = 0x310;
/// Timer local vector.
pub const LVT_TIMER: u16 = 0x320;
/// Thermal sensor local vector.
pub const LVT_THERMAL: u16 = 0x330;
/// Performance counter local vector.
pub const LVT_PERFORMANCE: u16 = 0x340;
/// Local vector of the pin LINT0.
pub const LVT_LINT0: u16 = 0x350;
/// Local vector of the pin LINT1.
pub const LVT_LINT1: u16 = 0x360;
/// Error local vector.
pub const LVT_ERROR: u16 = 0x370;
/// The timer's initial count.
pub const INITIAL_COUNT: u16 = 0x380;
/// The timer's current count.
pub const CURRENT_COUNT: u16 = 0x390;
/// The timer's divider.
pub const DIVIDE: u16 = 0x3e0;
/// An interrupt to oneself; x2APIC only.
pub const SELF_IPI: u16 = 0x3f0;

/// The mask bit of local vectors and of redirection entries.
pub const MASKED: u32 = 1 << 16;
/// The software enable bit of [`SVR`].
pub const SVR_ENABLE: u32 = 1 << 8;
/// Delivery status, which reads as idle, and remote IRR: bits of local vectors that writes leave alone.
pub const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;
/// The lowest vector that interrupts may have.
pub const VECTOR_MIN: u8 = 16;

/// [`ESR`]: an interrupt was to be sent with an illegal vector.
pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// [`ESR`]: an interrupt came, or was made here, with an illegal vector.
pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// [`ESR`]: there is no such register; xAPIC only.
pub const ILLEGAL_REGISTER: u32 = 1 << 7;
