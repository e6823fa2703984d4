//! The virtual machine as state: the image, vCPU states, devices, and the one [`Machine::apply`]
//! that moves them along the commit log; KVM, which runs vCPUs on that state; and taps.
//!
//! The only crate with unsafe code. Guest memory is never a Rust reference here: it is reached
//! through raw pointers and copied.

pub mod bare;
pub mod disk;
pub mod kvm;
pub mod linux;
pub mod machine;
pub mod memory;
pub mod pc;
pub mod symbols;
pub mod tap;
pub mod vcpu;

pub use machine::{
    Applied, ApplyError, Devices, Ended, Machine, Output, Platform, Source, Touched,
};
