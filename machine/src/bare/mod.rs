//! Bare guests: static ELF64 programs that use the CPU and one page of device registers.
//!
//! Their contract (entry state, memory, registers) is `docs/bare-guest.md`.

mod boot;
mod devices;
mod exits;
mod operation;
mod program;
mod tables;

pub use boot::{BootError, boot};
pub use devices::{BareDevices, DEVICE_PAGE, DeviceError, Effect, register};
pub use exits::{Seen, interpret, is_yield};
pub use operation::{Operation, Pending};
pub use program::{PARAMS_MAX, Program, ProgramError};
pub use tables::{Guarded, stepper};
