//! Linux guests: kernels' files, what the loader puts into memory, entry states.

#![allow(clippy::unwrap_used, reason = "tests")]

mod entry;
mod files;
mod kernel;
mod made;
mod tables;

use samsara_machine::kvm::Host;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn host() -> Option<Host> {
    match Host::open() {
        Ok(host) => Some(host),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}
