//! The machine as state: programs, entry state, devices, snapshots.

#![allow(clippy::unwrap_used)]

mod apply;
mod devices;
mod elf;
mod entry;
mod operations;
mod programs;
mod rewind;
mod snapshot;
mod stepped;
mod views;

use std::sync::Arc;

use samsara_commitlog::Shape;
use samsara_machine::memory::Image;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Memory of a machine with two vCPUs.
fn image(bytes: u64) -> Arc<Image> {
    Arc::new(Image::new(Shape::new(2, bytes).unwrap()).unwrap())
}

/// Seeded random numbers.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
