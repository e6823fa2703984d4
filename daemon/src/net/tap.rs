//! One device's tap: frames of the guest go out through it, and a thread reads what comes in.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use samsara_commitlog::DeviceIndex;
use samsara_machine::tap::Tap;

use super::counts::{Counters, Direction, Lost};
use super::learned::{Learned, Mac};
use super::{Taken, announce};

/// Two addresses and a type.
const HEADER_BYTES: usize = 14;
/// The longest frame of an interface with the largest MTU, and its VLAN tag.
const FRAME_BYTES_MAX: usize = 65535 + HEADER_BYTES + 4;
/// How long a frame waits for a receive buffer of the guest.
const ROOM_WAIT: Duration = Duration::from_millis(20);
/// How often it tries meanwhile.
const ROOM_LOOK: Duration = Duration::from_micros(250);
/// How often a tap that cannot be read is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Frames read without looking whether to stop: many times what a tap's queue holds.
const FLUSH_FRAMES_MAX: usize = 16 << 10;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) device: DeviceIndex,
    mac: Mac,
    tap: Tap,
    learned: Mutex<Learned>,
    pub(super) counters: Counters,
    /// Whether the log says that frames cannot be sent.
    said_down: AtomicBool,
}

/// Where frames for the guest go, and until when.
pub(super) trait Inward {
    /// Takes a frame for the guest; none while this host is not live.
    fn take(&self, device: DeviceIndex, frame: Bytes) -> Option<Taken>;
    /// Whether the reading thread is to end.
    fn is_stopping(&self) -> bool;
    /// Becomes readable when it is to end.
    fn stop_signal(&self) -> BorrowedFd<'_>;
}

