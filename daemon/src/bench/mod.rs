//! `samsaractl bench`: what recording and protecting a guest costs on this host.
//!
//! Each round runs a program native, recorded and protected, one right after the other and in another order each time, so that
//! whatever else the host does meets all of them. A ratio is that of one round; tables and chart have the median of the rounds
//! with the least and the greatest. The programs are part of samsaractl; a machine of one's own can be added.

mod chart;
mod daemon;
mod error;
mod hosts;
mod instructions;
mod measure;
mod results;
mod spread;
mod suite;
mod svg;
mod table;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use samsara_config::Config;
use samsara_machine::kvm::Host;

pub use error::BenchError;
use hosts::{Hosts, Mode};
use instructions::Counter;
use measure::{Compared, Measured, Plan, Subject};
use results::{HostFacts, Results};
use suite::{Programs, WORKLOADS, Workload};

/// Bytes of the file that some programs read.
const INPUT_BYTES: usize = 32 << 20;
const SAMSARAD: &str = "samsarad";

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// vCPUs of each program
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    vcpus: u32,
    /// Rounds: each runs everything once in every mode
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Only workloads whose name has this in it, also those outside the suite; repeatable
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Which workloads to run if none is named
    #[arg(long, value_enum, default_value_t = Programs::Suite, conflicts_with = "only")]
    programs: Programs,
    /// Leaves out protected pairs
    #[arg(long)]
    no_protected: bool,
    /// Measures one more machine: a configuration whose guest ends by itself with status 0. It is in no mean. Lines of its console that begin with "answer: " must be the same in every mode; repeatable
    #[arg(long = "machine", value_name = "NAME=FILE")]
    machines: Vec<String>,
    /// Sets a key for recorded and protected runs, as samsarad takes it
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The samsarad to run; default: the one beside this program, else the one on the PATH
    #[arg(long, value_name = "PATH")]
    samsarad: Option<PathBuf>,
    /// Writes all numbers to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws the ratios into a file, as SVG
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Prints the workloads, and measures nothing
    #[arg(long)]
    list: bool,
}

impl BenchArgs {
    /// Measures; gives the tables. Progress goes to standard error.
    pub fn run(self) -> Result<String, BenchError> {
        if self.list {
            return Ok(list());
        }
        let chosen = self.chosen()?;
        let machines = self.machines.iter().map(|given| machine(given));
        let machines = machines.collect::<Result<Vec<_>, _>>()?;
        let kvm = Host::open()?;
        let cycles = kvm.tsc_khz()?.map(|khz| f64::from(khz) * 1e3);
        for path in [&self.json, &self.chart].into_iter().flatten() {
            // Found out now rather than after the measurement.
            write(path, "")?;
        }
        let results = self.measure(&chosen, &machines, &Counter::new("perf", cycles))?;
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&results).map_err(std::io::Error::from);
            let text = text.map_err(failed_to_write(path))? + "\n";
            write(path, &text)?;
        }
        if let Some(path) = &self.chart {
            write(path, &chart::chart(&results))?;
        }
        Ok(table::tables(&results))
    }

    fn measure(
        &self,
        chosen: &[&Workload],
        machines: &[Subject],
        counter: &Counter,
    ) -> Result<Results, BenchError> {
        let samsarad = self.samsarad.clone().unwrap_or_else(beside);
        let hosts = Hosts::new(samsarad, self.sets.clone())?;
        let input = hosts.path("input");
        if chosen.iter().any(|workload| workload.has_input) {
            hosts.write("input", &noise(INPUT_BYTES))?;
        }
        let programs = chosen
            .iter()
            .map(|workload| subject(&hosts, workload, self.vcpus, &input));
        let programs = programs.collect::<Result<Vec<_>, _>>()?;
        let modes = [Mode::Native, Mode::Recorded, Mode::Protected];
        let plan = Plan {
            hosts: &hosts,
            counter,
            rounds: self.rounds,
            modes: &modes[..if self.no_protected { 2 } else { 3 }],
        };
        let workloads = measure_all(&plan, &programs)?;
        let machines = measure_all(&plan, machines)?;
        Ok(Results {
            version: env!("CARGO_PKG_VERSION"),
            unix_ms: crate::status::unix_ms(),
            host: HostFacts::here(),
            vcpus: self.vcpus,
            rounds: self.rounds,
            recorded: Results::means(&workloads, |one| one.recorded.as_ref()),
            protected: Results::means(&workloads, |one| one.protected.as_ref()),
            workloads,
            machines,
            sets: self.sets.clone(),
        })
    }

    fn chosen(&self) -> Result<Vec<&'static Workload>, BenchError> {
        let chosen = suite::chosen(&self.only, self.programs);
        if chosen.is_empty() && self.programs != Programs::None {
            let names: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
            return Err(BenchError::NoWorkload {
                asked: self.only.join(" or "),
                known: names.join(", "),
            });
        }
        Ok(chosen)
    }
}

