//! What a device's frames came to: counted here, shown by the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use samsara_commitlog::DeviceIndex;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

impl Direction {
    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// Why a frame got no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Lost {
    /// To the guest, of which this host is not the primary.
    Standby,
    /// To the guest, which had no receive buffer for it.
    NoRoom,
    /// To the guest, which has ended.
    Gone,
    /// To the network, which takes no more now.
    Full,
    /// To the network, whose tap is down or gone.
    Down,
    /// To the network, which takes no such frame: too short or too long.
    Refused,
}

impl Lost {
    /// All reasons.
    pub const ALL: [Self; 6] = [
        Self::Standby,
        Self::NoRoom,
        Self::Gone,
        Self::Full,
        Self::Down,
        Self::Refused,
    ];

    /// Which way the frame would have gone.
    pub const fn direction(self) -> Direction {
        match self {
            Self::Standby | Self::NoRoom | Self::Gone => Direction::In,
            Self::Full | Self::Down | Self::Refused => Direction::Out,
        }
    }

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::NoRoom => "no_room",
            Self::Gone => "gone",
            Self::Full => "full",
            Self::Down => "down",
            Self::Refused => "refused",
        }
    }
}

/// Totals of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounts {
    /// The device.
    pub device: DeviceIndex,
    /// Frames that the guest took.
    pub frames_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Frames of the guest that the network took.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Frames that announced the guest, see [`super::announce`].
    pub announcements: u64,
    /// Times that the tap could not be read.
    pub read_errors: u64,
    /// Frames lost, by reason, in the order of [`Lost::ALL`].
    pub lost: [u64; Lost::ALL.len()],
}

impl DeviceCounts {
    /// Frames lost for this reason.
    pub const fn lost_for(&self, reason: Lost) -> u64 {
        self.lost[reason as usize]
    }
}

/// Totals while they are counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    inward: Passed,
    outward: Passed,
    announcements: AtomicU64,
    read_errors: AtomicU64,
    lost: [AtomicU64; Lost::ALL.len()],
}

#[derive(Debug, Default)]
struct Passed {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    pub(super) fn passed(&self, direction: Direction, bytes: usize) {
        let passed = match direction {
            Direction::In => &self.inward,
            Direction::Out => &self.outward,
        };
        add(&passed.frames, 1);
        add(&passed.bytes, bytes as u64);
    }

    pub(super) fn lost(&self, reason: Lost) {
        add(&self.lost[reason as usize], 1);
    }

    pub(super) fn announced(&self) {
        add(&self.announcements, 1);
    }

    pub(super) fn read_failed(&self) {
        add(&self.read_errors, 1);
    }

    pub(super) fn totals(&self, device: DeviceIndex) -> DeviceCounts {
        DeviceCounts {
            device,
            frames_in: total(&self.inward.frames),
            bytes_in: total(&self.inward.bytes),
            frames_out: total(&self.outward.frames),
            bytes_out: total(&self.outward.bytes),
            announcements: total(&self.announcements),
            read_errors: total(&self.read_errors),
            lost: self.lost.each_ref().map(total),
        }
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

fn total(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
