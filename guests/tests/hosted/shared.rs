//! Programs that compute with whole numbers, with and without sharing, against models that do one thing after the other.

use std::collections::HashMap;
use std::iter::successors;

use crate::answers::{expect, mix, part, wrapping_sum};

type Point = [i64; 8];

fn point(i: u64, k: u64) -> Point {
    let coordinate = |d| {
        let middle = mix((mix(!i) % k) * 8 + d) % 49152;
        (middle + mix((i + 1000) * 8 + d) % 16384) as i64
    };
    [0, 1, 2, 3, 4, 5, 6, 7].map(coordinate)
}

fn distance(a: &Point, b: &Point) -> i64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// One round: each centre becomes the mean of the points that it is the nearest to. The cost before that.
fn round(points: &[Point], centres: &mut [Point]) -> i64 {
    let mut groups: Vec<Vec<&Point>> = vec![Vec::new(); centres.len()];
    let mut cost = 0;
    for point in points {
        let distances = centres.iter().map(|centre| distance(point, centre));
        let nearest = distances.zip(0..).min().expect("a centre");
        cost += nearest.0;
        groups[nearest.1].push(point);
    }
    for (centre, group) in centres.iter_mut().zip(&groups) {
        if !group.is_empty() {
            let count = group.len() as i64;
            *centre = [0, 1, 2, 3, 4, 5, 6, 7]
                .map(|d| group.iter().map(|point| point[d]).sum::<i64>() / count);
        }
    }
    cost
}

fn kmeans(n: u64, k: u64, rounds: u64, tries: u64) -> String {
    let points: Vec<Point> = (0..n).map(|i| point(i, k)).collect();
    let (mut best, mut sum) = (i64::MAX, 0u64);
    for t in 0..tries {
        let start = |c| points[(mix(t * 64 + c) % n) as usize];
        let mut centres: Vec<Point> = (0..k).map(start).collect();
        let costs = (0..rounds).map(|_| round(&points, &mut centres));
        best = best.min(costs.last().expect("a round"));
        let numbers = centres.iter().flatten().zip(t * 64 * 8..);
        let parts = numbers.map(|(coordinate, index)| part(*coordinate as u64, index));
        sum = sum.wrapping_add(wrapping_sum(parts));
    }
    format!("kmeans {n} best {best} checksum {sum:016x}\n")
}

#[test]
fn clusters_are_those_of_lloyd() {
    for (n, k, rounds, tries) in [(1, 1, 1, 1), (50, 64, 3, 2), (5000, 16, 8, 3)] {
        let params = format!("n={n} k={k} rounds={rounds} tries={tries}");
        expect("kmeans", &params, &kmeans(n, k, rounds, tries));
    }
}

/// What nobody takes from the table: the first items.
fn hashtable(n: u64, keys: u64, work: usize) -> String {
    let mut left: HashMap<u64, u64> = HashMap::new();
    for item in 0..n.min(keys / 4) {
        let index = successors(Some(mix(item)), |index| Some(mix(*index))).nth(work);
        let key = mix(index.expect("endless") % keys);
        *left.entry(key).or_default() += 1;
    }
    let sum = wrapping_sum(left.iter().map(|(key, count)| part(*count, *key)));
    format!("hashtable {n} keys {} checksum {sum:016x}\n", left.len())
}

#[test]
fn the_table_keeps_what_is_not_taken() {
    for (n, keys, stripes, work) in [
        (1, 4, 1, 0),
        (3000, 16, 64, 1),
        (40_000, 4096, 3, 0),
        (20_000, 50_000, 64, 7),
    ] {
        let params = format!("n={n} keys={keys} stripes={stripes} work={work}");
        expect("hashtable", &params, &hashtable(n, keys, work));
    }
}

const WORDS: u64 = 510;

/// The checksum of an item's block when it is scrambled.
fn scrambled(item: u64, work: u64) -> u64 {
    let mut words: Vec<u64> = (0..WORDS).map(|i| mix(item * WORDS + i)).collect();
    for _ in 0..work {
        let mut before = *words.last().expect("words");
        for word in &mut words {
            *word = (*word ^ before.rotate_left(13)).wrapping_mul(6_364_136_223_846_793_005);
            before = *word;
        }
    }
    wrapping_sum(words.iter().zip(0..).map(|(word, i)| part(*word, i)))
}

#[test]
fn the_queue_loses_nothing() {
    for (n, slots, work) in [(1, 1, 1), (200, 1, 2), (700, 16, 3), (700, 1024, 1)] {
        let sum = wrapping_sum((0..n).map(|item| part(scrambled(item, work), item)));
        let answer = format!("workqueue {n} checksum {sum:016x}\n");
        let params = format!("n={n} slots={slots} work={work}");
        expect("workqueue", &params, &answer);
    }
}

#[test]
fn streams_write_every_word() {
    for (n, passes) in [(1, 1), (513, 5), (100_000, 3)] {
        let words = (0..n).map(|i| {
            let (mut a, mut b, mut c) = (mix(i), 0u64, 0u64);
            for _ in 0..passes {
                b = a.wrapping_mul(3);
                c = a.wrapping_add(b);
                a = b.wrapping_add(c.wrapping_mul(3));
            }
            [a, b, c]
        });
        let indexed = words.flatten().zip(0..);
        let sum = wrapping_sum(indexed.map(|(word, index)| part(word, index)));
        let answer = format!("stream {n} checksum {sum:016x}\n");
        expect("stream", &format!("n={n} passes={passes}"), &answer);
    }
}

#[test]
fn points_in_a_circle_are_counted() {
    for n in [1i64, 2, 3, 25, 1000, 99_999] {
        let side = -n.isqrt()..=n.isqrt();
        let columns = |x: i64| side.clone().filter(|y| x * x + y * y <= n).count();
        let points: usize = side.clone().map(columns).sum();
        let answer = format!("compute {n} points {points}\n");
        expect("compute", &format!("n={n}"), &answer);
        expect("compute", &format!("n={n} pace=1"), &answer);
    }
}
