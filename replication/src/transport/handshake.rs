//! The first messages on a control stream, before a session drives it.

use bytes::BytesMut;
use quinn::{ReadError, RecvStream, SendStream, WriteError};

use crate::protocol::{ControlError, Message, MessageReader};

const READ_BYTES: usize = 4096;

/// Why a message did not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("it ended the control stream")]
    Ended,
    #[error("it sent {0} instead of Join")]
    Unexpected(&'static str),
}

/// Reads one message; what comes after it stays in `rest`.
pub(super) async fn read_message(
    recv: &mut RecvStream,
    rest: &mut BytesMut,
) -> Result<Message, HandshakeError> {
    let mut reader = MessageReader::new();
    reader.push(&rest.split());
    let message = next_message(recv, &mut reader).await?;
    *rest = reader.into_rest();
    Ok(message)
}

async fn next_message(
    recv: &mut RecvStream,
    reader: &mut MessageReader,
) -> Result<Message, HandshakeError> {
    let mut buffer = [0; READ_BYTES];
    loop {
        if let Some(message) = reader.poll()? {
            return Ok(message);
        }
        let count = recv.read(&mut buffer).await?.ok_or(HandshakeError::Ended)?;
        reader.push(&buffer[..count]);
    }
}

/// A control stream while messages are awaited one by one.
pub(super) struct ControlStream {
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    reader: MessageReader,
}

impl ControlStream {
    pub(super) fn new((send, recv): (SendStream, RecvStream)) -> Self {
        Self {
            send,
            recv,
            reader: MessageReader::new(),
        }
    }

    pub(super) async fn read(&mut self) -> Result<Message, HandshakeError> {
        next_message(&mut self.recv, &mut self.reader).await
    }

    pub(super) async fn write(&mut self, message: &Message) -> Result<(), HandshakeError> {
        Ok(self.send.write_all(&message.encode()).await?)
    }

    /// The streams, and what was read past the last message.
    pub(super) fn into_parts(self) -> (SendStream, RecvStream, BytesMut) {
        (self.send, self.recv, self.reader.into_rest())
    }
}
