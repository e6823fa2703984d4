//! The guest's disks on this host.
//!
//! Each host has its own images, and the same commits write both. This is what keeps them equal when the hosts have
//! not been together all the time:
//!
//! - [`position`], [`keeper`]: where this host's disks are in the history of the VM, also after a restart, so
//!   that nobody goes on from the older ones.
//! - [`sync`]: how a backup's disks are brought up to date while the guest runs.
//! - [`apart`]: what a primary has written that its backup may lack, so that what is equal need not be compared.

mod apart;
mod keeper;
mod position;
mod sync;

use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use samsara_commitlog::CommitSeq;
use samsara_config::Config;
use samsara_machine::disk::{Access, DiskFile, RangeSet};
use samsara_machine::pc::virtio::Blocks;
use samsara_replication::protocol::{DiskHistory, DiskPosition, DiskShape, KeptDisks};

use crate::exit::ExitCode;
use crate::failure::Failure;
use keeper::Keeper;
pub(crate) use keeper::Progress;
use position::PositionError;
pub(crate) use sync::{DiskSync, Peer, SyncError, answer};

/// The guest's disks, in the order of its block devices.
pub(crate) struct Disks {
    files: Vec<Arc<DiskFile>>,
    vm: String,
    /// Of the disks that the guest can write; none if there are none.
    keeper: Option<Arc<Keeper>>,
    apart: Mutex<Option<Apart>>,
}

/// What a backup of this history may lack.
struct Apart {
    incarnation: u128,
    changes: apart::Apart,
}

impl Disks {
    /// Opens and locks the images of the configuration.
    pub(crate) fn open(config: &Config) -> Result<Self, Failure> {
        let open = |disk: &samsara_config::DiskConfig| {
            let access = if disk.read_only {
                Access::ReadOnly
            } else {
                Access::ReadWrite
            };
            DiskFile::open(&disk.path, access).map(Arc::new)
        };
        let files: Result<Vec<_>, _> = config.vm.disks.iter().map(open).collect();
        let files = files.map_err(|error| Failure::new(ExitCode::Input, &error))?;
        Self::of_files(files, &config.vm.name)
    }

