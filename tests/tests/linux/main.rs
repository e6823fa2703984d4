//! A Linux guest, on the real programs: it boots, its disk is whole, and what its service has promised outlives its host.
//!
//! - [`boots`]: natively and recorded, with some numbers of vCPUs; how it ends.
//! - [`disks`]: files on a disk, of one host and of a pair.
//! - [`hostile`]: another kernel, which gives the devices garbage; it needs no Linux.
//! - [`service`]: a client's one connection, while the primary is killed.
//! - [`soak`]: an hour of that under mixed load.
//!
//! The guest is built when it is missing (`guests/linux/build`), or taken from `SAMSARA_LINUX_CACHE`.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first error")]

mod boots;
mod disks;
mod hostile;
mod service;
mod soak;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use samsara_tests::linux::LinuxGuest;
use samsara_tests::{Host, Machine, kvm_shared_or_skip};

/// A boot takes ten seconds or twenty where supervisor code is emulated; much longer on a busy machine.
const BOUND: Duration = Duration::from_mins(4);
/// What the guest says first.
const UP: &str = "samsara: user space is up";

/// How a machine is run.
const MODES: [(&str, &[&str]); 3] = [
    ("native", &["recording.mode=off"]),
    (
        "serial",
        &["recording.mode=on", "recording.isolation=serial"],
    ),
    (
        "parallel",
        &["recording.mode=on", "recording.isolation=parallel"],
    ),
];

/// The right to run a guest.
struct Alone {
    _machine: Machine,
    /// Tests of this program run one after another: each wants all processors.
    _order: MutexGuard<'static, ()>,
}

fn alone_or_skip(test: &str) -> Option<Alone> {
    static ORDER: Mutex<()> = Mutex::new(());
    let order = ORDER.lock().unwrap_or_else(PoisonError::into_inner);
    Some(Alone {
        _machine: kvm_shared_or_skip(test)?,
        _order: order,
    })
}

/// The Linux guest, and the right to run it.
struct Turn {
    guest: &'static LinuxGuest,
    _alone: Alone,
}

fn turn_or_skip(test: &str) -> Option<Turn> {
    Some(Turn {
        _alone: alone_or_skip(test)?,
        guest: LinuxGuest::or_skip(test)?,
    })
}

/// Says on a panic how to repeat it.
struct Told(String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat this: {}", self.0);
        }
    }
}

/// Settings of a machine in one of [`MODES`].
fn in_mode(mut settings: Vec<String>, mode: &[&str]) -> Vec<String> {
    settings.extend(mode.iter().map(ToString::to_string));
    settings
}

/// Waits until the guest has said this; answers when.
fn wait_said(host: &Host, text: &str) -> Instant {
    let has = |bytes: &[u8]| {
        let mut windows = bytes.windows(text.len());
        windows
            .any(|window| window == text.as_bytes())
            .then_some(())
    };
    host.wait_output(text, BOUND, has).unwrap();
    host.output().when(text).unwrap()
}

/// What the guest has said.
fn console(host: &Host) -> String {
    String::from_utf8_lossy(&host.output().bytes()).into_owned()
}
