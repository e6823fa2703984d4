//! The tasks of a link. They move bytes between a session and its connection; at the end they
//! say why it ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{Connection, ReadError, RecvStream, SendStream, VarInt};
use samsara_commitlog::CommitSeq;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::error::{CloseCause, explain};
use super::handshake::{HandshakeError, read_message};
use super::lifeline::Lifeline;
use super::link::{LinkEvent, Positions, lock};
use super::listener::Slot;
use crate::Quantiles;
use crate::lag::LagTracker;
use crate::protocol::{EVENTS_MAX, Message, PeerLeft, Right, Session, SessionError};
use crate::queue::CommitQueue;

/// Bytes written to the commit stream at once: enough to fill packets, and control messages
/// never wait behind more.
const BATCH_BYTES: usize = 256 << 10;
/// Pieces taken from the commit stream at once; each is the rest of a packet.
const PIECES_MAX: usize = 64;
/// Control messages are small.
const CONTROL_READ_BYTES: usize = 4096;
/// How long a goodbye may take to arrive before the connection is closed all the same.
const GOODBYE_TIME: Duration = Duration::from_millis(500);
/// How long a lifeline outlives its connection, so that the peer hears of the latter first.
const LINGER_TIME: Duration = Duration::from_millis(100);
/// QUIC application error codes.
pub(super) const CODE_DONE: VarInt = VarInt::from_u32(0);
pub(super) const CODE_VIOLATION: VarInt = VarInt::from_u32(1);
pub(super) const CODE_NAME: VarInt = VarInt::from_u32(2);

/// The connections of a link.
pub(super) struct Wires {
    pub(super) quic: Connection,
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    /// Control bytes that were read with the handshake and come after it.
    pub(super) rest: BytesMut,
    pub(super) lifeline: Lifeline,
    /// Commit stream data has arrived since the driver last looked.
    pub(super) data_seen: Arc<AtomicBool>,
    /// On a primary, the one place for a backup.
    pub(super) _slot: Option<Slot>,
}

impl Wires {
    pub(super) fn connection(&self) -> Connection {
        self.quic.clone()
    }

    /// Reads the backup's `Join`, before a session takes over.
    pub(super) async fn read_join(&mut self) -> Result<Option<Right>, HandshakeError> {
        let message = read_message(&mut self.recv, &mut self.rest).await?;
        match message {
            Message::Join { gave_up } => Ok(gave_up),
            other => Err(HandshakeError::Unexpected(other.name())),
        }
    }

    pub(super) fn data_seen(&mut self) -> Arc<AtomicBool> {
        self.data_seen.clone()
    }
}

/// What the application puts in.
pub(super) struct Inputs<C> {
    pub(super) commands: mpsc::Receiver<C>,
    pub(super) positions: Arc<Positions>,
    pub(super) to_command: fn(CommitSeq, CommitSeq) -> C,
    pub(super) round_trips: Arc<Mutex<Quantiles>>,
}

struct Driver<'a, S: Session> {
    session: S,
    wires: Wires,
    inputs: Inputs<S::Command>,
    events: &'a mpsc::Sender<LinkEvent<S::Event>>,
    /// What is being written to the control stream.
    outbox: Bytes,
}

/// Drives a link to its end and closes its connections; says why it ended.
pub(super) async fn drive<S: Session>(
    session: S,
    wires: Wires,
    inputs: Inputs<S::Command>,
    events: &mpsc::Sender<LinkEvent<S::Event>>,
) -> CloseCause {
    let mut driver = Driver {
        session,
        wires,
        inputs,
        events,
        outbox: Bytes::new(),
    };
    let cause = driver.run().await;
    let cause = driver.last_words(cause).await;
    let Driver {
        mut session, wires, ..
    } = driver;
    hang_up(wires, &cause);
    while let Some(event) = session.poll_event() {
        if events.send(LinkEvent::Session(event)).await.is_err() {
            break;
        }
    }
    cause
}

/// Closes both connections, QUIC first: to a peer, a lifeline that closes means a dead process.
fn hang_up(wires: Wires, cause: &CloseCause) {
    match cause {
        CloseCause::Violation(problem) => wires.quic.close(CODE_VIOLATION, problem.as_bytes()),
        _ => wires.quic.close(CODE_DONE, b"closed"),
    }
    let lifeline = wires.lifeline;
    tokio::spawn(async move {
        tokio::time::sleep(LINGER_TIME).await;
        drop(lifeline);
    });
}

