//! A PC whose vCPUs follow scripts instead of running on KVM: the recorder's dealings with halts, turns,
//! failing disks, fast timers and devices that write memory.

#![allow(clippy::unwrap_used)]

mod cpu;
mod disk;
mod fair;
mod paused;
mod pc;
mod timer;
mod transmit;
mod turns;
mod typed;
