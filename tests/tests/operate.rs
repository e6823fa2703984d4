//! What operators use, against the real thing: Prometheus scrapes a pair through a failover, a service manager's socket
//! hears the daemon.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use samsara_tests::{Guest, Pair, Seat, Site, kvm_shared_or_skip};
use serde_json::Value;

const BOUND: Duration = Duration::from_mins(1);

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// GET over HTTP/1.0: status line and body.
fn get(address: SocketAddr, path: &str) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(BOUND))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((
        head.lines().next().unwrap_or_default().to_owned(),
        body.to_owned(),
    ))
}

/// A Prometheus of its own; ended when dropped.
struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The configuration that is shipped, but for the hosts and for times that suit a test.
fn configuration(seats: &[&Seat]) -> String {
    let shipped =
        fs::read_to_string(root().join("monitoring/prometheus/prometheus.yml")).expect("shipped");
    let hosts = ["alpha.example:9740", "beta.example:9740"];
    let mut text = shipped.replace(": 5s", ": 200ms");
    for (host, seat) in hosts.iter().zip(seats) {
        assert!(
            text.contains(host),
            "the shipped configuration names {host}"
        );
        text = text.replace(host, &seat.metrics.to_string());
    }
    text
}

impl Prometheus {
    /// Starts one, or says why not.
    fn start(site: &Site, seats: &[&Seat]) -> Option<Self> {
        let directory = site.path("prometheus");
        fs::create_dir(&directory).expect("directory");
        let file = directory.join("prometheus.yml");
        fs::write(&file, configuration(seats)).expect("written");
        let alerts = root().join("monitoring/prometheus/alerts.yml");
        fs::copy(alerts, directory.join("alerts.yml")).expect("copied");
        let address = site.seat("monitor").expect("seat").metrics;
        let log = fs::File::create(directory.join("log")).expect("log");
        let started = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        match started {
            Ok(child) => Some(Self { child, address }),
            Err(error) => {
                println!("skipped: prometheus cannot be run here ({error})");
                None
            }
        }
    }

    fn api(&self, path: &str) -> Option<Value> {
        let (status, body) = get(self.address, path).ok()?;
        let value: Value = serde_json::from_str(&body).ok()?;
        assert!(status.contains("200"), "{path}: {status} {body}");
        Some(value)
    }

    /// The value of a query that gives one series at most.
    fn query(&self, query: &str) -> Option<f64> {
        let mut encoded = String::new();
        for byte in query.bytes() {
            write!(encoded, "%{byte:02X}").expect("a string");
        }
        let answer = self.api(&format!("/api/v1/query?query={encoded}"))?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"][0]["value"][1]
            .as_str()?
            .parse()
            .ok()
    }

