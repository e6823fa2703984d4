//! Everything that was measured, for programs.

use serde::Serialize;

use super::measure::{Measured, Recorded};
use super::spread::Means;

/// Everything, for the JSON file. Times are in seconds of the guest clock.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    /// Version of samsaractl.
    pub(super) version: &'static str,
    /// When it was measured, Unix time.
    pub(super) unix_ms: u64,
    pub(super) host: HostFacts,
    pub(super) vcpus: u32,
    pub(super) rounds: u32,
    /// Settings that were given for recorded and protected runs.
    pub(super) sets: Vec<String>,
    pub(super) workloads: Vec<Measured>,
    /// Machines of their own, apart: in no mean.
    pub(super) machines: Vec<Measured>,
    /// Geometric means of the median ratios of recorded runs.
    pub(super) recorded: Option<Means>,
    /// The same of protected runs.
    pub(super) protected: Option<Means>,
}

/// Where it was measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct HostFacts {
    /// The processor's name.
    pub(super) processor: String,
    /// How many of them.
    pub(super) processors: usize,
    /// The kernel.
    pub(super) kernel: String,
}

impl HostFacts {
    /// Of this host, as far as it says.
    pub(super) fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let name = cpus.lines().find(|line| line.starts_with("model name"));
        let name = name.and_then(|line| line.split_once(':'));
        Self {
            processor: name.map_or(String::new(), |(_, name)| name.trim().to_owned()),
            processors: std::thread::available_parallelism().map_or(0, Into::into),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl Results {
    /// The means of these workloads.
    pub(super) fn means(
        workloads: &[Measured],
        of: impl Fn(&Measured) -> Option<&Recorded>,
    ) -> Option<Means> {
        let ratio = |one| Some((Measured::program(one), of(one)?.ratio.median));
        Means::of(&workloads.iter().filter_map(ratio).collect::<Vec<_>>())
    }
}

impl Measured {
    fn program(&self) -> &str {
        &self.program
    }
}

/// Made-up results: two programs and a machine.
#[cfg(test)]
pub(super) fn sample() -> Results {
    use super::instructions::{How, Instructions};
    use super::measure::{Sent, Times, Volume};
    use super::spread::Spread;
    use crate::report::QuantilesUs;

    let spread = |median: f64, less: f64, more: f64| Spread {
        median,
        min: median - less,
        max: median + more,
    };
    let times = |median: f64| Times {
        seconds: vec![median, median - 0.1, median + 0.2],
        process_seconds: vec![median + 0.1; 3],
        spread: spread(median, 0.1, 0.2),
    };
    let volume = |bytes: f64| Volume {
        bytes_per_second: bytes,
        bytes_per_billion_instructions: Some(bytes / 4.0),
    };
    let recorded = |ratio: f64, is_protected: bool| Recorded {
        times: times(2.0 * ratio),
        ratio: spread(ratio, 0.1, 0.1),
        chunks_per_second: 1234.0,
        squash_share: 0.125,
        faults_avoided_per_second: 56_789.0,
        spent: [("guest".to_owned(), 0.8)].into(),
        effects: volume(20e6),
        sent: is_protected.then(|| Sent {
            all: volume(5e6),
            orders: volume(30e3),
            order_share: 0.75,
            bytes_per_order: Some(17.5),
        }),
        lag_verified_us: is_protected.then_some(QuantilesUs {
            count: 100,
            p50: 1200,
            p99: 20_000,
            max: 60_000,
        }),
    };
    let measured = |name: &str, ratio: f64| Measured {
        name: name.to_owned(),
        program: name.to_owned(),
        params: "n=1".to_owned(),
        vcpus: 2,
        instructions: Some(Instructions {
            count: 8e9,
            how: How::Estimated,
        }),
        native: times(2.0),
        recorded: Some(recorded(ratio, false)),
        protected: Some(recorded(ratio + 1.0, true)),
    };
    let workloads = vec![measured("radix", 1.5), measured("compute", 1.0)];
    Results {
        version: "0.0.0",
        unix_ms: 0,
        host: HostFacts::here(),
        vcpus: 2,
        rounds: 3,
        sets: Vec::new(),
        recorded: Results::means(&workloads, |one| one.recorded.as_ref()),
        protected: Results::means(&workloads, |one| one.protected.as_ref()),
        workloads,
        machines: vec![measured("linux <compute & files>", 3.7)],
    }
}
