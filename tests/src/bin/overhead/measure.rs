//! The runs.

use std::path::PathBuf;
use std::time::Duration;

use samsara_tests::seed::Seeded;
use samsara_tests::{Guest, HarnessError, Pair, Report, Site, run_to_end};
use serde::Serialize;

use crate::workloads::Workload;

/// Ten times what the slowest run takes on a machine that is busy.
const BOUND: Duration = Duration::from_mins(5);
const INPUT_BYTES: usize = 32 << 20;
const MIB: f64 = (1 << 20) as f64;

/// Why a measurement counts for nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("{}", .0.line())]
    Harness(#[from] HarnessError),
    #[error("{name}, {mode}: the run ended with status {status}: {stop}")]
    Status {
        name: &'static str,
        mode: &'static str,
        status: u8,
        stop: String,
    },
    #[error("{name}: the {mode} run gave another answer than the native one")]
    Answer {
        name: &'static str,
        mode: &'static str,
    },
}

/// A site to run in.
pub(crate) struct Bench {
    site: Site,
    input: PathBuf,
    vcpus: u32,
    protected: bool,
}

/// Median, least and greatest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// What was measured of one workload.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    pub(crate) params: &'static str,
    pub(crate) native_seconds: Vec<f64>,
    pub(crate) recorded_seconds: Vec<f64>,
    pub(crate) protected_seconds: Vec<f64>,
    /// Recorded over native, by round.
    pub(crate) recorded_ratio: Spread,
    /// Protected over native, by round. The time of a pair begins with its start: it has the backup's sync in it.
    pub(crate) protected_ratio: Option<Spread>,
    /// Chunks squashed of all chunks run, recorded, all rounds.
    pub(crate) squash_share: f64,
    pub(crate) commits_per_second: f64,
    pub(crate) effect_mib_per_second: f64,
}

/// One run: its report, and what the guest said.
struct Ran {
    report: Report,
    output: Vec<u8>,
}

impl Bench {
    pub(crate) fn new(site: Site, vcpus: u32, protected: bool) -> Result<Self, HarnessError> {
        let mut data = vec![0; INPUT_BYTES];
        Seeded::new(1).fill(&mut data);
        let input = site.write("input", &data)?;
        Ok(Self {
            site,
            input,
            vcpus,
            protected,
        })
    }

    /// Runs a workload in all modes, round by round.
    pub(crate) fn measure(&self, workload: &Workload, rounds: u32) -> Result<Measured, BenchError> {
        let guest = Guest::new(&self.site, workload.program, workload.params)?.vcpus(self.vcpus);
        let guest = if workload.has_input {
            guest.input(&self.input)
        } else {
            guest
        };
        let (mut native, mut recorded, mut protected) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let first = good(workload, "native", self.alone(&guest, "off")?)?;
            let second = good(workload, "recorded", self.alone(&guest, "on")?)?;
            same(workload, "recorded", &first, &second)?;
            if self.protected {
                let third = good(workload, "protected", self.pair(&guest)?)?;
                same(workload, "protected", &first, &third)?;
                protected.push(third.report);
            }
            native.push(first.report);
            recorded.push(second.report);
        }
        Ok(measured(workload, &native, &recorded, &protected))
    }

    fn alone(&self, guest: &Guest, mode: &str) -> Result<Ran, HarnessError> {
        let mut settings = guest.settings();
        settings.push(format!("recording.mode={mode}"));
        let seat = self.site.seat("solo")?;
        let host = run_to_end(self.site.binaries(), &seat, &settings, BOUND)?;
        Ok(Ran {
            report: host.report()?,
            output: host.output().bytes(),
        })
    }

    fn pair(&self, guest: &Guest) -> Result<Ran, HarnessError> {
        self.site.clear_arbiter()?;
        let mut pair = Pair::start(&self.site, guest, &[])?;
        pair.primary.wait(BOUND)?;
        pair.backup.wait(BOUND)?;
        Ok(Ran {
            report: pair.primary.report()?,
            output: pair.primary.output().bytes(),
        })
    }
}

fn good(workload: &Workload, mode: &'static str, ran: Ran) -> Result<Ran, BenchError> {
    match ran.report.exit_status {
        Some(0) => Ok(ran),
        status => Err(BenchError::Status {
            name: workload.name,
            mode,
            status: status.unwrap_or(u8::MAX),
            stop: ran.report.stop,
        }),
    }
}

fn same(
    workload: &Workload,
    mode: &'static str,
    native: &Ran,
    other: &Ran,
) -> Result<(), BenchError> {
    let name = workload.name;
    (native.output == other.output)
        .then_some(())
        .ok_or(BenchError::Answer { name, mode })
}

fn measured(
    workload: &Workload,
    native: &[Report],
    recorded: &[Report],
    protected: &[Report],
) -> Measured {
    let seconds = |reports: &[Report]| -> Vec<f64> {
        reports.iter().map(|report| report.wall_seconds).collect()
    };
    let ratios = |reports: &[Report]| {
        let ratios = reports
            .iter()
            .zip(native)
            .map(|(one, native)| one.wall_seconds / native.wall_seconds);
        Spread::of(ratios.collect())
    };
    let sum = |of: fn(&Report) -> u64| recorded.iter().map(of).sum::<u64>() as f64;
    let (squashes, chunks) = (sum(|report| report.squashes), sum(|report| report.chunks));
    let time: f64 = seconds(recorded).iter().sum();
    let nothing = Spread {
        median: 0.0,
        min: 0.0,
        max: 0.0,
    };
    Measured {
        name: workload.name,
        program: workload.program,
        params: workload.params,
        native_seconds: seconds(native),
        recorded_seconds: seconds(recorded),
        protected_seconds: seconds(protected),
        recorded_ratio: ratios(recorded).unwrap_or(nothing),
        protected_ratio: ratios(protected),
        squash_share: squashes / (squashes + chunks).max(1.0),
        commits_per_second: sum(|report| report.commits) / time,
        effect_mib_per_second: sum(|report| report.effect_bytes) / MIB / time,
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self {
            median: f64::midpoint(low, high),
            min,
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let spread = |values: &[f64]| Spread::of(values.to_vec());
        assert_eq!(spread(&[]), None);
        assert_eq!(
            spread(&[3.0, 1.0, 2.0]),
            Some(Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            })
        );
        assert_eq!(
            spread(&[4.0, 1.0, 2.0, 8.0]),
            Some(Spread {
                median: 3.0,
                min: 1.0,
                max: 8.0
            })
        );
    }
}
