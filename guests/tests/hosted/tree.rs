//! The SHA-256 tree against the `sha2` crate.

use sha2::{Digest, Sha256};

use crate::host::{MIB, Run, input_bytes, input_file};

const LEAF: usize = 65536;

/// The root as its definition says: level by level, an odd node goes up unchanged.
fn root(data: &[u8]) -> String {
    let leaf = |bytes: &[u8]| {
        Sha256::new()
            .chain_update([0])
            .chain_update(bytes)
            .finalize()
    };
    let mut level: Vec<_> = if data.is_empty() {
        vec![leaf(data)]
    } else {
        data.chunks(LEAF).map(leaf).collect()
    };
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => Sha256::new()
                    .chain_update([1])
                    .chain_update(left)
                    .chain_update(right)
                    .finalize(),
                odd => odd[0],
            })
            .collect();
    }
    level[0].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn root_line(data: &[u8]) -> String {
    format!("root {} bytes {}", root(data), data.len())
}

#[test]
fn roots_of_all_shapes() {
    let shapes = [
        0,
        1,
        54,
        55,
        56,
        62,
        63,
        64,
        65,
        118,
        119,
        120,
        LEAF - 1,
        LEAF,
        LEAF + 1,
        3 * LEAF,
        5 * LEAF + 7,
        16 * LEAF,
        17 * LEAF,
        47 * LEAF + 9,
    ];
    for (bytes, vcpus) in shapes.into_iter().zip([1, 2, 3, 4].into_iter().cycle()) {
        let run = Run::of("sha256tree").vcpus(vcpus).input(&input_file(bytes));
        let text = run.answer();
        let last = text.lines().last().unwrap_or_default();
        assert_eq!(
            last,
            root_line(&input_bytes(bytes)),
            "{bytes} bytes x{vcpus}"
        );
    }
}

#[test]
fn claims_of_any_size_give_the_same() {
    let bytes = 37 * LEAF + 123;
    for claim in [1, 2, 5, 16] {
        let params = format!("claim={claim}");
        let file = input_file(bytes);
        let run = Run::of("sha256tree").vcpus(4).params(&params).input(&file);
        let text = run.answer();
        assert_eq!(
            text.lines().last(),
            Some(&*root_line(&input_bytes(bytes))),
            "{params}"
        );
    }
}

#[test]
fn progress_is_told_in_order_and_the_same_every_time() {
    let bytes = 40 * LEAF;
    let file = input_file(bytes);
    let mut expected: String = (1..=16).map(|k| format!("progress {k}/16\n")).collect();
    expected.push_str(&root_line(&input_bytes(bytes)));
    expected.push('\n');
    for (vcpus, passes) in [(1, 1), (2, 5), (4, 3), (16, 2)] {
        let params = format!("passes={passes} claim=1");
        let run = Run::of("sha256tree")
            .vcpus(vcpus)
            .params(&params)
            .input(&file);
        assert_eq!(run.answer(), expected, "{params} x{vcpus}");
    }
}

#[test]
fn input_larger_than_memory_streams() {
    for bytes in [12 * MIB as usize + 77, 16 * LEAF * 10] {
        let file = input_file(bytes);
        for vcpus in [1, 3] {
            let run = Run::of("sha256tree")
                .vcpus(vcpus)
                .memory(3 * MIB)
                .input(&file);
            let text = run.answer();
            assert_eq!(text.lines().last(), Some(&*root_line(&input_bytes(bytes))));
            assert!(!text.contains("/16"), "the whole is not known: {text}");
        }
    }
    let file = input_file(12 * MIB as usize + 77);
    let run = Run::of("sha256tree")
        .memory(3 * MIB)
        .params("passes=2")
        .input(&file);
    assert_eq!(run.outcome().status, 2);
}
