//! The table, and the numbers behind it.

use serde::Serialize;

use crate::measure::{Measured, Spread};

/// Everything, for the JSON file.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    vcpus: u32,
    rounds: u32,
    workloads: Vec<Measured>,
    recorded_ratio_geometric_mean: f64,
    protected_ratio_geometric_mean: Option<f64>,
}

impl Summary {
    pub(crate) fn of(vcpus: u32, rounds: u32, workloads: Vec<Measured>) -> Self {
        let recorded = workloads.iter().map(|one| one.recorded_ratio.median);
        let recorded = geometric_mean(recorded).unwrap_or_default();
        let protected = workloads.iter().filter_map(|one| one.protected_ratio);
        let protected = geometric_mean(protected.map(|ratio| ratio.median));
        Self {
            vcpus,
            rounds,
            workloads,
            recorded_ratio_geometric_mean: recorded,
            protected_ratio_geometric_mean: protected,
        }
    }
}

fn geometric_mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut logarithms, mut count) = (0.0, 0_u32);
    for value in values {
        logarithms += value.ln();
        count += 1;
    }
    (count > 0).then(|| (logarithms / f64::from(count)).exp())
}

pub(crate) fn head(protected: bool) -> String {
    let more = if protected {
        "      protected/native"
    } else {
        ""
    };
    format!(
        "{:<18}{:>9}{:>22}{:>9}{:>11}{:>15}{more}",
        "", "native s", "recorded/native", "squash", "commits/s", "effects MiB/s"
    )
}

pub(crate) fn row(one: &Measured) -> String {
    let count = one.native_seconds.len().max(1);
    let native: f64 = one.native_seconds.iter().sum::<f64>() / count as f64;
    let protected = one
        .protected_ratio
        .map_or(String::new(), |ratio| format!("{:>22}", shown(ratio)));
    format!(
        "{:<18}{native:>9.2}{:>22}{:>7.1} %{:>11.0}{:>15.1}{protected}",
        one.name,
        shown(one.recorded_ratio),
        one.squash_share * 100.0,
        one.commits_per_second,
        one.effect_mib_per_second,
    )
}

pub(crate) fn foot(summary: &Summary) -> String {
    let recorded = format!("{:.2}", summary.recorded_ratio_geometric_mean);
    let protected = summary.protected_ratio_geometric_mean;
    let protected = protected.map_or(String::new(), |mean| format!("; protected {mean:.2}"));
    format!("geometric mean of the medians: recorded {recorded}{protected}")
}

fn shown(ratio: Spread) -> String {
    format!("{:.2} ({:.2}..{:.2})", ratio.median, ratio.min, ratio.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometric_means() {
        let mean = geometric_mean([1.0, 4.0].into_iter()).unwrap();
        assert!((mean - 2.0).abs() < 1e-12, "{mean}");
        assert_eq!(geometric_mean(std::iter::empty()), None);
    }
}
