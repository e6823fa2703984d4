//! Programs that compute with real numbers, against plain loops that do the same operations; and what they rest on
//! against the standard library.

use std::f64::consts::{FRAC_PI_4, LN_2, PI, SQRT_2};

use crate::answers::{alternating_series, expect, mix, part, unit, wrapping_sum};

fn is_near(found: f64, exact: f64) -> bool {
    (found - exact).abs() <= 1e-14 * exact.abs().max(1.0)
}

fn sine(x: f64) -> f64 {
    x * alternating_series(x * x, 2, 16)
}

fn cosine(x: f64) -> f64 {
    alternating_series(x * x, 1, 17)
}

/// sin(pi i / (n + 1)), by the program's series.
fn wave(i: u64, n: u64) -> f64 {
    let near = i.min(n + 1 - i);
    let angle = (4 * near) as f64 / (n + 1) as f64;
    let found = if 4 * near <= n + 1 {
        sine(FRAC_PI_4 * angle)
    } else {
        cosine(FRAC_PI_4 * (2.0 - angle))
    };
    assert!(is_near(found, (PI * i as f64 / (n + 1) as f64).sin()));
    found
}

/// Red-black relaxation of a grid of rows.
fn ocean(n: u64, sweeps: u64) -> String {
    let start = |row: u64, column: u64| {
        let side = (n + 1) as f64;
        row as f64 / side * (column as f64 / side) + wave(row, n) * wave(column, n)
    };
    let row = |row| (0..n + 2).map(move |column| start(row, column)).collect();
    let mut grid: Vec<Vec<f64>> = (0..n + 2).map(row).collect();
    let inside = 1..=n as usize;
    let mut most = 0.0f64;
    for _ in 0..sweeps {
        most = 0.0;
        for colour in 0..2 {
            for (i, j) in inside
                .clone()
                .flat_map(|i| inside.clone().map(move |j| (i, j)))
            {
                if (i + j) % 2 == colour {
                    let mean = ((grid[i - 1][j] + grid[i + 1][j])
                        + (grid[i][j - 1] + grid[i][j + 1]))
                        * 0.25;
                    most = most.max((mean - grid[i][j]).abs());
                    grid[i][j] = mean;
                }
            }
        }
    }
    let points = (1..=n).flat_map(|i| (1..=n).map(move |j| (i, j)));
    let parts = points.map(|(i, j)| part(grid[i as usize][j as usize].to_bits(), i * (n + 2) + j));
    let sum = wrapping_sum(parts);
    format!(
        "ocean {n} change {:016x} checksum {sum:016x}\n",
        most.to_bits()
    )
}

#[test]
fn ocean_is_relaxed_point_by_point() {
    for (n, sweeps) in [(3, 1), (4, 200), (37, 20), (600, 3)] {
        expect(
            "ocean",
            &format!("n={n} sweeps={sweeps}"),
            &ocean(n, sweeps),
        );
    }
}

type Vector = [i64; 3];

const UNITS: f64 = (1u64 << 48) as f64;

/// The pull of `other` on `one`.
fn pull(one: Vector, other: Vector, mass: f64) -> Vector {
    let away = [0, 1, 2].map(|axis| (other[axis] - one[axis]) as f64 / UNITS);
    let square = away.iter().fold(1.0 / 256.0, |sum, a| sum + a * a);
    let strength = mass / (square * square.sqrt());
    away.map(|a| (a * strength) as i64)
}

/// Every body looks at every other; nothing is done in pairs, and time is not turned round.
fn nbody(n: u64, steps: u64) -> String {
    let mass = (1u64 << 32) as f64 / n as f64;
    let start = |i, from, scale| [0, 1, 2].map(|axis| (unit(i * 6 + from + axis) * scale) as i64);
    let mut places: Vec<Vector> = (0..n).map(|i| start(i, 0, UNITS)).collect();
    let mut speeds: Vec<Vector> = (0..n).map(|i| start(i, 3, UNITS / 1024.0)).collect();
    let add = |a: Vector, b: Vector| [0, 1, 2].map(|axis| a[axis] + b[axis]);
    for _ in 0..steps {
        for (speed, one) in speeds.iter_mut().zip(&places) {
            let pulls = places.iter().map(|other| pull(*one, *other, mass));
            *speed = pulls.fold(*speed, add);
        }
        for (place, speed) in places.iter_mut().zip(&speeds) {
            *place = add(*place, *speed);
        }
    }
    let numbers = places.iter().zip(&speeds);
    let numbers = numbers.flat_map(|(place, speed)| place.iter().chain(speed));
    let sum = wrapping_sum(numbers.zip(0..).map(|(number, i)| part(*number as u64, i)));
    format!("nbody {n} checksum {sum:016x}\n")
}

