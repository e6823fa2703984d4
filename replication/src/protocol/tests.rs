use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use samsara_commitlog::CommitSeq;

use super::*;
use crate::LagTracker;
use crate::queue::QueuedFrame;

const BEAT: HeartbeatConfig = HeartbeatConfig {
    interval: Duration::from_millis(20),
};

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSIONS,
        log_version: 1,
        role: PeerRole::Backup,
        vm: "web".into(),
        host: "beta".into(),
        term: 6,
        can_boot: true,
        vcpu_max: 16,
        memory_bytes_max: 1 << 36,
        input_bytes: Some(77),
        disks: DISKS.to_vec(),
        disk_position: Some(position(5, 900)),
        cpu_digest: Some(0xc0de),
        tsc_khz: Some(2_000_000),
    }
}

fn identity() -> PrimaryIdentity {
    PrimaryIdentity {
        vm: "web".into(),
        host: "alpha".into(),
        term: 7,
        log_version: 1,
        vcpu_count: 2,
        memory_bytes: 1 << 26,
        input_bytes: Some(77),
        disks: DISKS.to_vec(),
        disk_history: Some(position(7, 0).history),
        effects_only: true,
        disk_term: None,
        cpu_digest: Some(0xc0de),
        tsc_khz: Some(2_001_000),
    }
}

const DISKS: [DiskShape; 2] = [
    DiskShape {
        bytes: 1 << 30,
        read_only: false,
    },
    DiskShape {
        bytes: 512,
        read_only: true,
    },
];

fn position(term: u64, commit: u64) -> DiskPosition {
    let incarnation = u128::from(term) << 100;
    DiskPosition {
        history: DiskHistory { term, incarnation },
        commit: CommitSeq(commit),
    }
}

const TOKEN: SessionToken = SessionToken([9; TOKEN_BYTES]);

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9. \u{e4}\u{20ac}]{0,40}",
        Just("x".repeat(NAME_BYTES_MAX))
    ]
}

fn seq() -> impl Strategy<Value = CommitSeq> {
    any::<u64>().prop_map(CommitSeq)
}

fn any_history() -> impl Strategy<Value = DiskHistory> {
    any::<(u64, u128)>().prop_map(|(term, incarnation)| DiskHistory { term, incarnation })
}

fn any_position() -> impl Strategy<Value = DiskPosition> {
    (any_history(), seq()).prop_map(|(history, commit)| DiskPosition { history, commit })
}

fn any_disks() -> impl Strategy<Value = Vec<DiskShape>> {
    let disk = any::<(u64, bool)>().prop_map(|(bytes, read_only)| DiskShape { bytes, read_only });
    prop::collection::vec(disk, 0..=DISKS_MAX)
}

fn any_digests() -> impl Strategy<Value = RangeDigests> {
    prop_oneof![
        (1u32..).prop_map(RangeDigests::Zero),
        prop::collection::vec(any::<u128>(), 1..50).prop_map(RangeDigests::Each),
        Just(RangeDigests::Each(vec![7; DIGESTS_MAX as usize])),
    ]
}

fn any_hello() -> impl Strategy<Value = Message> {
    let numbers = (
        any::<[u16; 2]>(),
        any::<u32>(),
        any::<u64>(),
        any::<u8>(),
        any::<u64>(),
    );
    let options = (any::<Option<u64>>(), any::<bool>(), any::<bool>());
    let later = (
        any_disks(),
        prop::option::of(any_position()),
        any::<[Option<u64>; 2]>(),
    );
    (text(), text(), numbers, options, later).prop_map(|(vm, host, numbers, options, later)| {
        let (disks, disk_position, [cpu_digest, tsc_khz]) = later;
        let ([min, max], log_version, term, vcpu_max, memory_bytes_max) = numbers;
        let (input_bytes, can_boot, primary) = options;
        let role = if primary {
            PeerRole::Primary
        } else {
            PeerRole::Backup
        };
        let protocol = VersionRange { min, max };
        Message::Hello(Hello {
            protocol,
            log_version,
            role,
            vm,
            host,
            term,
            can_boot,
            vcpu_max,
            memory_bytes_max,
            input_bytes,
            disks,
            disk_position,
            cpu_digest,
            tsc_khz,
        })
    })
}

