//! Parameter strings: what is accepted, and that the catalogue says so.

use samsara_guests::{COMMON_PARAMS, programs};

use crate::host::{Run, input_file};

#[test]
fn the_catalogue_names_what_programs_accept() {
    for program in programs() {
        let run = Run::of(program.name).params("nonsense").outcome();
        let separator = if program.params.is_empty() { "" } else { " " };
        let accepted = format!("{}{separator}{COMMON_PARAMS}", program.params);
        let expected = format!("params: nonsense: not key=value; accepted: {accepted}\n");
        assert_eq!((run.status, run.text()), (2, expected), "{}", program.name);
    }
}

#[test]
fn the_catalogue_names_the_defaults() {
    let file = input_file(100_000);
    let stops = ["fault", "baddev", "baddma", "console"];
    for program in programs().iter().filter(|p| !stops.contains(&p.name)) {
        let run = |params| Run::of(program.name).vcpus(2).params(params).input(&file);
        let (default, named) = (run("").answer(), run(program.default_params).answer());
        assert_eq!(default, named, "{}", program.name);
        let keys = |text: &str| -> Vec<String> {
            let words = text.split_whitespace();
            words
                .filter_map(|w| Some(w.split_once('=')?.0.to_owned()))
                .collect()
        };
        assert_eq!(keys(program.params), keys(program.default_params));
    }
}

#[test]
fn hostile_strings_are_refused() {
    let long = "x".repeat(4000);
    for params in [
        "n=",
        "n=-1",
        "n=0",
        "n=1x",
        "n=18446744073709551616",
        "n=17179869184G",
        "n=99999999999999999999",
        "mode=",
        "mode=atom",
        "mode=atomic|lock",
        "=",
        "=1",
        "n",
        "spin=9999999",
        "N=5",
        "n=K",
        &long,
        "n=5 mode=lock other=1",
        "n=\u{e9}",
    ] {
        let run = Run::of("counter").vcpus(2).params(params).outcome();
        assert_eq!(run.status, 2, "{params}");
        let text = run.text();
        assert!(text.starts_with("params: ") && text.is_ascii(), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn spaces_and_suffixes_are_accepted() {
    for (params, n) in [
        ("  n=2K ", 2048),
        ("\tmode=lock\n n=3 spin=0", 3),
        ("n=7 n=8", 8),
    ] {
        let text = Run::of("counter").params(params).answer();
        assert_eq!(text, format!("counter {n}\n"));
    }
}

#[test]
fn vcpus_beyond_sixteen_are_refused() {
    let run = Run::of("hello").vcpus(17).outcome();
    assert_eq!(run.status, 2, "{}", run.text());
}
