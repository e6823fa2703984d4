//! What stops a replay that goes on, in either direction.

use std::collections::BTreeSet;
use std::ops::Range;

use samsara_commitlog::{CommitSeq, PAGE_BYTES, VcpuIndex};
use samsara_machine::Machine;
use samsara_machine::machine::Change;

use super::timeline::Step;

/// The longest range that is watched: enough for any variable, and little to translate.
const WATCHED_BYTES_MAX: u64 = 1 << 20;

/// Why a replay stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The step that was asked for is done.
    Stepped,
    /// A commit that changed watched memory was just gone over. Of what devices wrote, no vCPU is known.
    Watch {
        vcpu: Option<VcpuIndex>,
        address: u64,
    },
    /// A vCPU came to an address.
    Break(VcpuIndex),
    /// The state after a commit that was to be stopped at.
    Commit,
    /// The first state that there is.
    Begin,
    /// The last state that there is.
    End,
}

/// Memory that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Watch {
    /// As it was asked for.
    address: u64,
    bytes: u64,
    /// Where that was in memory when it was asked for.
    places: Vec<Range<u64>>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Stops {
    watches: Vec<Watch>,
    addresses: Vec<u64>,
    commits: BTreeSet<CommitSeq>,
}

impl Stops {
    /// Watches memory that a vCPU has at an address. Gives whether it has.
    pub(super) fn watch(
        &mut self,
        machine: &Machine,
        vcpu: VcpuIndex,
        address: u64,
        bytes: u64,
    ) -> bool {
        if bytes == 0 || bytes > WATCHED_BYTES_MAX {
            return false;
        }
        let Some(places) = places(machine, vcpu, address, bytes) else {
            return false;
        };
        self.watches.push(Watch {
            address,
            bytes,
            places,
        });
        true
    }

    pub(super) fn unwatch(&mut self, address: u64, bytes: u64) -> bool {
        let is_it = |watch: &Watch| (watch.address, watch.bytes) == (address, bytes);
        let found = self.watches.iter().position(is_it);
        found.map(|place| self.watches.remove(place)).is_some()
    }

    pub(super) fn add_address(&mut self, address: u64) {
        self.addresses.push(address);
    }

    pub(super) fn remove_address(&mut self, address: u64) -> bool {
        let found = self.addresses.iter().position(|&other| other == address);
        found
            .map(|place| self.addresses.swap_remove(place))
            .is_some()
    }

    /// The commits to be stopped at.
    pub(super) fn commits(&mut self) -> &mut BTreeSet<CommitSeq> {
        &mut self.commits
    }

    /// Whether going over a step, in either direction, is a reason to stop.
    pub(super) fn passed(&self, step: &Step) -> Option<Stop> {
        let mut watches = self.watches.iter();
        let watch = watches.find(|watch| watch.is_changed(&step.change))?;
        Some(Stop::Watch {
            vcpu: step.record.chunk().map(|chunk| chunk.vcpu),
            address: watch.address,
        })
    }

    /// Whether the state after a commit is a reason to stop: of the vCPU whose commit it was, if it was one's, there is its
    /// place in the program.
    pub(super) fn reached(&self, seq: CommitSeq, at: Option<(VcpuIndex, u64)>) -> Option<Stop> {
        match at {
            Some((vcpu, rip)) if self.addresses.contains(&rip) => Some(Stop::Break(vcpu)),
            _ => self.commits.contains(&seq).then_some(Stop::Commit),
        }
    }
}

impl Watch {
    fn is_changed(&self, change: &Change) -> bool {
        change.memory().iter().any(|(address, bytes)| {
            let end = address + bytes.len() as u64;
            let mut places = self.places.iter();
            places.any(|place| place.start < end && address < place.end)
        })
    }
}

/// Where a vCPU has a range of addresses in memory; `None` if it has not all of it.
fn places(machine: &Machine, vcpu: VcpuIndex, address: u64, bytes: u64) -> Option<Vec<Range<u64>>> {
    const PAGE: u64 = PAGE_BYTES as u64;
    let end = address.checked_add(bytes)?;
    let mut places = Vec::new();
    let mut next = address;
    while next < end {
        let until = end.min((next / PAGE + 1).saturating_mul(PAGE));
        let place = machine.translate(vcpu, next)?;
        machine.image().layout().offset_of(place, until - next)?;
        places.push(place.0..place.0 + (until - next));
        next = until;
    }
    Some(places)
}
