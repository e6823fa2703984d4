//! Keeps the position of this host's disks, in memory and in the file beside the first one that the
//! guest can write.
//!
//! ```text
//!   primary:  begin_history -> establish -> (raise_term)* -> settle
//!   backup:   (begin_sync)? -> follow -> (raise_term)* -> settle
//! ```
//!
//! A stored position never claims too much: the disks are synced before the commit that they are said to
//! have all of. It may claim too little; that costs a comparison of the disks when hosts meet, nothing else.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use samsara_commitlog::CommitSeq;
use samsara_machine::disk::DiskFile;
use samsara_replication::protocol::{DiskHistory, DiskPosition};

use super::position::{self, Place, PositionError};

/// How often it is looked whether the guest has flushed; each stored position costs a sync of the
/// disks and two small writes.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Tells the last commit that the disks have all of.
pub(crate) type Progress = Arc<dyn Fn() -> CommitSeq + Send + Sync>;

/// See the module's description.
pub(crate) struct Keeper {
    path: PathBuf,
    vm: String,
    disks: Vec<Arc<DiskFile>>,
    state: Mutex<State>,
}

struct State {
    /// What the file has, or more: the commit may be a later one.
    place: Option<Place>,
    /// The history that is being written here, from [`Keeper::begin_history`] on.
    history: Option<DiskHistory>,
    /// The term of the history before that.
    base_term: u64,
    progress: Option<Progress>,
    flush_count: u64,
}

impl Keeper {
    /// Loads what is known of these disks.
    pub(super) fn load(
        path: PathBuf,
        vm: String,
        disks: Vec<Arc<DiskFile>>,
    ) -> Result<Self, PositionError> {
        let place = position::load(&path)?;
        if let Some(place) = place.as_ref().filter(|place| place.vm != vm) {
            let reason = format!("it is of the VM {:?}, this is {vm:?}", place.vm);
            return Err(PositionError::Bad { path, reason });
        }
        let base_term = place
            .as_ref()
            .map_or(0, |place| place.position.history.term);
        let state = State {
            place,
            history: None,
            base_term,
            progress: None,
            flush_count: 0,
        };
        Ok(Self {
            path,
            vm,
            disks,
            state: Mutex::new(state),
        })
    }

    /// Stores positions when the guest has flushed, until the keeper is dropped.
    pub(super) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let keeper = Arc::downgrade(self);
        let body = move || {
            while let Some(keeper) = Weak::upgrade(&keeper) {
                if let Err(error) = keeper.look() {
                    tracing::warn!("{error}");
                }
                drop(keeper);
                std::thread::sleep(LOOK_EVERY);
            }
        };
        let thread = std::thread::Builder::new().name("disks".into());
        thread.spawn(body).map(drop)
    }

    /// The file.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Where the disks are, if they are anywhere: half brought up to date is nowhere.
    pub(crate) fn position(&self) -> Option<DiskPosition> {
        let state = self.lock();
        let place = state.place.as_ref().filter(|place| !place.syncing)?;
        let commit = state.progress.as_ref().map(|progress| progress());
        Some(DiskPosition {
            commit: place.position.commit.max(commit.unwrap_or_default()),
            ..place.position
        })
    }

    /// Whether they were being brought up to date, and that came to no end.
    pub(crate) fn is_syncing(&self) -> bool {
        self.lock()
            .place
            .as_ref()
            .is_some_and(|place| place.syncing)
    }

    /// The history that is being written.
    pub(crate) fn history(&self) -> Option<DiskHistory> {
        self.lock().history
    }

    /// Term of the history that the disks were part of before the present one.
    pub(crate) fn base_term(&self) -> u64 {
        self.lock().base_term
    }

    /// This host makes history from what its disks have: the guest is about to start, or to go on here.
    pub(crate) fn begin_history(&self, term: u64, incarnation: u128) {
        let mut state = self.lock();
        let before = state.place.as_ref();
        let before = before.map_or(0, |place| place.position.history.term);
        // Terms begin anew where the arbiter's record was given up.
        let term = term.max(before.saturating_add(1));
        state.base_term = before;
        state.history = Some(DiskHistory { term, incarnation });
        state.progress = None;
    }

    /// From here on the disks are part of the history begun. To be stored before the guest or the
    /// other host can know of it, and not before it is sure that these are the disks to go on with.
    pub(crate) fn establish(&self, progress: Progress) -> Result<(), PositionError> {
        let mut state = self.lock();
        let Some(history) = state.history else {
            return Ok(());
        };
        let place = state.place.as_ref();
        if place.is_some_and(|place| place.position.history == history && !place.syncing) {
            state.progress = Some(progress);
            return Ok(());
        }
        drop(state);
        self.follow(history, progress)
    }

    /// The disks are those of this history at the commit that `progress` tells, and have reached
    /// stable storage.
    pub(crate) fn follow(
        &self,
        history: DiskHistory,
        progress: Progress,
    ) -> Result<(), PositionError> {
        let commit = progress();
        let mut state = self.lock();
        self.store(&mut state, DiskPosition { history, commit }, false)?;
        state.history = Some(history);
        state.progress = Some(progress);
        Ok(())
    }

    /// The disks are about to be changed to those of this history.
    pub(crate) fn begin_sync(&self, history: DiskHistory) -> Result<(), PositionError> {
        let commit = CommitSeq::BOOT;
        let mut state = self.lock();
        state.progress = None;
        self.store(&mut state, DiskPosition { history, commit }, true)
    }

    /// The history goes on in a later term.
    pub(crate) fn raise_term(&self, term: u64) -> Result<(), PositionError> {
        let mut state = self.lock();
        let Some(history) = state.history.filter(|history| history.term < term) else {
            return Ok(());
        };
        state.history = Some(DiskHistory { term, ..history });
        let Some(place) = &state.place else {
            return Ok(());
        };
        let (mut position, syncing) = (place.position, place.syncing);
        if position.history != history {
            return Ok(());
        }
        position.history.term = term;
        self.store(&mut state, position, syncing)
    }

    /// The disks stay where they are: at this commit, if they are part of a history that reached it.
    pub(crate) fn settle(&self, commit: CommitSeq) -> Result<(), PositionError> {
        self.lock().progress = None;
        self.advance(commit)
    }

    /// Stores how far the disks are, if the guest has flushed since that was done last.
    fn look(&self) -> Result<(), PositionError> {
        let flush_count = self.disks.iter().map(|disk| disk.flush_count()).sum();
        let mut state = self.lock();
        if state.flush_count == flush_count {
            return Ok(());
        }
        state.flush_count = flush_count;
        let Some(progress) = state.progress.clone() else {
            return Ok(());
        };
        drop(state);
        self.advance(progress())
    }

    fn advance(&self, commit: CommitSeq) -> Result<(), PositionError> {
        let history = self.history();
        // Not under the lock: it may take long.
        for disk in &self.disks {
            disk.sync().map_err(|source| PositionError::Io {
                path: self.path.clone(),
                action: "sync the disks of",
                source,
            })?;
        }
        let mut state = self.lock();
        let Some(place) = state.place.as_ref().filter(|place| !place.syncing) else {
            return Ok(());
        };
        let mut position = place.position;
        if Some(position.history) != history || position.commit >= commit {
            return Ok(());
        }
        position.commit = commit;
        self.store(&mut state, position, false)
    }

    fn store(
        &self,
        state: &mut State,
        position: DiskPosition,
        syncing: bool,
    ) -> Result<(), PositionError> {
        let place = Place {
            vm: self.vm.clone(),
            position,
            syncing,
        };
        position::store(&self.path, &place)?;
        state.place = Some(place);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
