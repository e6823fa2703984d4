//! What goes wrong, and when: drawn from the seed.

/// A small generator of numbers: the same seed, the same run.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `low` up to and without `high`.
    pub(super) fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }
}

/// When everything that was broken is mended.
pub(super) const HEAL_MS: u64 = 5000;
/// When it must be clear who carries the guest.
pub(super) const SETTLED_MS: u64 = 7000;
/// When it must have carried on.
pub(super) const END_MS: u64 = 12_000;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mishap {
    Kill {
        host: usize,
        back_after_ms: u64,
        as_primary: bool,
    },
    Pause {
        host: usize,
        for_ms: u64,
    },
    Partition {
        for_ms: u64,
    },
    /// The connections of the moment break; `one_way` leaves the other direction intact.
    Cut {
        one_way: Option<usize>,
    },
    ArbiterDown {
        host: usize,
        for_ms: u64,
    },
}

/// Draws what goes wrong before [`HEAL_MS`].
pub(super) fn script(random: &mut Random) -> Vec<(u64, Mishap)> {
    let count = random.range(1, 12);
    let mut script: Vec<_> = (0..count)
        .map(|_| (random.range(1, HEAL_MS - 500), mishap(random)))
        .collect();
    // Troubles that come together are worth more than troubles spread out.
    if random.percent(50) {
        let at = random.range(300, HEAL_MS - 1500);
        for (moment, _) in &mut script {
            *moment = at + *moment % 800;
        }
    }
    script.sort_by_key(|&(moment, _)| moment);
    script
}

fn mishap(random: &mut Random) -> Mishap {
    let host = random.range(0, 2) as usize;
    let for_ms = random.range(10, 1200);
    match random.range(0, 100) {
        0..20 => Mishap::Kill {
            host,
            back_after_ms: random.range(5, 1500),
            as_primary: random.percent(25),
        },
        20..40 => Mishap::Pause { host, for_ms },
        40..55 => Mishap::Partition { for_ms },
        55..75 => Mishap::Cut {
            one_way: random.percent(40).then_some(host),
        },
        _ => Mishap::ArbiterDown { host, for_ms },
    }
}
