//! The command line of samsarad.

use std::path::PathBuf;

use clap::Parser;
use samsara_config::Role;

use crate::exit::ExitCode;

/// Keeps a KVM virtual machine running through the loss of its host.
#[derive(Debug, Parser)]
#[command(name = "samsarad", version, about, after_help = after_help())]
pub struct Args {
    /// What this host does with the VM: primary, backup or standalone
    #[arg(long, value_name = "ROLE")]
    pub role: Role,
    /// Configuration file (TOML); every key has a default or can be given by --set
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Sets a key, over the file: --set vm.vcpus=2
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Writes the commit log to a file; or to a directory that exists, in segments, see log.* in the configuration
    #[arg(long, value_name = "PATH")]
    pub record: Option<PathBuf>,
    /// Writes a report of the run to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// What to log: error, warn, info, debug, or a filter like `samsara_failover=debug`
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
}

fn after_help() -> String {
    format!(
        "{}\n\
         Example, without any file:\n    \
         samsarad --role standalone --set vm.program=hello.elf --set vm.vcpus=2\n\n\
         All keys, with defaults: samsarad.toml.example. A pair of hosts: README.md.",
        ExitCode::table()
    )
}