    /// Waits until a query gives this value.
    fn wait(&self, query: &str, wanted: f64) {
        let deadline = Instant::now() + BOUND;
        let mut last = None;
        while Instant::now() < deadline {
            last = self.query(query);
            if last.is_some_and(|value| (value - wanted).abs() < f64::EPSILON) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{query} is {last:?}, not {wanted}");
    }

    /// Every alert that is shipped can be evaluated; gives those that fire.
    fn alerts(&self) -> Vec<String> {
        let rules = self.api("/api/v1/rules").expect("rules");
        let groups = rules["data"]["groups"].as_array().expect("groups");
        let rules = groups
            .iter()
            .flat_map(|group| group["rules"].as_array().expect("rules"));
        let mut firing = Vec::new();
        let mut count = 0;
        for rule in rules {
            count += 1;
            assert!(
                rule["health"] != "err",
                "{}: {}",
                rule["name"],
                rule["lastError"]
            );
            if rule["state"] == "firing" {
                firing.push(rule["name"].as_str().expect("name").to_owned());
            }
        }
        assert!(count > 5, "the rules are not loaded");
        firing
    }
}

#[test]
fn prometheus_sees_a_failover() {
    let Some(_machine) = kvm_shared_or_skip("prometheus") else {
        return;
    };
    let site = Site::new().expect("site");
    let guest = Guest::new(&site, "outputs", "n=900000 delay=100000").expect("guest");
    let mut pair = Pair::start(&site, &guest, &[]).expect("pair");
    let (alpha, beta) = (pair.primary.seat().clone(), pair.backup.seat().clone());
    let Some(prometheus) = Prometheus::start(&site, &[&alpha, &beta]) else {
        return;
    };
    prometheus.wait("samsara_role{host='alpha',role='primary'}", 1.0);
    prometheus.wait("samsara_role{host='beta',role='backup'}", 1.0);
    prometheus.wait("samsara_protected{host='alpha'}", 1.0);
    prometheus.wait("samsara_failovers_total{host='beta'}", 0.0);
    prometheus.wait("sum(up{job='samsara'})", 2.0);
    prometheus.wait("samsara_output_gate{host='alpha',mode='guarded'}", 1.0);
    assert!(
        prometheus
            .query("samsara_commits_total{host='alpha'}")
            .is_some_and(|count| count > 0.0)
    );
    the_dashboard_is_answered(&prometheus);

    pair.kill_primary().expect("killed");
    prometheus.wait("samsara_role{host='beta',role='primary'}", 1.0);
    prometheus.wait("samsara_role{host='beta',role='backup'}", 0.0);
    prometheus.wait("samsara_failovers_total{host='beta'}", 1.0);
    prometheus.wait("samsara_protected{host='beta'}", 0.0);
    prometheus.wait("samsara_term{host='beta'}", 2.0);
    prometheus.wait("sum(up{job='samsara'})", 1.0);
    let deadline = Instant::now() + BOUND;
    while !prometheus
        .alerts()
        .iter()
        .any(|name| name == "SamsaraFailedOver")
    {
        assert!(Instant::now() < deadline, "{:?}", prometheus.alerts());
        std::thread::sleep(Duration::from_millis(100));
    }

    let _again = pair.restart_as_backup(&site, &alpha, &beta).expect("start");
    prometheus.wait("samsara_protected{host='beta'}", 1.0);
    prometheus.wait("samsara_role{host='alpha',role='backup'}", 1.0);
    prometheus.wait("sum(up{job='samsara'})", 2.0);
}

/// Prometheus understands every query of the dashboard, and has an answer to most of them.
fn the_dashboard_is_answered(prometheus: &Prometheus) {
    let text =
        fs::read_to_string(root().join("monitoring/grafana/samsara.json")).expect("dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let mut queries = Vec::new();
    collect(&dashboard, &mut queries);
    let (mut answered, mut absent_here) = (0, 0);
    for query in &queries {
        let query = query
            .replace("$__rate_interval", "2s")
            .replace("$vm", "vm")
            .replace("$host", ".*");
        let is_answered = prometheus.query(&query).is_some();
        // A bare guest has neither disks nor network cards, and nothing travels as an order here.
        let absent = [
            "samsara_net_",
            "samsara_disk_",
            "samsara_rerun_",
            "samsara_effects_fetched",
        ];
        if absent.iter().any(|name| query.contains(name)) {
            absent_here += 1;
        } else {
            answered += usize::from(is_answered);
        }
    }
    assert!(
        queries.len() > 10 && answered * 2 > queries.len() - absent_here,
        "{answered} of {}",
        queries.len()
    );
}

fn collect(value: &Value, queries: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            queries.extend(
                fields
                    .get("expr")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            );
            fields.values().for_each(|field| collect(field, queries));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, queries)),
        _ => {}
    }
}

/// A daemon with a service manager's socket, and what it hears.
struct Notified {
    child: Child,
    socket: UnixDatagram,
}

