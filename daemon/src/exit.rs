//! Exit statuses of samsarad.
//!
//! A run that reached the end of its guest exits with the guest's own status, 0 to 255. samsarad's own failures are 64 and
//! up, and this table is the only place that defines them: `--help`, the unit file's restart rules and the documentation
//! follow it. A guest that itself exits with 64 or more is told apart by the report (`--report`) and by the log.

use std::fmt;

/// What a service manager should do after such an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// The cause may be gone the next time.
    Retry,
    /// It would end the same way, or must not run again without a person's decision.
    Stay,
}

/// A failure of samsarad itself, by exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// Bad command line.
    Usage = 64,
    /// The guest was stopped for what it did.
    GuestFault = 65,
    /// The guest program, its input or a disk cannot be used.
    Input = 66,
    /// A network address cannot be used, or the other host speaks another protocol.
    Network = 69,
    /// A fault of samsarad.
    Internal = 70,
    /// KVM cannot be used, or the host lacks memory.
    Kvm = 71,
    /// Console output or the report cannot be written.
    Output = 73,
    /// A commit log file cannot be used.
    LogFile = 74,
    /// The other host is the one to run the VM.
    Refused = 75,
    /// A certificate or key is unusable, or the other host's is not accepted.
    Certificate = 77,
    /// Bad configuration.
    Config = 78,
    /// The other host has taken over.
    LostTerm = 80,
    /// The arbiter cannot be set up.
    Arbiter = 81,
    /// Stopped by a signal.
    Stopped = 82,
    /// The guest asked for a reset.
    GuestReset = 83,
    /// A replay came to another state than was recorded.
    Diverged = 84,
    /// A log ends before what is asked of it.
    LogEnds = 85,
}

impl ExitCode {
    /// All codes, ascending.
    pub const ALL: [Self; 17] = [
        Self::Usage,
        Self::GuestFault,
        Self::Input,
        Self::Network,
        Self::Internal,
        Self::Kvm,
        Self::Output,
        Self::LogFile,
        Self::Refused,
        Self::Certificate,
        Self::Config,
        Self::LostTerm,
        Self::Arbiter,
        Self::Stopped,
        Self::GuestReset,
        Self::Diverged,
        Self::LogEnds,
    ];

    /// The status that the process exits with.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// One line of meaning.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Usage => "the command line is wrong",
            Self::GuestFault => {
                "the VM was stopped: exception, bad device access, bad DMA address or kernel panic in the guest"
            }
            Self::Input => {
                "the guest program, input file or a disk image is missing, unreadable or not usable"
            }
            Self::Network => {
                "a port is in use, an address is not ours, or the other host speaks another protocol"
            }
            Self::Internal => "a fault of samsarad itself; please report it with the log",
            Self::Kvm => "/dev/kvm is missing or refused, or the host lacks memory for the VM",
            Self::Output => "console output or the report cannot be written",
            Self::LogFile => "a commit log file cannot be read or written, or is damaged",
            Self::Refused => {
                "the other host is primary of this VM or has the newer disks, or this one's are half up to date: start this one with --role backup"
            }
            Self::Certificate => {
                "a certificate or key is unusable, or the other host's has the wrong CA or name"
            }
            Self::Config => "the configuration is wrong, or the role lacks a key",
            Self::LostTerm => {
                "the other host has taken over: this one stopped, and released nothing more"
            }
            Self::Arbiter => "the arbiter cannot be set up; one that does not answer is waited for",
            Self::Stopped => "stopped by SIGTERM or SIGINT before the guest ended",
            Self::GuestReset => "the guest asked for a reset: the VM ends, and may be started anew",
            Self::Diverged => {
                "a replay came to another state than was recorded; the message names the commit"
            }
            Self::LogEnds => {
                "a log ends before its guest does, or before the commit that was asked for"
            }
        }
    }

    /// What a service manager should do.
    pub const fn restart(self) -> Restart {
        match self {
            Self::Network | Self::Internal | Self::Arbiter | Self::GuestReset => Restart::Retry,
            _ => Restart::Stay,
        }
    }

    /// The table for `--help`: one line a code.
    pub fn table() -> String {
        let line = |code: Self| format!("    {:<5}  {}\n", code.code(), code.about());
        let lines = Self::ALL.into_iter().map(line).collect::<Vec<_>>().concat();
        format!("Exit status:\n    0-255  the guest's own\n{lines}")
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.about())
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: &str = include_str!("../../systemd/samsarad@.service");

    #[test]
    fn codes_are_distinct_ascending_and_outside_of_shells_and_small_guest_statuses() {
        assert!(
            ExitCode::ALL
                .windows(2)
                .all(|pair| pair[0].code() < pair[1].code())
        );
        assert!(
            ExitCode::ALL
                .iter()
                .all(|code| (64..126).contains(&code.code()))
        );
    }

    #[test]
    fn the_table_has_every_code_on_a_line_of_its_own() {
        let table = ExitCode::table();
        for code in ExitCode::ALL {
            let line = table
                .lines()
                .find(|line| line.trim().starts_with(&code.code().to_string()));
            assert!(
                line.is_some_and(|line| line.ends_with(code.about())),
                "{code}"
            );
        }
    }

    #[test]
    fn the_unit_restarts_exactly_what_the_table_says() {
        let setting = |name: &str| {
            let line = UNIT
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect::<Vec<u8>>()
        };
        let retry = ExitCode::ALL
            .iter()
            .filter(|code| code.restart() == Restart::Retry);
        let retry: Vec<u8> = retry.map(|code| code.code()).collect();
        assert_eq!(setting("RestartForceExitStatus="), retry);
        assert_eq!(setting("SuccessExitStatus="), [ExitCode::Stopped.code()]);
    }

    #[test]
    fn systemd_accepts_the_unit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samsarad@vm.service");
        // The daemon need not be installed where this is tested.
        std::fs::write(&path, UNIT.replace("/usr/bin/samsarad ", "/bin/true ")).unwrap();
        let verified = std::process::Command::new("systemd-analyze")
            .arg("verify")
            .arg(&path)
            .output();
        match verified {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("skipped: there is no systemd-analyze here");
            }
            other => {
                let output = other.unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && said.is_empty(), "{said}");
            }
        }
    }
}
