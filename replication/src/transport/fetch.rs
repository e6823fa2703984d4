//! Effects that a backup asks for, each on a stream of its own: it sends the commit's number, and gets the encoded
//! record, or nothing if that is not kept.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use samsara_commitlog::{BODY_BYTES_MAX, CommitSeq};

use super::link::LinkClosed;
use crate::effects::EffectStore;

/// More than any frame has.
const RECORD_BYTES_MAX: usize = BODY_BYTES_MAX + 4096;

/// Answers a backup's questions until the link ends.
pub(super) async fn serve(connection: Connection, effects: Arc<EffectStore>) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        // One at a time: nothing is gained by more, as chunks are verified in order.
        let _ = answer(send, recv, &effects).await;
    }
}

async fn answer(
    mut send: SendStream,
    mut recv: RecvStream,
    effects: &EffectStore,
) -> Result<(), LinkClosed> {
    let mut seq = [0; 8];
    recv.read_exact(&mut seq).await.map_err(|_| LinkClosed)?;
    let seq = CommitSeq(u64::from_le_bytes(seq));
    if let Some(record) = effects.fetch(seq) {
        send.write_chunk(record).await.map_err(|_| LinkClosed)?;
    }
    send.finish().map_err(|_| LinkClosed)
}

/// Asks for the effects of a commit; empty if they are not kept.
pub(super) async fn fetch(connection: &Connection, seq: CommitSeq) -> Result<Bytes, LinkClosed> {
    let opened = connection.open_bi().await;
    let (mut send, mut recv) = opened.map_err(|_| LinkClosed)?;
    let number = seq.0.to_le_bytes();
    send.write_all(&number).await.map_err(|_| LinkClosed)?;
    let _ = send.finish();
    let record = recv.read_to_end(RECORD_BYTES_MAX).await;
    Ok(record.map_err(|_| LinkClosed)?.into())
}
