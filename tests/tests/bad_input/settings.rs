//! Command line, configuration, files that do not exist, ports and sockets in use.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;

use samsara_tests::{Guest, Host, Site, kvm_shared_or_skip};
use samsarad::exit::ExitCode::{Certificate, Config, Input, LogFile, Network, Output, Usage};

use crate::ran::{BOUND, samsarad, sets};

fn standalone(settings: &[&str]) -> Vec<String> {
    let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
    let mut arguments = vec!["--role".to_owned(), "standalone".to_owned()];
    arguments.extend(sets(&settings));
    arguments
}

#[test]
fn command_lines() {
    for (arguments, part) in [
        (&[][..], "--role"),
        (&["--role", "leader"], "primary, backup or standalone"),
        (&["--role", "primary", "--nonsense"], "--nonsense"),
        (&["--role", "standalone", "--log", "much"], "much"),
    ] {
        let ran = samsarad(arguments);
        assert_eq!(ran.code, Some(Usage.code().into()), "{ran:?}");
        assert!(
            ran.stderr.contains(part) && !ran.stderr.contains("panicked"),
            "{ran:?}"
        );
        assert!(ran.stdout.is_empty());
    }
}

#[test]
fn keys_and_values() {
    for (setting, parts) in [
        (
            "vm.vcpu=2",
            &[
                "--set vm.vcpu=2",
                "unknown key vm.vcpu",
                "did you mean vm.vcpus?",
            ][..],
        ),
        (
            "vm.vcpus=17",
            &["vm.vcpus takes a whole number from 1 to 16, not 17"],
        ),
        ("vm.vcpus=two", &["vm.vcpus takes a whole number"]),
        (
            "vm.memory=1MiB",
            &["vm.memory takes a size", "16MiB", "not 1MiB"],
        ),
        ("vm.memory=65GiB", &["vm.memory takes a size", "64GiB"]),
        (
            "vm.memory=99999999999999999999GiB",
            &["vm.memory takes a size"],
        ),
        ("vm=3", &["vm is a section"]),
        ("vm.program", &["--set vm.program", "key=value"]),
        (
            "recording.mode=maybe",
            &["recording.mode takes \"on\" or \"off\""],
        ),
        (
            "recording.chunk_min_us=6000",
            &["chunk_min_us", "chunk_max_us"],
        ),
        (
            "failover.dead_after_ms=40",
            &["failover.dead_after_ms", "heartbeat_ms"],
        ),
        (
            "replication.peer=beta",
            &["replication.peer takes host:port"],
        ),
        (
            "replication.listen=here",
            &["replication.listen takes an address and port"],
        ),
        ("metrics.listen=1.2.3.4", &["metrics.listen takes"]),
        (
            "failover.arbiter=coin",
            &["failover.arbiter takes", "file", "manual"],
        ),
    ] {
        samsarad(&standalone(&["vm.program=x.elf", setting])).failed(Config, parts);
    }
    let long = format!("vm.params={}", "x".repeat(5000));
    samsarad(&standalone(&["vm.program=x.elf", &long])).failed(Config, &["vm.params", "4095"]);
}

#[test]
fn configuration_files() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("vm.toml");
    let name = path.to_string_lossy().into_owned();
    let with_file = |text: &[u8]| {
        fs::write(&path, text).expect("written");
        samsarad(&["--role", "standalone", "--config", &name])
    };
    with_file(b"[vm]\nprogram = 'x'\nvcpu = 2\n").failed(Config, &["vm.toml:3", "unknown key"]);
    with_file(b"[vm]\n\n\nvcpus = 0\n").failed(Config, &["vm.toml:4", "from 1 to 16"]);
    with_file(b"[vm\n").failed(Config, &["vm.toml:1", "not valid TOML"]);
    with_file(b"[vm]\nname = \"\xff\xfe\"\n").failed(Config, &["vm.toml"]);
    with_file(&vec![b'#'; 64 << 20]).failed(Config, &["vm.toml", "not a configuration file"]);
    let missing = dir.path().join("none.toml").to_string_lossy().into_owned();
    samsarad(&["--role", "standalone", "--config", &missing])
        .failed(Config, &["none.toml", "No such file"]);
    let directory = dir.path().to_string_lossy().into_owned();
    samsarad(&["--role", "standalone", "--config", &directory]).failed(Config, &[&directory]);
}

