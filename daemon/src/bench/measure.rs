//! What is measured of a workload.

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde::Serialize;

use super::BenchError;
use super::daemon::Ran;
use super::hosts::{Hosts, Mode};
use super::instructions::{Counter, Instructions};
use super::spread::Spread;
use crate::report::{QuantilesUs, Report};

/// Lines of a machine's console that must be the same in every mode begin so.
const ANSWER: &[u8] = b"answer: ";

/// Something to run.
#[derive(Debug)]
pub(super) struct Subject {
    /// As in the tables.
    pub(super) name: String,
    /// What its ratio is averaged with.
    pub(super) program: String,
    pub(super) params: String,
    pub(super) vcpus: u32,
    /// The arguments of samsarad that make it.
    pub(super) guest: Vec<OsString>,
    pub(super) compared: Compared,
}

/// What must be the same in every mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// All that the guest says.
    Console,
    /// Its lines that begin with `answer: `.
    Answers,
}

impl Compared {
    fn part(self, console: &[u8]) -> Vec<&[u8]> {
        match self {
            Self::Console => vec![console],
            Self::Answers => {
                let lines = console.split(|byte| *byte == b'\n');
                let lines = lines.map(<[u8]>::trim_ascii_end);
                lines.filter(|line| line.starts_with(ANSWER)).collect()
            }
        }
    }
}

/// How a workload is measured.
pub(super) struct Plan<'a> {
    pub(super) hosts: &'a Hosts,
    pub(super) counter: &'a Counter,
    pub(super) rounds: u32,
    pub(super) modes: &'a [Mode],
}

/// What was measured of a workload. Times are of the guest clock: from the first instruction to the last commit.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) name: String,
    pub(super) program: String,
    pub(super) params: String,
    pub(super) vcpus: u32,
    /// Instructions of the guest, in all vCPUs.
    pub(super) instructions: Option<Instructions>,
    pub(super) native: Times,
    pub(super) recorded: Option<Recorded>,
    pub(super) protected: Option<Recorded>,
}

/// How long the runs took.
#[derive(Debug, Serialize)]
pub(super) struct Times {
    /// By the guest clock, by round.
    pub(super) seconds: Vec<f64>,
    /// Of the whole process, with its start and end, by round.
    pub(super) process_seconds: Vec<f64>,
    pub(super) spread: Spread,
}

/// What recording came to, in all rounds together where nothing else is said.
#[derive(Debug, Serialize)]
pub(super) struct Recorded {
    pub(super) times: Times,
    /// Time over the native time of the same round.
    pub(super) ratio: Spread,
    pub(super) chunks_per_second: f64,
    /// Chunks squashed, of all that were run.
    pub(super) squash_share: f64,
    /// Pages written again without a fault, because they were held.
    pub(super) faults_avoided_per_second: f64,
    /// What the vCPUs' threads spent their time on, of all their time while the guest ran: shares by phase, see `vcpu_ms`
    /// of a report. What is left waited before the first chunk or after the last.
    pub(super) spent: BTreeMap<String, f64>,
    /// Changed bytes of memory and registers, in whichever form their chunks travelled.
    pub(super) effects: Volume,
    /// What was sent to the backup.
    pub(super) sent: Option<Sent>,
    /// From commit to the backup's "verified", of the round with the highest median.
    pub(super) lag_verified_us: Option<QuantilesUs>,
}

/// What was sent to a backup: encoded records.
#[derive(Debug, Serialize)]
pub(super) struct Sent {
    pub(super) all: Volume,
    /// Chunks as orders to run them again.
    pub(super) orders: Volume,
    /// Chunks that went as orders, of all.
    pub(super) order_share: f64,
    /// Encoded bytes of an order, on average.
    pub(super) bytes_per_order: Option<f64>,
}

/// An amount of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Volume {
    pub(super) bytes_per_second: f64,
    /// For each billion instructions of the guest, as far as they are known.
    pub(super) bytes_per_billion_instructions: Option<f64>,
}

