//! Roles, terms, failure detection, arbiters.

#![forbid(unsafe_code)]

mod arbiter;
mod detector;
mod moment;
mod standing;

pub use arbiter::*;
pub use detector::*;
pub use moment::Moment;
pub use standing::*;
