//! Bad input of every kind, given to the real programs: a one-line error that says what and where, the documented exit
//! status, no panic, and nothing lost that was there before.
//!
//! - [`settings`]: command line, configuration, files that do not exist, ports in use.
//! - [`programs`]: guest programs that are none.
//! - [`guests`]: guests that do what they must not.
//! - [`machines`]: hosts without KVM.
//! - [`logs`]: damaged commit logs.
//! - [`strangers`]: hosts that must not get together, and noise.
//! - [`primaries`]: two primaries, stale records.
//! - [`signals`]: SIGTERM in every role.

mod guests;
mod logs;
mod machines;
mod primaries;
mod programs;
mod ran;
mod settings;
mod signals;
mod strangers;
