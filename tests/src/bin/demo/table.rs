//! The table at the end.

use std::fmt::Display;
use std::time::Duration;

use samsarad::report::QuantilesUs;

use crate::watch::{Killed, Survived};

/// Renders it.
pub(crate) fn render(killed: &Killed, survived: &Survived) -> String {
    let (first, second) = (&killed.status.counters, &survived.report);
    let rows = [
        row("", "primary", "survivor"),
        row("commits", first.commits, second.commits),
        row("squashes", first.squashes, second.squashes),
        row("lag p50 / p99, commits", pair(killed.lag_commits, 0), "-"),
        row("lag p50 / p99, ms", pair(killed.lag_ms, 2), "-"),
        row(
            "output hold p50 / p99, ms",
            pair(killed.hold_ms, 2),
            pair(hold(second.output_hold_us), 2),
        ),
        String::new(),
        row(
            "from the kill to detection, ms",
            "",
            ms(survived.detected_after),
        ),
        row(
            "from the kill to promotion, ms",
            "",
            ms(promotion(killed, survived)),
        ),
        row(
            "from the kill to first output, ms",
            "",
            ms(survived.first_output_after),
        ),
        row(
            "from the kill to the end, ms",
            "",
            ms(Some(survived.ended_after)),
        ),
    ];
    rows.concat()
}

fn row(name: &str, first: impl Display, second: impl Display) -> String {
    // Padding is for text: not everything that can be shown pads itself.
    let [first, second] = [format!("{first}"), format!("{second}")];
    format!("  {name:<36}{first:>18}{second:>18}\n")
}

fn pair(values: Option<[f64; 2]>, digits: usize) -> String {
    let shown = |[p50, p99]: [f64; 2]| format!("{p50:.digits$} / {p99:.digits$}");
    values.map_or("not measured".to_owned(), shown)
}

fn hold(quantiles: QuantilesUs) -> Option<[f64; 2]> {
    let values = [quantiles.p50, quantiles.p99].map(|us| us as f64 / 1e3);
    (quantiles.count > 0).then_some(values)
}

fn ms(duration: Option<Duration>) -> String {
    duration.map_or("not seen".to_owned(), |duration| {
        format!("{:.1}", duration.as_secs_f64() * 1e3)
    })
}

/// The role changes of the survivor's report say when it became primary.
fn promotion(killed: &Killed, survived: &Survived) -> Option<Duration> {
    let changes = &survived.report.role_changes;
    let promoted = changes
        .iter()
        .find(|change| change.role == samsara_config::Role::Primary)?;
    Some(Duration::from_millis(
        promoted.at_unix_ms.saturating_sub(killed.at_unix_ms),
    ))
}
