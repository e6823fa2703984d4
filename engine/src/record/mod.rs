//! Recording: vCPUs run chunks in private views and commit them in one order.
//!
//! A chunk's life, all of it on its vCPU's thread ([`worker`]):
//!
//! ```text
//! settle -> run -> harvest -> validate -> compare -> lock { validate, apply, publish } -> kick
//!   ^                            |                            |
//!   +---------- squash <---------+----------------------------+
//! ```
//!
//! *Validation is the reader's.* Each commit's pages go to the `incoming` list of every other lane
//! under the commit lock. Before a chunk commits, with its vCPU stopped, it looks whether any
//! incoming page is resident in its view; if one is, the chunk may have read it and is squashed.
//! Asking the reader, and asking when it stands still, leaves no window: a page fault in progress
//! (which copies a page first and shows it in the page table later) is over by then.
//!
//! After publishing, and outside the lock, a committer looks into the other views itself and kicks
//! the vCPUs whose chunks are lost. That only saves work; nothing depends on it.

mod again;
mod buffers;
mod changes;
mod checkpoint;
mod chunk;
mod committer;
mod contended;
mod crew;
mod faults;
mod found;
mod held;
mod job;
mod lane;
mod pacing;
mod patience;
mod permits;
mod recorder;
mod replayer;
mod rotation;
mod seat;
mod service;
mod stale;
mod tsc;
mod turnstile;
mod upkeep;
mod worker;
mod yields;

pub use again::{Divergence, DivergenceCause};
pub use checkpoint::{SnapshotBounds, Waiting};
pub use committer::{Isolation, Settings};
#[doc(hidden)]
pub use faults::{Faults, Mistake};
pub use recorder::{Recorder, Taken};
pub use replayer::{Emitted, Fetch, Replayer, Rerun};
