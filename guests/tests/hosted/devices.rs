//! Programs about the device registers.

use std::fmt::Write as _;

use crate::host::{Run, input_bytes, input_file};

#[test]
fn hello_in_index_order() {
    for vcpus in [1, 2, 11, 16] {
        let expected: String = (0..vcpus)
            .map(|v| format!("hello from vcpu {v}\n"))
            .collect();
        for via in ["via=dma", "via=register", "via=byte"] {
            let run = Run::of("hello").vcpus(vcpus).params(via);
            assert_eq!(run.answer(), expected, "{via} x{vcpus}");
        }
    }
}

#[test]
fn outputs_has_no_gap() {
    for (vcpus, n, run) in [(1, 10, 1), (2, 301, 1), (3, 302, 7), (4, 5, 1000)] {
        let expected = (0..n).fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "line {line:06}");
            text
        });
        let params = format!("n={n} run={run} delay=3");
        let found = Run::of("outputs").vcpus(vcpus).params(&params).answer();
        assert_eq!(found, expected, "{params} x{vcpus}");
    }
}

#[test]
fn echo_copies_every_byte() {
    for (bytes, piece, vcpus) in [
        (0, 4096, 2),
        (1, 1, 1),
        (200_001, 4097, 3),
        (70_000, 65536, 2),
    ] {
        let params = format!("piece={piece}");
        let file = input_file(bytes);
        let run = Run::of("echo")
            .vcpus(vcpus)
            .params(&params)
            .input(&file)
            .outcome();
        assert_eq!(run.status, 0);
        assert!(run.output == input_bytes(bytes), "{bytes} bytes x{vcpus}");
    }
}

#[test]
fn console_answers_lines() {
    let mut typed = b"first\n\n\x01\x02\xff\n".to_vec();
    typed.extend([b'x'; 300]);
    typed.extend(b"\nq\nafter");
    let expected = format!(
        "type lines, q to end\n1: 5 bytes: first\n2: 0 bytes: \n3: 3 bytes: ...\n4: 300 bytes: {}\nbye\n",
        "x".repeat(200)
    );
    for vcpus in [1, 2] {
        assert_eq!(
            Run::of("console").vcpus(vcpus).typed(&typed).answer(),
            expected
        );
    }
}

#[test]
fn clock_and_random() {
    for vcpus in [1, 2, 4] {
        let run = Run::of("clock").vcpus(vcpus).params("n=500");
        assert_eq!(run.answer(), "clock and random ok 500\n");
    }
}

#[test]
fn status_is_the_low_byte() {
    for status in [0, 1, 2, 255] {
        let params = format!("status={status}");
        let run = Run::of("status").vcpus(2).params(&params).outcome();
        assert_eq!((run.status, run.text()), (status, String::new()));
    }
}

/// Values of the parameter `key`, from the catalogue.
fn choices(program: &str, key: &str) -> Vec<String> {
    let program = samsara_guests::program(program).expect("in the catalogue");
    let prefix = format!("{key}=");
    let mut words = program.params.split(' ');
    let values = words.find_map(|word| word.strip_prefix(&prefix));
    values
        .expect("a choice")
        .split('|')
        .map(str::to_owned)
        .collect()
}

/// Here the process dies of a signal or of the shim's refusal (70): what matters is that nothing goes on.
fn assert_stops(program: &str, params: &str) {
    let file = input_file(100_000);
    let run = Run::of(program).vcpus(2).params(params).input(&file);
    let outcome = run.outcome();
    let stopped = outcome.status > 2 && outcome.output.is_empty();
    assert!(stopped, "{program} {params}: {outcome:?}");
}

#[test]
fn nothing_survives_what_must_stop_the_machine() {
    for program in ["fault", "baddev"] {
        for kind in choices(program, "kind") {
            assert_stops(program, &format!("kind={kind}"));
        }
    }
    for direction in choices("baddma", "dir") {
        for kind in choices("baddma", "kind").iter().filter(|k| *k != "toolong") {
            assert_stops("baddma", &format!("dir={direction} kind={kind}"));
        }
    }
}

#[test]
fn a_transfer_may_be_long() {
    for (direction, zeros) in [("input", 0), ("output", 2 << 20)] {
        let params = format!("dir={direction} kind=toolong");
        let run = Run::of("baddma").vcpus(2).params(&params).outcome();
        assert_eq!(run.status, 0, "{params}");
        assert_eq!(run.output[..zeros], vec![0; zeros]);
        assert_eq!(&run.output[zeros..], b"\ntoolong ended well\n");
    }
}

#[test]
fn faults_are_raised_on_the_vcpu_asked_for() {
    let run = Run::of("fault").vcpus(2).params("vcpu=2").outcome();
    assert_eq!((run.status, &*run.text()), (2, "no vcpu 2: there are 2\n"));
    let run = Run::of("fault").vcpus(3).params("vcpu=2").outcome();
    assert!(run.status > 2);
}

#[test]
fn registers_keep_their_values() {
    for params in ["n=50 loops=0", "n=50 loops=3000"] {
        let run = Run::of("registers").vcpus(3).params(params);
        assert_eq!(run.answer(), "registers ok 50\n");
    }
}
