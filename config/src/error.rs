//! What can be wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

use crate::Role;

/// Longest stretch of somebody's input that a message repeats.
const QUOTED_CHARS_MAX: usize = 60;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A line of the file, from 1.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// A `--set` item.
    Set(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Set(item) => write!(f, "--set {}", shortened(item)),
        }
    }
}

/// Why there is no configuration. Every text is one line that says where, what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is far larger than a configuration.
    #[error("{} is larger than {max} bytes: not a configuration file", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        max: u64,
    },
    /// The file is not TOML.
    #[error("{}:{line}:{column}: not valid TOML: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// A `--set` item without `=`.
    #[error("--set {}: write it as key=value, for example vm.vcpus=2", shortened(.item))]
    SetForm {
        /// The item.
        item: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key {}{}", shortened(.key), suggested(*.nearest))]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// A known one that resembles it.
        nearest: Option<&'static str>,
    },
    /// A section where a key is needed, or the other way round.
    #[error("{origin}: {section} is a section: name a key in it, such as {example}")]
    Section {
        /// Where.
        origin: Origin,
        /// The section.
        section: String,
        /// A key of that section.
        example: &'static str,
    },
    /// A value that the key does not take.
    #[error("{origin}: {key} takes {accepts}, not {}", shortened(.value))]
    Value {
        /// Where.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// The value as written.
        value: String,
        /// What would do.
        accepts: &'static str,
    },
    /// Values that do not agree with each other.
    #[error("{what}")]
    Conflict {
        /// Which, and what to change.
        what: String,
    },
    /// Keys that a role needs.
    #[error("role {role} needs {}: set {} in the configuration file or with --set key=value",
        listed(.missing), if .missing.len() == 1 { "it" } else { "them" })]
    Missing {
        /// The role.
        role: Role,
        /// The keys, each with its meaning.
        missing: Vec<(&'static str, &'static str)>,
    },
}

fn suggested(nearest: Option<&str>) -> String {
    nearest.map_or_else(
        || "; the keys are listed in samsarad.toml.example".to_owned(),
        |name| format!("; did you mean {name}?"),
    )
}

fn listed(missing: &[(&str, &str)]) -> String {
    let each = missing
        .iter()
        .map(|(key, meaning)| format!("{key} ({meaning})"));
    each.collect::<Vec<_>>().join(", ")
}

/// One line, no control characters, bounded.
pub(crate) fn shortened(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(QUOTED_CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    line = line.replace("\\\"", "\"").replace("\\'", "'");
    if text.chars().nth(QUOTED_CHARS_MAX).is_some() {
        line.push_str("...");
    }
    line
}
