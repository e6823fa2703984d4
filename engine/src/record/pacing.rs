//! How long a chunk may run, and beside whom.
//!
//! Long chunks cost little for computing, and much when they are lost or when others wait for what
//! they have not committed. So a chunk's length follows from what chunks cost and how often one is
//! squashed, and is no less than some times what its commit costs, as far as the longest
//! allows. A vCPU whose chunk looks like a wait loop is probably waiting for another: it asks the others
//! to commit what they have, less often the longer it has waited.
//!
//! vCPUs that write the same pages all the time gain nothing from running in parallel: they lose
//! one chunk for each that commits, and pay for the loss. When the time lost is a good part of the
//! time that counted, such a vCPU takes turns with the others that do, for some chunks, then tries
//! again; each time that fails the turns last longer. Where chunks are cheap it keeps a turn while it
//! gets on. A chunk that loses even so runs alone.

use std::time::Duration;

use samsara_commitlog::Boundary;

/// What was run, and lost, counts for about so many chunks.
const MEMORY: u32 = 16;
/// From one part lost to so many kept on, a vCPU takes turns.
const LOST_PARTS: u32 = 2;
/// Chunks, or milliseconds if they are longer, for which turns are taken, the first time and at most.
const TURNS_MIN: u32 = 32;
const TURNS_MAX: u32 = 256;
/// How long a vCPU keeps its turn while it gets on: what a change of turns costs is spread over it.
const TURN: Duration = Duration::from_millis(2);
/// A chunk runs at least so many times as long as it takes to commit one, unless an exit ends it.
const RUN_PER_COST: u32 = 6;
/// What a chunk costs before it has run its first instruction and after its last.
const ENTRY: Duration = Duration::from_micros(70);
/// The shortest that a chunk that writes much is made.
const CAP_MIN: Duration = Duration::from_micros(1);
/// A chunk that yields after less than this, and changed nothing, has only looked whether it may go on.
const LOOK_MAX: Duration = Duration::from_millis(1);
/// The longest that a vCPU waits for others to commit before it looks again: what came from outside meanwhile may be
/// what it looks for.
const REST_MAX: Duration = Duration::from_millis(5);
/// And so many times as long as a look takes, should it not have waited for others.
const REST_PER_LOOK: u32 = 8;
/// What a look takes at least, with entering the guest and leaving it.
const LOOK_MIN: Duration = Duration::from_micros(100);
/// What writes so much that its commit costs a good part of the longest chunk gets chunks so many times as long.
const LONGER: u32 = 8;
/// Shortest chunk in a turn: what a change of turns costs is spread over it.
const TURN_LENGTH_MIN: Duration = Duration::from_millis(1);
/// As far as chunks in which the vCPU did not move grow, whatever the settings: entering the guest
/// and the faults of one instruction must fit a chunk, or none ever gets on.
const STUCK_LENGTH_MAX: Duration = Duration::from_millis(20);

/// Chunk length and company of one vCPU.
#[derive(Debug)]
pub(super) struct Pacing {
    min: Duration,
    max: Duration,
    /// Useful time between two squashes, a moving average, and since the last one.
    between: Duration,
    since: Duration,
    idle_chunks: u32,
    /// Chunks in a row that waited, whatever ended them.
    waits: u32,
    /// The longest that does not write more than a record carries, below `min` if need be.
    cap: Duration,
    /// Chunks in a row in which the vCPU did not move.
    stuck_chunks: u32,
    squashes: u32,
    exclusive_after: u32,
    /// Time of recent chunks that committed and changed memory, with their commits, and of those that were squashed.
    useful: Duration,
    lost: Duration,
    /// What a commit takes, a moving average.
    cost: Duration,
    /// How long this vCPU has run in the turn that it has.
    turn: Duration,
    /// Chunks, or milliseconds if they are longer, for which this vCPU still takes turns.
    turns_left: u32,
    /// Chunks for which it will the next time.
    turns: u32,
}

/// Beside whom a chunk runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    /// Beside all others.
    All,
    /// Beside those that do not take turns.
    Turns,
    /// Alone.
    None,
}

/// How long a vCPU waits for others to commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    /// After so long those that have run for longer are asked to.
    pub(super) patience: Duration,
    pub(super) most: Duration,
}

/// Whether a chunk looks like a wait loop: time went by and nothing changed, or an exit ended it and
/// it has touched no more than its stack.
pub(super) fn is_wait(boundary: Boundary, changed_pages: usize) -> bool {
    match boundary {
        Boundary::Timer => changed_pages == 0,
        Boundary::Exit => changed_pages <= 1,
        Boundary::Kick => false,
    }
}

