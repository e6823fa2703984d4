//! The bare guest programs: what tests, benchmarks and the demo run inside a machine.
//!
//! Each is a static ELF64 against the contract in `bare-guest.md`, built from `programs/` by the ordinary cargo
//! build. Each checks itself: exit status 0 means right, 1 that the self-check failed, 2 that the parameters were not
//! accepted (the line printed says what is). What a program prints does not depend on timing or on how its vCPUs
//! were interleaved, so runs can be compared byte by byte.

#![forbid(unsafe_code)]

mod catalogue;

pub use catalogue::{COMMON_PARAMS, Program, program, programs};

/// Most vCPUs a guest program runs on.
pub const MAX_VCPUS: u32 = 16;

/// Exit status of a run whose self-check passed.
pub const STATUS_RIGHT: u8 = 0;
/// Exit status of a run whose self-check failed; the last line printed says how.
pub const STATUS_WRONG: u8 = 1;
/// Exit status of a run that did not accept its parameters.
pub const STATUS_BAD_PARAMS: u8 = 2;

/// The kernel, as an ELF file, that keeps changing its page tables and checks what its code at CPL 3 then sees, on two
/// vCPUs of a PC. Command line: `ROUNDS SEED`. It powers off if all was right, and panics if not.
pub const PAGING_KERNEL: &str = concat!(env!("OUT_DIR"), "/kernel-paging.elf");

/// The kernel, as an ELF file, that gives every device of a PC garbage, on two vCPUs. Command line: `SEED AMOUNT CLIENT`.
/// It powers off if each device did what it is for after a reset, and panics if not.
pub const HOSTILE_KERNEL: &str = concat!(env!("OUT_DIR"), "/kernel-hostile.elf");
