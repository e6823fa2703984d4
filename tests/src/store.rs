//! A client of the Linux guest's service: it sets and reads values over one connection, and knows what it was promised.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::readings::{Clock, Load, Ticks, spun};
use crate::seed::Seeded;

/// Keys that are used: few, so that values are replaced too.
const KEYS: u64 = 200;
/// The longest line that the service answers with, and more.
const LINE_BYTES_MAX: u64 = 4096;

/// One connection, which must last, and what was acknowledged over it.
#[derive(Debug)]
pub struct StoreClient {
    connection: BufReader<TcpStream>,
    acknowledged: BTreeMap<u64, String>,
    seeded: Seeded,
    sets: u64,
    in_flight: InFlight,
    last_exchange: Exchange,
    is_broken: bool,
}

/// When a request was sent, and when its answer was there.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Before the first byte was sent.
    pub sent: Instant,
    /// After the last byte had come.
    pub received: Instant,
}

impl Exchange {
    /// How long it took.
    pub fn took(&self) -> Duration {
        self.received.saturating_duration_since(self.sent)
    }
}

/// Whether a value is being set, for others than the client to see.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<AtomicU64>);

impl InFlight {
    /// Whether one was sent and has not been acknowledged yet.
    pub fn is_set_outstanding(&self) -> bool {
        !self.0.load(Ordering::SeqCst).is_multiple_of(2)
    }

