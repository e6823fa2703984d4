//! `cargo overhead`: what recording costs, for every guest program that computes.
//!
//! Each round runs the program native, recorded and, if asked for, protected, one right after the other, so that whatever
//! else the machine does meets all of them. A ratio is that of one round; the table has the median of the rounds.

mod measure;
mod table;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use samsara_tests::{HarnessError, Site, kvm_or_skip};

use measure::{Bench, BenchError};
use table::Summary;
use workloads::WORKLOADS;

const EXIT_WRONG: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_NO_KVM: u8 = 69;
const EXIT_FAILED: u8 = 70;
const EXIT_OUTPUT: u8 = 73;

/// Measures what recording costs, against an ordinary VM that runs the same program.
#[derive(Debug, Parser)]
#[command(
    name = "overhead",
    after_help = "Exit status:\n    \
    0   every run ended well, with the same answer in every mode\n    \
    1   one did not\n    \
    2   the command line is wrong\n    \
    69  this machine has no usable /dev/kvm\n    \
    70  a host failed, or took too long\n    \
    73  the JSON file cannot be written"
)]
struct Arguments {
    /// vCPUs of the VM
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    vcpus: u32,
    /// Rounds of every program
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Only workloads whose name has this in it; repeatable
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Measures protected pairs too
    #[arg(long)]
    protected: bool,
    /// Writes all numbers to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("this machine has no usable /dev/kvm: nothing can be measured")]
    NoKvm,
    #[error("no workload has {0:?} in its name; there are {known}", known = workloads::names())]
    NoWorkload(Vec<String>),
    #[error("{}", .0.line())]
    Harness(#[from] HarnessError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("cannot write {}: {source}", .path.display())]
    Json {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl Failure {
    const fn status(&self) -> u8 {
        match self {
            Self::NoKvm => EXIT_NO_KVM,
            Self::NoWorkload(_) => EXIT_USAGE,
            Self::Harness(_) | Self::Bench(BenchError::Harness(_)) => EXIT_FAILED,
            Self::Bench(_) => EXIT_WRONG,
            Self::Json { .. } => EXIT_OUTPUT,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("overhead: {failure}");
            ExitCode::from(failure.status())
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let only = &arguments.only;
    let is_chosen =
        |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part.as_str()));
    let chosen: Vec<_> = WORKLOADS
        .iter()
        .filter(|workload| is_chosen(workload.name))
        .collect();
    if chosen.is_empty() {
        return Err(Failure::NoWorkload(only.clone()));
    }
    let _machine = kvm_or_skip("overhead").ok_or(Failure::NoKvm)?;
    let bench = Bench::new(Site::new()?, arguments.vcpus, arguments.protected)?;
    println!(
        "{} vCPUs, {} rounds, times of whole runs",
        arguments.vcpus, arguments.rounds
    );
    println!("{}", table::head(arguments.protected));
    let mut results = Vec::new();
    for workload in chosen {
        let result = bench.measure(workload, arguments.rounds)?;
        println!("{}", table::row(&result));
        results.push(result);
    }
    let summary = Summary::of(arguments.vcpus, arguments.rounds, results);
    println!("{}", table::foot(&summary));
    if let Some(path) = &arguments.json {
        let written = serde_json::to_vec_pretty(&summary).map_err(std::io::Error::from);
        let written = written.and_then(|text| std::fs::write(path, text));
        written.map_err(|source| Failure::Json {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}
