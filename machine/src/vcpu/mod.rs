//! A vCPU's architectural state, in the canonical byte form that records and digests use.

mod layout;
mod state;

pub use layout::{Pod, XsaveArea};
pub use state::{STATE_VERSION, StateError, VcpuState};
