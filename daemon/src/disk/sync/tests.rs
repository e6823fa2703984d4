//! Two hosts' disks, and the queue between them: what is pushed goes through the codec to a consumer.

use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use bytes::Bytes;
use proptest::prelude::*;
use samsara_commitlog::{CommitSeq, FrameReader, Limits, Medium};
use samsara_engine::Consumer;
use samsara_machine::disk::{Access, SECTOR_BYTES};
use samsara_machine::pc::virtio::Blocks;
use samsara_replication::QueueLimits;

use super::*;

const LIMITS: QueueLimits = QueueLimits {
    bytes: 3 << 20,
    frames: 100,
};

struct Host {
    folder: tempfile::TempDir,
    disks: Vec<Arc<DiskFile>>,
}

impl Host {
    fn new(sizes: &[u64]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = |(index, &bytes): (usize, &u64)| {
            let path = folder.path().join(format!("{index}.raw"));
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(bytes).unwrap();
            Arc::new(DiskFile::open(&path, Access::ReadWrite).unwrap())
        };
        let disks = sizes.iter().enumerate().map(open).collect();
        Self { folder, disks }
    }

    /// The same images, which the guest cannot write now.
    fn into_read_only(self) -> Self {
        let paths: Vec<_> = self
            .disks
            .iter()
            .map(|disk| disk.path().to_owned())
            .collect();
        let folder = self.folder;
        drop(self.disks);
        let open = |path| Arc::new(DiskFile::open(path, Access::ReadOnly).unwrap());
        let disks = paths.iter().map(open).collect();
        Self { folder, disks }
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        let read = |disk: &Arc<DiskFile>| {
            let mut all = vec![0; disk.bytes() as usize];
            disk.read(0, &mut all).unwrap();
            all
        };
        self.disks.iter().map(read).collect()
    }
}

/// A backup that answers at once, and counts the questions.
struct Near<'a> {
    disks: &'a [Arc<DiskFile>],
    asked: Option<DigestQuestion>,
    count: usize,
}

impl Peer for Near<'_> {
    fn ask(&mut self, question: DigestQuestion) -> Result<(), SyncError> {
        assert_eq!(self.asked.replace(question), None, "one question at a time");
        self.count += 1;
        Ok(())
    }

    fn answer(&mut self) -> Result<RangeDigests, SyncError> {
        let question = self.asked.take().expect("asked");
        Ok(answer(self.disks, &question).expect("ranges of the disk")?)
    }
}

/// A primary that sends and a backup that writes.
struct Pair {
    primary: Host,
    backup: Host,
    queue: Arc<CommitQueue>,
    sent_bytes: Arc<AtomicU64>,
    follower: JoinHandle<()>,
}

impl Pair {
    fn new(primary: Host, backup: Host) -> Self {
        let queue = Arc::new(CommitQueue::new(LIMITS, CommitSeq::BOOT));
        let source = Arc::clone(&queue);
        let disks = backup.disks.iter();
        let disks = disks.map(|disk| Arc::clone(disk) as Arc<dyn Blocks>);
        let mut consumer = Consumer::with_disks(disks.collect());
        let follower = std::thread::spawn(move || {
            let mut reader = FrameReader::resume(Medium::Network, 0, Limits::BEFORE_SNAPSHOT);
            while let Some(batch) = source.pop_batch_blocking(1 << 20, None) {
                let bytes: Vec<Bytes> = batch.into_iter().map(|frame| frame.bytes).collect();
                reader.push(&bytes.concat());
                while let Some(frame) = reader.poll_frame().unwrap() {
                    consumer.frame(&frame).unwrap();
                }
            }
        });
        Self {
            primary,
            backup,
            queue,
            sent_bytes: Arc::default(),
            follower,
        }
    }

    fn begin(&self) -> DiskSync {
        DiskSync::begin(
            &self.primary.disks,
            Arc::clone(&self.queue),
            Arc::clone(&self.sent_bytes),
        )
    }

    fn near(&self) -> Near<'_> {
        Near {
            disks: &self.backup.disks,
            asked: None,
            count: 0,
        }
    }

    /// Bytes that were sent, once all of them are written there; the disks must be equal then.
    fn finish(self) -> u64 {
        self.queue.finish();
        self.follower.join().unwrap();
        assert!(self.primary.contents() == self.backup.contents());
        self.sent_bytes.load(Ordering::Relaxed)
    }
}

