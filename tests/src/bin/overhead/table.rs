//! The table, and the numbers behind it.

use serde::Serialize;

use crate::measure::{Measured, Spread};

/// Everything, for the JSON file.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    vcpus: u32,
    rounds: u32,
    workloads: Vec<Measured>,
    recorded: Means,
    protected: Option<Means>,
}

/// Geometric means of the rows' median ratios.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Means {
    /// Every program counts once: its ratio is the mean of its rows'.
    programs: f64,
    /// Every row counts once.
    rows: f64,
}

impl Means {
    /// Of programs' names and ratios; rows of a program are neighbours.
    fn of(rows: &[(&str, f64)]) -> Option<Self> {
        let mean_of = |rows: &[(&str, f64)]| geometric_mean(rows.iter().map(|row| row.1));
        let programs = rows.chunk_by(|a, b| a.0 == b.0).filter_map(mean_of);
        Some(Self {
            programs: geometric_mean(programs)?,
            rows: mean_of(rows)?,
        })
    }
}

impl std::fmt::Display for Means {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} over the programs, {:.2} over the rows",
            self.programs, self.rows
        )
    }
}

impl Summary {
    pub(crate) fn of(vcpus: u32, rounds: u32, workloads: Vec<Measured>) -> Self {
        let ratios = |of: fn(&Measured) -> Option<Spread>| {
            let ratio = |one: &Measured| Some((one.program, of(one)?.median));
            Means::of(&workloads.iter().filter_map(ratio).collect::<Vec<_>>())
        };
        let nothing = Means {
            programs: 0.0,
            rows: 0.0,
        };
        Self {
            vcpus,
            rounds,
            recorded: ratios(|one| Some(one.recorded_ratio)).unwrap_or(nothing),
            protected: ratios(|one| one.protected_ratio),
            workloads,
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
    let protected = summary.protected;
    let protected = protected.map_or(String::new(), |means| format!("; protected {means}"));
    format!(
        "geometric means of the medians: recorded {}{protected}",
        summary.recorded
    )
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

    #[test]
    fn a_program_counts_once_however_many_rows_it_has() {
        let means = Means::of(&[("a", 2.0), ("a", 8.0), ("b", 1.0)]).unwrap();
        assert!((means.programs - 2.0).abs() < 1e-12, "{means}");
        assert!((means.rows - 16_f64.cbrt()).abs() < 1e-12, "{means}");
        assert_eq!(Means::of(&[]), None);
    }
}
