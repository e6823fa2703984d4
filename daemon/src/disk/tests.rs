use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use samsara_machine::disk::RANGE_BYTES;

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.raw", "b.raw"] {
            let file = std::fs::File::create(folder.path().join(name)).unwrap();
            file.set_len(10 * RANGE_BYTES).unwrap();
        }
        Self(folder)
    }

    fn open_as(&self, vm: &str) -> Result<Disks, Failure> {
        let open = |name: &str, access| {
            Arc::new(DiskFile::open(self.0.path().join(name), access).unwrap())
        };
        let files = vec![
            open("a.raw", Access::ReadOnly),
            open("b.raw", Access::ReadWrite),
        ];
        Disks::of_files(files, vm)
    }

    /// The disks as a host finds them that starts again. The position keeper of a host before it may still be in
    /// its last look.
    fn open(&self) -> Disks {
        self.open_as("web").unwrap()
    }

    fn position_file(&self) -> std::path::PathBuf {
        self.0.path().join("b.raw.samsara")
    }
}

fn at(commit: u64) -> Progress {
    Arc::new(move || CommitSeq(commit))
}

fn stored(folder: &Folder) -> position::Place {
    position::load(&folder.position_file()).unwrap().unwrap()
}

#[test]
fn a_history_begins_is_kept_and_found_again() {
    let folder = Folder::new();
    let disks = folder.open();
    assert_eq!((disks.position(), disks.kept()), (None, None));
    disks.begin_history(4).unwrap();
    // Nothing is sure yet.
    assert!(!folder.position_file().exists());
    assert_eq!(disks.base_term(), Some(0));
    disks.establish(at(0)).unwrap();
    disks.settle(CommitSeq(70)).unwrap();
    let kept = disks.kept().unwrap();
    assert_eq!(
        (kept.vm.as_str(), kept.position.commit),
        ("web", CommitSeq(70))
    );
    assert_eq!(kept.position.history, disks.history().unwrap());
    assert_eq!(kept.position.history.term, 4);
    assert_eq!(stored(&folder).position, kept.position);

    let again = DisksAgain::of(disks, &folder);
    assert_eq!(again.0.position(), Some(kept.position));
    assert_eq!(again.0.history(), None);
    // The arbiter has forgotten all terms.
    again.0.begin_history(1).unwrap();
    let history = again.0.history().unwrap();
    assert_eq!((history.term, again.0.base_term()), (5, Some(4)));
    assert_ne!(history.incarnation, kept.position.history.incarnation);
}

/// Disks of the same images, after those before them are closed.
struct DisksAgain(Disks);

impl DisksAgain {
    fn of(before: Disks, folder: &Folder) -> Self {
        let files: Vec<_> = before.files.iter().map(Arc::downgrade).collect();
        drop(before);
        while files.iter().any(|file| file.strong_count() > 0) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Self(folder.open())
    }
}

#[test]
fn half_brought_up_to_date_is_no_place_to_start_from() {
    let folder = Folder::new();
    let disks = folder.open();
    let history = DiskHistory {
        term: 9,
        incarnation: 1,
    };
    disks.follow(history, at(33)).unwrap();
    disks.check_whole().unwrap();
    disks.begin_sync(history).unwrap();
    assert_eq!(disks.position(), None);
    disks.settle(CommitSeq(40)).unwrap();
    disks.raise_term(10).unwrap();

    let again = DisksAgain::of(disks, &folder).0;
    assert_eq!(again.position(), None);
    for failure in [
        again.check_whole().unwrap_err(),
        again.begin_history(12).unwrap_err(),
    ] {
        assert_eq!(failure.code, ExitCode::Refused);
        let text = failure.message;
        assert!(
            text.contains("--role backup") && text.contains("b.raw.samsara"),
            "{text}"
        );
    }
    again.follow(history, at(50)).unwrap();
    again.check_whole().unwrap();
    assert_eq!(again.position().unwrap().commit, CommitSeq(50));
}

#[test]
fn a_later_term_is_kept() {
    let folder = Folder::new();
    let disks = folder.open();
    disks.raise_term(3).unwrap();
    assert!(!folder.position_file().exists());
    disks.begin_history(4).unwrap();
    disks.raise_term(5).unwrap();
    assert!(!folder.position_file().exists());
    disks.establish(at(0)).unwrap();
    disks.raise_term(7).unwrap();
    disks.raise_term(6).unwrap();
    assert_eq!(stored(&folder).position.history.term, 7);
    assert_eq!(disks.history().unwrap().term, 7);
}

#[test]
fn positions_follow_the_guests_flushes() {
    let folder = Folder::new();
    let disks = folder.open();
    let commit = Arc::new(AtomicU64::new(1));
    let progress = Arc::clone(&commit);
    disks.begin_history(1).unwrap();
    let progress: Progress = Arc::new(move || CommitSeq(progress.load(Ordering::Relaxed)));
    disks.establish(progress).unwrap();
    commit.store(20, Ordering::Relaxed);
    assert_eq!(disks.position().unwrap().commit, CommitSeq(20));
    assert_eq!(stored(&folder).position.commit, CommitSeq(1));
    disks.files[1].flush().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while stored(&folder).position.commit != CommitSeq(20) {
        assert!(Instant::now() < deadline, "the flush is not noticed");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_disk_of_another_vm_is_not_taken() {
    let folder = Folder::new();
    let disks = folder.open();
    disks.begin_history(1).unwrap();
    disks.establish(at(0)).unwrap();
    let files: Vec<_> = disks.files.iter().map(Arc::downgrade).collect();
    drop(disks);
    while files.iter().any(|file| file.strong_count() > 0) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let failure = folder.open_as("db").err().unwrap();
    assert_eq!(failure.code, ExitCode::Input);
    assert!(failure.message.contains("\"web\""), "{}", failure.message);
}

#[test]
fn only_the_same_primary_knows_what_it_wrote_since() {
    let folder = Folder::new();
    let disks = folder.open();
    assert!(disks.changed_since(None).is_none());
    disks.begin_history(1).unwrap();
    disks.establish(at(0)).unwrap();
    let position = |incarnation, commit| DiskPosition {
        history: DiskHistory {
            term: 1,
            incarnation,
        },
        commit: CommitSeq(commit),
    };
    let own = disks.history().unwrap().incarnation;
    assert!(disks.changed_since(Some(&position(own, 10))).is_none());
    disks.backup_begins(CommitSeq(10));
    disks.files[1].write(3 * RANGE_BYTES, &[1; 512]).unwrap();
    let changed = disks.changed_since(Some(&position(own, 10))).unwrap();
    assert_eq!(
        changed[1].iter().map(|range| range.0).collect::<Vec<_>>(),
        [3]
    );
    assert!(changed[0].is_empty());
    assert!(disks.changed_since(Some(&position(own, 9))).is_none());
    assert!(disks.changed_since(Some(&position(own ^ 1, 10))).is_none());
    disks.begin_history(2).unwrap();
    assert!(disks.changed_since(Some(&position(own, 10))).is_none());
}

#[test]
fn a_host_without_disks_keeps_nothing() {
    let disks = Disks::of_files(Vec::new(), "web").unwrap();
    assert!(disks.is_empty() && disks.blocks().is_empty() && disks.shapes().is_empty());
    disks.begin_history(1).unwrap();
    disks.establish(at(0)).unwrap();
    disks.raise_term(2).unwrap();
    disks.settle(CommitSeq(3)).unwrap();
    disks.backup_begins(CommitSeq(3));
    assert_eq!((disks.position(), disks.base_term()), (None, None));
}
