//! Numbers of several rounds.

use serde::Serialize;

/// Median, least and greatest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Of some values; of none there is none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self {
            median: f64::midpoint(low, high),
            min,
            max,
        })
    }
}

/// Geometric means of the median ratios of workloads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Means {
    /// Every program counts once: its ratio is the mean of its workloads'.
    pub(super) programs: f64,
    /// Every workload counts once.
    pub(super) workloads: f64,
}

impl Means {
    /// Of programs' names and ratios; workloads of a program are neighbours.
    pub(super) fn of(ratios: &[(&str, f64)]) -> Option<Self> {
        let mean_of = |part: &[(&str, f64)]| geometric_mean(part.iter().map(|one| one.1));
        let programs = ratios.chunk_by(|a, b| a.0 == b.0).filter_map(mean_of);
        Some(Self {
            programs: geometric_mean(programs)?,
            workloads: mean_of(ratios)?,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let spread = |median, min, max| Some(Spread { median, min, max });
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), spread(2.0, 1.0, 3.0));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 8.0]), spread(3.0, 1.0, 8.0));
    }

    #[test]
    fn a_program_counts_once_however_many_workloads_it_has() {
        let means = Means::of(&[("a", 2.0), ("a", 8.0), ("b", 1.0)]).unwrap();
        assert!((means.programs - 2.0).abs() < 1e-12, "{means:?}");
        assert!((means.workloads - 16_f64.cbrt()).abs() < 1e-12, "{means:?}");
        assert_eq!(Means::of(&[]), None);
    }
}
