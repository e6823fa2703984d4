//! The litmus tests on this processor: an x86, so nothing forbidden may be seen.

use samsara_testing::by_effort;

use crate::host::Run;

const NEEDS: [(&str, u32); 15] = [
    ("sb", 2),
    ("sb-nofence", 2),
    ("mp", 2),
    ("lb", 2),
    ("iriw", 4),
    ("corr", 2),
    ("2+2w", 2),
    ("wrc", 3),
    ("peterson", 2),
    ("dekker", 2),
    ("xchg", 1),
    ("cas", 1),
    ("fetchadd", 1),
    ("falseshare", 1),
    ("pingpong", 2),
];

fn lines(test: &str, needs: u32, vcpus: u32, iters: u32) -> String {
    if vcpus < needs {
        return format!("litmus {test} needs {needs} vcpus\n");
    }
    format!("litmus {test} same ok {iters}\nlitmus {test} apart ok {iters}\n")
}

#[test]
fn all_tests_pass_with_any_number_of_vcpus() {
    let most = by_effort(5000, 20_000);
    for (vcpus, iters) in [(1, 3000), (2, most), (3, 3001), (4, 3000)] {
        let expected: String = NEEDS
            .iter()
            .map(|(test, needs)| lines(test, *needs, vcpus, iters))
            .collect();
        let params = format!("iters={iters}");
        let run = Run::of("litmus").vcpus(vcpus).params(&params);
        assert_eq!(run.answer(), expected, "x{vcpus}");
    }
}

#[test]
fn tests_run_alone_in_either_layout() {
    for (test, needs) in NEEDS {
        for layout in ["same", "apart"] {
            let params = format!("test={test} layout={layout} iters=130 batch=64 cut=5");
            let run = Run::of("litmus").vcpus(needs).params(&params);
            assert_eq!(run.answer(), format!("litmus {test} {layout} ok 130\n"));
        }
    }
}

#[test]
fn relaxed_outcomes_are_counted_only_when_asked_for() {
    let run = Run::of("litmus")
        .vcpus(2)
        .params("test=sb-nofence iters=1000 info=yes");
    let text = run.answer();
    assert_eq!(text.matches("relaxed outcomes").count(), 2, "{text}");
    let run = Run::of("litmus")
        .vcpus(2)
        .params("test=sb-nofence iters=1000");
    assert!(!run.answer().contains("relaxed"));
}
