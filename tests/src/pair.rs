//! A guest, and the two hosts that run it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use samsara_config::Role;

use crate::{HarnessError, Host, Seat, Site};

/// How long a pair may take to be protected: much longer than it does on a busy machine.
const PROTECTED_BOUND: Duration = Duration::from_secs(30);

/// What the guest `outputs` says: so many numbered lines.
pub fn numbered_lines(count: u32) -> Vec<u8> {
    let line = |number| format!("line {number:06}\n").into_bytes();
    (0..count).flat_map(line).collect()
}

/// What runs in the VM.
#[derive(Clone, Debug)]
pub struct Guest {
    program: PathBuf,
    params: String,
    vcpus: u32,
    memory: String,
    input: Option<PathBuf>,
}

impl Guest {
    /// A program of the catalogue, with two vCPUs and the memory it needs by default; its ELF file is written to the site.
    pub fn new(site: &Site, name: &str, params: &str) -> Result<Self, HarnessError> {
        let program = samsara_guests::program(name);
        let program = program.ok_or_else(|| HarnessError::NoProgram(name.to_owned()))?;
        Ok(Self {
            program: site.write(&format!("{name}.elf"), program.image)?,
            params: params.to_owned(),
            vcpus: 2,
            memory: program.default_memory.to_owned(),
            input: None,
        })
    }

    /// With so many vCPUs.
    #[must_use]
    pub const fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = count;
        self
    }

    /// With so much memory, as `vm.memory` takes it.
    #[must_use]
    pub fn memory(mut self, size: &str) -> Self {
        size.clone_into(&mut self.memory);
        self
    }

    /// With an input file.
    #[must_use]
    pub fn input(mut self, path: &Path) -> Self {
        self.input = Some(path.to_owned());
        self
    }

    /// Its settings.
    pub fn settings(&self) -> Vec<String> {
        let mut settings = vec![
            format!("vm.program={}", self.program.display()),
            format!("vm.params={}", self.params),
            format!("vm.vcpus={}", self.vcpus),
            format!("vm.memory={}", self.memory),
        ];
        settings.extend(
            self.input
                .iter()
                .map(|path| format!("vm.input={}", path.display())),
        );
        settings
    }
}

/// Two hosts of one VM, and how they are set.
#[derive(Debug)]
pub struct Pair {
    /// Starts as primary: alpha.
    pub primary: Host,
    /// Starts as backup: beta.
    pub backup: Host,
    /// How both are set, but for what makes each the one it is.
    pub settings: Vec<String>,
}

impl Pair {
    /// Starts alpha as primary and beta as backup, with an arbiter in the site's directory unless `extra` says otherwise.
    pub fn start(site: &Site, guest: &Guest, extra: &[&str]) -> Result<Self, HarnessError> {
        Self::start_at(site, &site.seats()?, guest.settings(), extra)
    }

    /// The same with seats that were made ready, and any guest's settings.
    pub fn start_at(
        site: &Site,
        (alpha, beta): &(Seat, Seat),
        mut settings: Vec<String>,
        extra: &[&str],
    ) -> Result<Self, HarnessError> {
        settings.push("failover.arbiter=file".to_owned());
        settings.push(format!("failover.arbiter_dir={}", site.arbiter().display()));
        settings.extend(extra.iter().map(ToString::to_string));
        let primary = start(site, alpha, beta, Role::Primary, &settings)?;
        // A backup learns from its primary how many vCPUs there are.
        let is_heard = |setting: &&String| !setting.starts_with("vm.vcpus=");
        let heard: Vec<_> = settings.iter().filter(is_heard).cloned().collect();
        let backup = start(site, beta, alpha, Role::Backup, &heard)?;
        Ok(Self {
            primary,
            backup,
            settings,
        })
    }

    /// Waits until the loss of either host would be survived.
    pub fn wait_protected(&mut self) -> Result<(), HarnessError> {
        self.primary
            .wait_status("protection", PROTECTED_BOUND, |status| status.protected)?;
        Ok(())
    }

    /// Starts a host that was killed again, as backup of the other.
    pub fn restart_as_backup(
        &self,
        site: &Site,
        seat: &Seat,
        peer: &Seat,
    ) -> Result<Host, HarnessError> {
        start(site, seat, peer, Role::Backup, &self.settings)
    }

    /// Starts a host that was killed again, as a service manager would.
    pub fn restart_as_primary(
        &self,
        site: &Site,
        seat: &Seat,
        peer: &Seat,
    ) -> Result<Host, HarnessError> {
        start(site, seat, peer, Role::Primary, &self.settings)
    }

    /// Kills the primary; gives the moment.
    pub fn kill_primary(&mut self) -> Result<Instant, HarnessError> {
        self.primary.kill()
    }
}

fn start(
    site: &Site,
    seat: &Seat,
    peer: &Seat,
    role: Role,
    common: &[String],
) -> Result<Host, HarnessError> {
    let mut settings = common.to_vec();
    settings.extend(seat.settings(peer));
    Host::spawn(site.binaries(), seat, role.as_str(), &settings)
}
