//! A PC whose vCPUs follow scripts instead of running on KVM: the recorder's dealings with halts, turns,
//! failing disks and fast timers.

#![allow(clippy::unwrap_used)]

mod cpu;
mod disk;
mod pc;
mod timer;
mod turns;