/// Whether a chunk that yielded, and looks like a wait loop, has `ran` no longer than it takes to look.
pub(super) fn is_look(ran: Duration) -> bool {
    ran < LOOK_MAX
}

impl Pacing {
    pub(super) fn new(min: Duration, max: Duration, exclusive_after: u32) -> Self {
        Self {
            min,
            max,
            between: Duration::ZERO,
            since: Duration::ZERO,
            idle_chunks: 0,
            waits: 0,
            cap: max * LONGER,
            stuck_chunks: 0,
            squashes: 0,
            exclusive_after,
            useful: Duration::ZERO,
            lost: Duration::ZERO,
            cost: Duration::ZERO,
            turn: Duration::ZERO,
            turns_left: 0,
            turns: TURNS_MIN,
        }
    }

    /// How long the next chunk may run.
    pub(super) fn limit(&self) -> Duration {
        let usual = self.usual_limit().min(self.cap);
        if self.stuck_chunks > 0 {
            let longer = self.min * (1 << self.stuck_chunks.min(12));
            return longer.min(STUCK_LENGTH_MAX).max(usual);
        }
        usual
    }

    fn usual_limit(&self) -> Duration {
        if self.idle_chunks > 0 {
            return (self.min * (1 << self.idle_chunks.min(8))).min(self.max);
        }
        let length = self.length().max(self.worthwhile());
        if self.turns_left > 0 {
            return length.max(TURN_LENGTH_MIN).min(self.max);
        }
        length
    }

    /// Longer chunks cost less, and more is lost with them: what both cost together is least at the square root of twice
    /// what a chunk costs by the time between two squashes (J. W. Young, 1974, of checkpoints). Squashes in a row halve it.
    fn length(&self) -> Duration {
        let between = self.between.max(self.since).as_secs_f64();
        let cost = (self.cost + ENTRY).as_secs_f64();
        let best = Duration::from_secs_f64((2.0 * cost * between).sqrt());
        (best / (1 << self.squashes.min(8))).clamp(self.min, self.max)
    }

    /// The shortest chunk that is worth what its commit costs.
    fn worthwhile(&self) -> Duration {
        (self.cost * RUN_PER_COST).clamp(self.min, self.max * LONGER)
    }

    /// How long others may run before a vCPU that waits asks them to commit: longer the longer it
    /// has waited, for then they are computing.
    pub(super) fn patience(&self) -> Duration {
        let longer = self.worthwhile() * (1 << self.waits.clamp(1, 9)) / 2;
        longer.min(self.max)
    }

    /// For how long a vCPU that waits for others to commit does nothing before it looks again.
    pub(super) fn rest(&self) -> Rest {
        Rest {
            patience: self.patience(),
            most: ((self.cost + LOOK_MIN) * REST_PER_LOOK).min(REST_MAX),
        }
    }

    /// A chunk took this long to commit, after it had run.
    pub(super) fn cost(&mut self, cost: Duration) {
        self.cost = (self.cost * 7 + cost) / 8;
        // Chunks that are lost beside others cost less than waiting while those commit.
        self.useful += cost;
    }

    /// Whether the vCPU keeps its turn for its next chunk: it gets on, has not had it for long, and a
    /// chunk that only finds out that it must wait costs little.
    pub(super) fn keeps_turn(&self) -> bool {
        self.turn > Duration::ZERO && self.turn < TURN && self.cost < TURN / 20
    }

    /// Whether the last chunk that committed seems to have waited for another vCPU.
    pub(super) fn has_waited(&self) -> bool {
        self.waits > 0
    }

    /// Beside whom the next chunk runs.
    pub(super) fn company(&self) -> Company {
        if self.squashes >= self.exclusive_after {
            Company::None
        } else if self.turns_left > 0 {
            Company::Turns
        } else {
            Company::All
        }
    }

    /// Others ask this vCPU to take turns for so many chunks, or milliseconds.
    pub(super) fn take_turns(&mut self, chunks: u32) {
        self.turns_left = self.turns_left.max(chunks);
    }

    /// For how many chunks, or milliseconds, this vCPU still takes turns.
    pub(super) fn turns_left(&self) -> u32 {
        self.turns_left
    }

    /// A chunk was squashed, which took so long with its run.
    pub(super) fn squashed(&mut self, lost: Duration) {
        self.turn = Duration::ZERO;
        self.squashes += 1;
        if self.since > Duration::ZERO {
            self.between = (self.between * 3 + self.since) / 4;
            self.since = Duration::ZERO;
        }
        self.remember(Duration::ZERO, lost);
        if self.turns_left == 0 && self.lost * LOST_PARTS > self.useful {
            self.turns_left = self.turns;
            self.turns = (self.turns * 2).min(TURNS_MAX);
        }
    }

