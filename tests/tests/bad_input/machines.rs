//! Hosts without KVM: in a mount namespace where /dev is another.

use std::process::Command;

use samsara_tests::{Guest, Seat, Site};
use samsarad::exit::ExitCode::Kvm;

use crate::ran::{Ran, binaries, run, sets};

/// Puts another /dev in place, then becomes samsarad. `$1` is an empty directory.
const WITHOUT_KVM: &str = r#"
    set -e
    dev=$1; shift
    mount -t tmpfs tmpfs "$dev"
    for node in null urandom; do touch "$dev/$node"; mount --bind "/dev/$node" "$dev/$node"; done
    case $1 in useless) touch "$dev/kvm"; mount --bind /dev/null "$dev/kvm";; esac; shift
    mount --rbind "$dev" /dev
    exec "$@"
"#;

/// A command in mount namespace of its own.
fn unshared() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]);
    command
}

fn can_unshare(site: &Site) -> bool {
    let dev = site.path("try");
    std::fs::create_dir(&dev).expect("directory");
    let tried = unshared()
        .args(["sh", "-c", WITHOUT_KVM, "sh"])
        .arg(&dev)
        .args(["none", "true"])
        .output();
    tried.is_ok_and(|output| output.status.success())
}

fn without_kvm(site: &Site, kvm: &str, arguments: &[String]) -> Ran {
    let dev = site.path(&format!("dev-{kvm}"));
    let _ = std::fs::create_dir(&dev);
    let mut command = unshared();
    command
        .args(["sh", "-c", WITHOUT_KVM, "sh"])
        .arg(&dev)
        .arg(kvm);
    command.arg(&binaries().samsarad).args(arguments);
    run(command)
}

fn arguments(site: &Site, role: &str, seats: &[Seat; 2]) -> Vec<String> {
    let mut settings = Guest::new(site, "hello", "").expect("guest").settings();
    settings.extend(seats[0].settings(&seats[1]));
    settings.push("failover.arbiter=file".to_owned());
    settings.push(format!("failover.arbiter_dir={}", site.arbiter().display()));
    let mut arguments = vec!["--role".to_owned(), role.to_owned()];
    arguments.extend(sets(&settings));
    arguments
}

#[test]
fn no_kvm() {
    let site = Site::new().expect("site");
    if !can_unshare(&site) {
        println!("skipped: no_kvm: a mount namespace is not permitted here");
        return;
    }
    let seats = [
        site.seat("alpha").expect("seat"),
        site.seat("beta").expect("seat"),
    ];
    for role in ["standalone", "primary", "backup"] {
        let arguments = arguments(&site, role, &seats);
        without_kvm(&site, "none", &arguments).failed(Kvm, &["/dev/kvm", "No such file"]);
        without_kvm(&site, "useless", &arguments).failed(Kvm, &["KVM"]);
    }
    assert_eq!(
        std::fs::read_dir(site.arbiter()).expect("arbiter").count(),
        0,
        "no term was taken"
    );
}
