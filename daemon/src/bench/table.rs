//! What was measured, for people.

use std::fmt::Write as _;

use samsara_engine::Phase;

use super::measure::{Measured, Recorded};
use super::results::Results;
use super::spread::{Means, Spread};

const MIB: f64 = (1 << 20) as f64;
const KIB: f64 = 1024.0;
/// Room for the longest name, and some.
const NAME: usize = 26;

/// All tables.
pub(super) fn tables(results: &Results) -> String {
    let mut text = format!(
        "{} vCPUs, {} rounds; times of the guest, from its first instruction to its last commit: median (least..greatest)\n\n",
        results.vcpus, results.rounds
    );
    if !results.workloads.is_empty() {
        text += &times(&results.workloads);
        text += &means(results);
        text += &works(&results.workloads);
    }
    if !results.machines.is_empty() {
        text += "\nmachines of their own\n\n";
        text += &times(&results.machines);
        text += &works(&results.machines);
    }
    text.push('\n');
    text += &notes(results);
    text
}

fn times(rows: &[Measured]) -> String {
    let head = format!(
        "{:<NAME$}{:>24}{:>24}{:>24}\n",
        "", "native, seconds", "recorded / native", "protected / native"
    );
    let ratio = |recorded: &Option<Recorded>| {
        recorded
            .as_ref()
            .map_or_else(String::new, |recorded| shown(recorded.ratio))
    };
    let row = |one: &Measured| {
        format!(
            "{:<NAME$}{:>24}{:>24}{:>24}\n",
            one.name,
            shown(one.native.spread),
            ratio(&one.recorded),
            ratio(&one.protected)
        )
    };
    std::iter::once(head).chain(rows.iter().map(row)).collect()
}

fn means(results: &Results) -> String {
    let mut text = String::new();
    for (mode, means) in [
        ("recorded", results.recorded),
        ("protected", results.protected),
    ] {
        if let Some(Means {
            programs,
            workloads,
        }) = means
        {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "geometric mean, {mode}: {programs:.2} over the programs, {workloads:.2} over the workloads"
            );
        }
    }
    text
}

fn works(rows: &[Measured]) -> String {
    let mut text = String::from("\nwhat recording did\n\n");
    text += &work(rows, |one| one.recorded.as_ref(), Columns::Recorded);
    text += "\nwhere the time of recorded vCPUs went, % of it\n\n";
    text += &spent(rows);
    if rows.iter().any(|one| one.protected.is_some()) {
        text += "\nwhat protection did, and how far behind the backup was\n\n";
        text += &work(rows, |one| one.protected.as_ref(), Columns::Protected);
    }
    text
}

fn spent(rows: &[Measured]) -> String {
    let head = Phase::ALL.map(|phase| phase.as_str().to_owned());
    let row = |one: &Measured| {
        let spent = &one.recorded.as_ref()?.spent;
        let share = |phase: Phase| spent.get(phase.as_str()).copied().unwrap_or_default();
        let cells = Phase::ALL.map(|phase| format!("{:.1}", share(phase) * 100.0));
        Some(work_row(&one.name, cells.into_iter()))
    };
    let head = work_row("", head.into_iter());
    std::iter::once(head)
        .chain(rows.iter().filter_map(row))
        .collect()
}

/// What there is to tell of runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Columns {
    Recorded,
    /// And what a backup had to do with it.
    Protected,
}

const HEADS: [[&str; 2]; 5] = [
    ["chunks/s", ""],
    ["squashed", ""],
    ["faults", "avoided/s"],
    ["effects", "MiB/s"],
    ["effects MiB", "/1e9 instr."],
];
const PROTECTED_HEADS: [[&str; 2]; 8] = [
    ["sent", "MiB/s"],
    ["as orders", "of chunks"],
    ["orders", "KiB/s"],
    ["orders KiB", "/1e9 instr."],
    ["bytes", "an order"],
    ["verified", "p50 ms"],
    ["after", "p99 ms"],
    ["commit", "max ms"],
];

fn work(
    rows: &[Measured],
    of: impl Fn(&Measured) -> Option<&Recorded>,
    columns: Columns,
) -> String {
    let more: &[_] = match columns {
        Columns::Recorded => &[],
        Columns::Protected => &PROTECTED_HEADS,
    };
    let head = |line: usize| {
        let cells = HEADS.iter().chain(more).map(|head| head[line].to_owned());
        work_row("", cells)
    };
    let row = |one: &Measured| {
        let recorded = of(one)?;
        let mut cells = cells(recorded);
        if columns == Columns::Protected {
            cells.extend(protected_cells(recorded));
        }
        Some(work_row(&one.name, cells.into_iter()))
    };
    let heads = [head(0), head(1)];
    heads
        .into_iter()
        .chain(rows.iter().filter_map(row))
        .collect()
}