    /// A chunk that `ran` so long committed. `has_waited` if it seems to have waited for another vCPU.
    pub(super) fn committed(&mut self, ran: Duration, boundary: Boundary, has_waited: bool) {
        self.squashes = 0;
        self.cap = (self.cap * 5 / 4).min(self.max * LONGER);
        if has_waited {
            self.waited(boundary);
        } else {
            self.got_on(ran);
        }
        self.count_turn(ran);
    }

    fn waited(&mut self, boundary: Boundary) {
        self.turn = Duration::ZERO;
        self.waits += 1;
        self.remember(Duration::ZERO, Duration::ZERO);
        self.idle_chunks = match boundary {
            Boundary::Timer => self.idle_chunks + 1,
            _ => 0,
        };
    }

    fn got_on(&mut self, ran: Duration) {
        let is_new = !self.keeps_turn();
        self.turn = if is_new { ran } else { self.turn + ran };
        self.remember(ran, Duration::ZERO);
        self.idle_chunks = 0;
        self.waits = 0;
        self.since += ran;
    }

    /// A chunk of this length wrote more than a record carries.
    pub(super) fn too_large(&mut self) {
        self.cap = (self.limit() / 2).max(CAP_MIN);
    }

    /// Whether the vCPU got on in the chunk that committed.
    pub(super) fn moved(&mut self, has_moved: bool) {
        self.stuck_chunks = if has_moved {
            0
        } else {
            self.stuck_chunks.saturating_add(1)
        };
    }

    fn remember(&mut self, useful: Duration, lost: Duration) {
        let fade = |sum: Duration| sum.saturating_sub(sum / MEMORY);
        self.useful = fade(self.useful) + useful;
        self.lost = fade(self.lost) + lost;
    }

