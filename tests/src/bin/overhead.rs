//! `cargo overhead`: `samsaractl bench` with what is in this clone, built first; with `--linux` also of the Linux guest of
//! the tests, which is built if need be. All other arguments are those of `samsaractl bench`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::process::{Command, ExitCode};

use samsara_tests::linux::{LinuxGuest, LinuxMachine};
use samsara_tests::{Binaries, HarnessError, kvm_or_skip};
use tempfile::TempDir;

/// A parallel compute job and a file job, in memory: both halves take some seconds on two vCPUs.
const LINUX_JOB: &str = "job=bench rounds=12 steps=100000 files=16 bytes=65536 disk=none";
const LINUX_VCPUS: u32 = 2;
const EXIT_NO_KVM: u8 = 71;
const EXIT_FAILED: u8 = 70;

fn main() -> ExitCode {
    let (linux, arguments): (Vec<_>, Vec<_>) = std::env::args_os()
        .skip(1)
        .partition(|word| word == "--linux");
    let Some(_machine) = kvm_or_skip("overhead") else {
        return ExitCode::from(EXIT_NO_KVM);
    };
    match run(!linux.is_empty(), arguments) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("overhead: {}", error.line());
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn run(with_linux: bool, mut arguments: Vec<OsString>) -> Result<u8, HarnessError> {
    let binaries = Binaries::locate()?;
    let directory = TempDir::with_prefix("samsara-overhead-");
    let directory = directory.map_err(HarnessError::file(std::env::temp_dir()))?;
    if with_linux {
        let guest = LinuxGuest::locate().map_err(|why| HarnessError::Answer {
            host: "the Linux guest".to_owned(),
            what: why,
        })?;
        let machine = LinuxMachine::new(guest, LINUX_JOB).vcpus(LINUX_VCPUS);
        let path = directory.path().join("linux.toml");
        std::fs::write(&path, table(&machine.settings())).map_err(HarnessError::file(&path))?;
        arguments.push(format!("--machine=linux={}", path.display()).into());
    }
    let mut bench = Command::new(&binaries.samsaractl);
    bench.arg("bench").arg("--samsarad").arg(&binaries.samsarad);
    let status = bench.args(arguments).status();
    let status = status.map_err(|source| HarnessError::Process {
        what: format!("cannot run {}", binaries.samsaractl.display()),
        source,
    })?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(EXIT_FAILED))
}

/// Settings of a guest, `vm.KEY=VALUE` each, as a configuration file.
fn table(settings: &[String]) -> String {
    let mut text = "[vm]\n".to_owned();
    for setting in settings {
        let Some((key, value)) = setting
            .strip_prefix("vm.")
            .and_then(|rest| rest.split_once('='))
        else {
            continue;
        };
        let is_whole = value.starts_with('"') || value.parse::<u64>().is_ok();
        let value = if is_whole {
            value.to_owned()
        } else {
            format!("{value:?}")
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key} = {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use samsara_config::Config;

    use super::*;

    #[test]
    fn settings_become_a_file_that_says_the_same() {
        let settings = [
            "vm.kernel=/a b/vmlinux",
            "vm.cmdline=\"console=ttyS0 job=bench\"",
            "vm.vcpus=2",
            "vm.memory=64MiB",
        ];
        let settings = settings.map(str::to_owned);
        let directory = TempDir::new().expect("directory");
        let path = directory.path().join("vm.toml");
        std::fs::write(&path, table(&settings)).expect("written");
        let file = Config::load(Some(&path), &[]).unwrap_or_else(|error| panic!("{error}"));
        let sets = Config::load(None, &settings).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(file, sets);
    }
}
