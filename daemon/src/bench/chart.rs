//! The ratios as a chart: two bars a workload, with whiskers from the least to the greatest of the rounds.

use super::measure::{Measured, Recorded};
use super::results::Results;
use super::spread::Spread;
use super::svg::{Anchor, Svg};

const WIDTH: f64 = 860.0;
/// Room for names, on the left of the axis.
const LEFT: f64 = 190.0;
/// Room for numbers, on the right of the longest bar.
const RIGHT: f64 = 60.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = 58.0;
const BAR: f64 = 11.0;
const ROW_GAP: f64 = 10.0;
/// Between groups.
const GROUP_GAP: f64 = 14.0;
/// About so many steps of the axis.
const TICKS: f64 = 8.0;

/// Kinds of bars: class and what it is called.
const KINDS: [(&str, &str); 2] = [("first", "recorded"), ("second", "protected")];

struct Row {
    name: String,
    /// By kind; a mean has no whiskers.
    bars: [Option<Spread>; 2],
    begins_group: bool,
}

impl Row {
    fn of(one: &Measured) -> Self {
        let ratio = |recorded: &Option<Recorded>| recorded.as_ref().map(|recorded| recorded.ratio);
        Self {
            name: one.name.clone(),
            bars: [ratio(&one.recorded), ratio(&one.protected)],
            begins_group: false,
        }
    }
}

/// Draws the ratios.
pub(super) fn chart(results: &Results) -> String {
    let rows = rows(results);
    let kinds: Vec<usize> = (0..KINDS.len())
        .filter(|&kind| rows.iter().any(|row| row.bars[kind].is_some()))
        .collect();
    let row_height = BAR * kinds.len().max(1) as f64 + ROW_GAP;
    let groups = rows.iter().filter(|row| row.begins_group).count();
    let plot_height = rows.len() as f64 * row_height + groups as f64 * GROUP_GAP;
    let greatest = rows.iter().flat_map(|row| row.bars.iter().flatten());
    let axis = Axis::up_to(greatest.map(|bar| bar.max).fold(1.0, f64::max));
    let height = TOP + plot_height + BOTTOM;
    let mut svg = Svg::new(
        WIDTH,
        height,
        "Time of recorded and protected guests over native",
        "Bars: medians of the rounds. Whiskers: the least and the greatest.",
    );
    head(&mut svg, results, &kinds);
    axis.draw(&mut svg, TOP + plot_height);
    let mut y = TOP;
    for row in &rows {
        if row.begins_group {
            svg.line(
                "grid",
                [12.0, y + GROUP_GAP / 2.0 - ROW_GAP / 2.0],
                [WIDTH - 12.0, y + GROUP_GAP / 2.0 - ROW_GAP / 2.0],
            );
            y += GROUP_GAP;
        }
        draw_row(&mut svg, row, &kinds, &axis, y);
        y += row_height;
    }
    svg.finish()
}

fn rows(results: &Results) -> Vec<Row> {
    let mut rows: Vec<_> = results.workloads.iter().map(Row::of).collect();
    let mean = |means: Option<super::spread::Means>| {
        means.map(|means| Spread {
            median: means.programs,
            min: means.programs,
            max: means.programs,
        })
    };
    if results.workloads.len() > 1 {
        rows.push(Row {
            name: "geometric mean".to_owned(),
            bars: [mean(results.recorded), mean(results.protected)],
            begins_group: true,
        });
    }
    let machines = results.machines.iter().map(Row::of).enumerate();
    rows.extend(machines.map(|(index, row)| Row {
        begins_group: index == 0,
        ..row
    }));
    rows
}

fn head(svg: &mut Svg, results: &Results, kinds: &[usize]) {
    let title = "Time over native";
    svg.text("title", [12.0, 26.0], Anchor::Start, title);
    let facts = format!(
        "{} vCPUs, medians of {} rounds, whiskers from the least to the greatest; {}, {} processors",
        results.vcpus, results.rounds, results.host.processor, results.host.processors
    );
    svg.text("quiet", [12.0, 46.0], Anchor::Start, &facts);
    let mut x = 12.0;
    for &kind in kinds {
        let (class, name) = KINDS[kind];
        svg.bar(class, [x, 60.0], [BAR, BAR]);
        svg.text("", [x + BAR + 6.0, 70.0], Anchor::Start, name);
        x += 100.0;
    }
}

fn draw_row(svg: &mut Svg, row: &Row, kinds: &[usize], axis: &Axis, top: f64) {
    let middle = top + BAR * kinds.len() as f64 / 2.0;
    svg.text("", [LEFT - 10.0, middle + 4.0], Anchor::End, &row.name);
    for (place, &kind) in (0_u8..).zip(kinds) {
        let Some(bar) = row.bars[kind] else {
            continue;
        };
        let y = top + f64::from(place) * BAR;
        let (start, end) = (axis.x(0.0), axis.x(bar.median));
        svg.bar(KINDS[kind].0, [start, y], [end - start, BAR - 1.0]);
        let centre = y + (BAR - 1.0) / 2.0;
        if bar.max > bar.min {
            let (min, max) = (axis.x(bar.min), axis.x(bar.max));
            svg.line("whisker", [min, centre], [max, centre]);
            for x in [min, max] {
                svg.line("whisker", [x, centre - 3.0], [x, centre + 3.0]);
            }
        }
        let number = format!("{:.2}", bar.median);
        let beside = [axis.x(bar.max) + 6.0, centre + 4.0];
        svg.text("", beside, Anchor::Start, &number);
    }
}