#[test]
fn what_a_role_lacks() {
    for (role, parts) in [
        ("standalone", &["role standalone needs vm.program"][..]),
        (
            "primary",
            &[
                "vm.program",
                "replication.listen",
                "tls.ca",
                "failover.arbiter",
            ],
        ),
        (
            "backup",
            &[
                "replication.peer",
                "tls.cert",
                "tls.key",
                "failover.arbiter",
            ],
        ),
    ] {
        samsarad(&["--role", role]).failed(Config, parts);
    }
}

/// What was there before a start that fails is there after it.
#[test]
fn files_that_cannot_be_used() {
    let dir = tempfile::tempdir().expect("directory");
    let site = Site::new().expect("site");
    let hello = Guest::new(&site, "hello", "").expect("guest").settings();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let with = |more: &[&str]| {
        let mut arguments = vec!["--role".to_owned(), "standalone".to_owned()];
        arguments.extend(sets(&hello));
        arguments.extend(more.iter().map(ToString::to_string));
        samsarad(&arguments)
    };
    let none = path("none/x");
    let set = |key: &str, value: &str| format!("{key}={value}");
    with(&["--set", &set("vm.input", &none)]).failed(Input, &["vm.input", &none, "No such file"]);
    with(&["--set", &set("vm.input", &path(""))]).failed(Input, &["vm.input", "directory"]);
    with(&["--set", &set("vm.console", &none)]).failed(Output, &["vm.console", &none]);
    with(&["--report", &none]).failed(Output, &["report", &none]);
    with(&["--record", &none]).failed(LogFile, &["log file", &none]);
    fs::write(path("notes"), "my notes").expect("written");
    with(&["--record", &path("notes")]).failed(LogFile, &["not a samsara log", "name another"]);
    assert_eq!(fs::read(path("notes")).expect("notes"), b"my notes");
}

#[test]
fn a_start_that_fails_leaves_the_console_of_the_run_before() {
    let dir = tempfile::tempdir().expect("directory");
    let console = dir.path().join("console");
    fs::write(&console, "all that a guest said\n").expect("written");
    let setting = format!("vm.console={}", console.display());
    samsarad(&standalone(&["vm.program=/none/guest.elf", &setting]))
        .failed(Input, &["guest program /none/guest.elf"]);
    assert_eq!(
        fs::read(&console).expect("console"),
        b"all that a guest said\n"
    );
}

#[test]
fn ports_and_sockets_in_use() {
    let Some(_machine) = kvm_shared_or_skip("ports in use") else {
        return;
    };
    let site = Site::new().expect("site");
    let (alpha, beta) = site.seats().expect("seats");
    let mut settings = Guest::new(&site, "hello", "").expect("guest").settings();
    settings.push("failover.arbiter=file".to_owned());
    settings.push(format!("failover.arbiter_dir={}", site.arbiter().display()));
    settings.extend(alpha.settings(&beta));
    settings.push(format!("control.socket={}", alpha.socket().display()));
    let mut arguments = vec!["--role".to_owned(), "primary".to_owned()];
    arguments.extend(sets(&settings));

    let address = alpha.address.to_string();
    let udp = UdpSocket::bind(alpha.address).expect("free");
    samsarad(&arguments).failed(Network, &["replication.listen", &address, "in use"]);
    drop(udp);
    let tcp = TcpListener::bind(alpha.address).expect("free");
    samsarad(&arguments).failed(Network, &["replication.listen", &address, "tcp", "in use"]);
    drop(tcp);
    let metrics = TcpListener::bind(alpha.metrics).expect("free");
    samsarad(&arguments).failed(
        Network,
        &["metrics.listen", &alpha.metrics.to_string(), "in use"],
    );
    drop(metrics);
    let socket = alpha.socket();
    let control = UnixListener::bind(&socket).expect("free");
    samsarad(&arguments).failed(
        Config,
        &["control socket", &socket.to_string_lossy(), "stop it"],
    );
    assert!(socket.exists(), "the socket of another process is left");
    drop(control);
    fs::remove_file(&socket).expect("removed");
    fs::write(&socket, "a file").expect("written");
    samsarad(&arguments).failed(Config, &["not a socket", &socket.to_string_lossy()]);
    assert_eq!(fs::read(&socket).expect("left"), b"a file");
    assert_eq!(
        fs::read_dir(site.arbiter()).expect("arbiter").count(),
        0,
        "no term was taken"
    );
}