fn measure_all(plan: &Plan<'_>, subjects: &[Subject]) -> Result<Vec<Measured>, BenchError> {
    let measure = |subject: &Subject| {
        plan.measure(subject, |round, mode, seconds| {
            eprintln!(
                "{}: round {} of {}, {}: {seconds:.2} s",
                subject.name,
                round + 1,
                plan.rounds,
                mode.as_str()
            );
        })
    };
    subjects.iter().map(measure).collect()
}

/// A program of the catalogue, with its ELF file written to be run.
fn subject(
    hosts: &Hosts,
    workload: &Workload,
    vcpus: u32,
    input: &Path,
) -> Result<Subject, BenchError> {
    let program = samsara_guests::program(workload.program);
    let program = program.expect("a workload is a program of the catalogue");
    let path = hosts.write(&format!("{}.elf", program.name), program.image)?;
    let mut sets = vec![
        format!("vm.program={}", path.display()),
        format!("vm.params={}", workload.params),
        format!("vm.vcpus={vcpus}"),
        format!("vm.memory={}", program.default_memory),
    ];
    if workload.has_input {
        sets.push(format!("vm.input={}", input.display()));
    }
    let guest = sets
        .into_iter()
        .flat_map(|set| ["--set".into(), set.into()]);
    Ok(Subject {
        name: workload.name.to_owned(),
        program: program.name.to_owned(),
        params: workload.params.to_owned(),
        vcpus,
        guest: guest.collect(),
        compared: Compared::Console,
    })
}

/// A machine of one's own, from `NAME=FILE`.
fn machine(given: &str) -> Result<Subject, BenchError> {
    let parts = given.split_once('=');
    let parts = parts.filter(|(name, file)| !name.is_empty() && !file.is_empty());
    let (name, file) = parts.ok_or_else(|| BenchError::Machine(given.to_owned()))?;
    let path = PathBuf::from(file);
    let config = Config::load(Some(&path), &[])?;
    let not_shared = [
        ("vm.disks", !config.vm.disks.is_empty()),
        ("vm.net", !config.vm.net.is_empty()),
        ("metrics.listen", config.metrics.listen.is_some()),
        ("control.socket", config.control.socket.is_some()),
    ];
    if let Some((key, _)) = not_shared.into_iter().find(|(_, is_set)| *is_set) {
        return Err(BenchError::NotShared { path, key });
    }
    Ok(Subject {
        name: name.to_owned(),
        program: name.to_owned(),
        params: String::new(),
        vcpus: config.vm.vcpus,
        guest: vec![OsString::from("--config"), path.into()],
        compared: Compared::Answers,
    })
}

/// The samsarad that was installed with this program.
fn beside() -> PathBuf {
    let own = std::env::current_exe().ok();
    let beside = own.map(|own| own.with_file_name(SAMSARAD));
    let beside = beside.filter(|path| path.is_file());
    beside.unwrap_or_else(|| SAMSARAD.into())
}

/// Bytes without any order, always the same.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let words = std::iter::repeat_with(|| {
        // Xorshift (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(bytes).collect()
}

fn list() -> String {
    let line = |workload: &Workload| {
        let mark = if workload.is_in_suite { "*" } else { " " };
        let Workload {
            name,
            program,
            params,
            ..
        } = workload;
        format!("{mark} {name:<18}  {program} {params}\n")
    };
    let lines = WORKLOADS.iter().map(line).collect::<String>();
    format!("{lines}* the suite: what is run if none is named\n")
}

fn failed_to_write(path: &Path) -> impl FnOnce(std::io::Error) -> BenchError {
    let path = path.to_owned();
    |source| BenchError::Write { path, source }
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(failed_to_write(path))
}

#[cfg(test)]
mod tests;
