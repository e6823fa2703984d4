//! The client of a long run: it uses the store, has the guest compute, and notes what the guest tells of itself.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Span;
use crate::readings::{Clock, Load, Ticks};
use crate::store::{Exchange, StoreClient};

/// From one look at the clocks to the next one.
const CLOCK_EVERY: Duration = Duration::from_secs(1);
/// Readings in a look: the quickest of them says most.
const CLOCK_READINGS: usize = 3;
const LOAD_EVERY: Duration = Duration::from_secs(5);
/// A count costs the guest's kernel more than anything else here, where it is emulated.
const TICKS_EVERY: Duration = Duration::from_secs(20);
/// As much time as readings of one kind take passes until the next one, so many times: the client is there for other things, too.
const READING_COSTS: u32 = 4;
/// One request in so many has the guest compute.
const SPIN_ONE_IN: u64 = 16;
const SPIN_STEPS: u64 = 50_000;

/// Something that the guest told.
#[derive(Clone, Copy, Debug)]
pub struct Sample<T> {
    /// When it was asked and answered.
    pub exchange: Exchange,
    /// What.
    pub told: T,
}

/// All that was observed, in its order.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    /// Every request that was answered.
    pub exchanges: Vec<Exchange>,
    /// Readings of the clocks.
    pub clocks: Vec<Sample<Clock>>,
    /// Counts of ticks.
    pub ticks: Vec<Sample<Ticks>>,
    /// What the background did.
    pub loads: Vec<Sample<Load>>,
}

impl Observations {
    /// The first request that was made after this moment.
    pub fn first_after(&self, moment: Instant) -> Option<Exchange> {
        let index = self
            .exchanges
            .partition_point(|exchange| exchange.sent < moment);
        self.exchanges.get(index).copied()
    }

    /// The longest time without an answer that is in a span at least in part.
    pub fn longest_pause(&self, span: &Span) -> Duration {
        let pairs = self.exchanges.windows(2);
        let pauses = pairs
            .filter(|pair| pair[1].received > span.from && pair[0].received < span.to)
            .map(|pair| pair[1].received.duration_since(pair[0].received));
        pauses.max().unwrap_or_default()
    }

    /// Readings of the clocks that are wholly in a span.
    pub fn clocks_in(&self, span: &Span) -> Vec<Sample<Clock>> {
        within(&self.clocks, span)
    }

    /// Counts of ticks that are wholly in a span.
    pub fn ticks_in(&self, span: &Span) -> Vec<Sample<Ticks>> {
        within(&self.ticks, span)
    }

    /// What the background did, as told wholly in a span.
    pub fn loads_in(&self, span: &Span) -> Vec<Sample<Load>> {
        within(&self.loads, span)
    }
}

fn within<T: Copy>(samples: &[Sample<T>], span: &Span) -> Vec<Sample<T>> {
    let found = samples.iter().filter(|sample| span.has(&sample.exchange));
    found.copied().collect()
}

/// What an [`Observer`] has observed so far, for others.
#[derive(Clone, Debug, Default)]
pub struct Observed(Arc<Mutex<Observations>>);

impl Observed {
    /// A look at it.
    pub fn look(&self) -> MutexGuard<'_, Observations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the requests.
#[derive(Debug)]
pub struct Observer {
    observed: Observed,
    steps: u64,
    clocks: Turn,
    loads: Turn,
    ticks: Turn,
}

/// When something is due.
#[derive(Debug)]
struct Turn {
    every: Duration,
    next: Instant,
}

impl Turn {
    fn new(every: Duration) -> Self {
        let next = Instant::now();
        Self { every, next }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.next
    }

    /// It has been done, from `begin` until now.
    fn done(&mut self, begin: Instant) {
        let wait = self.every.max(begin.elapsed() * READING_COSTS);
        self.next = Instant::now() + wait;
    }
}

impl Observer {
    /// One whose observations are shared.
    pub fn new(observed: Observed) -> Self {
        Self {
            observed,
            steps: 0,
            clocks: Turn::new(CLOCK_EVERY),
            loads: Turn::new(LOAD_EVERY),
            ticks: Turn::new(TICKS_EVERY),
        }
    }

    /// Makes the next request, or some that belong together.
    ///
    /// # Errors
    ///
    /// One was not answered as it must be.
    pub fn step(&mut self, store: &mut StoreClient) -> io::Result<()> {
        let begin = Instant::now();
        self.steps += 1;
        if self.clocks.is_due() {
            (0..CLOCK_READINGS).try_for_each(|_| self.read_clock(store))?;
            self.clocks.done(begin);
        } else if self.loads.is_due() {
            self.read_load(store)?;
            self.loads.done(begin);
        } else if self.ticks.is_due() {
            self.read_ticks(store)?;
            self.ticks.done(begin);
        } else {
            self.use_guest(store)?;
        }
        Ok(())
    }

    fn use_guest(&self, store: &mut StoreClient) -> io::Result<()> {
        if self.steps.is_multiple_of(SPIN_ONE_IN) {
            store.spin(SPIN_STEPS)?;
        } else {
            store.step()?;
        }
        self.note(store);
        Ok(())
    }

    fn read_clock(&self, store: &mut StoreClient) -> io::Result<()> {
        let told = store.clock()?;
        let exchange = self.note(store);
        let sample = Sample { exchange, told };
        self.observed.look().clocks.push(sample);
        Ok(())
    }

    fn read_ticks(&self, store: &mut StoreClient) -> io::Result<()> {
        let told = store.ticks()?;
        let exchange = self.note(store);
        let sample = Sample { exchange, told };
        self.observed.look().ticks.push(sample);
        Ok(())
    }

    fn read_load(&self, store: &mut StoreClient) -> io::Result<()> {
        let told = store.load()?;
        let exchange = self.note(store);
        let sample = Sample { exchange, told };
        self.observed.look().loads.push(sample);
        Ok(())
    }

    fn note(&self, store: &StoreClient) -> Exchange {
        let exchange = store.last_exchange();
        self.observed.look().exchanges.push(exchange);
        exchange
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_found_where_they_are() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let exchanges = [(0, 10), (15, 25), (30, 500), (505, 515), (520, 600)];
        let exchange = |(sent, received)| Exchange {
            sent: at(sent),
            received: at(received),
        };
        let observations = Observations {
            exchanges: exchanges.map(exchange).to_vec(),
            ..Observations::default()
        };
        let pause = |from, to| {
            let (from, to) = (at(from), at(to));
            observations.longest_pause(&Span { from, to })
        };
        assert_eq!(pause(100, 101), Duration::from_millis(475));
        assert_eq!(pause(510, 590), Duration::from_millis(85));
        assert_eq!(pause(700, 800), Duration::ZERO);
        let after = observations.first_after(at(31)).unwrap();
        assert_eq!(after.sent, at(505));
        assert!(observations.first_after(at(521)).is_none());
    }
}
