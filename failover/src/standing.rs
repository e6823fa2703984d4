//! Terms, host names, and the one record that an arbiter keeps.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The fencing number: rises with each change of who may release outputs, and never falls.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Term(u64);

impl Term {
    /// The term before the first one: nobody holds it.
    pub const NONE: Self = Self(0);

    /// The term of this number.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The term after this one, or none at the end of the number space, which only a forged record reaches.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The longest host name, in bytes: that of a DNS name, which is what certificates carry.
pub const MAX_HOST_NAME_BYTES: usize = 253;

/// The name of a host, as its certificate has it: a DNS name or an IP address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// A host name that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no host name: give the DNS name or IP address of its certificate (1 to \
     {MAX_HOST_NAME_BYTES} letters, digits, '.', '-', '_' or ':')"
)]
pub struct BadHostName(String);

impl HostName {
    /// Takes a name that could stand in a certificate, and in a file name.
    pub fn new(name: impl Into<String>) -> Result<Self, BadHostName> {
        let name = name.into();
        let fits = !name.is_empty()
            && name.len() <= MAX_HOST_NAME_BYTES
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte));
        if fits {
            Ok(Self(name))
        } else {
            Err(BadHostName(
                name.chars().take(MAX_HOST_NAME_BYTES).collect(),
            ))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HostName {
    type Error = BadHostName;

    fn try_from(name: String) -> Result<Self, BadHostName> {
        Self::new(name)
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far the guest has come in a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It has not executed its first instruction: nobody has seen anything of it.
    Starting,
    /// It runs, or ran: only a machine that holds its state may carry it on.
    Running,
    /// It has ended, and everything it had to say has left.
    Ended,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Ended => "ended",
        })
    }
}

/// What the arbiter keeps: who may run the guest, in which term, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Standing {
    /// The fencing number.
    pub term: Term,
    /// The host that holds the term.
    pub holder: HostName,
    /// How far the guest has come.
    pub phase: Phase,
}

impl Standing {
    /// A standing of these parts.
    pub fn new(term: Term, holder: HostName, phase: Phase) -> Self {
        Self {
            term,
            holder,
            phase,
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "term {} held by {}, {}",
            self.term, self.holder, self.phase
        )
    }
}

/// The place of a record in an arbiter's history; what a compare-and-swap compares.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// A value and the revision under which it was read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// Its place in the arbiter's history.
    pub revision: Revision,
    /// The value.
    pub value: T,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_checked_at_the_edge() {
        for good in ["alpha", "host-1.example.org", "10.0.0.1", "fd00::1"] {
            assert!(HostName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "../x", "a b", "a/b", "a\n", "ä", &"x".repeat(254)] {
            assert!(HostName::new(bad).is_err(), "{bad:?}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<HostName>(&json).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_last_term_has_no_next() {
        assert_eq!(Term::new(u64::MAX).next(), None);
        assert_eq!(Term::NONE.next(), Some(Term::new(1)));
    }
}
