//! What this primary has written that its backup may lack.
//!
//! A backup that is lost has applied all commits up to some place that is not before the last one that it
//! acknowledged as verified. When it comes back to the same primary, only what was written since can differ. So the
//! primary always knows what it wrote since a commit that is not after the last verified one: it has two logs of
//! changes, each of all writes of the commits after its own; when the backup has verified what the younger
//! one begins with, the older one is dropped and a new one is begun.

use std::sync::Arc;
use std::time::{Duration, Instant};

use samsara_commitlog::CommitSeq;
use samsara_machine::disk::{DiskFile, RangeSet, Tracker};

/// How often a log of changes is begun at most: each costs memory that must be cleared.
const BEGIN_EVERY: Duration = Duration::from_secs(1);

/// All writes of the commits after `since`, by disk.
struct Log {
    since: CommitSeq,
    trackers: Vec<Tracker>,
}

impl Log {
    fn trackers(disks: &[Arc<DiskFile>]) -> Vec<Tracker> {
        disks.iter().map(|disk| disk.track()).collect()
    }
}

/// See the module's description.
pub(crate) struct Apart {
    older: Log,
    younger: Option<Log>,
    begun: Instant,
}

impl Apart {
    /// A backup begins with the disks as they are at this commit, while nothing commits.
    pub(crate) fn begin(disks: &[Arc<DiskFile>], since: CommitSeq, now: Instant) -> Self {
        let trackers = Log::trackers(disks);
        Self {
            older: Log { since, trackers },
            younger: None,
            begun: now,
        }
    }

    /// The backup has verified all up to this commit. `committed` tells the last commit, all of whose
    /// writes are done.
    pub(crate) fn verified(
        &mut self,
        disks: &[Arc<DiskFile>],
        seq: CommitSeq,
        committed: impl FnOnce() -> CommitSeq,
        now: Instant,
    ) {
        if let Some(younger) = self.younger.take_if(|younger| younger.since <= seq) {
            self.older = younger;
        }
        if self.younger.is_none() && now.duration_since(self.begun) >= BEGIN_EVERY {
            let trackers = Log::trackers(disks);
            // The commit that is being applied may have written before the log began.
            let since = committed().next();
            self.younger = Some(Log { since, trackers });
            self.begun = now;
        }
    }

    /// All that was written after a commit, by disk, and perhaps more; nothing if that is not known.
    pub(crate) fn changed_since(&self, commit: CommitSeq) -> Option<Vec<RangeSet>> {
        let changed = self.older.trackers.iter().map(Tracker::changed);
        (commit >= self.older.since).then(|| changed.collect())
    }
}

#[cfg(test)]
mod tests {
    use samsara_machine::disk::{Access, RANGE_BYTES, RangeIndex};
    use samsara_machine::pc::virtio::Blocks as _;

    use super::*;

    struct Host {
        _folder: tempfile::TempDir,
        disks: Vec<Arc<DiskFile>>,
    }

    impl Host {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk");
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(1000 * RANGE_BYTES).unwrap();
            let disk = DiskFile::open(&path, Access::ReadWrite).unwrap();
            Self {
                _folder: folder,
                disks: vec![Arc::new(disk)],
            }
        }

        /// What commit `seq` writes: a range of its own.
        fn commit(&self, seq: u64) {
            self.disks[0].write(seq * RANGE_BYTES, &[1; 512]).unwrap();
        }
    }

    #[test]
    fn what_a_backup_may_lack_is_always_known() {
        let (host, start) = (Host::new(), Instant::now());
        let mut apart = Apart::begin(&host.disks, CommitSeq(0), start);
        let mut verified = 0;
        let mut dropped = false;
        for seq in 1..500u64 {
            host.commit(seq);
            // Reported before the world hears of the commit, which is the worst moment.
            let committed = seq - 1;
            if seq % 7 == 0 {
                verified = committed - seq % 5;
                let now = start + Duration::from_millis(100 * seq);
                let committed = || CommitSeq(committed);
                apart.verified(&host.disks, CommitSeq(verified), committed, now);
            }
            let changed = apart.changed_since(CommitSeq(verified)).unwrap();
            for written in verified + 1..=seq {
                assert!(
                    changed[0].contains(RangeIndex(written as u32)),
                    "{written} at {seq}"
                );
            }
            assert!(changed[0].count() <= seq - verified + 60, "at {seq}");
            dropped |= apart.changed_since(CommitSeq(0)).is_none();
        }
        assert!(dropped && verified > 400);
    }

    #[test]
    fn without_acknowledgements_all_is_kept() {
        let (host, start) = (Host::new(), Instant::now());
        let mut apart = Apart::begin(&host.disks, CommitSeq(10), start);
        for seq in 11..100 {
            host.commit(seq);
            let now = start + Duration::from_secs(seq);
            apart.verified(&host.disks, CommitSeq(10), || CommitSeq(seq), now);
        }
        assert!(apart.changed_since(CommitSeq(9)).is_none());
        assert_eq!(apart.changed_since(CommitSeq(10)).unwrap()[0].count(), 89);
    }
}