    fn of_files(files: Vec<Arc<DiskFile>>, vm: &str) -> Result<Self, Failure> {
        let writable = files.iter().find(|file| !file.is_read_only());
        let keeper = match writable {
            Some(file) => {
                let path = position::beside(file.path());
                let keeper = Keeper::load(path, vm.to_owned(), files.clone());
                let keeper = Arc::new(keeper.map_err(|error| position_failure(&error))?);
                let started = keeper.start();
                started.map_err(|error| Failure::new(ExitCode::Internal, &error))?;
                Some(keeper)
            }
            None => None,
        };
        Ok(Self {
            files,
            vm: vm.to_owned(),
            keeper,
            apart: Mutex::default(),
        })
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The images.
    pub(crate) fn files(&self) -> &[Arc<DiskFile>] {
        &self.files
    }

    /// The disks as a machine or a consumer takes them.
    pub(crate) fn blocks(&self) -> Vec<Arc<dyn Blocks>> {
        let blocks = self.files.iter();
        blocks
            .map(|file| Arc::clone(file) as Arc<dyn Blocks>)
            .collect()
    }

    /// What the other host's must be like.
    pub(crate) fn shapes(&self) -> Vec<DiskShape> {
        let shape = |file: &Arc<DiskFile>| DiskShape {
            bytes: file.bytes(),
            read_only: file.is_read_only(),
        };
        self.files.iter().map(shape).collect()
    }

    /// Where they are, if they are anywhere.
    pub(crate) fn position(&self) -> Option<DiskPosition> {
        self.keeper.as_ref()?.position()
    }

    /// What to show to a host that is about to start the guest.
    pub(crate) fn kept(&self) -> Option<KeptDisks> {
        let position = self.position()?;
        let vm = self.vm.clone();
        Some(KeptDisks { vm, position })
    }

    /// The history that is being written.
    pub(crate) fn history(&self) -> Option<DiskHistory> {
        self.keeper.as_ref()?.history()
    }

    /// Term of the history that the guest that runs here was started from.
    pub(crate) fn base_term(&self) -> Option<u64> {
        Some(self.keeper.as_ref()?.base_term())
    }

    /// That a guest may start from these disks.
    pub(crate) fn check_whole(&self) -> Result<(), Failure> {
        let Some(keeper) = self.keeper.as_ref().filter(|keeper| keeper.is_syncing()) else {
            return Ok(());
        };
        let message = format!(
            "this host's disks were being brought up to date and are neither old nor new ({}): start this \
             host with --role backup, or copy the images and that file from the other host",
            keeper.path().display()
        );
        Err(Failure::text(ExitCode::Refused, message))
    }

    /// This host makes history with the disks as they are, from this term on.
    pub(crate) fn begin_history(&self, term: u64) -> Result<(), Failure> {
        self.check_whole()?;
        let Some(keeper) = &self.keeper else {
            return Ok(());
        };
        let incarnation = random().map_err(|error| Failure::new(ExitCode::Internal, &error))?;
        keeper.begin_history(term, incarnation);
        *self.apart() = None;
        Ok(())
    }

    /// The history begun is that of the disks, from before the guest or another host changes anything.
    pub(crate) fn establish(&self, progress: Progress) -> Result<(), Failure> {
        self.keep(|keeper| keeper.establish(progress))
    }

    /// A backup's disks are those of this history.
    pub(crate) fn follow(&self, history: DiskHistory, progress: Progress) -> Result<(), Failure> {
        self.keep(|keeper| keeper.follow(history, progress))
    }

    /// A backup's disks are about to be changed to those of this history.
    pub(crate) fn begin_sync(&self, history: DiskHistory) -> Result<(), Failure> {
        self.keep(|keeper| keeper.begin_sync(history))
    }

    /// The history goes on in a later term.
    pub(crate) fn raise_term(&self, term: u64) -> Result<(), Failure> {
        self.keep(|keeper| keeper.raise_term(term))
    }

    /// Nothing more is applied after this commit.
    pub(crate) fn settle(&self, commit: CommitSeq) -> Result<(), Failure> {
        self.keep(|keeper| keeper.settle(commit))
    }

    fn keep(
        &self,
        change: impl FnOnce(&Keeper) -> Result<(), PositionError>,
    ) -> Result<(), Failure> {
        let changed = self.keeper.as_deref().map_or(Ok(()), change);
        changed.map_err(|error| position_failure(&error))
    }

    /// A backup begins with the disks as they are at this commit. Nothing may commit meanwhile.
    pub(crate) fn backup_begins(&self, at: CommitSeq) {
        let history = self.history();
        *self.apart() = history.map(|history| Apart {
            incarnation: history.incarnation,
            changes: apart::Apart::begin(&self.files, at, Instant::now()),
        });
    }

    /// The backup has verified all up to this commit; see [`apart::Apart::verified`].
    pub(crate) fn backup_verified(&self, seq: CommitSeq, committed: impl FnOnce() -> CommitSeq) {
        if let Some(apart) = &mut *self.apart() {
            let now = Instant::now();
            apart.changes.verified(&self.files, seq, committed, now);
        }
    }

    /// What a backup whose disks are there lacks, by disk, if that is known.
    pub(crate) fn changed_since(&self, position: Option<&DiskPosition>) -> Option<Vec<RangeSet>> {
        let position = position?;
        let apart = self.apart();
        let apart = apart.as_ref()?;
        let is_same = apart.incarnation == position.history.incarnation;
        is_same.then(|| apart.changes.changed_since(position.commit))?
    }

    fn apart(&self) -> MutexGuard<'_, Option<Apart>> {
        self.apart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn position_failure(error: &PositionError) -> Failure {
    Failure::new(ExitCode::Input, error)
}

fn random() -> io::Result<u128> {
    let mut bytes = [0; 16];
    let mut source = std::fs::File::open(Path::new("/dev/urandom"))?;
    source.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests;
