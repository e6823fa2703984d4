//! Guest programs on KVM: native, recorded, followed by a consumer, carried on elsewhere, and with
//! mistakes planted in the recorder.

#![allow(clippy::unwrap_used)]

mod account;
mod again;
mod carry_on;
mod loads;
mod mistakes;
mod paging;
mod privileged;
mod programs;
mod soak;
mod world;
