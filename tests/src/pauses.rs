//! How long a service was away, as its client saw it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::HarnessError;
use crate::wire::Namespace;

/// Errors that are kept; there may be thousands alike.
const ERRORS_MAX: usize = 10;

/// What a [`PauseMeter`] has measured.
#[derive(Clone, Debug, Default)]
pub struct Pauses {
    /// Requests that were answered.
    pub answers: u64,
    /// Requests that were not.
    pub failures: u64,
    /// The first few reasons why.
    pub errors: Vec<String>,
    /// The longest time from one answer to the next, or to the end of the measurement.
    pub longest: Duration,
    /// When the answer before it came.
    pub longest_from: Option<Instant>,
    /// When the last answer came.
    last: Option<Instant>,
}

impl Pauses {
    /// A request began at `begin` and came to this at `now`.
    fn record(&mut self, result: io::Result<()>, begin: Instant, now: Instant) {
        match result {
            Ok(()) => {
                self.answers += 1;
                self.stretch(begin, now);
                self.last = Some(now);
            }
            Err(error) => {
                self.failures += 1;
                if self.errors.len() < ERRORS_MAX {
                    self.errors.push(error.to_string());
                }
            }
        }
    }

    /// Nothing was answered from the last answer, or from `begin` if there is none, until `now`.
    fn stretch(&mut self, begin: Instant, now: Instant) {
        let from = self.last.unwrap_or(begin);
        let pause = now.saturating_duration_since(from);
        if pause > self.longest {
            self.longest = pause;
            self.longest_from = Some(from);
        }
    }
}

/// A client that makes a request every few milliseconds.
#[derive(Debug)]
pub struct PauseMeter {
    shared: Arc<Shared>,
    started: Instant,
    thread: Option<JoinHandle<Result<(), HarnessError>>>,
}

#[derive(Debug, Default)]
struct Shared {
    pauses: Mutex<Pauses>,
    is_over: AtomicBool,
}

impl Shared {
    fn pauses(&self) -> std::sync::MutexGuard<'_, Pauses> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PauseMeter {
    /// Makes a request every `period`, or as soon as the one before it has come to an end, within `namespace`.
    ///
    /// `request` makes one and waits for its answer; it must bound that wait. It is run on the meter's thread, and so
    /// makes its connections within the namespace.
    pub fn start(
        namespace: &Namespace,
        period: Duration,
        mut request: impl FnMut() -> io::Result<()> + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let meter = Arc::clone(&shared);
        let thread = namespace.spawn(move || {
            while !meter.is_over.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let result = request();
                meter.pauses().record(result, begin, Instant::now());
                std::thread::sleep(period.saturating_sub(begin.elapsed()));
            }
        });
        Self {
            shared,
            started: Instant::now(),
            thread: Some(thread),
        }
    }

    /// What was measured so far; a pause that still lasts counts as long as it is.
    pub fn pauses(&self) -> Pauses {
        let mut pauses = self.shared.pauses().clone();
        pauses.stretch(self.started, Instant::now());
        pauses
    }

    /// Waits until so many requests were answered.
    ///
    /// # Errors
    ///
    /// They are not within `bound`.
    pub fn wait_answers(&self, answers: u64, bound: Duration) -> Result<(), HarnessError> {
        let what = format!("{answers} answers");
        let look = || Ok((self.shared.pauses().answers >= answers).then_some(()));
        crate::wait::until(&what, bound, look, || format!("{:?}", self.pauses()))
    }

    /// Ends it, after the request that it makes now.
    ///
    /// # Errors
    ///
    /// It could not enter its namespace.
    ///
    /// # Panics
    ///
    /// As the request does.
    pub fn stop(mut self) -> Result<Pauses, HarnessError> {
        let pauses = self.pauses();
        self.end().unwrap_or(Ok(())).map(|()| pauses)
    }

    fn end(&mut self) -> Option<Result<(), HarnessError>> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let result = self.thread.take()?.join();
        Some(result.unwrap_or_else(|panic| {
            if std::thread::panicking() {
                return Ok(());
            }
            std::panic::resume_unwind(panic)
        }))
    }
}

impl Drop for PauseMeter {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

/// A request to a server that sends back what it gets: some bytes that differ each time, over one TCP connection. The
/// connection is made with the first request and must last: once it is broken, every request fails.
pub fn echo(address: SocketAddr, bound: Duration) -> impl FnMut() -> io::Result<()> + Send {
    let mut stream: Option<TcpStream> = None;
    let mut is_broken = false;
    let mut number = 0u64;
    move || {
        if is_broken {
            return Err(io::Error::other("the connection is broken"));
        }
        let connected = match &mut stream {
            Some(connected) => connected,
            // A server that is not there yet breaks nothing.
            none => none.insert(connect(address, bound)?),
        };
        number += 1;
        let result = exchange(connected, number);
        is_broken = result.is_err();
        result
    }
}

fn connect(address: SocketAddr, bound: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, bound)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(bound))?;
    stream.set_write_timeout(Some(bound))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, number: u64) -> io::Result<()> {
    let sent = format!("request {number:016x}\n").into_bytes();
    stream.write_all(&sent)?;
    let mut answer = vec![0; sent.len()];
    stream.read_exact(&mut answer)?;
    if answer == sent {
        return Ok(());
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    Err(io::Error::other(format!(
        "request {number:016x} was answered with {answer:?}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_is_between_answers_whatever_fails_between_them() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pauses = Pauses::default();
        pauses.record(Ok(()), at(0), at(2));
        assert_eq!(pauses.longest, Duration::from_millis(2));
        pauses.record(Ok(()), at(4), at(5));
        pauses.record(Err(io::Error::other("no")), at(8), at(20));
        pauses.record(Ok(()), at(20), at(45));
        pauses.record(Ok(()), at(48), at(50));
        assert_eq!(pauses.longest, Duration::from_millis(40));
        assert_eq!(pauses.longest_from, Some(at(5)));
        assert_eq!((pauses.answers, pauses.failures), (4, 1));
        assert_eq!(pauses.errors, ["no"]);
        pauses.stretch(start, at(150));
        assert_eq!(
            (pauses.longest, pauses.longest_from),
            (Duration::from_millis(100), Some(at(50)))
        );
    }
}
