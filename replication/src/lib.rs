//! Replication of the commit log to a backup, over QUIC.
//!
//! ```text
//!  vCPU threads        network tasks                                 backup
//!  +-----------+      +--------------+   commit stream (QUIC)   +--------------+
//!  | commit    | ---> | CommitQueue  | -----------------------> | FrameReader, |
//!  |           |      +--------------+                          | apply        |
//!  | outputs   | ---> | OutputGate   | <-- received, verified - | Retained     |
//!  +-----------+      +--------------+ --- released ----------> +--------------+
//! ```
//!
//! - [`CommitQueue`]: the one bounded queue between vCPU threads and the network. When it is full,
//!   vCPUs wait at their next commit; that is the only back-pressure, and it bounds lag.
//! - [`OutputGate`] and [`Retained`]: outputs leave the primary when the backup has acknowledged
//!   their commit; the backup keeps them until it hears that they have left.
//! - [`EffectStore`]: what commits changed that travel as orders to run chunks again, until the backup has verified
//!   that it came to the same.
//! - [`protocol`]: sessions and messages, without I/O.
//! - [`transport`]: QUIC with mutual TLS, the lifeline, and the tasks that drive a session.
//!
//! Commits are opaque here: encoded frames of the commit log with their place in the order.

mod behind;
mod effects;
mod gate;
mod lag;
pub mod protocol;
mod quantiles;
mod queue;
mod retained;
pub mod transport;

pub use behind::Behind;
pub use effects::EffectStore;
pub use gate::{AckLevel, GateMode, OutputGate};
pub use lag::{AckError, Lag, LagTracker};
pub use quantiles::{QuantileSummary, Quantiles};
pub use queue::{CommitQueue, Pushed, QueueDepth, QueueLimits, QueuedFrame, Room};
pub use retained::Retained;