fn any_welcome() -> impl Strategy<Value = Message> {
    let numbers = (
        any::<u16>(),
        any::<u64>(),
        any::<u8>(),
        any::<u64>(),
        any::<Option<u64>>(),
    );
    let rest = (
        any::<[u8; TOKEN_BYTES]>(),
        prop::option::of(any_history()),
        any::<bool>(),
    );
    (text(), numbers, rest).prop_map(|(host, numbers, rest)| {
        let (token, disk_history, effects_only) = rest;
        let (protocol, term, vcpu_count, memory_bytes, input_bytes) = numbers;
        let token = SessionToken(token);
        Message::Welcome(Welcome {
            protocol,
            host,
            term,
            vcpu_count,
            memory_bytes,
            input_bytes,
            token,
            disk_history,
            effects_only,
        })
    })
}

fn any_message() -> impl Strategy<Value = Message> {
    let reason = prop_oneof![
        Just(RefuseReason::Busy),
        Just(RefuseReason::InputMismatch),
        (100u16..).prop_map(RefuseReason::Other)
    ];
    prop_oneof![
        any_hello(),
        any_welcome(),
        (reason, any::<u64>(), text()).prop_map(|(reason, term, text)| Message::Refuse(Refusal {
            reason,
            term,
            text
        })),
        seq().prop_map(|seq| Message::SyncDone { seq }),
        (any::<u64>(), any::<u64>()).prop_map(|(term, mark)| Message::InSync(Right { term, mark })),
        (seq(), seq()).prop_map(|(received, verified)| Message::Ack { received, verified }),
        seq().prop_map(|seq| Message::Released { seq }),
        (seq(), any::<u128>(), any::<u128>()).prop_map(|(seq, expected, found)| {
            Message::Diverged {
                seq,
                expected,
                found,
            }
        }),
        (any::<u8>(), any::<u32>(), 1..=DIGESTS_MAX).prop_map(|(disk, first, count)| {
            Message::AskDigests(DigestQuestion { disk, first, count })
        }),
        (any::<u8>(), any::<u32>(), any_digests()).prop_map(|(disk, first, digests)| {
            Message::DiskDigests {
                disk,
                first,
                digests,
            }
        }),
        any::<u8>().prop_map(|status| Message::Ended { status }),
        text().prop_map(|reason| Message::Goodbye { reason }),
    ]
}