impl<S: Session> Driver<'_, S> {
    async fn run(&mut self) -> CloseCause {
        let rest = std::mem::take(&mut self.wires.rest);
        let mut handled = self
            .session
            .handle_control(&rest, Instant::now())
            .map_err(|error| violation(&error));
        let mut buffer = [0; CONTROL_READ_BYTES];
        loop {
            if let Err(cause) = handled {
                return cause;
            }
            if let Some(cause) = self.peer_left() {
                return cause;
            }
            self.pump();
            if self.session.is_leaving() && self.outbox.is_empty() {
                return self.wait_for_goodbye().await;
            }
            handled = self.step(&mut buffer).await;
        }
    }

    /// Waits for one thing to happen and handles it.
    async fn step(&mut self, buffer: &mut [u8]) -> Result<(), CloseCause> {
        let Self {
            session,
            wires,
            inputs,
            events,
            outbox,
        } = self;
        let waiting = session.events_waiting();
        tokio::select! {
            () = wires.lifeline.closed() => return Err(CloseCause::ProcessEnded),
            error = wires.quic.closed() => return Err(cause_of(&error)),
            read = wires.recv.read(buffer), if waiting < EVENTS_MAX => {
                let bytes = match read {
                    Ok(Some(count)) => &buffer[..count],
                    Ok(None) => return Err(CloseCause::Lost("it ended the control stream".into())),
                    Err(ReadError::ConnectionLost(error)) => return Err(cause_of(&error)),
                    Err(error) => return Err(CloseCause::Lost(error.to_string())),
                };
                session.handle_control(bytes, Instant::now()).map_err(|error| violation(&error))?;
            }
            datagram = wires.quic.read_datagram() => {
                let bytes = datagram.map_err(|error| cause_of(&error))?;
                session.handle_datagram(&bytes, Instant::now()).map_err(|error| violation(&error))?;
                lock(&inputs.round_trips).clone_from(session.round_trips());
            }
            command = inputs.commands.recv() => match command {
                Some(command) => session.handle_command(command),
                None => return Err(CloseCause::Local),
            },
            () = inputs.positions.changed.notified() => {
                let (first, second) = inputs.positions.read();
                session.handle_command((inputs.to_command)(first, second));
            }
            permit = events.reserve(), if waiting > 0 => {
                let permit = permit.map_err(|_| CloseCause::Local)?;
                if let Some(event) = session.poll_event() {
                    permit.send(LinkEvent::Session(event));
                }
            }
            written = wires.send.write(outbox), if !outbox.is_empty() => match written {
                Ok(count) => outbox.advance(count),
                Err(quinn::WriteError::ConnectionLost(error)) => return Err(cause_of(&error)),
                Err(error) => return Err(CloseCause::Lost(error.to_string())),
            },
            () = tokio::time::sleep_until(session.next_timeout().into()) => {}
        }
        Ok(())
    }

    /// Hands on what the session has to say.
    fn pump(&mut self) {
        if self.wires.data_seen.swap(false, Ordering::Relaxed) {
            self.session.handle_sign();
        }
        if self.outbox.is_empty() {
            self.outbox = self.session.poll_transmit().unwrap_or_default();
        }
        while let Some(datagram) = self.session.poll_datagram(Instant::now()) {
            // A heartbeat that cannot be sent is as good as lost, which heartbeats may be.
            let _ = self.wires.quic.send_datagram(datagram);
        }
    }

    fn peer_left(&self) -> Option<CloseCause> {
        self.session.peer_left().map(|left| match left {
            PeerLeft::Goodbye(reason) => CloseCause::Goodbye(reason.clone()),
            PeerLeft::Refused(refusal) => CloseCause::Refused(refusal.clone()),
        })
    }

    async fn wait_for_goodbye(&mut self) -> CloseCause {
        // An error here means that the peer has gone first.
        let _ = self.wires.send.finish();
        let _ = timeout(GOODBYE_TIME, self.wires.send.stopped()).await;
        CloseCause::Local
    }

    /// What had arrived before the connections ended still counts: a peer that says goodbye and
    /// exits must not look like one that was killed.
    async fn last_words(&mut self, cause: CloseCause) -> CloseCause {
        if !matches!(
            cause,
            CloseCause::ProcessEnded | CloseCause::Lost(_) | CloseCause::Goodbye(_)
        ) {
            return cause;
        }
        let mut buffer = [0; CONTROL_READ_BYTES];
        for _ in 0..EVENTS_MAX {
            let read = timeout(Duration::ZERO, self.wires.recv.read(&mut buffer)).await;
            let Ok(Ok(Some(count))) = read else { break };
            if self
                .session
                .handle_control(&buffer[..count], Instant::now())
                .is_err()
            {
                break;
            }
        }
        self.peer_left().unwrap_or(cause)
    }
}

fn violation(error: &SessionError) -> CloseCause {
    CloseCause::Violation(error.to_string())
}

fn cause_of(error: &quinn::ConnectionError) -> CloseCause {
    match error {
        quinn::ConnectionError::LocallyClosed => CloseCause::Local,
        quinn::ConnectionError::ApplicationClosed(close) if close.error_code == CODE_DONE => {
            CloseCause::Goodbye(explain(error))
        }
        other => CloseCause::Lost(explain(other)),
    }
}

/// Sends commits as they come, whatever there is at a time: nothing waits to be batched.
pub(super) async fn send_commits(
    connection: Connection,
    queue: Arc<CommitQueue>,
    lag: Arc<Mutex<LagTracker>>,
) {
    let Ok(mut stream) = connection.open_uni().await else {
        return;
    };
    // Behind the control stream, whose messages are few and small.
    let _ = stream.set_priority(-1);
    while let Some(batch) = queue.pop_batch(BATCH_BYTES).await {
        lock(&lag).sent(&batch);
        let mut pieces: Vec<Bytes> = batch.into_iter().map(|frame| frame.bytes).collect();
        if let Err(error) = stream.write_all_chunks(&mut pieces).await {
            connection.close(CODE_VIOLATION, format!("commit stream: {error}").as_bytes());
            return;
        }
    }
    let _ = stream.finish();
    let _ = stream.stopped().await;
}

/// Receives the commit stream until it ends.
pub(super) async fn receive_commits(
    connection: Connection,
    batches: mpsc::Sender<Vec<Bytes>>,
    data_seen: Arc<AtomicBool>,
) {
    let Ok(mut stream) = connection.accept_uni().await else {
        return;
    };
    let mut pieces = [const { Bytes::new() }; PIECES_MAX];
    while let Ok(Some(count)) = stream.read_chunks(&mut pieces).await {
        data_seen.store(true, Ordering::Relaxed);
        let batch = pieces[..count].iter_mut().map(std::mem::take).collect();
        if batches.send(batch).await.is_err() {
            return;
        }
    }
}
