//! The virtual machine as state.
