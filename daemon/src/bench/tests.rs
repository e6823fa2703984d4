use clap::Parser as _;

use super::*;
use crate::exit::ExitCode;

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    bench: BenchArgs,
}

fn run(words: &[&str]) -> Result<String, BenchError> {
    let line = Line::try_parse_from(["bench"].iter().chain(words));
    line.unwrap_or_else(|error| panic!("{error}")).bench.run()
}

#[test]
fn the_list_marks_the_suite() {
    let text = run(&["--list"]).unwrap();
    assert!(text.contains("* radix "), "{text}");
    assert!(text.contains("  litmus-sb "), "{text}");
}

#[test]
fn names_that_nothing_has_are_told_with_those_that_there_are() {
    let error = run(&["--only", "nothing"]).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    let text = error.to_string();
    assert!(text.starts_with("no workload has nothing in its name; there are radix, "));
}

#[test]
fn a_machine_that_two_hosts_cannot_share_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    let ask = |text: &str, named: &str| {
        std::fs::write(&path, text).unwrap();
        let given = format!("{named}{}", path.display());
        run(&["--programs", "none", "--machine", &given]).unwrap_err()
    };
    let program = "[vm]\nprogram = \"x.elf\"\n";
    let error = ask(program, "");
    assert!(matches!(error, BenchError::Machine(_)), "{error}");
    let error = ask("[vm]\nprogramm = 1\n", "own=");
    assert_eq!(error.exit_code(), ExitCode::Config);
    assert!(error.to_string().contains("vm.toml"), "{error}");
    let disks = "[vm]\nkernel = \"k\"\ndisks = [{ path = \"d\" }]\n";
    let error = ask(disks, "own=");
    assert!(error.to_string().contains("vm.disks is set"), "{error}");
}

#[test]
fn noise_is_always_the_same_and_has_no_order() {
    let bytes = noise(4096);
    assert_eq!(bytes, noise(4096));
    let mut counts = [0; 256];
    for byte in bytes {
        counts[usize::from(byte)] += 1;
    }
    assert!(
        counts.iter().all(|count| (1..60).contains(count)),
        "{counts:?}"
    );
}