impl Plan<'_> {
    /// Runs it in all modes, round by round, each round in another order; `told` hears of each run.
    pub(super) fn measure(
        &self,
        subject: &Subject,
        told: impl Fn(u32, Mode, f64),
    ) -> Result<Measured, BenchError> {
        let mut reports: Vec<Vec<Report>> = self.modes.iter().map(|_| Vec::new()).collect();
        let mut answer: Option<Vec<u8>> = None;
        for round in 0..self.rounds {
            for step in 0..self.modes.len() {
                let index = (round as usize + step) % self.modes.len();
                let mode = self.modes[index];
                let ran = self.hosts.run(&subject.name, mode, &subject.guest)?;
                told(round, mode, ran.report.guest_seconds);
                subject.check(mode, &ran, &mut answer)?;
                reports[index].push(ran.report);
            }
        }
        self.summary(subject, &reports)
    }

    fn summary(&self, subject: &Subject, reports: &[Vec<Report>]) -> Result<Measured, BenchError> {
        let of = |wanted: Mode| {
            let mut modes = self.modes.iter().zip(reports);
            modes.find_map(|(mode, reports)| (*mode == wanted).then_some(reports.as_slice()))
        };
        let native = of(Mode::Native).unwrap_or_default();
        let times = Times::of(native);
        let instructions = self.counter.of(
            self.hosts,
            &subject.name,
            &subject.guest,
            times.spread.median,
            subject.vcpus,
        )?;
        let recorded = |mode| of(mode).map(|reports| Recorded::of(native, reports, instructions));
        Ok(Measured {
            name: subject.name.clone(),
            program: subject.program.clone(),
            params: subject.params.clone(),
            vcpus: subject.vcpus,
            instructions,
            native: times,
            recorded: recorded(Mode::Recorded),
            protected: recorded(Mode::Protected),
        })
    }
}

impl Subject {
    /// Whichever run came first gave the answer that all others must give.
    fn check(&self, mode: Mode, ran: &Ran, answer: &mut Option<Vec<u8>>) -> Result<(), BenchError> {
        let Some(answer) = answer else {
            *answer = Some(ran.console.clone());
            return Ok(());
        };
        let (first, this) = (self.compared.part(answer), self.compared.part(&ran.console));
        (first == this)
            .then_some(())
            .ok_or_else(|| BenchError::Answer {
                run: format!("{}, {}", self.name, mode.as_str()),
            })
    }
}

impl Times {
    fn of(reports: &[Report]) -> Self {
        let list = |of: fn(&Report) -> f64| reports.iter().map(of).collect::<Vec<_>>();
        let seconds = list(|report| report.guest_seconds);
        let nothing = Spread {
            median: 0.0,
            min: 0.0,
            max: 0.0,
        };
        Self {
            spread: Spread::of(seconds.iter().copied()).unwrap_or(nothing),
            process_seconds: list(|report| report.wall_seconds),
            seconds,
        }
    }
}

impl Recorded {
    fn of(native: &[Report], reports: &[Report], instructions: Option<Instructions>) -> Self {
        let times = Times::of(reports);
        let ratios = reports.iter().zip(native);
        let ratios = ratios.map(|(one, native)| one.guest_seconds / native.guest_seconds);
        let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>() as f64;
        let seconds: f64 = times.seconds.iter().sum();
        let volume = |bytes: f64| Volume {
            bytes_per_second: bytes / seconds,
            bytes_per_billion_instructions: instructions
                .map(|all| bytes / reports.len() as f64 / (all.count / 1e9)),
        };
        let (chunks, squashes) = (sum(|report| report.chunks), sum(|report| report.squashes));
        let lags = reports.iter().map(|report| report.lag_verified_us);
        Self {
            ratio: Spread::of(ratios).unwrap_or(times.spread),
            chunks_per_second: chunks / seconds,
            squash_share: squashes / (squashes + chunks).max(1.0),
            faults_avoided_per_second: sum(|report| report.faults_avoided) / seconds,
            spent: spent(reports),
            effects: volume(sum(|report| report.effect_bytes)),
            sent: (sum(|report| report.log_bytes) > 0.0).then(|| sent(reports, volume)),
            lag_verified_us: lags.filter(|lag| lag.count > 0).max_by_key(|lag| lag.p50),
            times,
        }
    }
}

/// Shares of the time that the vCPUs had.
fn spent(reports: &[Report]) -> BTreeMap<String, f64> {
    let mut shares = BTreeMap::new();
    let had = |report: &Report| report.guest_seconds * report.chunks_by_vcpu.len() as f64;
    let all: f64 = reports.iter().map(had).sum();
    for (phase, ms) in reports.iter().flat_map(|report| &report.vcpu_ms) {
        *shares.entry(phase.clone()).or_default() += *ms as f64 / 1e3 / all;
    }
    shares
}

