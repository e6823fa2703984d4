//! A run of samsarad that is expected to fail, and what it must look like.

use std::process::Command;
use std::time::Duration;

use samsara_tests::{Binaries, Host};
use samsarad::exit::ExitCode;

/// How long a run that fails may take; all of them take much less.
pub(crate) const BOUND: Duration = Duration::from_mins(1);

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) what: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// The programs.
pub(crate) fn binaries() -> &'static Binaries {
    Binaries::locate().expect("the programs")
}

/// Arguments that set these keys.
pub(crate) fn sets(settings: &[String]) -> Vec<String> {
    settings
        .iter()
        .flat_map(|setting| ["--set".to_owned(), setting.clone()])
        .collect()
}

/// Runs samsarad with these arguments to its end.
pub(crate) fn samsarad<S: AsRef<str>>(arguments: &[S]) -> Ran {
    let mut command = Command::new(&binaries().samsarad);
    command.args(arguments.iter().map(AsRef::as_ref));
    run(command)
}

/// Runs a command to its end, or to the bound.
pub(crate) fn run(mut command: Command) -> Ran {
    let what = format!("{command:?}");
    let ran = samsara_tests::Ran::run(&mut command, BOUND);
    let samsara_tests::Ran {
        code,
        stdout,
        stderr,
    } = ran.unwrap_or_else(|error| panic!("{}", error.line()));
    Ran {
        what,
        code,
        stdout,
        stderr,
    }
}

impl Ran {
    /// Of a host that has ended.
    pub(crate) fn of(host: &mut Host) -> Self {
        let code = host.wait_code(BOUND).expect("it ends by itself");
        let stdout = host.output().bytes();
        Self {
            what: host.name().to_owned(),
            code: Some(code.into()),
            stdout,
            stderr: host.log_text(),
        }
    }

    /// Failed with this status and exactly one line of error, which has all of `parts`.
    #[track_caller]
    pub(crate) fn failed(&self, code: ExitCode, parts: &[&str]) {
        let Self { what, stderr, .. } = self;
        assert_eq!(self.code, Some(code.code().into()), "{what}:\n{stderr}");
        assert!(!stderr.contains("panicked"), "{what}:\n{stderr}");
        let errors: Vec<&str> = stderr
            .lines()
            .filter(|line| line.contains("error: "))
            .collect();
        let [error] = errors.as_slice() else {
            panic!("{what}: not one line of error but:\n{stderr}");
        };
        assert_eq!(
            stderr.lines().last(),
            Some(*error),
            "{what}: the error is the last word"
        );
        for part in parts {
            assert!(
                error.contains(part),
                "{what}: {error:?} does not say {part:?}"
            );
        }
    }
}
