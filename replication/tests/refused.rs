//! Hosts that must not get together, and what each side is told.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::time::Duration;

use common::{Ca, Hosts, any_port, config, hello, identity, load};
use samsara_replication::protocol::{Admission, Hello, PeerRole, RefuseReason, VersionRange};
use samsara_replication::transport::{
    BindError, DialError, Dialer, LinkConfig, Listener, ListenerEvent, TlsError, TlsFiles,
    TlsIdentity,
};

/// What the listener and the dialler say of one dial that fails.
async fn refused(hosts: &mut Hosts, dialer: &Dialer, hello: Hello) -> (String, DialError) {
    match hosts.meet(dialer, hello).await {
        (ListenerEvent::Rejected { error, .. }, Err(dialled)) => (error.to_string(), dialled),
        _ => panic!("a link that must not be"),
    }
}

fn assert_says(text: &str, parts: &[&str]) {
    assert!(
        parts.iter().all(|part| text.contains(part)),
        "{text:?} lacks one of {parts:?}"
    );
    assert!(!text.contains('\n'), "{text:?} is more than a line");
}

#[tokio::test]
async fn a_client_of_another_ca() {
    let mut hosts = Hosts::new();
    let other = Ca::new(&hosts.dir.path().join("other"));
    let mut files = other.issue(&["beta"]);
    // It trusts the listener, but the listener does not trust it.
    let both = hosts.dir.path().join("both.pem");
    let mut roots = fs::read(hosts.ca.ca_file()).expect("ca");
    roots.extend(fs::read(other.ca_file()).expect("ca"));
    fs::write(&both, roots).expect("write");
    files.ca = both;
    let dialer = Dialer::new(
        config(Some(hosts.listener.local_addr()), "alpha"),
        load(&files),
    );
    let (listener, dialled) = refused(&mut hosts, &dialer, hello()).await;
    assert_says(&listener, &["not signed by a CA in tls.ca"]);
    assert_says(&dialled.to_string(), &["does not trust the CA", "tls.cert"]);
    assert!(dialled.is_permanent());
}

#[tokio::test]
async fn a_server_of_another_ca() {
    let mut hosts = Hosts::new();
    let other = Ca::named(&hosts.dir.path().join("other"), "another CA");
    let beta = load(&other.issue(&["beta"]));
    let dialer = Dialer::new(config(Some(hosts.listener.local_addr()), "alpha"), beta);
    let (listener, dialled) = refused(&mut hosts, &dialer, hello()).await;
    assert_says(
        &dialled.to_string(),
        &["127.0.0.1", "not signed by a CA in tls.ca"],
    );
    assert_says(&listener, &["does not trust the CA"]);
}

#[tokio::test]
async fn a_server_with_another_name() {
    let mut hosts = Hosts::new();
    let beta = load(&hosts.ca.issue(&["beta"]));
    let dialer = Dialer::new(config(Some(hosts.listener.local_addr()), "gamma"), beta);
    let (_, dialled) = refused(&mut hosts, &dialer, hello()).await;
    assert_says(&dialled.to_string(), &["gamma", "alpha"]);
    assert!(dialled.is_permanent());
}

#[tokio::test]
async fn a_client_with_another_name() {
    let mut hosts = Hosts::new();
    let delta = load(&hosts.ca.issue(&["delta", "10.0.0.4"]));
    let dialer = Dialer::new(config(Some(hosts.listener.local_addr()), "alpha"), delta);
    let (listener, dialled) = refused(&mut hosts, &dialer, hello()).await;
    assert_says(&listener, &["delta", "10.0.0.4", "expected beta"]);
    assert_says(
        &dialled.to_string(),
        &["this host's tls.cert", "delta", "expected beta"],
    );
    assert!(dialled.is_permanent());
}

#[tokio::test]
async fn without_a_configured_name_the_address_counts() {
    let mut hosts = Hosts::new();
    let alpha = load(&hosts.ca.issue(&["127.0.0.1"]));
    let config = LinkConfig::new(any_port(), None);
    let admission = Admission::Primary(identity());
    hosts.listener = Listener::bind(config, alpha.clone(), admission).expect("bind");
    let address = hosts.listener.local_addr().to_string();
    let plain = LinkConfig::new(any_port(), Some(address));

    let beta = load(&hosts.ca.issue(&["beta"]));
    let (listener, _) = refused(&mut hosts, &Dialer::new(plain.clone(), beta), hello()).await;
    assert_says(&listener, &["expected 127.0.0.1", "beta"]);
    hosts.dialer = Dialer::new(plain, alpha);
    hosts.links().await;
}

#[tokio::test]
async fn refusals_reach_the_dialler_with_reason_and_term() {
    let mut hosts = Hosts::new();
    let dialer = hosts.dialer.clone();
    let wrong_version = Hello {
        protocol: VersionRange { min: 2, max: 9 },
        ..hello()
    };
    let primary = Hello {
        role: PeerRole::Primary,
        ..hello()
    };
    let wrong_vm = Hello {
        vm: "other".into(),
        ..hello()
    };
    for (hello, expected, text) in [
        (wrong_version, RefuseReason::WrongVersion, "2 to 9"),
        (primary, RefuseReason::AlsoPrimary, "in term 7"),
        (wrong_vm, RefuseReason::WrongVm, "other"),
    ] {
        let (_, dialled) = refused(&mut hosts, &dialer, hello).await;
        assert_says(&dialled.to_string(), &["127.0.0.1", "refuses", text]);
        assert!(matches!(&dialled, DialError::Refused { refusal, .. }
            if refusal.reason == expected && refusal.term == 7));
        assert!(dialled.is_permanent());
    }
    hosts.listener.set_admission(Admission::NotPrimary {
        host: "alpha".into(),
        term: 3,
        disks: None,
    });
    let (_, dialled) = refused(&mut hosts, &dialer, hello()).await;
    assert_says(&dialled.to_string(), &["alpha is not primary"]);
    assert!(!dialled.is_permanent());
}