/// A linear axis from 0.
struct Axis {
    step: f64,
    steps: u32,
}

impl Axis {
    /// With round steps, up to at least `greatest`.
    fn up_to(greatest: f64) -> Self {
        let rough = (greatest / TICKS).max(0.01);
        let power = 10_f64.powf(rough.log10().floor());
        let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
        let step = factors.into_iter().map(|factor| factor * power);
        let step = step.into_iter().find(|step| *step >= rough * 0.999);
        let step = step.unwrap_or(power * 10.0);
        Self {
            step,
            steps: (greatest / step).ceil() as u32,
        }
    }

    fn end(&self) -> f64 {
        f64::from(self.steps) * self.step
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + value / self.end() * (WIDTH - LEFT - RIGHT)
    }

    fn draw(&self, svg: &mut Svg, bottom: f64) {
        for tick in 0..=self.steps {
            let value = f64::from(tick) * self.step;
            let x = self.x(value);
            svg.line("grid", [x, TOP - 6.0], [x, bottom]);
            let label = format!("{value:.2}");
            let label = label.trim_end_matches('0').trim_end_matches('.');
            svg.text("quiet", [x, bottom + 18.0], Anchor::Middle, label);
        }
        let native = self.x(1.0);
        svg.line("native", [native, TOP - 6.0], [native, bottom]);
        svg.text(
            "quiet",
            [LEFT.midpoint(WIDTH - RIGHT), bottom + 40.0],
            Anchor::Middle,
            "time of the guest / its time in a VM that is not recorded (1: recording costs nothing)",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::sample;
    use super::*;

    /// Elements of a class, by one of their attributes.
    fn values(svg: &str, class: &str, name: &str) -> Vec<f64> {
        let lines = svg
            .lines()
            .filter(|line| line.contains(&format!("class=\"{class}\"")));
        let value = |line: &str| {
            let (_, rest) = line.split_once(&format!(" {name}=\""))?;
            rest.split_once('"')?.0.parse().ok()
        };
        lines.filter_map(value).collect()
    }

    #[test]
    fn bars_are_as_long_as_ratios() {
        let svg = chart(&sample());
        // The legend's, two programs, their mean, a machine.
        let recorded = values(&svg, "first", "width");
        assert_eq!(recorded.len(), 5);
        assert!(
            (recorded[1] / recorded[2] - 1.5).abs() < 0.01,
            "{recorded:?}"
        );
        assert!(
            (recorded[4] / recorded[2] - 3.7).abs() < 0.01,
            "{recorded:?}"
        );
        let protected = values(&svg, "second", "width");
        assert!((protected[1] / recorded[2] - 2.5).abs() < 0.01);
        // Three lines a whisker; the mean has none.
        assert_eq!(values(&svg, "whisker", "x1").len(), 3 * 6);
        let inside = |x: &f64| (LEFT..=WIDTH - RIGHT).contains(x);
        assert!(values(&svg, "whisker", "x2").iter().all(inside));
    }

    #[test]
    fn everything_is_labelled_and_no_name_becomes_markup() {
        let svg = chart(&sample());
        for part in [
            ">radix</text>",
            ">compute</text>",
            ">geometric mean</text>",
            ">linux &lt;compute &amp; files&gt;</text>",
            ">recorded</text>",
            ">protected</text>",
            ">1.50</text>",
            "prefers-color-scheme: dark",
            "time of the guest /",
        ] {
            assert!(svg.contains(part), "no {part} in\n{svg}");
        }
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn without_protected_runs_there_are_no_bars_for_them() {
        let mut results = sample();
        for one in results.workloads.iter_mut().chain(&mut results.machines) {
            one.protected = None;
        }
        results.protected = None;
        let svg = chart(&results);
        assert_eq!(values(&svg, "second", "width"), [] as [f64; 0]);
        assert!(!svg.contains(">protected</text>"));
    }

    #[test]
    fn steps_are_round() {
        for (greatest, step, end) in [
            (1.0, 0.2, 1.0),
            (1.7, 0.25, 1.75),
            (2.6, 0.5, 3.0),
            (8.1, 2.0, 10.0),
            (130.0, 20.0, 140.0),
        ] {
            let axis = Axis::up_to(greatest);
            assert!((axis.step - step).abs() < 1e-9, "{greatest}: {}", axis.step);
            assert!(
                (axis.end() - end).abs() < 1e-9,
                "{greatest}: {}",
                axis.end()
            );
        }
    }
}
