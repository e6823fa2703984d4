//! Replication of the commit log over QUIC.

mod gate;
mod lag;
pub mod protocol;
mod quantiles;
mod queue;
mod retained;

pub use gate::{AckLevel, GateMode, OutputGate};
pub use lag::{AckError, Lag, LagTracker};
pub use quantiles::{QuantileSummary, Quantiles};
pub use queue::{CommitQueue, Pushed, QueueDepth, QueueLimits, QueuedFrame, Room};
pub use retained::Retained;