/// A certificate setting: its key, the file's contents if there is one, and what is said.
type Unreadable = (&'static str, Option<&'static [u8]>, &'static str);

#[test]
fn certificates_that_cannot_be_read() {
    let Some(_machine) = kvm_shared_or_skip("unreadable certificates") else {
        return;
    };
    let site = Site::new().expect("site");
    let (alpha, beta) = site.seats().expect("seats");
    let mut arguments = vec!["--role".to_owned(), "backup".to_owned()];
    let mut settings = alpha.settings(&beta);
    settings.push("failover.arbiter=manual".to_owned());
    arguments.extend(sets(&settings));
    let try_file = |key: &str, file: &Path| {
        let mut arguments = arguments.clone();
        arguments.extend(["--set".to_owned(), format!("{key}={}", file.display())]);
        samsarad(&arguments)
    };
    let unreadable: &[Unreadable] = &[
        ("tls.ca", None, "cannot be read"),
        ("tls.cert", None, "cannot be read"),
        ("tls.key", None, "cannot be read"),
        ("tls.ca", Some(b"hello"), "no certificate in PEM form"),
        ("tls.cert", Some(b"\0\0\0"), "no certificate in PEM form"),
        ("tls.key", Some(b""), "no private key in PEM form"),
        (
            "tls.cert",
            Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "bad.pem",
        ),
    ];
    for &(key, contents, part) in unreadable {
        let file = site.path(if contents.is_some() {
            "bad.pem"
        } else {
            "none.pem"
        });
        if let Some(contents) = contents {
            fs::write(&file, contents).expect("written");
        }
        try_file(key, &file).failed(Certificate, &[key, &file.to_string_lossy(), part]);
    }
    let theirs = beta.directory.join("beta.key");
    try_file("tls.key", &theirs)
        .failed(Certificate, &["beta.key", "not the key of the certificate"]);
}

/// It may be mounted later, so it is waited for; the log says which and what to do.
#[test]
fn an_arbiter_that_is_not_there() {
    let Some(_machine) = kvm_shared_or_skip("missing arbiter") else {
        return;
    };
    let site = Site::new().expect("site");
    let (alpha, beta) = site.seats().expect("seats");
    let mut settings = Guest::new(&site, "hello", "").expect("guest").settings();
    let directory = site.path("later");
    settings.push("failover.arbiter=file".to_owned());
    settings.push(format!("failover.arbiter_dir={}", directory.display()));
    settings.push("failover.start=alone".to_owned());
    settings.extend(alpha.settings(&beta));
    let mut host = Host::spawn(site.binaries(), &alpha, "primary", &settings).expect("start");
    let said = format!("arbiter directory {} is not usable", directory.display());
    host.wait_log(&said, BOUND).expect("said");
    let status = host.status().expect("status");
    assert_eq!((status.term, status.counters.commits), (0, 0));
    assert_eq!(host.log_text().matches(&said).count(), 1, "said once");
    fs::create_dir(&directory).expect("created");
    assert_eq!(host.wait_code(BOUND).expect("its end"), 0);
    assert!(!host.output().bytes().is_empty());
}

#[test]
fn an_arbiter_that_is_someone_elses_or_damaged() {
    let Some(_machine) = kvm_shared_or_skip("damaged arbiter") else {
        return;
    };
    let site = Site::new().expect("site");
    let (alpha, beta) = site.seats().expect("seats");
    let mut settings = Guest::new(&site, "hello", "").expect("guest").settings();
    settings.push("failover.arbiter=file".to_owned());
    settings.push(format!("failover.arbiter_dir={}", site.arbiter().display()));
    settings.extend(alpha.settings(&beta));
    let mut host = Host::spawn(site.binaries(), &alpha, "primary", &settings).expect("start");
    host.wait_status("a term", BOUND, |status| status.term == 1)
        .expect("a term");
    host.kill().expect("killed");
    let mut records: Vec<_> = fs::read_dir(site.arbiter())
        .expect("arbiter")
        .map(|entry| entry.expect("entry").path())
        .collect();
    records.sort();
    let record = records.pop().expect("a record");
    fs::write(&record, "{\"format\":1,").expect("written");
    let mut host = Host::spawn(site.binaries(), &alpha, "primary", &settings).expect("start");
    let name = record
        .file_name()
        .expect("name")
        .to_string_lossy()
        .into_owned();
    let status = host
        .wait_status("trouble with the arbiter", BOUND, |status| {
            status.state.contains(&name)
        })
        .expect("it says so");
    assert_eq!(status.term, 0, "{}", status.state);
    assert!(host.output().bytes().is_empty());
    // It waits for someone to repair it, and says so once.
    assert!(status.state.contains("not usable"), "{}", status.state);
    let named = format!("{name} is not usable");
    host.wait_log(&named, BOUND).expect("the log says so too");
    host.terminate().expect("terminated");
    assert_eq!(host.wait_code(BOUND).expect("ends"), 82);
}
