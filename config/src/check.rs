//! What keys owe each other, and what a role needs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::keys;
use crate::{ArbiterKind, Config, ConfigError, Counter, RecordingForm, RecordingMode};

/// What stands for either key in the list of what a role lacks.
const GUEST: &str = "vm.program or vm.kernel";

/// What a host does with the VM when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the VM and protects it with a backup.
    Primary,
    /// Holds an identical VM, to go live when the primary is lost.
    Backup,
    /// Runs the VM without a backup.
    Standalone,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Primary, Self::Backup, Self::Standalone];

    /// The word used on the command line, in metrics and in status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
            Self::Standalone => "standalone",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| "a role is primary, backup or standalone".to_owned())
    }
}

impl Config {
    /// Whether a host in this role has all it needs.
    ///
    /// # Errors
    ///
    /// All keys that are missing at once, or a setting that the role cannot work with.
    pub fn check(&self, role: Role) -> Result<(), ConfigError> {
        let replicated = role != Role::Standalone;
        let file_arbiter = self.failover.arbiter == Some(ArbiterKind::File);
        let needs = [
            (
                GUEST,
                role != Role::Backup && self.vm.program.is_none() && self.vm.kernel.is_none(),
            ),
            (
                "replication.listen",
                role == Role::Primary && self.replication.listen.is_none(),
            ),
            (
                "replication.peer",
                role == Role::Backup && self.replication.peer.is_none(),
            ),
            ("tls.ca", replicated && self.tls.ca.is_none()),
            ("tls.cert", replicated && self.tls.cert.is_none()),
            ("tls.key", replicated && self.tls.key.is_none()),
            (
                "failover.arbiter",
                replicated && self.failover.arbiter.is_none(),
            ),
            (
                "failover.arbiter_dir",
                replicated && file_arbiter && self.failover.arbiter_dir.is_none(),
            ),
        ];
        let missing = needs.iter().filter(|(_, missing)| *missing);
        let missing: Vec<_> = missing.map(|(name, _)| (*name, meaning(name))).collect();
        if !missing.is_empty() {
            return Err(ConfigError::Missing { role, missing });
        }
        if replicated && self.recording.mode == RecordingMode::Off {
            return Err(conflict(format!(
                "recording.mode is \"off\", but role {role} needs the recording: set it to \"on\" or start with --role standalone"
            )));
        }
        Ok(())
    }

    /// Settings that work, but probably not as meant; one line each, for the log.
    pub fn warnings(&self, role: Role) -> Vec<String> {
        let mut lines = Vec::new();
        if role == Role::Backup && self.replication.listen.is_none() {
            lines.push(
                "replication.listen is not set: after a failover this host cannot take a new backup, \
                 so the VM stays unprotected"
                    .to_owned(),
            );
        }
        if role != Role::Standalone && self.replication.peer_name.is_none() {
            lines.push(match &self.replication.peer {
                Some(peer) => format!(
                    "replication.peer_name is not set: the other host's certificate is taken to be for {}",
                    peer.host()
                ),
                None => "replication.peer_name is not set: a backup's certificate is taken to be \
                         for the address that it connects from"
                    .to_owned(),
            });
        }
        lines
    }

    /// Checks values that depend on each other, whatever the role.
    pub(crate) fn agree(&self) -> Result<(), ConfigError> {
        let (min, max) = (self.recording.chunk_min_us, self.recording.chunk_max_us);
        if min > max {
            return Err(conflict(format!(
                "recording.chunk_min_us is {min}, more than recording.chunk_max_us, {max}: lower the first or raise the second"
            )));
        }
        let recording = &self.recording;
        if recording.form == RecordingForm::Order {
            if recording.counter == Counter::Auto {
                return Err(conflict(
                    "recording.form is \"order\", but this release knows no counter of a processor by which chunks that were cut could be run again: \
                     set recording.counter to \"exits\" if only those that end by exits need to be, or recording.form to \"auto\""
                        .to_owned(),
                ));
            }
            if self.vm.kernel.is_some() {
                return Err(conflict(
                    "recording.form is \"order\", but chunks of a Linux guest (vm.kernel) cannot be run again: set it to \"auto\""
                        .to_owned(),
                ));
            }
        }
        if recording.counter == Counter::SingleStep && self.vm.kernel.is_some() {
            return Err(conflict(
                "recording.counter is \"single-step\", which counts a vm.program only: set it to \"auto\""
                    .to_owned(),
            ));
        }
        let (beat, dead) = (self.replication.heartbeat_ms, self.failover.dead_after_ms);
        // One late heartbeat must not look like a dead host.
        if dead < 2 * beat {
            return Err(conflict(format!(
                "failover.dead_after_ms is {dead}, but one heartbeat takes up to {beat} ms (replication.heartbeat_ms): make it {} or more",
                2 * beat
            )));
        }
        self.vm.agree()
    }
}

fn meaning(name: &str) -> &'static str {
    if name == GUEST {
        return "the guest: a bare program or a Linux kernel";
    }
    keys::find(name).map_or("", |key| key.meaning)
}

pub(crate) fn conflict(what: String) -> ConfigError {
    ConfigError::Conflict { what }
}
