//! Guests that do what they must not: the VM stops, and the message says which vCPU, what and where.

use std::fs;

use samsara_tests::{Guest, Pair, Site, kvm_or_skip, kvm_shared_or_skip};
use samsarad::exit::ExitCode::GuestFault;

use crate::ran::{Ran, samsarad, sets};

/// Recorded, and as the ordinary VM that is the baseline of comparisons.
const MODES: [&str; 2] = ["recording.mode=on", "recording.mode=off"];

fn run(site: &Site, program: &str, params: &str, mode: &str) -> Ran {
    let mut settings = Guest::new(site, program, params).expect("guest").settings();
    settings.push(mode.to_owned());
    let mut arguments = vec!["--role".to_owned(), "standalone".to_owned()];
    arguments.extend(sets(&settings));
    samsarad(&arguments)
}

#[test]
fn exceptions() {
    let Some(_machine) = kvm_shared_or_skip("guest exceptions") else {
        return;
    };
    let site = Site::new().expect("site");
    for mode in MODES {
        for (kind, parts) in [
            ("ud", &["exception 6 (invalid opcode)"][..]),
            ("pf", &["exception 14 (page fault)", "CR2 0x7ffffff12000"]),
            (
                "pfwrite",
                &["exception 14 (page fault)", "CR2 0x7ffffff12000"],
            ),
            (
                "pfexec",
                &["exception 14 (page fault)", "CR2 0x7ffffff12000"],
            ),
            ("gp", &["exception 13 (general protection)"]),
            ("de", &["exception 0 (divide error)"]),
            ("bp", &["exception 3 (breakpoint)"]),
            ("xm", &["exception 19 (SIMD floating point)"]),
            ("mf", &["exception 16 (x87 floating point)"]),
            ("hlt", &["exception 13 (general protection)"]),
            ("io", &["exception 13 (general protection)"]),
            ("loader", &["cannot go on"]),
        ] {
            let ran = run(&site, "fault", &format!("kind={kind} vcpu=1"), mode);
            ran.failed(
                GuestFault,
                &[&["the guest was stopped", "vCPU 1", "RIP 0x"], parts].concat(),
            );
            assert!(
                ran.stdout.is_empty(),
                "{kind}: {:?}",
                String::from_utf8_lossy(&ran.stdout)
            );
        }
    }
}

#[test]
fn device_accesses() {
    let Some(_machine) = kvm_shared_or_skip("bad device accesses") else {
        return;
    };
    let site = Site::new().expect("site");
    let program = samsara_guests::program("baddev").expect("program");
    let kinds = program.params.split_once("kind=").expect("kinds").1;
    for mode in MODES {
        for kind in kinds.split('|') {
            let ran = run(&site, "baddev", &format!("kind={kind}"), mode);
            ran.failed(GuestFault, &["the guest was stopped", "vCPU 0"]);
        }
    }
    for (kind, part) in [
        ("size4", "write of 4 bytes at address 0xd0000030"),
        ("unknown", "0xd0000f00"),
        ("readexit", "read of device register 0x8"),
        ("writeclock", "write to device register 0x10"),
        ("outside", "0xe0000000"),
    ] {
        run(&site, "baddev", &format!("kind={kind}"), MODES[0]).failed(GuestFault, &[part]);
    }
}

#[test]
fn dma_descriptors() {
    let Some(_machine) = kvm_shared_or_skip("bad descriptors") else {
        return;
    };
    let site = Site::new().expect("site");
    let program = samsara_guests::program("baddma").expect("program");
    let kinds = program.params.split_once("kind=").expect("kinds").1;
    for mode in MODES {
        for (direction, register) in [("input", "INPUT"), ("output", "OUTPUT")] {
            for kind in kinds.split('|').filter(|kind| *kind != "toolong") {
                let ran = run(
                    &site,
                    "baddma",
                    &format!("dir={direction} kind={kind}"),
                    mode,
                );
                ran.failed(
                    GuestFault,
                    &["the guest was stopped", "vCPU 0", register, "0x"],
                );
            }
            let ran = run(
                &site,
                "baddma",
                &format!("dir={direction} kind=toolong"),
                mode,
            );
            assert_eq!(ran.code, Some(0), "{ran:?}");
        }
    }
}

/// Both hosts know how the guest ended, and what it had said is there.
#[test]
fn an_exception_of_a_protected_guest() {
    let Some(_machine) = kvm_or_skip("exception of a protected guest") else {
        return;
    };
    let site = Site::new().expect("site");
    let guest = Guest::new(&site, "fault", "kind=pf vcpu=0").expect("guest");
    let mut pair = Pair::start(&site, &guest, &[]).expect("pair");
    Ran::of(&mut pair.primary).failed(
        GuestFault,
        &["vCPU 0", "exception 14", "CR2 0x7ffffff12000"],
    );
    Ran::of(&mut pair.backup).failed(GuestFault, &["the guest was stopped", "exception 14"]);
    assert!(pair.backup.output().bytes().is_empty());
    let report = pair.primary.report().expect("report");
    assert_eq!(report.exit_status, None);
    assert!(report.stop.contains("exception 14"), "{}", report.stop);
}

/// Parameters are the guest's own matter: it says what is wrong, and exits with its own status.
#[test]
fn parameters_that_the_guest_does_not_take() {
    let Some(_machine) = kvm_shared_or_skip("bad parameters") else {
        return;
    };
    let site = Site::new().expect("site");
    let long = "x".repeat(4095);
    for params in ["n=0", "nonsense", "n=99999999999999999999999", &long] {
        let ran = run(&site, "counter", params, MODES[0]);
        assert_eq!(
            ran.code,
            Some(samsara_guests::STATUS_BAD_PARAMS.into()),
            "{ran:?}"
        );
    }
}

/// An input that shrinks or ends early is an input that ends there.
#[test]
fn an_input_that_is_empty_or_no_file() {
    let Some(_machine) = kvm_shared_or_skip("odd inputs") else {
        return;
    };
    let site = Site::new().expect("site");
    let empty = site.write("empty", b"").expect("written");
    let odd = [empty.as_path(), std::path::Path::new("/dev/null")];
    for input in odd {
        let settings = Guest::new(&site, "echo", "")
            .expect("guest")
            .input(input)
            .settings();
        let mut arguments = vec!["--role".to_owned(), "standalone".to_owned()];
        arguments.extend(sets(&settings));
        let ran = samsarad(&arguments);
        assert_eq!(
            (ran.code, ran.stdout.len()),
            (Some(0), 0),
            "{}: {}",
            input.display(),
            ran.stderr
        );
    }
    assert_eq!(fs::metadata(odd[0]).expect("left").len(), 0);
}