impl Port {
    pub(super) fn new(device: DeviceIndex, mac: Mac, tap: Tap) -> Self {
        Self {
            device,
            mac,
            tap,
            learned: Mutex::default(),
            counters: Counters::default(),
            said_down: AtomicBool::new(false),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.tap.name()
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn observe(&self, frame: &[u8]) {
        self.learned().observe(frame);
    }

    /// Sends a frame of the guest, or drops it as a wire would.
    pub(super) fn emit(&self, frame: &[u8]) {
        self.observe(frame);
        match self.send(frame) {
            Ok(()) => self.counters.passed(Direction::Out, frame.len()),
            Err(reason) => self.counters.lost(reason),
        }
    }

    /// Tells the network that the guest is here.
    pub(super) fn announce(&self) {
        let frames = announce::frames(self.mac, &self.learned());
        for frame in frames {
            match self.send(&frame) {
                Ok(()) => self.counters.announced(),
                Err(reason) => self.counters.lost(reason),
            }
        }
    }

    fn send(&self, frame: &[u8]) -> Result<(), Lost> {
        // The kernel takes nothing at all as well, and more than any interface carries.
        if !(HEADER_BYTES..=FRAME_BYTES_MAX).contains(&frame.len()) {
            return Err(Lost::Refused);
        }
        let mut sent = self.tap.send(frame);
        while is_interrupted(&sent) {
            sent = self.tap.send(frame);
        }
        let error = match sent {
            Ok(()) => {
                if self.said_down.load(Ordering::Relaxed) {
                    self.said_down.store(false, Ordering::Relaxed);
                    tracing::info!("tap {} takes frames again", self.name());
                }
                return Ok(());
            }
            Err(error) => error,
        };
        let reason = reason(&error);
        if reason == Lost::Down && !self.said_down.swap(true, Ordering::Relaxed) {
            let name = self.name();
            tracing::warn!("tap {name} takes no frames, what the guest sends is lost: {error}");
        }
        Err(reason)
    }

    /// Reads until it is to stop. Frames for a host that is not live are read and dropped: those
    /// that a guest gets at a promotion are new.
    pub(super) fn read(&self, inward: &impl Inward) {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let mut guest = Guest { is_patient: true };
        let mut said_unreadable = false;
        while !inward.is_stopping() {
            let ready = self.wait(inward);
            let read = ready.and_then(|()| self.read_ready(inward, &mut buffer, &mut guest));
            let Err(error) = read else {
                if said_unreadable {
                    tracing::info!("tap {} can be read again", self.name());
                }
                said_unreadable = false;
                continue;
            };
            self.counters.read_failed();
            if !said_unreadable {
                tracing::warn!("tap {} cannot be read: {error}", self.name());
                said_unreadable = true;
            }
            self.recover(inward);
        }
    }

    /// After a while, takes up the tap again if it was removed and is back.
    fn recover(&self, inward: &impl Inward) {
        // What it says of the tap is known.
        let _ = wait_for(&mut [stop_fd(inward)], Some(RETRY));
        if !inward.is_stopping() && self.tap.reattach().is_ok_and(|is_new| is_new) {
            tracing::info!("tap {} is back", self.name());
        }
    }

    /// Waits until there is something to read, or it is to stop.
    fn wait(&self, inward: &impl Inward) -> io::Result<()> {
        let tap = PollFd::from_borrowed_fd(self.tap.as_fd(), PollFlags::IN);
        let mut fds = [tap, stop_fd(inward)];
        wait_for(&mut fds, None)?;
        let found = fds[0].revents();
        // A tap that is gone says so again at once: the caller waits before it asks again.
        let is_broken = !found.is_empty() && !found.contains(PollFlags::IN);
        if is_broken && !inward.is_stopping() {
            return Err(io::Error::other("its interface is gone"));
        }
        Ok(())
    }

    fn read_ready(
        &self,
        inward: &impl Inward,
        buffer: &mut [u8],
        guest: &mut Guest,
    ) -> io::Result<()> {
        while !inward.is_stopping() {
            let Some(bytes) = self.next_frame(buffer)? else {
                break;
            };
            self.deliver(inward, &buffer[..bytes], guest);
        }
        Ok(())
    }

    fn next_frame(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.tap.receive(buffer) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn deliver(&self, inward: &impl Inward, frame: &[u8], guest: &mut Guest) {
        let frame = Bytes::copy_from_slice(frame);
        let deadline = guest.is_patient.then(|| Instant::now() + ROOM_WAIT);
        loop {
            let taken = inward.take(self.device, frame.clone());
            match taken {
                Some(Taken::Yes) => {
                    guest.is_patient = true;
                    return self.counters.passed(Direction::In, frame.len());
                }
                Some(Taken::NoRoom) => {}
                Some(Taken::Gone) => return self.counters.lost(Lost::Gone),
                None => return self.counters.lost(Lost::Standby),
            }
            let is_over = deadline.is_none_or(|deadline| Instant::now() >= deadline);
            if is_over || inward.is_stopping() {
                guest.is_patient = false;
                return self.counters.lost(Lost::NoRoom);
            }
            std::thread::sleep(ROOM_LOOK);
        }
    }

    /// Drops what has arrived so far.
    pub(super) fn flush(&self) {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        for _ in 0..FLUSH_FRAMES_MAX {
            // What goes wrong here goes wrong for the reading thread too.
            let Ok(Some(_)) = self.next_frame(&mut buffer) else {
                return;
            };
            self.counters.lost(Lost::Standby);
        }
    }
}

/// What the reading thread remembers of the guest.
struct Guest {
    /// Frames wait for a guest that takes frames. One that has just let a frame wait in vain lets
    /// the next wait as well; all that arrive would be late by the time it has room.
    is_patient: bool,
}

fn stop_fd(inward: &impl Inward) -> PollFd<'_> {
    PollFd::from_borrowed_fd(inward.stop_signal(), PollFlags::IN)
}

fn wait_for(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_interrupted(result: &io::Result<()>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::Interrupted)
}

/// Why a frame that the tap did not take is lost.
fn reason(error: &io::Error) -> Lost {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => Lost::Full,
        Some(Errno::INVAL | Errno::MSGSIZE) => Lost::Refused,
        _ => Lost::Down,
    }
}
