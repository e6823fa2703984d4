//! The engine on made-up vCPUs: no KVM, real views, random programs, and a model that executes the
//! committed chunks one after another.

#![allow(clippy::unwrap_used)]

mod again;
mod conflicts;
mod cpu;
mod model;
mod program;
mod rng;
mod serial;
mod world;
