//! What vCPUs lose their chunks by, for people and programs: pages, who lost to whom, and where both were, with names where the
//! guest's file has them.

mod names;

use samsara_commitlog::VcpuIndex;
use samsara_config::{RecordingMode, Role};
use samsara_engine as engine;
use samsara_engine::{Phase, Stats};
use serde::{Deserialize, Serialize};

use crate::status::Status;
pub use names::{GuestFile, Names};

/// Names of objects that are given of a page.
const OBJECTS_MAX: usize = 4;

/// All conflicts that are known of, since the start of the process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contention {
    /// Name of the VM.
    pub vm: String,
    /// Name of this host.
    pub host: String,
    /// What the host does with the VM: on a backup its vCPUs do not run.
    pub role: Role,
    /// Whether the VM is recorded; if not, nothing conflicts.
    pub recording: RecordingMode,
    /// How vCPUs are kept apart: in `serial` isolation nothing conflicts.
    pub isolation: String,
    /// Chunks committed.
    pub chunks: u64,
    /// Chunks squashed.
    pub squashes: u64,
    /// Those of them that changed more than a record carries: they conflicted with nothing.
    pub too_large: u64,
    /// Time of vCPUs that went into squashed chunks.
    pub lost_seconds: f64,
    /// Where names are from, or why there are none.
    pub names: String,
    /// The conflicts, the most frequent first.
    pub conflicts: Vec<Conflict>,
}

/// Chunks of one vCPU that were lost to another's commits by one page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conflict {
    /// Address of the page in guest memory, hexadecimal.
    pub page: String,
    /// Objects that have a part in the page, by name, lowest first: at most four.
    pub objects: Vec<String>,
    /// How many more have.
    pub more_objects: usize,
    /// Index of the vCPU whose chunks were lost.
    pub loser: u8,
    /// Whose commits they were lost to.
    pub winner: Winner,
    /// Squashes that it was a cause of, at most. One that several pages caused counts for each of them.
    pub squashes: u64,
    /// The count may be so much too high.
    pub squashes_over: u64,
    /// What those squashes cost.
    pub lost_seconds: f64,
    /// Where the loser was when it was stopped, the most frequent places first: at most four.
    pub loser_at: Vec<Place>,
    /// Where the winner's chunks ended, the same.
    pub winner_at: Vec<Place>,
}

/// Who committed what a chunk had read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Winner {
    /// A chunk of the vCPU with this index.
    Vcpu(u8),
    /// A device, or something from outside.
    Input,
    /// One of so many commits that they were not kept apart.
    Several,
}

/// A place in the guest's code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The instruction pointer, hexadecimal.
    pub rip: String,
    /// The function that it is in, and how far into it.
    pub function: Option<String>,
    /// How often, at most.
    pub count: u64,
    /// The count may be so much too high.
    pub count_over: u64,
}

impl Contention {
    /// What was counted until now.
    pub fn new(status: &Status, engine: &Stats, file: &GuestFile) -> Self {
        let counts = engine.snapshot();
        let found = engine.conflicts();
        let names = if found.is_empty() {
            Names::default()
        } else {
            file.names()
        };
        Self {
            vm: status.vm.clone(),
            host: status.host.clone(),
            role: status.role,
            recording: status.recording,
            isolation: status.isolation.clone(),
            chunks: counts.chunks_by_vcpu.iter().sum(),
            squashes: counts.squashes,
            too_large: counts.too_large,
            lost_seconds: counts.spent_on(Phase::Lost).as_secs_f64(),
            conflicts: found.iter().map(|one| conflict(one, &names)).collect(),
            names: names.from,
        }
    }
}

fn conflict(found: &engine::Conflict, names: &Names) -> Conflict {
    let (objects, more_objects) = names.objects_in(found.page, OBJECTS_MAX);
    let places = |found: &[engine::Counted<u64>]| {
        let places = found.iter().map(|place| Place {
            rip: format!("{:#x}", place.what),
            function: names.function_at(place.what),
            count: place.count,
            count_over: place.over,
        });
        places.collect()
    };
    Conflict {
        page: found.page.to_string(),
        objects,
        more_objects,
        loser: found.loser.0,
        winner: match found.winner {
            engine::Winner::Vcpu(VcpuIndex(index)) => Winner::Vcpu(index),
            engine::Winner::Input => Winner::Input,
            engine::Winner::Several => Winner::Several,
        },
        squashes: found.squashes,
        squashes_over: found.squashes_over,
        lost_seconds: found.lost.as_secs_f64(),
        loser_at: places(&found.loser_at),
        winner_at: places(&found.winner_at),
    }
}