#[test]
fn disks_become_equal_while_the_guest_writes() {
    let sizes = [40 << 20, (3 << 20) + 512];
    let pair = Pair::new(Host::new(&sizes), Host::new(&sizes));
    for (host, fill) in [(&pair.primary, 1), (&pair.backup, 2)] {
        let junk = vec![fill; 5 << 20];
        host.disks[0].write(7 << 20, &junk).unwrap();
        host.disks[1].write(0, &junk[..(3 << 20) + 512]).unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (disks, stopped) = (pair.primary.disks.clone(), Arc::clone(&stop));
    let guest = std::thread::spawn(move || {
        let mut at = 1u64;
        let mut writes = 0u64;
        while !stopped.load(Ordering::Relaxed) || writes < 1000 {
            // Odd places, so that they lie across ranges too.
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let disk = &disks[(at >> 60) as usize % 2];
            let offset = (at >> 20) % (disk.bytes() / 512 - 8) * 512;
            disk.write(offset, &[at as u8; 8 * 512]).unwrap();
            writes += 1;
            if writes.is_multiple_of(64) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let sync = pair.begin();
    let mut near = pair.near();
    sync.send_differing(&mut near).unwrap();
    sync.send_changed().unwrap();
    stop.store(true, Ordering::Relaxed);
    guest.join().unwrap();
    sync.send_rest().unwrap();
    assert!(pair.finish() > 8 << 20);
}

#[test]
fn what_is_equal_is_not_sent() {
    let sizes = [200 << 20];
    let pair = Pair::new(Host::new(&sizes), Host::new(&sizes));
    for host in [&pair.primary, &pair.backup] {
        host.disks[0].write(64 << 10, &vec![9; 3 << 20]).unwrap();
    }
    // Three places, one of them in a hole of the other, and one a hole in data.
    pair.primary.disks[0].write(150 << 20, &[1; 512]).unwrap();
    pair.primary.disks[0].write(1 << 20, &[1; 512]).unwrap();
    pair.primary.disks[0].zero(2 << 20, 64 << 10).unwrap();
    let sync = pair.begin();
    sync.send_differing(&mut pair.near()).unwrap();
    sync.send_changed().unwrap();
    sync.send_rest().unwrap();
    assert_eq!(pair.finish(), 3 * RANGE_BYTES);
}

#[test]
fn empty_disks_are_compared_in_one_question() {
    let sizes = [1 << 40];
    let (primary, backup) = (Host::new(&sizes), Host::new(&sizes));
    primary.disks[0].write(1 << 39, &[1; 512]).unwrap();
    if primary.disks[0].hole_ranges(RangeIndex(0)).unwrap() == 0 {
        println!("skipped: the file system does not tell holes");
        return;
    }
    let queue = Arc::new(CommitQueue::new(LIMITS, CommitSeq::BOOT));
    let sent = Arc::default();
    let sync = DiskSync::begin(&primary.disks, queue, Arc::clone(&sent));
    let mut near = Near {
        disks: &backup.disks,
        asked: None,
        count: 0,
    };
    sync.send_differing(&mut near).unwrap();
    assert_eq!((near.count, sent.load(Ordering::Relaxed)), (1, RANGE_BYTES));
}

#[test]
fn a_backup_that_is_gone_ends_it() {
    let sizes = [100 << 20];
    let primary = Host::new(&sizes);
    primary.disks[0].write(0, &vec![1; 20 << 20]).unwrap();
    let queue = Arc::new(CommitQueue::new(LIMITS, CommitSeq::BOOT));
    let sync = DiskSync::begin(&primary.disks, Arc::clone(&queue), Arc::default());
    let closer = std::thread::spawn(move || {
        // Until it is full: then nobody takes anything more.
        while queue.depth().bytes < LIMITS.bytes {
            std::thread::sleep(Duration::from_millis(1));
        }
        queue.close();
    });
    let backup = Host::new(&sizes);
    let mut near = Near {
        disks: &backup.disks,
        asked: None,
        count: 0,
    };
    let error = sync.send_differing(&mut near).unwrap_err();
    assert!(matches!(error, SyncError::Closed), "{error}");
    closer.join().unwrap();
}

#[test]
fn a_disk_that_nobody_may_write_must_be_equal() {
    let sizes = [1 << 20, 1 << 20];
    let (primary, backup) = (Host::new(&sizes), Host::new(&sizes));
    primary.disks[1].write(512, &[1; 512]).unwrap();
    let (primary, backup) = (primary.into_read_only(), backup.into_read_only());
    let queue = Arc::new(CommitQueue::new(LIMITS, CommitSeq::BOOT));
    let sync = DiskSync::begin(&primary.disks, queue, Arc::default());
    let mut near = Near {
        disks: &backup.disks,
        asked: None,
        count: 0,
    };
    let error = sync.send_differing(&mut near).unwrap_err();
    assert!(error.to_string().contains("disk 1 is read-only"), "{error}");
}

#[test]
fn questions_about_what_is_not_there_are_not_answered() {
    let host = Host::new(&[RANGE_BYTES + SECTOR_BYTES]);
    let about = |disk, first, count| {
        let question = DigestQuestion { disk, first, count };
        answer(&host.disks, &question)
    };
    assert!(about(0, 0, 2).is_some());
    assert!(about(0, 1, 1).is_some());
    for (disk, first, count) in [(0, 1, 2), (1, 0, 1), (0, 2, 1), (0, u32::MAX, 1024)] {
        assert!(about(disk, first, count).is_none());
    }
}

#[test]
fn parts_of_disks_that_are_not_here_are_errors() {
    let host = Host::new(&[4096]);
    let part = |disk, offset| {
        let disks = host.disks.iter();
        let disks = disks.map(|disk| Arc::clone(disk) as Arc<dyn Blocks>);
        Consumer::with_disks(disks.collect()).frame(&Frame::DiskRange(DiskRange {
            disk,
            offset,
            bytes: vec![1; 1024].into(),
        }))
    };
    part(0, 3072).unwrap();
    assert_eq!(host.contents()[0][3072..], [1; 1024]);
    for (disk, offset) in [(1, 0), (0, 3584), (0, 4096), (0, 1 << 62)] {
        let text = part(disk, offset).unwrap_err().to_string();
        assert!(text.contains("does not have"), "{text}");
    }
    assert!(
        Consumer::default()
            .frame(&Frame::DiskRange(DiskRange {
                disk: 0,
                offset: 0,
                bytes: vec![1; 512].into(),
            }))
            .is_err()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the two have, and whatever is written between the steps.
    #[test]
    fn any_two_disks_become_equal(
        here in writes(), there in writes(), meanwhile in writes(), at_last in writes(),
    ) {
        let sizes = [BYTES];
        let pair = Pair::new(Host::new(&sizes), Host::new(&sizes));
        apply(&pair.primary, &here);
        apply(&pair.backup, &there);
        let sync = pair.begin();
        let mut near = pair.near();
        sync.send_differing(&mut near).unwrap();
        apply(&pair.primary, &meanwhile);
        sync.send_changed().unwrap();
        apply(&pair.primary, &at_last);
        sync.send_rest().unwrap();
        drop(sync);
        pair.finish();
    }
}

/// More ranges than one question is about.
const BYTES: u64 = (DIGESTS_MAX as u64 + 300) * RANGE_BYTES + 512;

fn writes() -> impl Strategy<Value = Vec<(u64, usize, u8)>> {
    let sectors = BYTES / SECTOR_BYTES;
    prop::collection::vec((0..sectors, 1usize..600, 0u8..3), 0..12)
}

fn apply(host: &Host, writes: &[(u64, usize, u8)]) {
    for &(sector, count, fill) in writes {
        let offset = sector * SECTOR_BYTES;
        let bytes = ((count as u64) * SECTOR_BYTES).min(BYTES - offset);
        if fill == 0 {
            host.disks[0].zero(offset, bytes).unwrap();
        } else {
            host.disks[0]
                .write(offset, &vec![fill; bytes as usize])
                .unwrap();
        }
    }
}
