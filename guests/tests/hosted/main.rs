//! Runs the guest programs as ordinary processes (vCPUs are threads, `shim.c` is the machine) and compares what they
//! print with answers computed here.

// Short answers put together from lines; the fold that the lint asks for is longer and says less.
#![allow(clippy::format_collect)]

mod answers;
mod devices;
mod host;
mod litmus;
mod mutations;
mod numeric;
mod params;
mod shared;
mod tree;
