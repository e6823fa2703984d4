//! The daemon.

use clap::Parser as _;
use samsarad::cli::Args;
use samsarad::exit::ExitCode;
use samsarad::{logging, run};

fn main() {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let status = if error.use_stderr() {
                ExitCode::Usage.code()
            } else {
                0
            };
            // Nobody to tell if this fails.
            let _ = error.print();
            std::process::exit(status.into());
        }
    };
    if let Err(error) = logging::init("samsarad", args.log.as_deref()) {
        eprintln!("samsarad: {error}");
        std::process::exit(ExitCode::Usage.code().into());
    }
    std::process::exit(run::run(&args).into());
}
