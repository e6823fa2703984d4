//! A snapshot of a machine that goes on meanwhile.
//!
//! Memory is copied while vCPUs commit to it. What they write meanwhile is tracked and copied again, in rounds, each
//! of which has less to do than the one before it; the last, small one is done under the commit lock, with all that
//! is not memory. So the snapshot is of one commit, and commits wait for the last round only.

use std::sync::PoisonError;

use samsara_commitlog::{Frame, StateDigest};
use samsara_machine::Machine;
use samsara_machine::machine::{Zeros, page_runs};
use samsara_machine::memory::{MemoryError, PageIndex};

use super::committer::Shared;
use super::recorder::Recorder;

/// How much a snapshot may hold up the guest.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotBounds {
    /// Pages that are copied under the commit lock, at most.
    pub last_pages: usize,
    /// Rounds before the guest is stopped, because it writes faster than its memory is copied.
    pub rounds_max: usize,
}

impl Default for SnapshotBounds {
    /// A millisecond or two, unless the guest keeps writing more than a disk does.
    fn default() -> Self {
        Self {
            last_pages: 1024,
            rounds_max: 12,
        }
    }
}

/// Who waits while a frame is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Nobody: the machine runs.
    Nobody,
    /// The guest, which has been stopped.
    Guest,
}

/// What a look at the machine gave.
enum Step {
    /// It has ended, or is being stopped: no snapshot.
    Over,
    /// Pages to copy once more.
    More(Vec<PageIndex>),
    /// All that was left.
    Last(Vec<Frame>, StateDigest),
}

impl Recorder {
    /// Takes a snapshot of the machine while it runs. `take` gets the frames in their order; `at` hears of the state that they
    /// make, before anything commits after it and before `take` has the last of them. Gives that state, or nothing if the machine
    /// has ended or is being stopped.
    pub fn snapshot<E: From<MemoryError>>(
        &self,
        bounds: SnapshotBounds,
        take: &mut dyn FnMut(Frame, Waiting) -> Result<(), E>,
        at: &mut dyn FnMut(StateDigest),
    ) -> Result<Option<StateDigest>, E> {
        let _only = self
            .snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let shared = self.shared();
        let tracking = Tracking::start(shared);
        let (start, image) = {
            let machine = shared.machine();
            if shared.is_over(&machine) {
                return Ok(None);
            }
            (machine.snapshot_start(), machine.image().clone())
        };
        take(Frame::SnapshotStart(start), Waiting::Nobody)?;
        for runs in page_runs(&image, image.touched_pages(), Zeros::Skip) {
            take(Frame::SnapshotPages(runs?), Waiting::Nobody)?;
        }
        for _ in 0..bounds.rounds_max {
            match look(shared, bounds.last_pages, at)? {
                Step::Over => return Ok(None),
                Step::More(pages) => {
                    for runs in page_runs(&image, pages.into_iter(), Zeros::Keep) {
                        take(Frame::SnapshotPages(runs?), Waiting::Nobody)?;
                    }
                }
                Step::Last(frames, digest) => {
                    drop(tracking);
                    for frame in frames {
                        take(frame, Waiting::Nobody)?;
                    }
                    return Ok(Some(digest));
                }
            }
        }
        self.paused(|machine| {
            if shared.is_over(machine) {
                return Ok(None);
            }
            finish(machine, |frame| take(frame, Waiting::Guest), at).map(Some)
        })
    }
}

/// Looks under the commit lock whether little is left to copy, and copies that.
fn look<E: From<MemoryError>>(
    shared: &Shared,
    last_pages: usize,
    at: &mut dyn FnMut(StateDigest),
) -> Result<Step, E> {
    let mut machine = shared.machine();
    if shared.is_over(&machine) {
        return Ok(Step::Over);
    }
    let pages = machine.take_tracked();
    if pages.len() > last_pages {
        return Ok(Step::More(pages));
    }
    let mut frames = Vec::new();
    let keep = |frame| {
        frames.push(frame);
        Ok::<_, E>(())
    };
    let digest = last(&mut machine, pages, keep, at)?;
    Ok(Step::Last(frames, digest))
}

/// Copies all that is left, however much. Nothing may commit meanwhile.
fn finish<E: From<MemoryError>>(
    machine: &mut Machine,
    take: impl FnMut(Frame) -> Result<(), E>,
    at: &mut dyn FnMut(StateDigest),
) -> Result<StateDigest, E> {
    let pages = machine.take_tracked();
    last(machine, pages, take, at)
}

fn last<E: From<MemoryError>>(
    machine: &mut Machine,
    pages: Vec<PageIndex>,
    mut take: impl FnMut(Frame) -> Result<(), E>,
    at: &mut dyn FnMut(StateDigest),
) -> Result<StateDigest, E> {
    let digest = machine.digest();
    at(digest);
    take(Frame::SnapshotStart(machine.snapshot_start()))?;
    for runs in page_runs(machine.image(), pages.into_iter(), Zeros::Keep) {
        take(Frame::SnapshotPages(runs?))?;
    }
    take(Frame::SnapshotEnd(digest))?;
    Ok(digest)
}

/// Written pages are tracked until this is dropped.
struct Tracking<'a>(&'a Shared);

impl<'a> Tracking<'a> {
    fn start(shared: &'a Shared) -> Self {
        shared.machine().track_pages();
        Self(shared)
    }
}

impl Drop for Tracking<'_> {
    fn drop(&mut self) {
        self.0.machine().untrack_pages();
    }
}
