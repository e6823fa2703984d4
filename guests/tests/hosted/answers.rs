//! Computing programs against straightforward models of them.

use crate::host::{MIB, Run};

const VCPUS: [u32; 4] = [1, 2, 4, 7];

pub(crate) fn mix(index: u64) -> u64 {
    let mut z = index
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

pub(crate) fn unit(index: u64) -> f64 {
    (mix(index) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// One item's part of a checksum, which is the wrapping sum of them.
pub(crate) fn part(bits: u64, index: u64) -> u64 {
    mix(bits ^ mix(index))
}

pub(crate) fn wrapping_sum(parts: impl Iterator<Item = u64>) -> u64 {
    parts.fold(0, u64::wrapping_add)
}

fn checksum(values: impl Iterator<Item = f64>) -> u64 {
    let indexed = values.zip(0u64..);
    wrapping_sum(indexed.map(|(value, index)| part(value.to_bits(), index)))
}

pub(crate) fn expect(program: &str, params: &str, answer: &str) {
    for vcpus in VCPUS {
        let found = Run::of(program).vcpus(vcpus).params(params).answer();
        assert_eq!(found, answer, "{program} x{vcpus} [{params}]");
    }
}

#[test]
fn counters_are_exact() {
    for mode in ["atomic", "lock", "ticket"] {
        expect(
            "counter",
            &format!("n=20011 mode={mode}"),
            "counter 20011\n",
        );
    }
    expect("counter", "n=1", "counter 1\n");
    expect("counter", "n=4K spin=0", "counter 4096\n");
}

#[test]
fn radix_sorts() {
    for n in [1, 3, 1000, 50_021] {
        let mut keys: Vec<u64> = (0..n).map(mix).collect();
        keys.sort_unstable();
        let sum = keys.iter().fold(0u64, |sum, key| sum.wrapping_add(*key));
        let order = keys.iter().zip(0u64..).fold(0u64, |sum, (key, index)| {
            sum.wrapping_add(key.wrapping_mul(2 * index + 1))
        });
        let answer = format!("radix {n} sum {sum:016x} order {order:016x}\n");
        expect("radix", &format!("n={n} passes=2"), &answer);
    }
}

/// Unblocked, row by row: the same operations on every element, in the same order.
fn lu_checksum(n: u64) -> u64 {
    let size = n as usize;
    let element = |i: u64, j: u64| unit(i * 0x10000 + j) + if i == j { n as f64 } else { 0.0 };
    let mut a: Vec<Vec<f64>> = (0..n)
        .map(|i| (0..n).map(|j| element(i, j)).collect())
        .collect();
    for k in 0..size {
        let pivot = a[k].clone();
        for row in &mut a[k + 1..] {
            row[k] /= pivot[k];
            let factor = row[k];
            for (value, above) in row[k + 1..].iter_mut().zip(&pivot[k + 1..]) {
                *value -= factor * above;
            }
        }
    }
    checksum(a.into_iter().flatten())
}

#[test]
fn lu_is_the_unblocked_one_to_the_bit() {
    for (asked, n) in [(32, 32), (33, 64), (160, 160)] {
        let answer = format!("lu {n} checksum {:016x}\n", lu_checksum(n));
        expect("lu", &format!("n={asked}"), &answer);
    }
}

#[derive(Clone, Copy)]
struct Complex(f64, f64);

impl Complex {
    fn times(self, other: Self) -> Self {
        let Self(a, b) = self;
        let Self(c, d) = other;
        Self(a * c - b * d, a * d + b * c)
    }
    fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0, self.1 + other.1)
    }
    fn minus(self, other: Self) -> Self {
        Self(self.0 - other.0, self.1 - other.1)
    }
}

pub(crate) fn alternating_series(square: f64, first: u16, last: u16) -> f64 {
    (first..=last).step_by(2).rev().fold(1.0, |sum, k| {
        1.0 - square / f64::from(u32::from(k) * u32::from(k + 1)) * sum
    })
}

/// e^(-2 pi i k / n), by the program's series; close to what the standard library says.
fn twiddle(k: u64, n: u64) -> Complex {
    let (octant, rest) = (k / (n / 8), k % (n / 8));
    let rest = if octant % 2 == 1 { n / 8 - rest } else { rest };
    let angle = std::f64::consts::FRAC_PI_4 * (rest as f64 / (n / 8) as f64);
    let sine = angle * alternating_series(angle * angle, 2, 16);
    let cosine = alternating_series(angle * angle, 1, 17);
    let found = match octant {
        0 => Complex(cosine, -sine),
        1 => Complex(sine, -cosine),
        2 => Complex(-sine, -cosine),
        _ => Complex(-cosine, -sine),
    };
    let exact = std::f64::consts::TAU * k as f64 / n as f64;
    assert!((found.0 - exact.cos()).abs() < 1e-15);
    assert!((found.1 + exact.sin()).abs() < 1e-15);
    found
}

/// Decimation in frequency by halves; the spectrum comes out in bit-reversed order.
fn forward(data: &mut [Complex], n: u64) {
    let half = data.len() / 2;
    if half == 0 {
        return;
    }
    let stride = n / data.len() as u64;
    let (low, high) = data.split_at_mut(half);
    for ((a, b), k) in low.iter_mut().zip(high.iter_mut()).zip(0u64..) {
        (*a, *b) = (a.plus(*b), a.minus(*b).times(twiddle(k * stride, n)));
    }
    forward(low, n);
    forward(high, n);
}

fn backward(data: &mut [Complex], n: u64) {
    let half = data.len() / 2;
    if half == 0 {
        return;
    }
    let stride = n / data.len() as u64;
    let (low, high) = data.split_at_mut(half);
    backward(low, n);
    backward(high, n);
    for ((a, b), k) in low.iter_mut().zip(high.iter_mut()).zip(0u64..) {
        let Complex(re, im) = twiddle(k * stride, n);
        let turned = b.times(Complex(re, -im));
        (*a, *b) = (a.plus(turned), a.minus(turned));
    }
}

fn checksum_of(data: &[Complex]) -> u64 {
    checksum(data.iter().flat_map(|value| [value.0, value.1]))
}

#[test]
fn fft_is_the_recursive_one_to_the_bit() {
    for log2 in [5, 7, 12] {
        let n = 1u64 << log2;
        let mut data: Vec<Complex> = (0..n)
            .map(|i| Complex(unit(2 * i), unit(2 * i + 1)))
            .collect();
        forward(&mut data, n);
        let spectrum = checksum_of(&data);
        backward(&mut data, n);
        let sum = spectrum.wrapping_add(checksum_of(&data));
        let answer = format!("fft {n} checksum {sum:016x}\n");
        expect("fft", &format!("log2={log2} passes=2"), &answer);
    }
}

/// What one vCPU of `private` adds and reads.
fn private_line(vcpu: u64, n: u64, pages: u64) -> String {
    let mut words = vec![0u64; (pages * 512) as usize];
    let (mut state, mut sum, mut read) = (mix(vcpu), 0u64, 0u64);
    for _ in 0..n {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let word = &mut words[(((state >> 32) * pages * 512) >> 32) as usize];
        if state & (1 << 20) == 0 {
            read = read.rotate_left(5) ^ *word;
        } else {
            *word = word.wrapping_add(state);
            sum = sum.wrapping_add(state);
        }
    }
    format!("private {vcpu} sum {sum:016x} read {read:016x}\n")
}

#[test]
fn private_memory_stays_private() {
    for (vcpus, n, pages) in [(1, 1000, 1), (2, 30_000, 64), (5, 30_000, 3)] {
        let answer: String = (0..vcpus).map(|v| private_line(v, n, pages)).collect();
        let params = format!("n={n} pages={pages}");
        let run = Run::of("private").vcpus(vcpus as u32).params(&params);
        assert_eq!(run.answer(), answer);
    }
}

#[test]
fn sixteen_vcpus_agree_with_one() {
    for (program, params) in [
        ("counter", "n=10000"),
        ("radix", "n=10000"),
        ("lu", "n=128"),
        ("fft", "log2=10"),
        ("ocean", "n=61 sweeps=9"),
        ("nbody", "n=1100 steps=1"),
        ("blackscholes", "n=9000 passes=2"),
        ("kmeans", "n=20000 k=5 rounds=3"),
        ("hashtable", "n=50000"),
        ("workqueue", "n=300 slots=5"),
        ("stream", "n=20000"),
        ("compute", "n=100000"),
        ("compute", "n=3M pace=100"),
    ] {
        let run = |vcpus| Run::of(program).vcpus(vcpus).params(params).answer();
        assert_eq!(run(1), run(16), "{program}");
    }
}

#[test]
fn too_little_memory_is_said() {
    let run = Run::of("radix").memory(16 * MIB).params("n=1G").outcome();
    assert_eq!(run.status, i32::from(samsara_guests::STATUS_BAD_PARAMS));
    assert!(run.text().contains("raise vm.memory"), "{}", run.text());
}
