//! samsarad and samsaractl.

pub mod bench;
pub mod board;
pub mod cli;
pub mod contention;
pub mod control;
pub mod ctl;
mod disk;
pub mod emitter;
pub mod exit;
pub mod failure;
mod follower;
pub mod guest;
pub mod http;
mod kvm;
pub mod log_file;
pub mod logging;
pub mod metrics;
pub mod net;
mod node;
pub mod notify;
pub mod pki;
pub mod report;
pub mod run;
mod snapshot;
mod standalone;
pub mod status;
pub mod world;