    /// One was sent, or acknowledged.
    fn step(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl StoreClient {
    /// Connects; an answer may take `bound`.
    ///
    /// # Errors
    ///
    /// The service does not answer.
    pub fn connect(address: SocketAddr, bound: Duration, seeded: Seeded) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, bound)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(bound))?;
        stream.set_write_timeout(Some(bound))?;
        let now = Instant::now();
        Ok(Self {
            connection: BufReader::new(stream),
            acknowledged: BTreeMap::new(),
            seeded,
            sets: 0,
            in_flight: InFlight::default(),
            last_exchange: Exchange {
                sent: now,
                received: now,
            },
            is_broken: false,
        })
    }

    /// Whether a value is being set, at any later time.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight.clone()
    }

    /// When the last request was made and answered.
    pub const fn last_exchange(&self) -> Exchange {
        self.last_exchange
    }

    /// Sets a value, or reads one that was set. Once an answer has failed to come, every request fails.
    ///
    /// # Errors
    ///
    /// The connection is broken, or the answer is not the one that was promised.
    pub fn step(&mut self) -> io::Result<()> {
        let key = self.seeded.below(KEYS);
        match self.acknowledged.get(&key).cloned() {
            Some(value) if self.seeded.below(2) == 0 => self.check(key, &value),
            _ => self.set(key),
        }
    }

    /// Sets a value.
    ///
    /// # Errors
    ///
    /// As [`Self::step`].
    pub fn step_set(&mut self) -> io::Result<()> {
        let key = self.seeded.below(KEYS);
        self.set(key)
    }

    fn set(&mut self, key: u64) -> io::Result<()> {
        self.sets += 1;
        let value = format!("{:08x}-{:016x}", self.sets, self.seeded.bits());
        self.in_flight.step();
        self.expect(&format!("SET {key} {value}"), &format!("OK {key}"))?;
        self.in_flight.step();
        self.acknowledged.insert(key, value);
        Ok(())
    }

    /// Reads the guest's clocks.
    ///
    /// # Errors
    ///
    /// As [`Self::step`].
    pub fn clock(&mut self) -> io::Result<Clock> {
        self.read("CLOCK", Clock::parse)
    }

    /// Reads what the guest knows of its ticks.
    ///
    /// # Errors
    ///
    /// As [`Self::step`].
    pub fn ticks(&mut self) -> io::Result<Ticks> {
        self.read("TICKS", Ticks::parse)
    }

    /// Reads what the background of the job `mixed` has done.
    ///
    /// # Errors
    ///
    /// As [`Self::step`].
    pub fn load(&mut self) -> io::Result<Load> {
        self.read("STATS", Load::parse)
    }

    /// Has the guest compute, and checks what comes out.
    ///
    /// # Errors
    ///
    /// As [`Self::step`].
    pub fn spin(&mut self, steps: u64) -> io::Result<()> {
        let expected = format!("SPUN {:016x}", spun(steps));
        self.expect(&format!("SPIN {steps}"), &expected)
    }

    fn check(&mut self, key: u64, value: &str) -> io::Result<()> {
        self.expect(&format!("GET {key}"), &format!("VALUE {key} {value}"))
    }

    /// Reads back every value that was acknowledged; answers how many.
    ///
    /// # Errors
    ///
    /// One is missing or another one, or the connection is broken.
    pub fn check_all(&mut self) -> io::Result<usize> {
        let all = self.acknowledged.clone();
        for (key, value) in &all {
            self.check(*key, value)?;
        }
        let sets = self.sets;
        self.expect("COUNT", &format!("COUNT {sets}"))?;
        Ok(all.len())
    }

    /// Ends the guest.
    ///
    /// # Errors
    ///
    /// It does not say that it does.
    pub fn stop(&mut self) -> io::Result<()> {
        self.expect("STOP", "BYE")
    }

    /// How many values were acknowledged, those included that were replaced.
    pub const fn sets(&self) -> u64 {
        self.sets
    }

    fn expect(&mut self, request: &str, expected: &str) -> io::Result<()> {
        let read = |answer: &str| (answer == expected).then_some(());
        self.exchange(request, &format!("{expected:?}"), read)
    }

    fn read<T>(&mut self, request: &str, read: impl Fn(&str) -> Option<T>) -> io::Result<T> {
        self.exchange(request, "numbers", read)
    }

    /// Makes a request whose answer must be one that can be read.
    fn exchange<T>(
        &mut self,
        request: &str,
        expected: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> io::Result<T> {
        if self.is_broken {
            return Err(io::Error::other("the connection is broken"));
        }
        self.is_broken = true;
        let sent = Instant::now();
        let answer = self.ask(request)?;
        let received = Instant::now();
        let value = read(&answer).ok_or_else(|| {
            let what = format!("{request:?} was answered with {answer:?}, not {expected}");
            io::Error::other(what)
        })?;
        self.last_exchange = Exchange { sent, received };
        self.is_broken = false;
        Ok(value)
    }

    fn ask(&mut self, request: &str) -> io::Result<String> {
        let stream = self.connection.get_mut();
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        io::Read::take(&mut self.connection, LINE_BYTES_MAX).read_line(&mut line)?;
        let whole = line.strip_suffix('\n');
        whole.map(str::to_owned).ok_or_else(|| {
            io::Error::other(format!(
                "{request:?} was answered with {line:?}, then the end"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// A service that forgets the value set by its request of this number.
    fn service(forgets: usize) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let (mut values, mut count) = (BTreeMap::new(), 0);
            for (index, line) in BufReader::new(&stream).lines().enumerate() {
                let line = line.unwrap();
                let words: Vec<&str> = line.split(' ').collect();
                let answer = match words[..] {
                    ["SET", key, value] => {
                        count += 1;
                        if index != forgets {
                            values.insert(key.to_owned(), value.to_owned());
                        }
                        format!("OK {key}\n")
                    }
                    ["GET", key] => match values.get(key) {
                        Some(value) => format!("VALUE {key} {value}\n"),
                        None => format!("NONE {key}\n"),
                    },
                    ["COUNT"] => format!("COUNT {count}\n"),
                    _ => "BYE\n".to_owned(),
                };
                (&stream).write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    fn client(forgets: usize) -> StoreClient {
        let bound = Duration::from_secs(20);
        StoreClient::connect(service(forgets), bound, Seeded::new(1)).unwrap()
    }

    #[test]
    fn a_good_service_passes() {
        let mut client = client(usize::MAX);
        for _ in 0..500 {
            client.step().unwrap();
        }
        assert!(client.check_all().unwrap() > 100 && client.sets() > 200);
        client.stop().unwrap();
    }

    #[test]
    fn a_service_that_forgets_is_found_out() {
        let mut client = client(0);
        client.set(7).unwrap();
        let error = client.check_all().unwrap_err();
        assert!(error.to_string().contains("NONE 7"), "{error}");
        let error = client.step().unwrap_err();
        assert!(error.to_string().contains("broken"), "{error}");
    }
}
