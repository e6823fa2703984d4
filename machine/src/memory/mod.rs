//! Guest memory: the committed [`Image`], each vCPU's private [`View`] of it, and what is resident
//! in a view.

mod diff;
mod digest;
mod image;
mod layout;
mod mapping;
mod residency;
mod view;

pub use digest::{bytes_digest, MemoryDigest};
pub use image::{Image, MemoryError};
pub use layout::{Layout, PageIndex, HOLE_END, HOLE_START};
pub use residency::Residency;
pub use view::View;
