use proptest::prelude::*;

use super::*;

const RANGES: u64 = 20;
/// Not a whole number of ranges.
const BYTES: u64 = RANGES * RANGE_BYTES - 3 * SECTOR_BYTES;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn image(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.0.path().join(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    fn disk(&self) -> DiskFile {
        DiskFile::open(self.image("disk.raw", BYTES), Access::ReadWrite).unwrap()
    }
}

fn contents(disk: &DiskFile) -> Vec<u8> {
    let mut all = vec![0; disk.bytes() as usize];
    disk.read(0, &mut all).unwrap();
    all
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let folder = Folder::new();
    for bytes in [0, 100, 513] {
        let path = folder.image("odd.raw", bytes);
        let error = DiskFile::open(&path, Access::ReadWrite).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("odd.raw") && text.contains(&format!("{bytes} bytes")),
            "{text}"
        );
    }
    let error = DiskFile::open(folder.0.path(), Access::ReadOnly).unwrap_err();
    assert!(matches!(error, DiskError::NotADisk { .. }), "{error}");
    let error = DiskFile::open(folder.0.path().join("none"), Access::ReadWrite).unwrap_err();
    assert!(
        matches!(
            error,
            DiskError::Io {
                action: "look at",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_disk_that_is_written_is_one_processes_alone() {
    let folder = Folder::new();
    let path = folder.image("disk.raw", BYTES);
    let first = DiskFile::open(&path, Access::ReadWrite).unwrap();
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let text = DiskFile::open(&path, access).unwrap_err().to_string();
        assert!(
            text.contains("disk.raw is in use by another process"),
            "{text}"
        );
    }
    drop(first);
    let reader = DiskFile::open(&path, Access::ReadOnly).unwrap();
    let other = DiskFile::open(&path, Access::ReadOnly).unwrap();
    assert!(reader.is_read_only() && other.is_read_only());
    assert!(DiskFile::open(&path, Access::ReadWrite).is_err());
    let error = reader.write(0, &[1; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(
        reader.zero(0, 512).unwrap_err().kind(),
        ErrorKind::ReadOnlyFilesystem
    );
    reader.flush().unwrap();
}

#[test]
fn nothing_beyond_the_end_is_read_or_written() {
    let folder = Folder::new();
    let disk = folder.disk();
    let tracker = disk.track();
    for offset in [BYTES - 511, BYTES, u64::MAX - 100] {
        assert!(disk.read(offset, &mut [0; 512]).is_err());
        assert!(disk.write(offset, &[1; 512]).is_err());
        assert!(disk.zero(offset, 512).is_err());
    }
    assert!(disk.zero(0, u64::MAX).is_err());
    disk.zero(BYTES, 0).unwrap();
    assert!(tracker.changed().is_empty());
    let size = fs::metadata(disk.path()).unwrap().len();
    assert_eq!(size, BYTES);
    assert_eq!(disk.digests(RangeIndex(RANGES as u32), 9).unwrap(), []);
    assert_eq!(disk.digests(RangeIndex(u32::MAX), u32::MAX).unwrap(), []);
    assert_eq!(disk.hole_ranges(RangeIndex(u32::MAX)).unwrap(), 0);
}

#[test]
fn trackers_are_independent_and_end_when_dropped() {
    let folder = Folder::new();
    let disk = folder.disk();
    disk.write(0, &[1; 512]).unwrap();
    let first = disk.track();
    disk.write(RANGE_BYTES - 512, &[1; 1024]).unwrap();
    let second = disk.track();
    disk.zero(5 * RANGE_BYTES, 2 * RANGE_BYTES).unwrap();
    let ranges = |set: RangeSet| set.iter().map(|range| range.0).collect::<Vec<_>>();
    assert_eq!(ranges(first.take_changed()), [0, 1, 5, 6]);
    assert!(first.changed().is_empty());
    assert_eq!(ranges(second.changed()), [5, 6]);
    drop(second);
    disk.write(BYTES - 512, &[1; 512]).unwrap();
    assert_eq!(ranges(first.changed()), [19]);
    assert_eq!(disk.trackers().len(), 1);
}

#[test]
fn flushes_are_counted() {
    let folder = Folder::new();
    let disk = folder.disk();
    assert_eq!(disk.flush_count(), 0);
    disk.flush().unwrap();
    disk.flush().unwrap();
    assert_eq!(disk.flush_count(), 2);
}

#[test]
fn holes_are_known_without_reading() {
    let folder = Folder::new();
    let disk = folder.disk();
    assert_eq!(disk.hole_ranges(RangeIndex(0)).unwrap(), RANGES as u32);
    disk.write(7 * RANGE_BYTES + 4096, &[9; 4096]).unwrap();
    let hole = disk.hole_ranges(RangeIndex(2)).unwrap();
    // A file system may keep no holes at all.
    assert!(hole == 5 || hole == 0, "{hole}");
    assert_eq!(disk.hole_ranges(RangeIndex(7)).unwrap(), 0);
    let digests = disk.digests(RangeIndex(0), u32::MAX).unwrap();
    assert_eq!(digests[6], zero_digest(RANGE_BYTES));
    assert_ne!(digests[7], zero_digest(RANGE_BYTES));
    assert_eq!(digests[19], zero_digest(RANGE_BYTES - 3 * SECTOR_BYTES));
    assert_ne!(digests[19], zero_digest(RANGE_BYTES));
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Zero(u64, u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let sectors = BYTES / SECTOR_BYTES;
    prop_oneof![
        (0..sectors, 1usize..300, any::<u8>()).prop_map(|(at, count, fill)| Step::Write(
            at * 512,
            count * 512,
            fill
        )),
        (0..sectors, 1u64..300).prop_map(|(at, count)| Step::Zero(at * 512, count * 512)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Against a model in memory: contents, digests, and that every range that differs is marked.
    #[test]
    fn a_disk_is_its_bytes(steps in prop::collection::vec(any_step(), 0..30)) {
        let folder = Folder::new();
        let disk = folder.disk();
        let mut model = vec![0u8; BYTES as usize];
        let tracker = disk.track();
        let mut old = disk.digests(RangeIndex(0), u32::MAX).unwrap();
        for step in steps {
            match step {
                Step::Write(at, count, fill) => {
                    let end = (at as usize + count).min(model.len());
                    model[at as usize..end].fill(fill);
                    disk.write(at, &vec![fill; end - at as usize]).unwrap();
                }
                Step::Zero(at, count) => {
                    let end = (at + count).min(BYTES);
                    model[at as usize..end as usize].fill(0);
                    disk.zero(at, end - at).unwrap();
                }
            }
            let new = disk.digests(RangeIndex(0), u32::MAX).unwrap();
            let changed = tracker.take_changed();
            for (index, (old, new)) in (0..).zip(old.iter().zip(&new)) {
                prop_assert!(old == new || changed.contains(RangeIndex(index)));
            }
            old = new;
        }
        prop_assert!(contents(&disk) == model);
        let expected: Vec<u128> = model.chunks(RANGE_BYTES as usize).map(XxHash3_128::oneshot).collect();
        prop_assert_eq!(old, expected);
    }
}
