//! How many instructions a guest takes: counted where there is a counter, else estimated.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use super::BenchError;
use super::hosts::Hosts;

/// Instructions that a guest retires, in the words of perf.
const EVENT: &str = "instructions:G";

/// Instructions of a guest, in all vCPUs, natively.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Instructions {
    pub(super) count: f64,
    pub(super) how: How,
}

/// How many instructions is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum How {
    /// By `perf stat`, in one more native run.
    Counted,
    /// One for each cycle of the time stamp counter, in the native run's time, for each vCPU that had a processor.
    Estimated,
}

impl How {
    pub(super) const fn about(self) -> &'static str {
        match self {
            Self::Counted => "counted by perf in one more native run",
            Self::Estimated => {
                "estimated, one for each cycle of the time stamp counter in the native run's time, for each vCPU that had a processor: there is no counter of a guest's instructions here"
            }
        }
    }
}

/// Where the numbers are from on this host.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    perf: Option<OsString>,
    /// Cycles a second; none where the counter has no steady rate.
    tsc_hz: Option<f64>,
    processors: f64,
}

impl Counter {
    /// Finds out what there is. `tsc_hz` is the rate of the host's time stamp counter.
    pub(super) fn new(perf: &str, tsc_hz: Option<f64>) -> Self {
        let processors = std::thread::available_parallelism();
        Self {
            perf: counts(perf).then(|| perf.into()),
            tsc_hz,
            processors: processors.map_or(1.0, |count| count.get() as f64),
        }
    }

    /// The instructions of a guest that takes `seconds` on so many vCPUs; none where nothing is known.
    pub(super) fn of(
        &self,
        hosts: &Hosts,
        run: &str,
        guest: &[OsString],
        seconds: f64,
        vcpus: u32,
    ) -> Result<Option<Instructions>, BenchError> {
        if let Some(perf) = &self.perf
            && let Some(count) = count(hosts, perf, run, guest)?
        {
            let how = How::Counted;
            return Ok(Some(Instructions { count, how }));
        }
        Ok(self.tsc_hz.map(|hz| Instructions {
            count: hz * seconds * f64::from(vcpus).min(self.processors),
            how: How::Estimated,
        }))
    }
}

fn count(
    hosts: &Hosts,
    perf: &OsString,
    run: &str,
    guest: &[OsString],
) -> Result<Option<f64>, BenchError> {
    let file = hosts.path("perf");
    let prefix = [
        perf.clone(),
        "stat".into(),
        "-x,".into(),
        "-e".into(),
        EVENT.into(),
        "-o".into(),
        file.clone().into(),
        "--".into(),
    ];
    hosts.native_under(&format!("{run}, native, below perf"), &prefix, guest)?;
    let text = std::fs::read_to_string(&file).map_err(BenchError::file(&file))?;
    Ok(counted(&text))
}

/// Whether perf can count a guest's instructions here.
fn counts(perf: &str) -> bool {
    let output = Command::new(perf)
        .args(["stat", "-x,", "-e", EVENT, "--"])
        .arg(Path::new("/bin/true"))
        .stdin(Stdio::null())
        .output();
    output.is_ok_and(|output| {
        output.status.success() && counted(&String::from_utf8_lossy(&output.stderr)).is_some()
    })
}

/// The count in what `perf stat -x,` says: the first field of the event's line, unless it says that it cannot count.
fn counted(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains(EVENT))?;
    line.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_perf_says() {
        let counted_line =
            "# started on Tue\n\n123456789,,instructions:G,1000,100.00,1.2,insn per cycle\n";
        assert_eq!(counted(counted_line), Some(123_456_789.0));
        assert_eq!(counted("0,,instructions:G,1000,100.00,,\n"), Some(0.0));
        for none in [
            "",
            "<not supported>,,instructions:G,0,100.00,,\n",
            "<not counted>,,instructions:G,0,0.00,,\n",
            "12,,cycles,1,1,,\n",
        ] {
            assert_eq!(counted(none), None, "{none:?}");
        }
    }

    /// A perf of a host that has a counter, and a samsarad that runs below it.
    #[test]
    fn where_there_is_a_counter_one_more_run_is_counted() {
        let hosts = Hosts::new("/bin/true".into(), Vec::new()).unwrap();
        let perf = hosts.path("fake-perf");
        let script = "\
#!/bin/sh
if [ \"$5\" = -o ]; then echo '7000,,instructions:G,1,100.00,,' >\"$6\"; else echo '0,,instructions:G,1,100.00,,' >&2; fi
";
        fs::write(&perf, script).unwrap();
        fs::set_permissions(&perf, fs::Permissions::from_mode(0o755)).unwrap();
        let counter = Counter::new(perf.to_str().unwrap(), None);
        assert!(counter.perf.is_some());
        // It runs no samsarad, so there is no report of one.
        let error = counter.of(&hosts, "x", &[], 1.0, 2).unwrap_err();
        assert!(error.to_string().contains("samsarad.report"), "{error}");
        let text = fs::read_to_string(hosts.path("perf")).unwrap();
        assert_eq!(counted(&text), Some(7000.0));
    }

    #[test]
    fn where_there_is_none_it_is_estimated_and_said() {
        let hosts = Hosts::new("/bin/true".into(), Vec::new()).unwrap();
        let counter = Counter::new("/nowhere/perf", Some(2e9));
        let found = counter.of(&hosts, "x", &[], 1.5, 1).unwrap().unwrap();
        assert_eq!(found.how, How::Estimated);
        assert!((found.count - 3e9).abs() < 1.0);
        // No more than there are processors.
        let many = counter.of(&hosts, "x", &[], 1.0, 100_000).unwrap().unwrap();
        assert!(many.count <= 2e9 * counter.processors + 1.0);
        let none = Counter::new("/nowhere/perf", None);
        assert_eq!(none.of(&hosts, "x", &[], 1.5, 1).unwrap(), None);
    }
}
