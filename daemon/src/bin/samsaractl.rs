//! samsaractl: the operator's command. See `samsaractl --help`.

use std::io::{BufWriter, ErrorKind, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind as Misuse;
use samsarad::ctl::{Arguments, CtlError};
use samsarad::exit;

/// Logs are long: many lines a write.
const OUT_BYTES: usize = 64 << 10;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing better can be done if the terminal is gone.
            let _ = error.print();
            return match error.kind() {
                Misuse::DisplayHelp | Misuse::DisplayVersion => ExitCode::SUCCESS,
                _ => exit::ExitCode::Usage.into(),
            };
        }
    };
    let mut out = BufWriter::with_capacity(OUT_BYTES, std::io::stdout().lock());
    match arguments.run(&mut out) {
        Ok(status) => status.into(),
        // A reader that went away (`samsaractl status | head -1`) has what it wanted.
        Err(CtlError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // What came before the error; if that cannot be written either, the error says enough.
            let _ = out.flush();
            eprintln!("samsaractl: {}", error.line());
            error.exit_code().into()
        }
    }
}
