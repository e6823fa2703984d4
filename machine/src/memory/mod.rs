//! Guest memory: the committed [`Image`], each vCPU's private [`View`] of it, and what is resident
//! in a view.

mod diff;
mod digest;
mod dma;
mod image;
mod layout;
mod mapping;
mod page_set;
mod residency;
mod translations;
mod view;

pub use diff::ChangedWords;
pub use digest::{MemoryDigest, bytes_digest};
pub use dma::{DmaLog, GuestMemory};
pub use image::{Image, MemoryError};
pub use layout::{HOLE_END, HOLE_START, Layout, PageIndex};
pub use page_set::PageSet;
pub use residency::Residency;
pub use view::View;
