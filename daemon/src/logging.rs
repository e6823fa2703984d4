//! Messages: to the journal when started by systemd, to stderr as `samsarad: level message` otherwise. Never to stdout,
//! which belongs to the guest.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Level when neither `--log` nor `RUST_LOG` says.
const DEFAULT_FILTER: &str = "info";

/// Messages cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A filter that makes no sense.
    #[error(
        "{origin}: bad log filter {filter:?}: write a level (error, warn, info, debug, trace) or target=level,..."
    )]
    Filter {
        /// `--log` or `RUST_LOG`.
        origin: &'static str,
        /// What was given.
        filter: String,
    },
    /// A second set-up in one process.
    #[error("logging is already set up")]
    Twice,
}

/// Where messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// The journal, with fields.
    Journal,
    /// Standard error, one line each.
    Stderr,
}

/// Sets up messages for the process: filtered by `filter` (`--log`), else by `RUST_LOG`, else at level info.
/// `program` begins every line.
pub fn init(program: &'static str, filter: Option<&str>) -> Result<Sink, LogError> {
    let filter = choose_filter(filter, std::env::var("RUST_LOG").ok())?;
    let base = tracing_subscriber::registry().with(filter);
    if stderr_is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal.with_syslog_identifier(program.to_owned());
        base.with(journal).try_init().map_err(|_| LogError::Twice)?;
        return Ok(Sink::Journal);
    }
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .event_format(Line { program });
    base.with(lines).try_init().map_err(|_| LogError::Twice)?;
    Ok(Sink::Stderr)
}

fn choose_filter(option: Option<&str>, variable: Option<String>) -> Result<EnvFilter, LogError> {
    let variable = variable.filter(|text| !text.trim().is_empty());
    let (origin, text) = match (option, variable) {
        (Some(text), _) => ("--log", text.to_owned()),
        (None, Some(text)) => ("RUST_LOG", text),
        (None, None) => ("--log", DEFAULT_FILTER.to_owned()),
    };
    // A lone word would be taken as the name of a target: a mistyped level must not silence everything.
    let lone_word = !text.contains(['=', ',', ':']);
    let parsed = EnvFilter::try_new(&text).ok();
    let known = !lone_word || text.parse::<tracing::level_filters::LevelFilter>().is_ok();
    parsed.filter(|_| known).ok_or(LogError::Filter {
        origin,
        filter: text,
    })
}

/// Whether standard error is the journal's stream, as systemd says in `JOURNAL_STREAM` (device and inode).
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = std::io::stderr();
    let Ok(descriptor) = stderr.as_fd().try_clone_to_owned() else {
        return false;
    };
    let metadata = File::from(descriptor).metadata();
    metadata.is_ok_and(|found| stream == format!("{}:{}", found.dev(), found.ino()))
}

/// `samsarad: warning message field=value`
struct Line {
    program: &'static str,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        write!(writer, "{}: {level}: ", self.program)?;
        context
            .field_format()
            .format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_says_program_level_and_message() {
        let buffer = Buffer::default();
        let sink = buffer.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(move || sink.clone())
            .with_ansi(false)
            .event_format(Line {
                program: "samsarad",
            });
        let filter = choose_filter(Some("info"), None).unwrap();
        tracing::subscriber::with_default(
            tracing_subscriber::registry().with(filter).with(lines),
            || {
                tracing::warn!(term = 3, "backup beta lost");
                tracing::debug!("unheard");
            },
        );
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "samsarad: warning: backup beta lost term=3\n");
    }

    #[test]
    fn the_option_wins_and_mistakes_name_their_origin() {
        let shown = |option, variable: Option<&str>| {
            let chosen = choose_filter(option, variable.map(str::to_owned));
            chosen
                .map(|filter| filter.to_string())
                .map_err(|error| error.to_string())
        };
        assert_eq!(shown(None, None).unwrap(), "info");
        assert_eq!(shown(None, Some("debug")).unwrap(), "debug");
        assert_eq!(shown(Some("warn"), Some("debug")).unwrap(), "warn");
        assert_eq!(shown(None, Some(" ")).unwrap(), "info");
        assert!(
            shown(Some("samsara_engine=trace,info"), None)
                .unwrap()
                .contains("samsara_engine=trace")
        );
        assert!(
            shown(Some("verbose"), None)
                .unwrap_err()
                .starts_with("--log: bad log filter \"verbose\"")
        );
        assert!(
            shown(None, Some("a=b=c"))
                .unwrap_err()
                .starts_with("RUST_LOG: bad log filter")
        );
    }

    const CHILD: &str = "SAMSARA_TEST_LOGGING_CHILD";

    /// Does nothing unless started by the test below: standard error and the environment belong to a process.
    #[test]
    fn child() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        if stderr_is_journal() {
            eprintln!("journal");
        }
        init("samsarad", None).unwrap();
        tracing::error!("heard");
        tracing::info!("unheard");
        assert!(matches!(init("samsarad", None), Err(LogError::Twice)));
    }

    #[test]
    fn messages_go_to_stderr_and_the_journal_is_known_by_its_stream() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let said = |journal_stream: Option<String>| {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", "logging::tests::child", "--nocapture"])
                .env(CHILD, "1");
            command.env("RUST_LOG", "warn").env_remove("JOURNAL_STREAM");
            command.envs(journal_stream.map(|stream| ("JOURNAL_STREAM", stream)));
            file.as_file().set_len(0).unwrap();
            let output = command.stderr(file.reopen().unwrap()).output().unwrap();
            assert!(output.status.success());
            assert!(
                !String::from_utf8_lossy(&output.stdout).contains("heard"),
                "on stdout"
            );
            std::fs::read_to_string(file.path()).unwrap()
        };
        let metadata = file.as_file().metadata().unwrap();
        assert_eq!(said(None), "samsarad: error: heard\n");
        assert_eq!(
            said(Some(format!("{}:1", metadata.dev()))),
            "samsarad: error: heard\n"
        );
        let ours = said(Some(format!("{}:{}", metadata.dev(), metadata.ino())));
        assert!(ours.starts_with("journal\n"), "{ours}");
    }
}
