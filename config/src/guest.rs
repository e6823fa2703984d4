//! What the keys of a guest owe each other: a bare program and a Linux kernel take different ones.

use std::path::Path;

use crate::check::conflict;
use crate::{ConfigError, Console, ConsoleDevice, VIRTIO_DEVICES_MAX, VmConfig};

impl VmConfig {
    /// Checks values that depend on each other.
    pub(crate) fn agree(&self) -> Result<(), ConfigError> {
        self.agree_on_kind()?;
        self.agree_on_devices()?;
        self.agree_on_console()
    }

    fn agree_on_kind(&self) -> Result<(), ConfigError> {
        let of_program = [
            ("vm.program", self.program.is_some()),
            ("vm.params", !self.params.is_empty()),
            ("vm.input", self.input.is_some()),
        ];
        let of_kernel = [
            ("vm.kernel", self.kernel.is_some()),
            ("vm.initrd", self.initrd.is_some()),
            ("vm.cmdline", !self.cmdline.is_empty()),
            ("vm.disks", !self.disks.is_empty()),
            ("vm.net", !self.net.is_empty()),
            (
                "vm.console_device",
                self.console_device != ConsoleDevice::Serial,
            ),
        ];
        let first_set = |keys: &[(&'static str, bool)]| {
            let set = keys.iter().find(|(_, is_set)| *is_set);
            set.map(|(name, _)| *name)
        };
        if let (Some(program), Some(kernel)) = (first_set(&of_program), first_set(&of_kernel)) {
            return Err(conflict(format!(
                "{program} and {kernel} are both set, but one is for a bare program and the other for a Linux kernel: remove one of them"
            )));
        }
        Ok(())
    }

    fn agree_on_devices(&self) -> Result<(), ConfigError> {
        let paths: Vec<String> = self
            .disks
            .iter()
            .map(|disk| disk.path.display().to_string())
            .collect();
        let taps: Vec<String> = self.net.iter().map(|net| net.tap.clone()).collect();
        let macs: Vec<String> = self.net.iter().map(|net| net.mac.to_string()).collect();
        for (key, what, values) in [
            ("vm.disks", "path", paths),
            ("vm.net", "tap", taps),
            ("vm.net", "mac", macs),
        ] {
            if let Some(twice) = repeated(&values) {
                return Err(conflict(format!(
                    "{key} has the {what} {twice} twice: give each entry its own"
                )));
            }
        }
        let console = usize::from(self.console_device == ConsoleDevice::Virtio);
        let count = self.disks.len() + self.net.len() + console + usize::from(self.entropy);
        if count > VIRTIO_DEVICES_MAX {
            return Err(conflict(format!(
                "vm.disks, vm.net, vm.console_device and vm.entropy make {count} virtio devices, but the machine has room for {VIRTIO_DEVICES_MAX}: remove one"
            )));
        }
        Ok(())
    }

    /// What the guest prints must not be written over what it is made from.
    fn agree_on_console(&self) -> Result<(), ConfigError> {
        let Console::File(console) = &self.console else {
            return Ok(());
        };
        let files = [
            ("vm.program", "the program", self.program.as_deref()),
            ("vm.kernel", "the kernel", self.kernel.as_deref()),
            ("vm.initrd", "the initrd", self.initrd.as_deref()),
            ("vm.input", "the input", self.input.as_deref()),
        ];
        let files = files
            .into_iter()
            .filter_map(|(key, what, path)| Some((key, what, path?)));
        let disks = self.disks.iter();
        let disks = disks.map(|disk| ("vm.disks", "the disk", &*disk.path));
        let mut all = files.chain(disks);
        let console: &Path = console;
        all.find(|(_, _, path)| *path == console)
            .map_or(Ok(()), |(key, what, path)| {
                Err(conflict(format!(
                    "vm.console and {key} are both {}: console output would destroy {what}",
                    path.display()
                )))
            })
    }
}

/// The first value that an earlier one equals.
fn repeated(values: &[String]) -> Option<&String> {
    let mut pairs = values.iter().enumerate();
    pairs
        .find(|(place, value)| values[..*place].contains(value))
        .map(|(_, value)| value)
}
