//! What comes into the loop of a host.

use samsara_failover::ArbiterAnswer;
use samsara_replication::protocol::{BackupEvent, PrimaryEvent, Refusal, Right};
use samsara_replication::transport::{BackupLink, DialError, LinkEvent, PrimaryLink};

use super::primary::Sending;
use crate::disk::SyncError;
use crate::failure::Failure;

/// Something happened.
pub(super) enum Input {
    /// The arbiter answered.
    Arbiter(ArbiterAnswer),
    /// A backup takes its place.
    Joined {
        link: Box<PrimaryLink>,
        gave_up: Option<Right>,
    },
    /// The backup's disks are nearly those of the machine; the rest goes with the snapshot.
    DisksSent {
        session: u64,
        result: Result<Box<Sending>, SyncError>,
    },
    /// The snapshot for a session is in the queue, the link started.
    SnapshotSent {
        session: u64,
        result: Result<(), Failure>,
    },
    /// From the backup of a session.
    Backup {
        session: u64,
        event: LinkEvent<PrimaryEvent>,
    },
    /// A primary welcomes this host.
    Found(Box<BackupLink>),
    /// This host cannot become a backup before someone changes something.
    CannotDial(DialError),
    /// The other host was asked whether it is primary.
    PeerAsked(Option<Refusal>),
    /// From the primary of a session.
    Primary {
        session: u64,
        event: LinkEvent<BackupEvent>,
    },
    /// What was applied of a session does not go on.
    FollowFailed { session: u64, failure: Failure },
}
