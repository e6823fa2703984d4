//! This machine: whether it has KVM, and which tests have it at the same time.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// Holds the machine for a test; others wait.
#[derive(Debug)]
pub struct Machine {
    _lock: File,
}

/// Whether KVM can be used; if not, why.
pub fn kvm() -> Result<(), String> {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    opened.map(drop).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "no /dev/kvm".to_owned(),
        _ => format!("cannot use /dev/kvm: {error}"),
    })
}

/// The machine for this test alone, or none if it has no KVM: the test is skipped then, which is said and counted.
///
/// For tests that compute much. Processors shared by two of them would make both slow, and their bounds a matter of luck.
pub fn kvm_or_skip(test: &str) -> Option<Machine> {
    held_or_skip(test, File::lock)
}

/// The machine for this test and others that are content with a part of it: they mostly wait, and no short time matters
/// to them.
pub fn kvm_shared_or_skip(test: &str) -> Option<Machine> {
    held_or_skip(test, File::lock_shared)
}

fn held_or_skip(test: &str, hold: fn(&File) -> io::Result<()>) -> Option<Machine> {
    static SKIPPED: AtomicU32 = AtomicU32::new(0);
    match kvm() {
        Ok(()) => Some(Machine { _lock: lock(hold) }),
        Err(why) => {
            let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
            println!("skipped: {test}: {why} ({count} skipped so far)");
            None
        }
    }
}

/// # Panics
///
/// If there can be no lock: tests would disturb each other.
fn lock(hold: fn(&File) -> io::Result<()>) -> File {
    let user = rustix::process::getuid().as_raw();
    let path = std::env::temp_dir().join(format!("samsara-tests-{user}.lock"));
    let locked = File::create(&path).and_then(|file| hold(&file).map(|()| file));
    match locked {
        Ok(file) => file,
        Err(error) => panic!("cannot lock {}: {error}", path.display()),
    }
}
