//! `samsaractl bench`, on the shortest programs: each mode is run, and what was measured is in the tables, the JSON and the chart.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first error")]

use std::fs;

use samsara_tests::{Guest, HarnessError, Site, kvm_or_skip};
use serde_json::Value;

fn bench(site: &Site, words: &[&str]) -> Result<String, HarnessError> {
    let samsarad = site.binaries().samsarad.display().to_string();
    let first = ["bench", "--samsarad", &samsarad];
    site.ctl(&[&first, words].concat())
}

fn is_positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number > 0.0)
}

#[test]
fn each_mode_is_run_and_told() {
    let Some(_machine) = kvm_or_skip("bench") else {
        return;
    };
    let site = Site::new().unwrap();
    let guest = Guest::new(&site, "counter", "n=100000").unwrap();
    let file = |name: &str| site.path(name).display().to_string();
    let (json, chart, own) = (file("b.json"), file("b.svg"), file("own.toml"));
    let settings = guest.settings();
    let program = settings[0].strip_prefix("vm.program=").unwrap();
    let text = format!("[vm]\nprogram = {program:?}\nparams = \"n=100000\"\nvcpus = 2\n");
    fs::write(&own, text).unwrap();
    let machine = format!("mine={own}");
    let words = [
        "--only", "hello", "--rounds", "2", "--json", &json, "--chart", &chart,
    ];
    let text = bench(&site, &[&words[..], &["--machine", &machine]].concat()).unwrap();
    for part in ["hello", "mine", "recorded / native", "verified"] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    let found: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    for one in [&found["workloads"][0], &found["machines"][0]] {
        assert_eq!(one["native"]["seconds"].as_array().unwrap().len(), 2);
        for mode in ["recorded", "protected"] {
            assert!(is_positive(&one[mode]["chunks_per_second"]), "{one}");
            assert!(is_positive(&one[mode]["ratio"]["median"]), "{one}");
            assert!(
                is_positive(&one[mode]["effects"]["bytes_per_second"]),
                "{one}"
            );
        }
        assert!(one["recorded"]["sent"].is_null(), "{one}");
        assert!(
            is_positive(&one["protected"]["sent"]["all"]["bytes_per_second"]),
            "{one}"
        );
        assert!(
            is_positive(&one["protected"]["lag_verified_us"]["count"]),
            "{one}"
        );
    }
    let mine = &found["machines"][0]["recorded"];
    assert!(is_positive(&mine["faults_avoided_per_second"]), "{mine}");
    assert!(is_positive(&found["recorded"]["programs"]));
    let chart = fs::read_to_string(&chart).unwrap();
    assert!(chart.starts_with("<svg ") && chart.contains(">mine</text>"));
}

/// A guest that is not content with itself is no measurement.
#[test]
fn a_guest_that_fails_ends_it_with_its_status_and_name() {
    let Some(_machine) = kvm_or_skip("bench, failure") else {
        return;
    };
    let site = Site::new().unwrap();
    let guest = Guest::new(&site, "status", "").unwrap();
    let settings = guest.settings();
    let program = settings[0].strip_prefix("vm.program=").unwrap();
    let text = format!("[vm]\nprogram = {program:?}\nparams = \"status=7\"\n");
    let own = site.write("own.toml", text.as_bytes()).unwrap();
    let machine = format!("mine={}", own.display());
    let error = bench(&site, &["--programs", "none", "--machine", &machine]).unwrap_err();
    let wanted = "mine, native: samsarad ended with status 7";
    assert!(error.line().contains(wanted), "{}", error.line());
}
