//! The status as text, for people.

use samsara_config::{ArbiterKind, RecordingMode, Role};

use crate::status::{LagAmount, NetworkDevice, RoleChange, Status};

/// Changes of role shown; the JSON has all.
const ROLE_CHANGES_SHOWN: usize = 8;

/// Aligned lines, the most important first. `now_unix_ms` is for ages.
pub fn render(status: &Status, now_unix_ms: u64) -> String {
    let mut rows = summary(status, now_unix_ms);
    rows.extend(replication(status));
    rows.extend(status.network.iter().map(network));
    rows.extend(recording(status));
    rows.extend(host(status));
    rows.extend(history(status, now_unix_ms));
    aligned(&rows)
}

/// A line: what it is about, and what it says.
pub(super) type Row = (&'static str, String);

/// Rows as aligned lines.
pub(super) fn aligned(rows: &[Row]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let line = |(name, text): &Row| format!("{name:>width$}  {}\n", one_line(text));
    rows.iter().map(line).collect::<Vec<_>>().concat()
}

fn summary(status: &Status, now: u64) -> Vec<Row> {
    let protected = if status.protected {
        "protected"
    } else {
        "NOT protected"
    };
    let since = age(now.saturating_sub(status.since_unix_ms));
    let mut rows = vec![
        (
            "vm",
            format!(
                "{} on {} (samsarad {}, pid {})",
                status.vm, status.host, status.version, status.pid
            ),
        ),
        (
            "role",
            match status.role {
                Role::Standalone => status.role.to_string(),
                role => format!("{role}, term {}, {protected}", status.term),
            },
        ),
        ("state", format!("{} (for {since})", status.state)),
    ];
    if let Some(ended) = &status.ended {
        rows.push((
            "ended",
            match ended.exit_status {
                Some(exit) => format!("{}, status {exit}", ended.how),
                None => ended.how.clone(),
            },
        ));
    }
    let memory = samsara_config::ByteSize::new(status.memory_bytes);
    let seconds = status.guest_time_ns as f64 / 1e9;
    rows.push((
        "guest",
        format!(
            "{} vCPU, {memory}, clock {seconds:.3} s, mark {}",
            status.vcpus, status.mark
        ),
    ));
    rows
}

fn replication(status: &Status) -> Vec<Row> {
    if status.role == Role::Standalone {
        return Vec::new();
    }
    let mut rows = vec![("peer", peer(status))];
    if let Some(arbiter) = &status.arbiter {
        let kind = match arbiter.kind {
            ArbiterKind::File => "file",
            ArbiterKind::Manual => "manual",
        };
        let reachable = if arbiter.reachable {
            "reachable"
        } else {
            "UNREACHABLE"
        };
        rows.push((
            "arbiter",
            with_detail(format!("{kind}, {reachable}"), &arbiter.detail),
        ));
    }
    let gate = &status.gate;
    let held = match gate.held_outputs {
        0 => String::new(),
        count => format!(", {count} held ({})", bytes(gate.held_bytes)),
    };
    rows.push((
        "outputs",
        with_detail(format!("{}{held}", gate.mode.as_str()), &gate.why),
    ));
    let at = &status.positions;
    rows.push((
        "commits",
        format!(
            "{}, received {}, verified {}",
            at.committed, at.received, at.verified
        ),
    ));
    rows.push((
        "lag",
        format!(
            "received {}; verified {}",
            lag(status.lag.received),
            lag(status.lag.verified)
        ),
    ));
    rows
}

fn peer(status: &Status) -> String {
    let Some(peer) = &status.peer else {
        return "none".to_owned();
    };
    let address = peer
        .address
        .as_ref()
        .map(|at| format!(" at {at}"))
        .unwrap_or_default();
    let state = match (peer.connected, peer.in_sync) {
        (false, _) => "not connected",
        (true, false) => "connected, not in sync",
        (true, true) => "connected, in sync",
    };
    format!("{}{address}, {state}", peer.name)
}

fn recording(status: &Status) -> Vec<Row> {
    if status.recording == RecordingMode::Off {
        return vec![("recording", "off: an ordinary VM".to_owned())];
    }
    let counters = &status.counters;
    let by_vcpu: Vec<String> = counters.chunks_by_vcpu.iter().map(u64::to_string).collect();
    let forms = counters.chunks_order_form + counters.chunks_effects_form;
    let order = percent(counters.chunks_order_form, forms);
    let squashed = percent(counters.squashes, counters.chunks() + counters.squashes);
    vec![
        (
            "recording",
            format!("on, {}; counter {}", status.isolation, status.counter),
        ),
        (
            "chunks",
            format!(
                "{} ({} by vCPU), {order} in order form",
                counters.chunks(),
                by_vcpu.join(" + ")
            ),
        ),
        (
            "conflicts",
            format!(
                "{} squashed ({squashed}), {} ran exclusively",
                counters.squashes, counters.exclusive_chunks
            ),
        ),
        (
            "log",
            format!(
                "{}, effects {}",
                bytes(counters.log_bytes),
                bytes(counters.effect_bytes)
            ),
        ),
        (
            "checks",
            format!(
                "{} digests compared, {} divergences",
                counters.digests_compared, counters.divergences
            ),
        ),
    ]
}

fn network(device: &NetworkDevice) -> Row {
    let lost: Vec<String> = device
        .lost
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!(", {count} lost: {reason}"))
        .collect();
    let text = format!(
        "{}: {} frames in ({}), {} out ({}){}",
        device.tap,
        device.frames_in,
        bytes(device.bytes_in),
        device.frames_out,
        bytes(device.bytes_out),
        lost.concat()
    );
    ("network", text)
}

fn host(status: &Status) -> Vec<Row> {
    let kvm = status.kvm.iter().map(|kvm| ("host", kvm.to_string()));
    let warnings = status.warnings.iter();
    kvm.chain(warnings.map(|line| ("warning", line.clone())))
        .collect()
}

fn history(status: &Status, now: u64) -> Vec<Row> {
    let hidden = status.role_changes.len().saturating_sub(ROLE_CHANGES_SHOWN);
    let mut rows = Vec::new();
    if status.counters.failovers > 0 {
        rows.push(("failovers", status.counters.failovers.to_string()));
    }
    if hidden > 0 {
        rows.push((
            "history",
            format!("{hidden} earlier changes of role: see --json"),
        ));
    }
    rows.extend(
        status
            .role_changes
            .iter()
            .skip(hidden)
            .map(|change| ("history", changed(change, now))),
    );
    rows
}

fn changed(change: &RoleChange, now: u64) -> String {
    let ago = age(now.saturating_sub(change.at_unix_ms));
    format!(
        "{ago} ago: {}, term {}: {}",
        change.role, change.term, change.reason
    )
}

fn with_detail(text: String, detail: &str) -> String {
    if detail.is_empty() {
        text
    } else {
        format!("{text}: {detail}")
    }
}

fn lag(amount: LagAmount) -> String {
    format!(
        "{} commits, {}, {:.1} ms",
        amount.commits,
        bytes(amount.bytes),
        amount.seconds * 1e3
    )
}

pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        "0%".to_owned()
    } else {
        format!("{:.1}%", part as f64 * 100.0 / whole as f64)
    }
}

pub(super) fn bytes(count: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| count >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", count as f64 / *unit as f64),
        None => format!("{count} B"),
    }
}

fn age(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms} ms"),
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s / 60),
        s if s < 48 * 3600 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

/// Text that came from elsewhere must not move the cursor of the person reading it.
pub(super) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
