//! The Linux test guest: where it is, how a machine is set to boot it, and what it answers when run on the host.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::HarnessError;

/// Where the first virtio device is; the others follow, a page each.
const DEVICES_BASE: u64 = 0xd000_0000;
const DEVICE_BYTES: u64 = 0x1000;
/// Interrupt lines of the virtio devices, in their order.
const DEVICE_LINES: [u8; 8] = [5, 10, 11, 12, 6, 7, 14, 15];
/// The card's address, the same whichever host runs the guest.
const MAC: &str = "52:54:00:5a:11:01";

/// The files of a built guest.
#[derive(Clone, Debug)]
pub struct LinuxGuest {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
    /// The guest's program, for the host.
    pub work: PathBuf,
}

impl LinuxGuest {
    /// Finds the guest, or builds it, which takes minutes: once in a process.
    ///
    /// # Errors
    ///
    /// It cannot be built here, and why.
    pub fn locate() -> Result<&'static Self, String> {
        static FOUND: OnceLock<Result<LinuxGuest, String>> = OnceLock::new();
        FOUND
            .get_or_init(Self::build)
            .as_ref()
            .map_err(Clone::clone)
    }

    /// The same, or none if it cannot be built: the test is skipped then, which is said.
    pub fn or_skip(test: &str) -> Option<&'static Self> {
        static SKIPPED: AtomicU32 = AtomicU32::new(0);
        match Self::locate() {
            Ok(guest) => Some(guest),
            Err(why) => {
                let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
                println!("skipped: {test}: {why} ({count} skipped so far)");
                None
            }
        }
    }

    fn build() -> Result<Self, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/linux/build");
        let output = Command::new(&script)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cannot run {}: {error}", script.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or("it does not say why");
            return Err(format!("no Linux guest: {last}"));
        }
        Self::printed(&String::from_utf8_lossy(&output.stdout))
    }

    /// From what the script prints: the kernel's path and the initial file system's.
    fn printed(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().map(PathBuf::from);
        let (Some(kernel), Some(initrd), None) = (lines.next(), lines.next(), lines.next()) else {
            return Err(format!("guests/linux/build printed {text:?}"));
        };
        let work = kernel.with_file_name("work");
        Ok(Self {
            kernel,
            initrd,
            work,
        })
    }

    /// What the guest must say in its line `answer:`: what its program says on this host.
    ///
    /// # Errors
    ///
    /// The program cannot be run, or says something else.
    pub fn answer_on_host(&self, words: &str) -> Result<String, HarnessError> {
        let output = Command::new(&self.work)
            .args(words.split(' '))
            .output()
            .map_err(HarnessError::file(&self.work))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        answer(&said).ok_or_else(|| HarnessError::Answer {
            host: "the guest's program on this host".to_owned(),
            what: said,
        })
    }
}

/// The number in the line `answer:` of a guest's console.
pub fn answer(console: &str) -> Option<String> {
    let mut lines = console.lines().map(str::trim_end);
    lines.find_map(|line| line.strip_prefix("answer: ").map(str::to_owned))
}

/// A machine that boots the guest: all that is the same on every host.
#[derive(Clone, Debug)]
pub struct LinuxMachine {
    guest: &'static LinuxGuest,
    job: String,
    vcpus: u32,
    devices: usize,
}

impl LinuxMachine {
    /// With one vCPU and no device but a source of random numbers; `job` is the end of the command line.
    pub fn new(guest: &'static LinuxGuest, job: &str) -> Self {
        Self {
            guest,
            job: job.to_owned(),
            vcpus: 1,
            devices: 1,
        }
    }

