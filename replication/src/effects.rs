//! Effects of commits that travel as orders: kept until the backup has verified that it came to the same.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use samsara_commitlog::{CommitSeq, VcpuIndex};

/// A peer that fetches without end fills no memory.
const FETCHED_MAX: usize = 64;

/// See the module's description.
#[derive(Debug)]
pub struct EffectStore {
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Rising.
    kept: VecDeque<Kept>,
    bytes: usize,
    fetched: u64,
    /// vCPUs whose records were fetched, since somebody looked.
    fetched_of: Vec<VcpuIndex>,
}

#[derive(Debug)]
struct Kept {
    seq: CommitSeq,
    vcpu: VcpuIndex,
    record: Bytes,
}

impl EffectStore {
    /// An empty store that is full at so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            state: Mutex::default(),
        }
    }

    /// Keeps the encoded record of a vCPU's chunk. Commits rise.
    pub fn keep(&self, seq: CommitSeq, vcpu: VcpuIndex, record: Bytes) {
        let mut state = self.lock();
        state.bytes += record.len();
        state.kept.push_back(Kept { seq, vcpu, record });
    }

    /// The backup has verified all commits up to this one.
    pub fn verified(&self, seq: CommitSeq) {
        let mut state = self.lock();
        while let Some(kept) = state.kept.pop_front_if(|kept| kept.seq <= seq) {
            state.bytes -= kept.record.len();
        }
    }

    /// The record of a commit that the backup could not make itself.
    pub fn fetch(&self, seq: CommitSeq) -> Option<Bytes> {
        let mut state = self.lock();
        let place = state.kept.binary_search_by_key(&seq, |kept| kept.seq);
        let kept = &state.kept[place.ok()?];
        let (vcpu, record) = (kept.vcpu, kept.record.clone());
        state.fetched += 1;
        if state.fetched_of.len() < FETCHED_MAX {
            state.fetched_of.push(vcpu);
        }
        Some(record)
    }

    /// Whether vCPUs wait before they make more.
    pub fn is_full(&self) -> bool {
        self.lock().bytes >= self.bytes_max
    }

    /// The vCPUs whose records were fetched since the last call.
    pub fn take_fetched(&self) -> Vec<VcpuIndex> {
        std::mem::take(&mut self.lock().fetched_of)
    }

    /// Records that were fetched.
    pub fn fetched(&self) -> u64 {
        self.lock().fetched
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_verified_is_kept() {
        let store = EffectStore::new(10);
        for seq in [3, 5, 9] {
            let record = Bytes::from(vec![seq as u8; 4]);
            store.keep(CommitSeq(seq), VcpuIndex(0), record);
        }
        assert!(store.is_full());
        assert_eq!(store.fetch(CommitSeq(5)), Some(Bytes::from(vec![5; 4])));
        assert_eq!(store.fetch(CommitSeq(4)), None);
        store.verified(CommitSeq(5));
        assert!(!store.is_full());
        assert_eq!(store.fetch(CommitSeq(5)), None);
        assert_eq!(store.fetch(CommitSeq(9)), Some(Bytes::from(vec![9; 4])));
        assert_eq!(store.fetched(), 2);
    }
}
