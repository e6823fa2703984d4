use samsara_config::{ArbiterKind, Config, Role};

use super::*;
use crate::contention::{Contention, GuestFile};
use crate::exit::ExitCode;
use crate::net::DeviceCounts;
use crate::status::{
    Arbiter, Ended, GateMode, HostKvm, LagAmount, NetworkDevice, Peer, Positions, RoleChange,
    Status,
};

fn run(words: &[&str]) -> Result<String, CtlError> {
    let (status, out) = made::ctl(words)?;
    assert_eq!(status, 0);
    Ok(String::from_utf8(out).unwrap())
}

fn primary() -> Status {
    let config = Config::load(None, &["vm.vcpus=2".to_owned()]).unwrap();
    let mut status = Status::new(&config, Role::Primary, "alpha");
    (status.pid, status.term, status.protected, status.mark) = (77, 3, true, 5);
    (status.since_unix_ms, status.guest_time_ns) = (1000, 1_500_000_000);
    status.set_state("running, backup beta in sync");
    status.since_unix_ms = 1000;
    let address = Some("10.0.0.2:7400".to_owned());
    let (connected, in_sync) = (true, true);
    status.peer = Some(Peer {
        name: "beta".to_owned(),
        address,
        connected,
        in_sync,
    });
    let detail = "term 3 held by alpha\u{1b}[2J".to_owned();
    status.arbiter = Some(Arbiter {
        kind: ArbiterKind::File,
        reachable: true,
        detail,
    });
    status.gate.mode = GateMode::Guarded;
    (status.gate.held_outputs, status.gate.held_bytes) = (2, 2048);
    status.positions = Positions {
        committed: 100,
        received: 99,
        verified: 90,
    };
    status.lag.verified = LagAmount {
        commits: 10,
        bytes: 3 << 20,
        seconds: 0.0042,
    };
    status.counters.chunks_by_vcpu = vec![60, 30];
    (
        status.counters.chunks_effects_form,
        status.counters.squashes,
    ) = (90, 10);
    let change = |index| RoleChange {
        at_unix_ms: index,
        at_ms: 0,
        role: Role::Primary,
        term: index,
        reason: format!("reason {index}"),
    };
    status.role_changes = (0..10).map(change).collect();
    "serial".clone_into(&mut status.isolation);
    status.kvm = Some(HostKvm {
        paging: "shadow".to_owned(),
        cpuid: "native".to_owned(),
        tsc: "movable".to_owned(),
    });
    status.warnings = vec!["CPUID is not masked".to_owned()];
    let counts = DeviceCounts {
        frames_in: 12,
        bytes_in: 2048,
        frames_out: 3,
        bytes_out: 300,
        lost: [7, 0, 0, 1, 0, 0],
        ..DeviceCounts::default()
    };
    status.network = vec![NetworkDevice::new("tap0", &counts)];
    status
}

/// Of a machine that has not run.
fn contention() -> Contention {
    let file = GuestFile::new(&Config::default());
    Contention::new(&primary(), &samsara_engine::Stats::new(2), &file)
}

