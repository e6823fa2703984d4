//! samsaractl: the operator's command. See `samsaractl --help`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use samsarad::ctl::Arguments;
use samsarad::exit;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing better can be done if the terminal is gone.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => exit::ExitCode::Usage.into(),
            };
        }
    };
    match arguments.run() {
        // A reader that went away (`samsaractl status | head -1`) has what it wanted.
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                eprintln!("samsaractl: cannot write to standard output: {error}");
                exit::ExitCode::Output.into()
            }
            _ => ExitCode::SUCCESS,
        },
        Err(error) => {
            eprintln!("samsaractl: {}", error.line());
            error.exit_code().into()
        }
    }
}