#[test]
fn bodies_are_pulled_by_all_others() {
    for (asked, n, steps) in [(1, 64, 1), (64, 64, 40), (300, 320, 5)] {
        let params = format!("n={asked} steps={steps}");
        expect("nbody", &params, &nbody(n, steps));
    }
}

/// ln 2 in two parts.
const LN_2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
const LN_2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);

/// e^x by the program's series.
fn exponential(x: f64) -> f64 {
    assert!((-700.0..700.0).contains(&x));
    let power = (x / LN_2 + if x < 0.0 { -0.5 } else { 0.5 }) as i64;
    let rest = (x - power as f64 * LN_2_HIGH) - power as f64 * LN_2_LOW;
    let series = (1..=14)
        .rev()
        .fold(1.0, |sum, k| 1.0 + rest / f64::from(k) * sum);
    let found = series * f64::from_bits(((power + 1023) as u64) << 52);
    assert!((found / x.exp() - 1.0).abs() < 1e-14, "e^{x}");
    found
}

/// The natural logarithm of a number from 1/4 to 4 by the program's series.
fn logarithm(x: f64) -> f64 {
    let powers = [-2, -1, 0, 1, 2];
    let power = powers
        .into_iter()
        .find(|power| x / f64::powi(2.0, *power) <= SQRT_2);
    let power = power.expect("a number up to 4");
    let mantissa = x / f64::powi(2.0, power);
    let ratio = (mantissa - 1.0) / (mantissa + 1.0);
    let series = (1u16..=21)
        .step_by(2)
        .rev()
        .fold(0.0, |sum, k| 1.0 / f64::from(k) + ratio * ratio * sum);
    let power = f64::from(power);
    let found = power * LN_2_HIGH + (power * LN_2_LOW + 2.0 * ratio * series);
    assert!(is_near(found, x.ln()), "ln {x}");
    found
}

fn normal(x: f64) -> f64 {
    let k = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let factors = [
        1.330_274_429,
        -1.821_255_978,
        1.781_477_937,
        -0.356_563_782,
        0.319_381_530,
    ];
    let series = factors.into_iter().fold(0.0, |sum, a| k * (a + sum));
    let tail = 0.398_942_280_401_432_7 * exponential(-0.5 * x * x) * series;
    if x < 0.0 { tail } else { 1.0 - tail }
}

fn price(i: u64) -> f64 {
    let between = |low, high, k| low + (high - low) * (0.5 + 0.5 * unit(8 * i + k));
    let (spot, strike) = (between(50.0, 150.0, 0), between(50.0, 150.0, 1));
    let (rate, volatility) = (between(0.01, 0.1, 2), between(0.1, 0.6, 3));
    let years: f64 = between(0.1, 2.0, 4);
    let spread = volatility * years.sqrt();
    let drift = (rate + 0.5 * volatility * volatility) * years;
    let d1 = (logarithm(spot / strike) + drift) / spread;
    let discounted = strike * exponential(-(rate * years));
    if mix(8 * i + 5) % 2 == 1 {
        discounted * normal(-(d1 - spread)) - spot * normal(-d1)
    } else {
        spot * normal(d1) - discounted * normal(d1 - spread)
    }
}

#[test]
fn options_are_worth_what_the_formula_says() {
    for n in [1, 100, 5000] {
        let sum = wrapping_sum((0..n).map(|i| part(price(i).to_bits(), i)));
        let answer = format!("blackscholes {n} checksum {sum:016x}\n");
        expect("blackscholes", &format!("n={n} passes=2"), &answer);
    }
}
