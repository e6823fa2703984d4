//! Fields of control messages, one by one.

use bytes::{BufMut, BytesMut};
use samsara_commitlog::CommitSeq;

use super::ControlError;
use crate::protocol::disk::{DISKS_MAX, DiskHistory, DiskPosition, DiskShape};

/// Length and UTF-8, cut to `max` bytes at a character boundary.
pub(super) fn put_text(out: &mut BytesMut, text: &str, max: usize) {
    let cut = &text[..text.floor_char_boundary(max)];
    out.put_u16_le(cut.len() as u16);
    out.put_slice(cut.as_bytes());
}

pub(super) fn put_option(out: &mut BytesMut, value: Option<u64>) {
    out.put_u8(u8::from(value.is_some()));
    out.put_u64_le(value.unwrap_or(0));
}

pub(super) fn put_history(out: &mut BytesMut, history: Option<DiskHistory>) {
    put_option(out, history.map(|history| history.term));
    out.put_u128_le(history.map_or(0, |history| history.incarnation));
}

/// The rest of a body. Bytes left over at the end are fields of a newer build.
pub(super) struct Fields<'a> {
    pub(super) kind: u16,
    pub(super) rest: &'a [u8],
}

impl Fields<'_> {
    pub(super) fn bad(&self, field: &'static str) -> ControlError {
        ControlError::Field {
            kind: self.kind,
            field,
        }
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], ControlError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(self.bad(field))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, ControlError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, ControlError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, ControlError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, ControlError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn u128(&mut self, field: &'static str) -> Result<u128, ControlError> {
        self.array(field).map(u128::from_le_bytes)
    }

    pub(super) fn seq(&mut self, field: &'static str) -> Result<CommitSeq, ControlError> {
        self.u64(field).map(CommitSeq)
    }

    pub(super) fn bool(&mut self, field: &'static str) -> Result<bool, ControlError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.bad(field)),
        }
    }

    pub(super) fn option(&mut self, field: &'static str) -> Result<Option<u64>, ControlError> {
        let present = self.bool(field)?;
        let value = self.u64(field)?;
        Ok(present.then_some(value))
    }

    /// A field that older builds of this version do not send.
    pub(super) fn appended<T: Default>(
        &mut self,
        decode: impl FnOnce(&mut Self) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        if self.rest.is_empty() {
            return Ok(T::default());
        }
        decode(self)
    }

    pub(super) fn disks(&mut self) -> Result<Vec<DiskShape>, ControlError> {
        let count = self.u8("disk count")?;
        if usize::from(count) > DISKS_MAX {
            return Err(self.bad("disk count"));
        }
        let mut disk = || {
            Ok(DiskShape {
                bytes: self.u64("disk size")?,
                read_only: self.bool("disk access")?,
            })
        };
        (0..count).map(|_| disk()).collect()
    }

    pub(super) fn history(&mut self) -> Result<Option<DiskHistory>, ControlError> {
        let term = self.option("disk term")?;
        let incarnation = self.u128("disk incarnation")?;
        Ok(term.map(|term| DiskHistory { term, incarnation }))
    }

    pub(super) fn position(&mut self) -> Result<Option<DiskPosition>, ControlError> {
        let history = self.history()?;
        let commit = self.option("disk commit")?.map(CommitSeq);
        let position = history.zip(commit);
        Ok(position.map(|(history, commit)| DiskPosition { history, commit }))
    }

    /// How many ranges of a disk; not none.
    pub(super) fn range_count(&mut self, max: u32) -> Result<u32, ControlError> {
        let count = self.u32("range count")?;
        if count == 0 || count > max {
            return Err(self.bad("range count"));
        }
        Ok(count)
    }

    /// Text for people and logs: control characters could forge lines there.
    pub(super) fn text(&mut self, field: &'static str, max: usize) -> Result<String, ControlError> {
        let bytes = usize::from(self.u16(field)?);
        if bytes > max || bytes > self.rest.len() {
            return Err(self.bad(field));
        }
        let (head, rest) = self.rest.split_at(bytes);
        let text = std::str::from_utf8(head).map_err(|_| self.bad(field))?;
        if text.chars().any(char::is_control) {
            return Err(self.bad(field));
        }
        self.rest = rest;
        Ok(text.to_owned())
    }
}