impl Drop for Notified {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Notified {
    fn start(site: &Site, role: &str, settings: &[String], path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("socket");
        socket.set_read_timeout(Some(BOUND)).expect("timeout");
        let mut command = Command::new(&site.binaries().samsarad);
        command.args(["--role", role]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        command
            .env("NOTIFY_SOCKET", path)
            .env("WATCHDOG_USEC", "400000")
            .env_remove("WATCHDOG_PID");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self {
            child: command.spawn().expect("start"),
            socket,
        }
    }

    /// Listens until a message of which this is a part.
    fn until(&self, part: &str) -> Vec<String> {
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        while heard
            .last()
            .is_none_or(|last: &String| !last.contains(part))
        {
            let bytes = self
                .socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{error}: {heard:?}"));
            heard.push(String::from_utf8_lossy(&buffer[..bytes]).into_owned());
        }
        heard
    }

    fn terminate(&mut self) -> Option<i32> {
        let process = Pid::from_raw(self.child.id() as i32).expect("a process");
        kill_process(process, Signal::TERM).expect("terminated");
        self.until("STOPPING=1");
        self.child.wait().expect("its end").code()
    }
}

#[test]
fn a_service_manager_hears_a_primary_that_waits() {
    let Some(_machine) = kvm_shared_or_skip("notify, primary") else {
        return;
    };
    let site = Site::new().expect("site");
    let (alpha, beta) = site.seats().expect("seats");
    let mut settings = Guest::new(&site, "hello", "").expect("guest").settings();
    settings.extend(alpha.settings(&beta));
    settings.push("failover.arbiter=file".to_owned());
    settings.push(format!("failover.arbiter_dir={}", site.arbiter().display()));
    let mut daemon = Notified::start(&site, "primary", &settings, &site.path("notify"));
    let heard = daemon.until("STATUS=guest not started: waiting for a backup in sync (beta)");
    assert_eq!(
        heard
            .iter()
            .filter(|message| message.contains("READY=1"))
            .count(),
        1,
        "{heard:?}"
    );
    for _ in 0..3 {
        let beat = Instant::now();
        daemon.until("WATCHDOG=1");
        assert!(beat.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(daemon.terminate(), Some(82));
}

#[test]
fn a_service_manager_hears_a_guest_that_ends() {
    let Some(_machine) = kvm_shared_or_skip("notify, standalone") else {
        return;
    };
    let site = Site::new().expect("site");
    let settings = Guest::new(&site, "outputs", "n=200 delay=400000")
        .expect("guest")
        .settings();
    let mut daemon = Notified::start(&site, "standalone", &settings, &site.path("notify"));
    let heard = daemon.until("STOPPING=1");
    let at = |part: &str| heard.iter().position(|message| message.contains(part));
    assert!(
        at("READY=1").is_some() && at("STATUS=standalone").is_some(),
        "{heard:?}"
    );
    assert!(
        at("WATCHDOG=1") < at("STOPPING=1") && at("WATCHDOG=1").is_some(),
        "{heard:?}"
    );
    assert_eq!(daemon.child.wait().expect("its end").code(), Some(0));
}

#[test]
fn people_and_probes_are_answered() {
    let Some(_machine) = kvm_shared_or_skip("status") else {
        return;
    };
    let site = Site::new().expect("site");
    let guest = Guest::new(&site, "outputs", "n=900000 delay=100000").expect("guest");
    let mut pair = Pair::start(&site, &guest, &[]).expect("pair");
    pair.wait_protected().expect("protected");
    for (host, words) in [
        (&pair.primary, "role  primary, term 1, protected"),
        (&pair.backup, "role  backup, term 1"),
    ] {
        let socket = host.seat().socket().display().to_string();
        let text = site.ctl(&["status", "--socket", &socket]).expect("status");
        assert!(text.contains(words), "{text}");
        let json = site
            .ctl(&["status", "--json", "--socket", &socket])
            .expect("status");
        let json: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(
            (json["term"].as_u64(), json["protected"].as_bool()),
            (Some(1), Some(true))
        );
        let (status, body) = get(host.seat().metrics, "/healthz").expect("an answer");
        assert!(status.contains("200"), "{status} {body}");
        let (status, _) = get(host.seat().metrics, "/nothing").expect("an answer");
        assert!(status.contains("404"), "{status}");
    }
}