fn sent(reports: &[Report], volume: impl Fn(f64) -> Volume) -> Sent {
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>() as f64;
    let order_bytes = sum(|report| report.order_bytes);
    let orders = sum(|report| report.chunks_order_form);
    let chunks = orders + sum(|report| report.chunks_effects_form);
    Sent {
        all: volume(sum(|report| report.log_bytes)),
        orders: volume(order_bytes),
        order_share: orders / chunks.max(1.0),
        bytes_per_order: (orders > 0.0).then(|| order_bytes / orders),
    }
}

#[cfg(test)]
mod tests {
    use samsara_config::{Config, Role};

    use super::super::instructions::How;
    use super::*;
    use crate::status::Status;

    fn report(seconds: f64, change: impl FnOnce(&mut Report)) -> Report {
        let status = Status::new(&Config::default(), Role::Standalone, "alpha");
        let mut report = Report::new(&status, seconds + 0.1, "exit");
        report.guest_seconds = seconds;
        change(&mut report);
        report
    }

    fn is_near(found: f64, wanted: f64) -> bool {
        (found - wanted).abs() < 1e-9
    }

    #[test]
    fn ratios_are_of_their_round_and_rates_of_all_rounds() {
        let native = [report(2.0, |_| ()), report(4.0, |_| ())];
        let change = |report: &mut Report| {
            (report.chunks, report.squashes, report.faults_avoided) = (300, 100, 700);
            (report.effect_bytes, report.log_bytes) = (1000, 1600);
            (report.order_bytes, report.chunks_order_form) = (600, 40);
            report.chunks_effects_form = 120;
            report.lag_verified_us = QuantilesUs {
                count: 1,
                p50: report.guest_seconds as u64,
                p99: 9,
                max: 9,
            };
        };
        let recorded = [report(3.0, change), report(5.0, change)];
        let (count, how) = (2e9, How::Estimated);
        let found = Recorded::of(&native, &recorded, Some(Instructions { count, how }));
        assert!(is_near(found.ratio.max, 1.5) && is_near(found.ratio.min, 1.25));
        assert!(is_near(found.chunks_per_second, 600.0 / 8.0));
        assert!(is_near(found.squash_share, 0.25));
        assert!(is_near(found.faults_avoided_per_second, 1400.0 / 8.0));
        assert!(is_near(found.effects.bytes_per_second, 250.0));
        assert_eq!(found.effects.bytes_per_billion_instructions, Some(500.0));
        let sent = found.sent.unwrap();
        assert!(is_near(sent.all.bytes_per_second, 400.0));
        assert!(is_near(sent.orders.bytes_per_second, 150.0));
        assert_eq!(sent.orders.bytes_per_billion_instructions, Some(300.0));
        assert!(is_near(sent.order_share, 0.25));
        assert_eq!(sent.bytes_per_order, Some(15.0));
        assert_eq!(found.lag_verified_us.unwrap().p50, 5);
        assert_eq!(found.times.process_seconds.len(), 2);

        let bare = [report(3.0, |report| report.effect_bytes = 5)];
        let found = Recorded::of(&native[..1], &bare, None);
        assert!(found.sent.is_none() && found.lag_verified_us.is_none());
        assert_eq!(found.effects.bytes_per_billion_instructions, None);
    }

    #[test]
    fn another_answer_than_the_first_is_an_error() {
        let subject = |compared| Subject {
            name: "fft".to_owned(),
            program: "fft".to_owned(),
            params: String::new(),
            vcpus: 2,
            guest: Vec::new(),
            compared,
        };
        let ran = |console: &str| Ran {
            report: report(1.0, |_| ()),
            console: console.into(),
        };
        let mut answer = None;
        let whole = subject(Compared::Console);
        whole
            .check(Mode::Native, &ran("sum 1\n"), &mut answer)
            .unwrap();
        whole
            .check(Mode::Recorded, &ran("sum 1\n"), &mut answer)
            .unwrap();
        let error = whole
            .check(Mode::Recorded, &ran("sum 2\n"), &mut answer)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("fft, recorded: the guest gave another answer")
        );

        let mut answer = None;
        let lines = subject(Compared::Answers);
        lines
            .check(Mode::Native, &ran("[0.1] up\r\nanswer: 7\r\n"), &mut answer)
            .unwrap();
        lines
            .check(Mode::Recorded, &ran("[0.9] up\nanswer: 7\n"), &mut answer)
            .unwrap();
        for other in ["answer: 8\n", "", "answer: 7\nanswer: 7\n"] {
            assert!(
                lines
                    .check(Mode::Recorded, &ran(other), &mut answer)
                    .is_err()
            );
        }
    }
}
