//! Runs whole hosts: real daemons with real certificates, on this machine, that are watched, killed and paused.
//!
//! The end-to-end tests, `cargo demo` and `cargo overhead` use it. A [`Site`] is a directory with a CA and an arbiter; a
//! [`Seat`] is what one host has of its own; a [`Host`] is a daemon in a seat; a [`Pair`] is two of them with a [`Guest`].
//! Whatever is waited for is waited for with a bound.

#![forbid(unsafe_code)]

mod binaries;
mod capture;
mod error;
mod host;
mod joint;
pub mod linux;
mod machine;
mod metrics;
mod pair;
pub mod pauses;
mod ran;
pub mod readings;
pub mod seed;
pub mod service;
mod site;
pub mod soak;
pub mod store;
pub mod tree;
pub mod wait;
pub mod wire;

pub use binaries::{Binaries, DIRECTORY_VARIABLE};
pub use capture::Capture;
pub use error::HarnessError;
pub use host::{Host, run_to_end, wait_file};
pub use joint::Joint;
pub use machine::{Machine, kvm, kvm_or_skip, kvm_shared_or_skip};
pub use metrics::Metrics;
pub use pair::{Guest, Pair, numbered_lines};
pub use pauses::{PauseMeter, Pauses};
pub use ran::Ran;
pub use samsarad::report::Report;
pub use samsarad::status::Status;
pub use site::{Seat, Site};
pub use wire::Wire;