fn work_row(name: &str, cells: impl Iterator<Item = String>) -> String {
    let mut row = format!("{name:<NAME$}");
    for cell in cells {
        // Writing to a string does not fail.
        let _ = write!(row, "{cell:>12}");
    }
    row + "\n"
}

/// An amount in a unit, or a dash where it is not known.
fn amount(bytes: Option<f64>, unit: f64) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", bytes / unit))
}

fn cells(recorded: &Recorded) -> Vec<String> {
    let effects = recorded.effects;
    vec![
        format!("{:.0}", recorded.chunks_per_second),
        format!("{:.1}%", recorded.squash_share * 100.0),
        format!("{:.0}", recorded.faults_avoided_per_second),
        amount(Some(effects.bytes_per_second), MIB),
        amount(effects.bytes_per_billion_instructions, MIB),
    ]
}

fn protected_cells(recorded: &Recorded) -> Vec<String> {
    let sent = recorded.sent.as_ref();
    let orders = sent.map(|sent| sent.orders);
    let share = sent.map_or_else(
        || "-".to_owned(),
        |sent| format!("{:.1}%", sent.order_share * 100.0),
    );
    let mut cells = vec![
        amount(sent.map(|sent| sent.all.bytes_per_second), MIB),
        share,
        amount(orders.map(|orders| orders.bytes_per_second), KIB),
        amount(
            orders.and_then(|orders| orders.bytes_per_billion_instructions),
            KIB,
        ),
        amount(sent.and_then(|sent| sent.bytes_per_order), 1.0),
    ];
    let lag = recorded.lag_verified_us;
    let lags = [
        lag.map(|lag| lag.p50),
        lag.map(|lag| lag.p99),
        lag.map(|lag| lag.max),
    ];
    cells.extend(lags.map(|us| amount(us.map(|us| us as f64), 1e3)));
    cells
}

fn notes(results: &Results) -> String {
    let all = results.workloads.iter().chain(&results.machines);
    let mut how: Vec<_> = all
        .filter_map(|one| Some(one.instructions?.how.about()))
        .collect();
    how.dedup();
    let instructions = match how.as_slice() {
        [] => "not known: there is no counter, and no steady time stamp counter to estimate by",
        [first, ..] => first,
    };
    format!(
        "\
effects: bytes that chunks changed, in whichever form they travel; orders: chunks that travel as orders to run them again; sent: all encoded records
faults avoided: pages that a chunk changed although they were not faulted in, because the vCPU holds them
time: guest: in chunks that were committed; find: their changes; lock: waiting to commit; commit: under the lock; upkeep: of the view;
      lost: chunks for nothing; turn: waiting for a turn; backup: waiting for it; rest: nothing to do
instructions: {instructions}
"
    )
}

fn shown(spread: Spread) -> String {
    let Spread { median, min, max } = spread;
    format!("{median:.2} ({min:.2}..{max:.2})")
}

#[cfg(test)]
mod tests {
    use super::super::results::sample;
    use super::*;

    #[test]
    fn tables_read_well() {
        let text = tables(&sample());
        println!("{text}");
        for part in [
            "2 vCPUs, 3 rounds",
            "radix                            2.00 (1.90..2.20)       1.50 (1.40..1.60)       2.50 (2.40..2.60)",
            "geometric mean, recorded: 1.22 over the programs",
            "machines of their own",
            "linux ",
            "instructions: estimated",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let widths = text.lines().filter(|line| line.starts_with("radix"));
        assert_eq!(widths.count(), 4);
    }

    #[test]
    fn what_was_not_measured_has_no_column() {
        let mut results = sample();
        for one in &mut results.workloads {
            one.protected = None;
        }
        results.protected = None;
        let machines = std::mem::take(&mut results.machines);
        let text = tables(&results);
        assert!(!text.contains("what protection did") && !text.contains("mean, protected"));
        assert!(!text.contains("machines of their own"));
        results.workloads.clear();
        results.machines = machines;
        assert_eq!(tables(&results).matches("recorded / native").count(), 1);
    }
}
