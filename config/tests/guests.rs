//! The keys of Linux guests, and what they and those of bare programs owe each other.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use samsara_config::{Config, ConsoleDevice, CpuModel, Isolation, Role};

fn sets(items: &[&str]) -> Result<Config, String> {
    let items: Vec<String> = items.iter().map(|item| (*item).to_owned()).collect();
    Config::load(None, &items).map_err(|error| error.to_string())
}

fn refused(items: &[&str], parts: &[&str]) {
    let error = sets(items).unwrap_err();
    for part in parts {
        assert!(error.contains(part), "{items:?}: {error}");
    }
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_linux_guest_can_be_set_on_the_command_line() {
    let config = sets(&[
        "vm.kernel=/boot/vmlinuz",
        "vm.initrd=/boot/initrd.img",
        "vm.cmdline=console=ttyS0 quiet",
        "vm.cpu=host",
        "vm.disks=[{path='/var/lib/a.raw'}, {path=\"b.raw\", read_only=true}]",
        "vm.net=[{tap='tap0', mac='52:54:00:AB:cd:00'}]",
        "vm.console_device=virtio",
        "vm.entropy=false",
        "recording.isolation=serial",
    ])
    .unwrap();
    let vm = &config.vm;
    assert_eq!(vm.cmdline, "console=ttyS0 quiet");
    assert_eq!(vm.cpu, CpuModel::Host);
    assert_eq!(vm.console_device, ConsoleDevice::Virtio);
    assert_eq!(config.recording.isolation, Isolation::Serial);
    assert!(!vm.entropy);
    assert!(!vm.disks[0].read_only && vm.disks[1].read_only);
    assert_eq!(vm.disks[1].path.to_str(), Some("b.raw"));
    assert_eq!(vm.net[0].tap, "tap0");
    assert_eq!(vm.net[0].mac.bytes(), [0x52, 0x54, 0, 0xab, 0xcd, 0]);
    assert_eq!(vm.net[0].mac.to_string(), "52:54:00:ab:cd:00");
    config.check(Role::Standalone).unwrap();
}

#[test]
fn lists_can_be_arrays_of_tables_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    let text = "[vm]\nkernel = 'k'\n[[vm.disks]]\npath = 'a'\n[[vm.disks]]\npath = 'b'\nread_only = true\n";
    std::fs::write(&path, text).unwrap();
    let config = Config::load(Some(&path), &[]).unwrap();
    assert_eq!(config.vm.disks.len(), 2);
    let config = Config::load(Some(&path), &["vm.disks=[]".into()]).unwrap();
    assert!(config.vm.disks.is_empty());
    std::fs::write(&path, "[vm]\n\n[[vm.disks]]\nfile = 'a'\n").unwrap();
    let error = Config::load(Some(&path), &[]).unwrap_err().to_string();
    assert!(error.contains("vm.toml:3: vm.disks takes"), "{error}");
}

#[test]
fn mistakes_in_devices_say_what_is_accepted() {
    for item in [
        "vm.disks=/a.raw",
        "vm.disks=[{path=''}]",
        "vm.disks=[{read_only=true}]",
        "vm.disks=[{path='a', readonly=true}]",
        "vm.disks=[{path='a'},{path='b'},{path='c'},{path='d'},{path='e'}]",
    ] {
        refused(
            &[item],
            &["vm.disks takes a list of at most 4 tables { path ="],
        );
    }
    for (tap, mac) in [
        ("", "52:54:00:12:34:56"),
        ("a/b", "52:54:00:12:34:56"),
        ("tap%d", "52:54:00:12:34:56"),
        ("sixteen-bytes-xx", "52:54:00:12:34:56"),
        ("tap0", "53:54:00:12:34:56"),
        ("tap0", "00:00:00:00:00:00"),
        ("tap0", "52:54:00:12:34"),
        ("tap0", "52:54:00:12:34:56:78"),
        ("tap0", "52:54:00:12:34:+6"),
        ("tap0", "52-54-00-12-34-56"),
        ("tap0", "52:54:00:12:34:5g"),
    ] {
        let item = format!("vm.net=[{{tap='{tap}', mac='{mac}'}}]");
        refused(&[&item], &["vm.net takes a list of at most 3 tables"]);
    }
    refused(&["vm.cpu=best"], &["\"baseline\" or \"host\", not best"]);
    refused(&["recording.isolation=none"], &["\"serial\" or \"auto\""]);
    refused(&["vm.entropy=maybe"], &["true or false"]);
    let long = format!("vm.cmdline={}", "x".repeat(2048));
    refused(&[&long], &["vm.cmdline takes text of at most 2047 bytes"]);
    refused(&["vm.cmdline=a\0b"], &["without NUL"]);
    sets(&["vm.kernel=k", &long[..long.len() - 1]]).unwrap();
}

#[test]
fn a_guest_is_a_program_or_a_kernel() {
    for (program, kernel) in [
        ("vm.program=p", "vm.kernel=k"),
        ("vm.program=p", "vm.disks=[{path='a'}]"),
        (
            "vm.program=p",
            "vm.net=[{tap='t', mac='52:54:00:12:34:56'}]",
        ),
        ("vm.program=p", "vm.console_device=virtio"),
        ("vm.params=p", "vm.kernel=k"),
        ("vm.input=p", "vm.kernel=k"),
        ("vm.program=p", "vm.initrd=i"),
        ("vm.program=p", "vm.cmdline=c"),
    ] {
        let name = |item: &'static str| item.split_once('=').unwrap().0;
        refused(
            &[program, kernel],
            &[name(program), name(kernel), "remove one of them"],
        );
    }
    let error = sets(&[]).unwrap().check(Role::Standalone).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("vm.program or vm.kernel (the guest"),
        "{error}"
    );
}

/// Its own images and interfaces are all that a backup cannot get from the primary.
#[test]
fn a_backup_has_devices_without_a_kernel() {
    let config = sets(&[
        "tls.ca=a",
        "tls.cert=b",
        "tls.key=c",
        "failover.arbiter=manual",
        "replication.peer=b:1",
        "vm.disks=[{path='a'}]",
        "vm.net=[{tap='tap0', mac='52:54:00:12:34:56'}]",
    ]);
    config.unwrap().check(Role::Backup).unwrap();
}

#[test]
fn devices_must_agree() {
    refused(&["vm.disks=[{path='a'},{path='a'}]"], &["path a twice"]);
    refused(
        &["vm.net=[{tap='t', mac='52:54:00:12:34:56'},{tap='t', mac='52:54:00:12:34:57'}]"],
        &["vm.net", "tap t twice"],
    );
    refused(
        &["vm.net=[{tap='t', mac='52:54:00:ab:34:56'},{tap='u', mac='52:54:00:AB:34:56'}]"],
        &["mac 52:54:00:ab:34:56 twice"],
    );
    for file in ["vm.kernel=/a", "vm.program=/a", "vm.disks=[{path='/a'}]"] {
        refused(&["vm.console=/a", file], &["would destroy the"]);
    }
    let all = [
        "vm.disks=[{path='a'},{path='b'},{path='c'},{path='d'}]",
        "vm.net=[{tap='t', mac='52:54:00:12:34:56'},{tap='u', mac='52:54:00:12:34:57'},{tap='v', mac='52:54:00:12:34:58'}]",
        "vm.console_device=virtio",
    ];
    refused(&all, &["9 virtio devices", "room for 8"]);
    sets(&[&all[..], &["vm.entropy=false"]].concat()).unwrap();
}