    fn count_turn(&mut self, ran: Duration) {
        if self.turns_left > 0 {
            let counts = (ran.as_micros() / TURN_LENGTH_MIN.as_micros()).max(1);
            self.turns_left = self.turns_left.saturating_sub(counts as u32);
            if self.turns_left == 0 {
                // What was lost before says nothing of now.
                self.lost = self.useful / (2 * LOST_PARTS);
            }
        } else if self.lost * LOST_PARTS * 2 < self.useful {
            self.turns = TURNS_MIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_micros(200);
    const MAX: Duration = Duration::from_millis(5);

    #[test]
    fn length_adapts_within_its_bounds() {
        let mut pacing = Pacing::new(MIN, MAX, 4);
        for _ in 0..1000 {
            pacing.committed(MIN, Boundary::Timer, false);
        }
        assert_eq!(pacing.limit(), MAX);
        for _ in 0..40 {
            pacing.squashed(MIN);
        }
        assert_eq!(pacing.limit(), TURN_LENGTH_MIN);
        assert_eq!(pacing.company(), Company::None);
        pacing.committed(MIN, Boundary::Timer, true);
        assert_ne!(pacing.company(), Company::None);
        assert!(pacing.limit() <= MIN * 2);
        for _ in 0..40 {
            pacing.committed(MIN, Boundary::Timer, true);
        }
        assert_eq!(pacing.limit(), MAX);
    }

    /// The length of chunks of which one is squashed after so many have committed.
    fn length_between_squashes(chunks: u32) -> Duration {
        let mut pacing = Pacing::new(Duration::from_micros(10), MAX, 100);
        for _ in 0..20 {
            pacing.squashed(MIN);
            for _ in 0..chunks {
                pacing.committed(MIN, Boundary::Timer, false);
                pacing.cost(MIN / 20);
            }
        }
        pacing.length()
    }

    #[test]
    fn chunks_are_as_long_as_squashes_are_apart_by_the_square_root() {
        let lengths = [20, 80, 320].map(length_between_squashes);
        // The root of 2 x (10 + 70) us x 4 ms.
        assert!((780..=800).contains(&lengths[0].as_micros()), "{lengths:?}");
        for pair in lengths.windows(2) {
            let ratio = pair[1].as_secs_f64() / pair[0].as_secs_f64();
            assert!((1.8..2.2).contains(&ratio), "{lengths:?}");
        }
    }

    #[test]
    fn chunks_that_write_too_much_get_shorter_than_the_shortest() {
        let second = Duration::from_secs(1);
        let mut pacing = Pacing::new(second, second, 4);
        for _ in 0..10 {
            pacing.too_large();
        }
        assert!(pacing.limit() < Duration::from_millis(1));
        for _ in 0..40 {
            pacing.committed(MIN, Boundary::Timer, false);
        }
        assert_eq!(pacing.limit(), second);
    }

    #[test]
    fn chunks_in_which_nothing_moves_grow_beyond_the_longest() {
        let tiny = Duration::from_micros(10);
        let mut pacing = Pacing::new(tiny, tiny, 4);
        for _ in 0..12 {
            pacing.committed(MIN, Boundary::Timer, true);
            pacing.moved(false);
        }
        assert_eq!(pacing.limit(), STUCK_LENGTH_MAX);
        pacing.committed(MIN, Boundary::Timer, false);
        pacing.moved(true);
        assert_eq!(pacing.limit(), tiny);
    }

    /// Runs a vCPU that loses as much as it commits until it takes turns.
    fn conflict(pacing: &mut Pacing) {
        for _ in 0..100 {
            pacing.squashed(MIN);
            pacing.squashed(MIN);
            if pacing.company() == Company::Turns {
                return;
            }
            pacing.committed(MIN, Boundary::Timer, false);
        }
        panic!("never took turns");
    }

    fn turns(pacing: &mut Pacing) -> usize {
        let one = || {
            (pacing.company() == Company::Turns)
                .then(|| pacing.committed(MIN, Boundary::Timer, false))
        };
        std::iter::from_fn(one).count()
    }

    #[test]
    fn turns_are_taken_longer_each_time_that_running_beside_others_fails() {
        let mut pacing = Pacing::new(MIN, MAX, 100);
        let mut taken = Vec::new();
        for _ in 0..6 {
            conflict(&mut pacing);
            taken.push(turns(&mut pacing));
        }
        assert_eq!(taken, [32, 64, 128, 256, 256, 256]);
        for _ in 0..100 {
            pacing.committed(MIN, Boundary::Timer, false);
        }
        conflict(&mut pacing);
        assert_eq!(turns(&mut pacing), 32, "forgotten after a quiet time");
    }

    #[test]
    fn turns_that_others_ask_for_are_taken_for_as_many_chunks_or_less_time() {
        let mut pacing = Pacing::new(MIN, MAX, 100);
        pacing.take_turns(32);
        assert_eq!(turns(&mut pacing), 32);
        pacing.take_turns(32);
        pacing.committed(MAX, Boundary::Timer, false);
        assert_eq!(turns(&mut pacing), 27, "5 ms count for five");
    }

    #[test]
    fn who_loses_little_runs_beside_the_others() {
        let mut pacing = Pacing::new(MIN, MAX, 100);
        for _ in 0..1000 {
            pacing.committed(MIN * 6, Boundary::Timer, false);
            pacing.squashed(MIN);
            assert_eq!(pacing.company(), Company::All);
        }
    }

    #[test]
    fn a_turn_is_kept_while_the_vcpu_gets_on_and_given_up_when_it_waits() {
        let mut pacing = Pacing::new(MIN, MAX, 4);
        let mut chunks = 0;
        while {
            pacing.committed(MIN, Boundary::Exit, false);
            pacing.keeps_turn()
        } {
            chunks += 1;
        }
        assert_eq!(chunks, 9, "of 200 us, in a turn of 2 ms");
        pacing.committed(MIN, Boundary::Exit, false);
        assert!(pacing.keeps_turn());
        pacing.committed(MIN, Boundary::Exit, true);
        assert!(!pacing.keeps_turn());
    }

    #[test]
    fn chunks_are_worth_their_commit() {
        let mut pacing = Pacing::new(MIN, MAX, 4);
        for _ in 0..50 {
            pacing.squashed(MIN);
            pacing.committed(MIN * 2, Boundary::Timer, false);
            pacing.cost(MIN);
        }
        assert!(pacing.limit() > MIN * 5);
        for _ in 0..50 {
            pacing.cost(MAX * 2);
        }
        assert_eq!(pacing.limit(), MAX * LONGER, "beyond the usual longest");
        pacing.too_large();
        assert_eq!(pacing.limit(), MAX * LONGER / 2);
    }

    #[test]
    fn looks_cost_no_more_than_a_part_of_the_rests_between_them() {
        let mut pacing = Pacing::new(MIN, MAX, 4);
        assert_eq!(pacing.rest().most, LOOK_MIN * REST_PER_LOOK);
        for _ in 0..50 {
            pacing.cost(MIN);
        }
        assert!(pacing.rest().most > MIN * REST_PER_LOOK);
        for _ in 0..50 {
            pacing.cost(MAX);
        }
        assert_eq!(pacing.rest().most, REST_MAX);
    }
}