    /// With so many vCPUs.
    #[must_use]
    pub const fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = count;
        self
    }

    /// With one device more: a disk or a card, whose setting is each host's own.
    #[must_use]
    pub const fn device(mut self) -> Self {
        self.devices += 1;
        self
    }

    /// Its settings.
    ///
    /// # Panics
    ///
    /// If there are more devices than interrupt lines for them.
    pub fn settings(&self) -> Vec<String> {
        vec![
            format!("vm.kernel={}", self.guest.kernel.display()),
            format!("vm.initrd={}", self.guest.initrd.display()),
            format!("vm.cmdline=\"{}\"", self.command_line()),
            format!("vm.vcpus={}", self.vcpus),
            "vm.memory=64MiB".to_owned(),
        ]
    }

    fn command_line(&self) -> String {
        const ALWAYS: &str = "console=ttyS0 quiet panic=-1 reboot=k lpj=12220000 tsc=reliable no_timer_check rodata=off \
             retain_initrd cpu_init_udelay=0 noreplace-smp";
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        // Without it, the kernel measures: slower, and no better.
        let rate = tsc_khz(&cpus).map(|khz| format!("tsc_early_khz={khz}"));
        assert!(self.devices <= DEVICE_LINES.len(), "too many devices");
        let devices = (0..).zip(&DEVICE_LINES[..self.devices]);
        let devices = devices.map(|(index, line)| {
            let base = DEVICES_BASE + index * DEVICE_BYTES;
            format!("virtio_mmio.device=4K@{base:#x}:{line}")
        });
        let words: Vec<_> = std::iter::once(ALWAYS.to_owned())
            .chain(rate)
            .chain(devices)
            .chain([self.job.clone()])
            .collect();
        words.join(" ")
    }
}

/// The setting of a host's disk.
pub fn disk_setting(image: &Path) -> String {
    format!("vm.disks=[{{path=\"{}\"}}]", image.display())
}

/// The setting of a host's tap.
pub fn net_setting(tap: &str) -> String {
    format!("vm.net=[{{tap=\"{tap}\",mac=\"{MAC}\"}}]")
}

/// How fast the first processor of `/proc/cpuinfo` runs, which is about how fast its TSC counts.
fn tsc_khz(cpus: &str) -> Option<u64> {
    let line = cpus.lines().find(|line| line.starts_with("cpu MHz"))?;
    let (mhz, fraction) = line.split(':').nth(1)?.trim().split_once('.')?;
    let khz = fraction.get(..3)?;
    Some(mhz.parse::<u64>().ok()? * 1000 + khz.parse::<u64>().ok()?)
}

/// Makes an empty ext2 as the guest takes it.
///
/// # Errors
///
/// There is no `mke2fs`, or it fails.
pub fn make_disk(image: &Path, mib: u32) -> Result<(), HarnessError> {
    let size = format!("{mib}M");
    let options = ["-q", "-F", "-t", "ext2", "-b", "4096"];
    run(Command::new("mke2fs").args(options).arg(image).arg(size))
}

/// Fails unless a file system is without any fault.
pub fn check_disk(image: &Path) -> Result<(), HarnessError> {
    run(Command::new("e2fsck").arg("-fn").arg(image))
}

fn run(command: &mut Command) -> Result<(), HarnessError> {
    let what = format!("{command:?}");
    let failed = |source| HarnessError::Process { what, source };
    // Debian has both where only root's path leads.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            Err(failed(std::io::Error::other(said)))
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_prints() {
        let guest = LinuxGuest::printed("/a/vmlinux\n/a/initrd.cpio\n").unwrap();
        assert_eq!(guest.work, Path::new("/a/work"));
        assert!(LinuxGuest::printed("/a/vmlinux\n").is_err());
    }

    #[test]
    fn answers_and_clock_rates_are_read() {
        let console = "samsara: user space is up\r\nanswer: 32214b2c477b4b5c\r\n";
        assert_eq!(answer(console).as_deref(), Some("32214b2c477b4b5c"));
        assert_eq!(answer("the answer: 1\n"), None);
        assert_eq!(
            tsc_khz("model name\t: x\ncpu MHz\t\t: 2599.998\n"),
            Some(2_599_998)
        );
        assert_eq!(tsc_khz("BogoMIPS : 50.00\n"), None);
    }

    #[test]
    fn a_disk_is_made_and_its_faults_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        if let Err(error) = make_disk(&image, 4) {
            println!("skipped: {}", error.line());
            return;
        }
        check_disk(&image).unwrap();
        let mut bytes = std::fs::read(&image).unwrap();
        // The block of group descriptors.
        bytes[4096..4096 + 32].fill(0x55);
        std::fs::write(&image, bytes).unwrap();
        assert!(check_disk(&image).is_err());
    }
}