#[test]
fn a_status_reads_well() {
    let text = render(&primary(), 6000);
    let wanted = "\
       vm  vm on alpha (samsarad 0.1.0, pid 77)
     role  primary, term 3, protected
    state  running, backup beta in sync (for 5 s)
    guest  2 vCPU, 64MiB, clock 1.500 s, mark 5
     peer  beta at 10.0.0.2:7400, connected, in sync
  arbiter  file, reachable: term 3 held by alpha [2J
  outputs  guarded, 2 held (2.0 KiB)
  commits  100, received 99, verified 90
      lag  received 0 commits, 0 B, 0.0 ms; verified 10 commits, 3.0 MiB, 4.2 ms
  network  tap0: 12 frames in (2.0 KiB), 3 out (300 B), 1 lost: full, 7 lost: standby
recording  on, serial; counter none: chunks that are cut travel as effects
   chunks  90 (60 + 30 by vCPU), 0.0% in order form
conflicts  10 squashed (10.0%), 0 ran exclusively
      log  0 B, effects 0 B
   checks  0 digests compared, 0 divergences
     host  KVM with shadow paging, CPUID native, TSC movable
  warning  CPUID is not masked
  history  2 earlier changes of role: see --json
  history  5 s ago: primary, term 2: reason 2
";
    assert!(text.trim_start().starts_with(wanted), "{text}");
    assert_eq!(
        text.lines().filter(|line| line.contains("history")).count(),
        9
    );
}

#[test]
fn a_standalone_vm_says_nothing_of_replication() {
    let sets = ["recording.mode=off".to_owned()];
    let mut status = Status::new(
        &Config::load(None, &sets).unwrap(),
        Role::Standalone,
        "alpha",
    );
    status.ended = Some(Ended {
        exit_status: Some(3),
        how: "guest exit".to_owned(),
    });
    let text = render(&status, 0);
    assert!(text.contains("ended  guest exit, status 3\n") && text.contains("off: an ordinary VM"));
    assert!(!text.contains("lag") && !text.contains("term"), "{text}");
}

#[test]
fn certificates_are_made_and_the_lines_to_paste_are_valid_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca \"quoted\"");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let made = run(&["pki", "init", "--dir", &text(&ca)]).unwrap();
    assert!(
        made.contains("ca.key   the CA's key: keep it safe"),
        "{made}"
    );
    let out = text(&dir.path().join("out"));
    let words = [
        "pki",
        "issue",
        "--dir",
        &text(&ca),
        "--name",
        "alpha",
        "--address",
        "127.0.0.1",
        "--address",
        "::1",
        "--out",
        &out,
    ];
    let issued = run(&words).unwrap();
    let lines = issued
        .split("there):\n")
        .nth(1)
        .unwrap()
        .split("configuration of the")
        .next()
        .unwrap();
    let file = dir.path().join("paste.toml");
    std::fs::write(&file, lines).unwrap();
    let config = Config::load(Some(&file), &[]).unwrap();
    assert_eq!(config.replication.host_name.as_deref(), Some("alpha"));
    for path in [config.tls.ca, config.tls.cert, config.tls.key] {
        assert!(path.unwrap().exists());
    }
    let error = run(&words).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Certificate);
    assert!(error.line().contains("exists"), "{}", error.line());
    assert!(
        Arguments::try_parse_from([
            "samsaractl",
            "pki",
            "issue",
            "--dir",
            "x",
            "--name",
            "a",
            "--address",
            "nowhere"
        ])
        .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_daemon_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path();
    let none = only_socket(run_dir).unwrap_err();
    assert!(none.line().contains("no control socket"), "{}", none.line());
    std::fs::create_dir(run_dir.join("vm")).unwrap();
    let path = run_dir.join("vm").join(SOCKET_NAME);
    let server = crate::control::ControlServer::bind(&path).unwrap();
    let server = tokio::spawn(server.serve(|request| async move {
        match request {
            Request::Status => Response::Status(Box::new(primary())),
            Request::Contention => Response::Contention(Box::new(contention())),
            Request::Promote => Response::Refused("this host is primary already".to_owned()),
        }
    }));
    assert_eq!(only_socket(run_dir).unwrap(), path);
    std::fs::create_dir(run_dir.join("other")).unwrap();
    std::fs::write(run_dir.join("other").join(SOCKET_NAME), "").unwrap();
    assert!(
        only_socket(run_dir)
            .unwrap_err()
            .line()
            .contains("more than one")
    );

    let socket = path.to_str().unwrap();
    let json = run(&["status", "--json", "--socket", socket]).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), primary());
    assert!(
        run(&["status", "--socket", socket])
            .unwrap()
            .contains("primary, term 3, protected")
    );
    let json = run(&["contention", "--json", "--socket", socket]).unwrap();
    assert_eq!(
        serde_json::from_str::<Contention>(&json).unwrap(),
        contention()
    );
    let text = run(&["contention", "--top", "1", "--socket", socket]).unwrap();
    assert!(
        text.starts_with("vm on alpha runs in serial isolation"),
        "{text}"
    );
    let error = run(&["promote", "--socket", socket]).unwrap_err();
    assert_eq!(
        (error.line().as_str(), error.exit_code()),
        ("this host is primary already", ExitCode::Refused)
    );
    server.abort();
    let _ = server.await;
    let error = run(&["status", "--socket", socket]).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Network);
    assert!(
        error.line().starts_with("no samsarad answers on "),
        "{}",
        error.line()
    );
}