#[tokio::test]
async fn a_port_in_use_is_said_for_both_protocols() {
    let hosts = Hosts::new();
    let alpha = load(&hosts.ca.issue(&["alpha"]));
    let admission = Admission::Primary(identity());
    let mut taken = config(None, "beta");
    taken.listen = hosts.listener.local_addr();
    let error = Listener::bind(taken.clone(), alpha.clone(), admission.clone()).err();
    let error = error.expect("the port is in use");
    assert!(matches!(
        error,
        BindError::PortInUse {
            protocol: "udp",
            ..
        }
    ));
    assert_says(
        &error.to_string(),
        &["replication.listen 127.0.0.1:", "in use"],
    );

    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    taken.listen = tcp.local_addr().expect("address");
    let error = Listener::bind(taken, alpha, admission)
        .err()
        .expect("the port is in use");
    assert!(matches!(
        error,
        BindError::PortInUse {
            protocol: "tcp",
            ..
        }
    ));
}

#[tokio::test]
async fn nobody_there_is_known_at_once_and_tried_again() {
    let hosts = Hosts::new();
    let Hosts {
        listener, dialer, ..
    } = hosts;
    drop(listener);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut pauses = Vec::new();
    let started = std::time::Instant::now();
    let result = dialer.dial_until(hello, |error, pause| {
        assert_says(&error.to_string(), &["not reachable (tcp)", "refused"]);
        pauses.push(pause.as_millis());
        if pauses.len() == 3 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(result.await.is_err());
    assert_eq!(pauses, [50, 100, 200]);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn strangers_who_send_noise_disturb_nobody() {
    let mut hosts = Hosts::new();
    let address = hosts.listener.local_addr();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let mut strangers = Vec::new();
    for n in 0..20u8 {
        let noise: Vec<u8> = (0..1200u32)
            .map(|i| (i as u8).wrapping_mul(n) ^ n)
            .collect();
        udp.send_to(&noise, address).expect("send");
        let mut tcp = std::net::TcpStream::connect(address).expect("connect");
        let _ = std::io::Write::write_all(&mut tcp, &noise);
        strangers.push(tcp);
    }
    drop(strangers);
    tokio::time::sleep(Duration::from_millis(50)).await;
    hosts.links().await;
}

fn load_error(files: &TlsFiles) -> String {
    TlsIdentity::load(files)
        .expect_err("must not load")
        .to_string()
}

#[test]
fn what_is_wrong_with_a_certificate_file_is_said() {
    let dir = tempfile::tempdir().expect("directory");
    let ca = Ca::new(dir.path());
    let good = ca.issue(&["alpha"]);
    let missing = TlsFiles {
        key: dir.path().join("none.key"),
        ..good.clone()
    };
    assert_says(
        &load_error(&missing),
        &["tls.key", "none.key", "cannot be read"],
    );

    let text = dir.path().join("text");
    fs::write(&text, "hello").expect("write");
    let not_pem = TlsFiles {
        cert: text.clone(),
        ..good.clone()
    };
    assert_says(
        &load_error(&not_pem),
        &["tls.cert", "no certificate in PEM form"],
    );
    let not_pem = TlsFiles {
        ca: text.clone(),
        ..good.clone()
    };
    assert_says(
        &load_error(&not_pem),
        &["tls.ca", "no certificate in PEM form"],
    );
    let not_pem = TlsFiles {
        key: text,
        ..good.clone()
    };
    assert_says(
        &load_error(&not_pem),
        &["tls.key", "no private key in PEM form"],
    );

    let other_key = TlsFiles {
        key: ca.issue(&["beta"]).key,
        ..good.clone()
    };
    assert!(matches!(
        TlsIdentity::load(&other_key),
        Err(TlsError::KeyMismatch { .. })
    ));
    assert_says(&load_error(&other_key), &["beta.key", "alpha.pem"]);

    let other = Ca::new(&dir.path().join("other"));
    let other_ca = TlsFiles {
        ca: other.ca_file(),
        ..good
    };
    assert_says(
        &load_error(&other_ca),
        &["alpha.pem", "not signed by a CA in tls.ca"],
    );

    let expired = ca.issue_with(&["old"], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    assert_says(&load_error(&expired), &["old.pem", "expired"]);
    let future = ca.issue_with(&["new"], |params| {
        params.not_before = rcgen::date_time_ymd(2900, 1, 1);
    });
    assert_says(&load_error(&future), &["new.pem", "not valid yet"]);
    let server_only = ca.issue_with(&["half"], |params| {
        params.extended_key_usages.pop();
    });
    assert_says(
        &load_error(&server_only),
        &["half.pem", "both server and client"],
    );
}