/// Everything a reader makes of some bytes, pushed in pieces.
fn read(bytes: &[u8], piece: usize) -> Result<Vec<Message>, ControlError> {
    let mut reader = MessageReader::new();
    let mut messages = Vec::new();
    for part in bytes.chunks(piece.max(1)) {
        reader.push(part);
        while let Some(message) = reader.poll()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

proptest! {
    #[test]
    fn messages_survive_the_wire_in_any_pieces(
        messages in prop::collection::vec(any_message(), 1..6), piece in 1usize..100,
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(Message::encode).collect();
        prop_assert_eq!(read(&bytes, piece).unwrap(), messages);
    }

    #[test]
    fn truncated_messages_wait_and_flipped_bits_never_panic(
        message in any_message(), at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let mut bytes = message.encode().to_vec();
        let cut = at.index(bytes.len());
        prop_assert_eq!(read(&bytes[..cut], 7).unwrap(), vec![]);
        bytes[cut] ^= 1 << bit;
        let _ = read(&bytes, 7);
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let now = Instant::now();
        let _ = read(&bytes, 13);
        let _ = Heartbeat::decode(&bytes);
        let mut body = vec![0; 8];
        body[..4].copy_from_slice(&(bytes.len() as u32 + 4).to_le_bytes());
        body[4] = 1;
        body[6] = bytes.first().map_or(0, |b| b % 12);
        body[7] = bytes.last().map_or(0, |b| b & 0x80);
        body.extend(&bytes);
        let _ = read(&body, 50);
        let mut backup = BackupSession::new(BEAT, None, now);
        let _ = backup.handle_control(&body, now);
        let _ = backup.handle_datagram(&body[4..], now);
    }
}

#[test]
fn a_length_out_of_bounds_is_refused_before_anything_is_kept() {
    for length in [0u32, 3, MESSAGE_BYTES_MAX as u32 - 3, u32::MAX] {
        let error = read(&length.to_le_bytes(), 4).unwrap_err();
        assert_eq!(
            error,
            ControlError::Length {
                bytes: u64::from(length)
            }
        );
    }
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let reason = "\u{20ac}".repeat(TEXT_BYTES_MAX);
    let bytes = Message::Goodbye { reason }.encode();
    let messages = read(&bytes, 999).unwrap();
    let [Message::Goodbye { reason }] = messages.as_slice() else {
        panic!("{messages:?}");
    };
    assert_eq!(reason.len(), TEXT_BYTES_MAX / 3 * 3);
}

#[test]
fn a_text_cannot_forge_a_line_in_a_log() {
    let bytes = Message::Goodbye {
        reason: "a\nb".into(),
    }
    .encode();
    assert!(read(&bytes, 99).is_err());
}

#[test]
fn versions_may_grow() {
    let mut newer = Message::Released { seq: CommitSeq(5) }.encode().to_vec();
    newer.extend([1, 2, 3]);
    newer[0] += 3;
    assert_eq!(
        read(&newer, 99).unwrap(),
        [Message::Released { seq: CommitSeq(5) }]
    );

    let mut optional = newer.clone();
    optional[6..8].copy_from_slice(&0xfffeu16.to_le_bytes());
    assert_eq!(read(&optional, 99).unwrap(), []);
    optional[6..8].copy_from_slice(&0x7fffu16.to_le_bytes());
    assert_eq!(
        read(&optional, 99).unwrap_err(),
        ControlError::Kind { kind: 0x7fff }
    );

    newer[4] = 9;
    assert_eq!(
        read(&newer, 99).unwrap_err(),
        ControlError::Version { theirs: 9 }
    );
}

#[test]
fn a_refusal_is_understood_whatever_the_version() {
    let refusal = Refusal {
        reason: RefuseReason::WrongVersion,
        term: 3,
        text: "version 2 here".into(),
    };
    let mut bytes = Message::Refuse(refusal.clone()).encode().to_vec();
    bytes[4] = 2;
    assert_eq!(read(&bytes, 99).unwrap(), [Message::Refuse(refusal)]);
}

#[test]
fn admission_names_what_differs() {
    let primary = Admission::Primary(identity());
    assert_eq!(admit(&primary, None, &hello(), TOKEN).unwrap().term, 7);
    let cases: [(RefuseReason, &str, Hello); 7] = [
        (
            RefuseReason::WrongVersion,
            "2 to 3",
            Hello {
                protocol: VersionRange { min: 2, max: 3 },
                ..hello()
            },
        ),
        (
            RefuseReason::WrongVersion,
            "log version 1",
            Hello {
                log_version: 2,
                ..hello()
            },
        ),
        (
            RefuseReason::WrongVm,
            "vm.name",
            Hello {
                vm: "db".into(),
                ..hello()
            },
        ),
        (
            RefuseReason::AlsoPrimary,
            "term 7",
            Hello {
                role: PeerRole::Primary,
                ..hello()
            },
        ),
        (
            RefuseReason::ShapeNotSupported,
            "2 vCPUs",
            Hello {
                vcpu_max: 1,
                ..hello()
            },
        ),
        (
            RefuseReason::InputMismatch,
            "78 bytes on beta",
            Hello {
                input_bytes: Some(78),
                ..hello()
            },
        ),
        (
            RefuseReason::InputMismatch,
            "none on beta",
            Hello {
                input_bytes: None,
                ..hello()
            },
        ),
    ];
    for (reason, text, hello) in cases {
        let refusal = admit(&primary, None, &hello, TOKEN).unwrap_err();
        assert_eq!((refusal.reason, refusal.term), (reason, 7));
        assert!(refusal.text.contains(text), "{}", refusal.text);
    }
    let busy = admit(&primary, Some("gamma"), &hello(), TOKEN).unwrap_err();
    assert!(busy.reason == RefuseReason::Busy && busy.text.contains("gamma"));
    let backup = Admission::NotPrimary {
        host: "alpha".into(),
        term: 2,
        disks: None,
    };
    let refusal = admit(&backup, None, &hello(), TOKEN).unwrap_err();
    assert_eq!(
        (refusal.reason, refusal.term),
        (RefuseReason::NotPrimary, 2)
    );
}

#[test]
fn what_an_older_build_does_not_send_is_absent() {
    let bytes = Message::Hello(Hello {
        disks: Vec::new(),
        disk_position: None,
        cpu_digest: None,
        tsc_khz: None,
        ..hello()
    })
    .encode();
    // Options of the processor; then a count of disks, and a position of two options and an incarnation.
    let processor = 9 + 9;
    for absent in [9, processor, processor + 1 + 9 + 16 + 9] {
        assert_eq!(
            read(&without(&bytes, absent), 99).unwrap(),
            read(&bytes, 99).unwrap()
        );
    }
    // A primary that does not say that it sends effects only may send orders.
    let welcome = admit(&Admission::Primary(identity()), None, &hello(), TOKEN).unwrap();
    let effects_only = |bytes: &[u8]| match read(bytes, 99).unwrap().as_slice() {
        [Message::Welcome(welcome)] => welcome.effects_only,
        other => panic!("{other:?}"),
    };
    let bytes = Message::Welcome(welcome).encode();
    assert!(effects_only(&bytes));
    assert!(!effects_only(&without(&bytes, 1)));
}

/// A message that ends so many bytes earlier.
fn without(bytes: &[u8], absent: usize) -> Vec<u8> {
    let mut older = bytes[..bytes.len() - absent].to_vec();
    let length = older.len() as u32 - 4;
    older[..4].copy_from_slice(&length.to_le_bytes());
    older
}

#[test]
fn processors_that_differ_are_refused_with_what_to_do() {
    let answer = |cpu_digest, tsc_khz| {
        let hello = Hello {
            cpu_digest,
            tsc_khz,
            ..hello()
        };
        let answer = admit(&Admission::Primary(identity()), None, &hello, TOKEN);
        answer.map(drop).map_err(|refusal| {
            assert!(refusal.is_permanent());
            (refusal.reason, refusal.text)
        })
    };
    let (reason, text) = answer(Some(1), Some(2_000_000)).unwrap_err();
    assert_eq!(reason, RefuseReason::CpuMismatch);
    assert!(
        text.contains("alpha and beta") && text.contains("vm.cpu"),
        "{text}"
    );
    for khz in [1_990_000, 2_004_000, 0, u64::MAX] {
        let (reason, text) = answer(Some(0xc0de), Some(khz)).unwrap_err();
        assert_eq!(reason, RefuseReason::TscMismatch);
        let rates = format!("2001000 kHz on alpha, at {khz} kHz on beta");
        assert!(text.contains(&rates), "{text}");
    }
    // Within a thousandth, or not said.
    answer(Some(0xc0de), Some(2_000_000)).unwrap();
    answer(Some(0xc0de), Some(2_003_001)).unwrap();
    answer(None, None).unwrap();
    let bare = Admission::Primary(PrimaryIdentity {
        tsc_khz: None,
        ..identity()
    });
    let slow = Hello {
        tsc_khz: Some(1_000_000),
        ..hello()
    };
    admit(&bare, None, &slow, TOKEN).unwrap();
}

#[test]
fn disks_that_differ_are_refused_with_both_sizes() {
    let refusal = |disks: &[DiskShape]| {
        let hello = Hello {
            disks: disks.to_vec(),
            ..hello()
        };
        let refusal = admit(&Admission::Primary(identity()), None, &hello, TOKEN).unwrap_err();
        assert_eq!(refusal.reason, RefuseReason::DiskMismatch);
        assert!(refusal.is_permanent());
        refusal.text
    };
    let smaller = DiskShape {
        bytes: 1 << 29,
        read_only: false,
    };
    let text = refusal(&[smaller, DISKS[1]]);
    assert!(
        text.contains("disk 0 has 1073741824 bytes on alpha, 536870912 bytes on beta"),
        "{text}"
    );
    let writable = DiskShape {
        read_only: false,
        ..DISKS[1]
    };
    let text = refusal(&[DISKS[0], writable]);
    assert!(
        text.contains("512 bytes, read-only on alpha, 512 bytes on beta"),
        "{text}"
    );
    let text = refusal(&DISKS[..1]);
    assert!(text.contains("2 disks on alpha, 1 on beta"), "{text}");
}

#[test]
fn the_newer_disk_is_neither_overwritten_nor_passed_over() {
    assert!(position(5, 1).is_newer_than(None));
    assert!(position(6, 1).is_newer_than(Some(&position(5, 9))));
    assert!(position(5, 2).is_newer_than(Some(&position(5, 1))));
    assert!(!position(5, 1).is_newer_than(Some(&position(5, 1))));

    // A guest that was started from term 4 runs; the backup's disk is of term 5.
    let running = |disk_term| {
        Admission::Primary(PrimaryIdentity {
            disk_term,
            ..identity()
        })
    };
    let refusal = admit(&running(Some(4)), None, &hello(), TOKEN).unwrap_err();
    assert_eq!(refusal.reason, RefuseReason::NewerDisk);
    assert!(
        refusal.text.contains("beta (term 5, commit 900)"),
        "{}",
        refusal.text
    );
    for term in [None, Some(5)] {
        admit(&running(term), None, &hello(), TOKEN).unwrap();
    }
    // What it has of this very guest, in an earlier term, is no reason.
    let same = DiskHistory {
        term: 7,
        ..position(5, 0).history
    };
    let same = Admission::Primary(PrimaryIdentity {
        disk_history: Some(same),
        disk_term: Some(4),
        ..identity()
    });
    admit(&same, None, &hello(), TOKEN).unwrap();

    // A host that is about to start asks one that has newer disks.
    let kept = |vm: &str, position| Admission::NotPrimary {
        host: "alpha".into(),
        term: 0,
        disks: Some(KeptDisks {
            vm: vm.into(),
            position,
        }),
    };
    let starting = Hello {
        role: PeerRole::Primary,
        ..hello()
    };
    let reason = |admission: &Admission, hello: &Hello| {
        let refusal = admit(admission, None, hello, TOKEN).unwrap_err();
        (refusal.reason, refusal.text)
    };
    let (found, text) = reason(&kept("web", position(5, 901)), &starting);
    assert_eq!(found, RefuseReason::NewerDisk);
    assert!(
        text.contains("alpha (term 5, commit 901) is newer than that of beta (term 5, commit 900)"),
        "{text}"
    );
    let backup = hello();
    for (admission, hello) in [
        (kept("web", position(5, 900)), &starting),
        (kept("db", position(9, 0)), &starting),
        (kept("web", position(9, 0)), &backup),
    ] {
        assert_eq!(reason(&admission, hello).0, RefuseReason::NotPrimary);
    }
}

struct Pair {
    primary: PrimarySession,
    backup: BackupSession,
    lag: Arc<Mutex<LagTracker>>,
}

impl Pair {
    fn new(now: Instant) -> Self {
        let lag = Arc::new(Mutex::new(LagTracker::new(CommitSeq(10))));
        Self {
            primary: PrimarySession::new(BEAT, lag.clone(), now),
            backup: BackupSession::new(BEAT, None, now),
            lag,
        }
    }

    fn send(&self, seq: u64, at: Instant) {
        let frame = QueuedFrame {
            seq: CommitSeq(seq),
            at,
            bytes: Bytes::from_static(b"x"),
        };
        self.lag.lock().unwrap().sent(&[frame]);
    }

    /// Carries control messages both ways; the number that reached the primary.
    fn carry(&mut self, now: Instant) -> Result<usize, SessionError> {
        let mut count = 0;
        while let Some(bytes) = self.backup.poll_transmit() {
            self.primary.handle_control(&bytes, now)?;
            count += 1;
        }
        while let Some(bytes) = self.primary.poll_transmit() {
            self.backup.handle_control(&bytes, now)?;
        }
        Ok(count)
    }
}

fn report(received: u64, verified: u64) -> BackupCommand {
    BackupCommand::Report {
        received: CommitSeq(received),
        verified: CommitSeq(verified),
    }
}

#[test]
fn positions_travel_newest_only_and_only_when_they_advance() {
    let now = Instant::now();
    let mut pair = Pair::new(now);
    // Joining comes before any acknowledgement.
    pair.backup.handle_command(report(11, 10));
    let first = pair.backup.poll_transmit().unwrap();
    assert_eq!(first, Message::Join { gave_up: None }.encode());
    for n in 11..=20 {
        pair.send(n, now);
        pair.backup.handle_command(report(n, n - 1));
    }
    pair.backup.handle_command(report(15, 15));
    assert_eq!(pair.carry(now).unwrap(), 1);
    let ack = PrimaryEvent::Ack {
        received: CommitSeq(20),
        verified: CommitSeq(19),
    };
    assert_eq!(pair.primary.poll_event(), Some(ack));
    assert_eq!(pair.primary.poll_event(), None);
    pair.backup.handle_command(report(20, 19));
    assert_eq!(pair.carry(now).unwrap(), 0);
    assert_eq!(pair.lag.lock().unwrap().to_received().count(), 10);

    for seq in [12, 18, 15] {
        pair.primary.handle_command(PrimaryCommand::Released {
            seq: CommitSeq(seq),
        });
    }
    pair.carry(now).unwrap();
    assert_eq!(
        pair.backup.poll_event(),
        Some(BackupEvent::Released { seq: CommitSeq(18) })
    );
    assert_eq!(pair.backup.poll_event(), None);
}

#[test]
fn a_session_from_sync_to_goodbye() {
    let now = Instant::now();
    let mut pair = Pair::new(now);
    pair.backup
        .handle_command(BackupCommand::SyncDone { seq: CommitSeq(10) });
    pair.primary
        .handle_command(PrimaryCommand::InSync(Right { term: 7, mark: 2 }));
    pair.primary
        .handle_command(PrimaryCommand::Ended { status: 3 });
    pair.primary.handle_command(PrimaryCommand::Goodbye {
        reason: "the guest has ended".into(),
    });
    pair.carry(now).unwrap();
    assert_eq!(
        pair.primary.poll_event(),
        Some(PrimaryEvent::SyncDone { seq: CommitSeq(10) })
    );
    assert_eq!(
        pair.backup.poll_event(),
        Some(BackupEvent::InSync(Right { term: 7, mark: 2 }))
    );
    assert_eq!(
        pair.backup.poll_event(),
        Some(BackupEvent::Ended { status: 3 })
    );
    let left = PeerLeft::Goodbye("the guest has ended".into());
    assert_eq!(pair.backup.peer_left(), Some(&left));
}

#[test]
fn a_peer_that_lies_or_plays_the_wrong_role_is_found_out() {
    let now = Instant::now();
    let mut pair = Pair::new(now);
    pair.backup.handle_command(report(11, 11));
    let error = pair.carry(now).unwrap_err();
    assert!(
        error.to_string().contains("commit 11, but only 10"),
        "{error}"
    );
    let ended = Message::Ended { status: 0 }.encode();
    assert!(pair.primary.handle_control(&ended, now).is_err());
    let ack = Message::Ack {
        received: CommitSeq(1),
        verified: CommitSeq(1),
    }
    .encode();
    assert!(pair.backup.handle_control(&ack, now).is_err());
    let again = Message::Hello(hello()).encode();
    assert!(pair.primary.handle_control(&again, now).is_err());
}

#[test]
fn digests_are_asked_for_and_answered_one_piece_at_a_time() {
    let now = Instant::now();
    let mut pair = Pair::new(now);
    pair.carry(now).unwrap();
    let question = DigestQuestion {
        disk: 1,
        first: 40,
        count: 3,
    };
    for digests in [
        RangeDigests::Each(vec![1, 2, 3]),
        RangeDigests::Zero(3),
        RangeDigests::Zero(1000),
    ] {
        pair.primary
            .handle_command(PrimaryCommand::AskDigests(question));
        pair.carry(now).unwrap();
        let asked = BackupEvent::DigestsAsked(question);
        assert_eq!(pair.backup.poll_event(), Some(asked));
        pair.backup
            .handle_command(BackupCommand::Digests(digests.clone()));
        // Said twice by mistake, it is said once.
        pair.backup
            .handle_command(BackupCommand::Digests(digests.clone()));
        assert_eq!(pair.carry(now).unwrap(), 1);
        let answered = PrimaryEvent::Digests(digests);
        assert_eq!(pair.primary.poll_event(), Some(answered));
    }
}

#[test]
fn answers_to_no_question_and_questions_before_an_answer_end_the_session() {
    let now = Instant::now();
    let question = DigestQuestion {
        disk: 1,
        first: 40,
        count: 3,
    };
    let answer = |disk, first, digests| Message::DiskDigests {
        disk,
        first,
        digests,
    };
    let right = RangeDigests::Each(vec![1, 2, 3]);
    for wrong in [
        answer(0, 40, right.clone()),
        answer(1, 41, right.clone()),
        answer(1, 40, RangeDigests::Each(vec![1, 2])),
        answer(1, 40, RangeDigests::Each(vec![1, 2, 3, 4])),
        answer(1, 40, RangeDigests::Zero(2)),
    ] {
        let mut pair = Pair::new(now);
        pair.primary
            .handle_command(PrimaryCommand::AskDigests(question));
        assert!(pair.primary.handle_control(&wrong.encode(), now).is_err());
    }
    let mut pair = Pair::new(now);
    let unasked = answer(1, 40, right).encode();
    assert!(pair.primary.handle_control(&unasked, now).is_err());
    let asked = Message::AskDigests(question).encode();
    pair.backup.handle_control(&asked, now).unwrap();
    assert!(pair.backup.handle_control(&asked, now).is_err());
}

#[test]
fn heartbeats_come_in_time_show_life_once_and_measure_the_round_trip() {
    let start = Instant::now();
    let ms = |n| start + Duration::from_millis(n);
    let mut pair = Pair::new(start);
    let beat = pair
        .primary
        .poll_datagram(start)
        .expect("the first at once");
    assert!(pair.primary.poll_datagram(ms(19)).is_none());
    assert_eq!(pair.primary.next_timeout(), ms(20));

    pair.backup.handle_datagram(&beat, ms(3)).unwrap();
    pair.backup.handle_datagram(&beat, ms(4)).unwrap();
    let sign = BackupEvent::SignOfLife {
        committed: CommitSeq(10),
    };
    assert_eq!(pair.backup.poll_event(), Some(sign));
    pair.backup.handle_datagram(&beat, ms(5)).unwrap();
    assert_eq!(
        pair.backup.poll_event(),
        None,
        "a repeated heartbeat is no sign of life"
    );

    let answer = pair.backup.poll_datagram(ms(13)).unwrap();
    pair.primary.handle_datagram(&answer, ms(15)).unwrap();
    assert_eq!(pair.primary.round_trips().summary().max, 5_000_000);

    assert!(pair.primary.poll_datagram(ms(500)).is_some());
    assert!(
        pair.primary.poll_datagram(ms(500)).is_none(),
        "missed ones are not made up for"
    );
}

#[test]
fn a_slow_application_does_not_make_a_session_grow() {
    let now = Instant::now();
    let mut pair = Pair::new(now);
    for n in 11..2000 {
        pair.send(n, now);
        pair.backup.handle_command(report(n, n));
        pair.carry(now).unwrap();
        pair.primary.handle_sign();
    }
    assert_eq!(pair.primary.events_waiting(), 1);
}
