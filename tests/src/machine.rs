//! This machine: whether it has KVM, and one test at a time on it.

use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};

/// Holds the machine for one test; others wait. Processors shared by two tests would make both slow, and their bounds a
/// matter of luck.
#[derive(Debug)]
pub struct Machine {
    _lock: File,
}

/// Whether KVM can be used; if not, why.
pub fn kvm() -> Result<(), String> {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    opened.map(drop).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "no /dev/kvm".to_owned(),
        _ => format!("cannot use /dev/kvm: {error}"),
    })
}

/// The machine for this test alone, or none if it has no KVM: the test is skipped then, which is said and counted.
pub fn kvm_or_skip(test: &str) -> Option<Machine> {
    static SKIPPED: AtomicU32 = AtomicU32::new(0);
    match kvm() {
        Ok(()) => Some(Machine { _lock: lock() }),
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
fn lock() -> File {
    let user = rustix::process::getuid().as_raw();
    let path = std::env::temp_dir().join(format!("samsara-tests-{user}.lock"));
    let locked = File::create(&path).and_then(|file| file.lock().map(|()| file));
    match locked {
        Ok(file) => file,
        Err(error) => panic!("cannot lock {}: {error}", path.display()),
    }
}
