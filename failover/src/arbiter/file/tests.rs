use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Barrier};

use super::*;

fn arbiter(directory: &Path, host: &str) -> FileArbiter {
    FileArbiter::new(directory, "vm", HostName::new(host).unwrap())
}

fn standing(term: u64, holder: &str) -> Standing {
    Standing::new(
        Term::new(term),
        HostName::new(holder).unwrap(),
        Phase::Running,
    )
}

fn won(swap: &Swap) -> Revision {
    match swap {
        Swap::Won(revision) => *revision,
        Swap::Lost(current) => panic!("lost to {current:?}"),
    }
}

/// Takes the next term again and again; returns the terms it won.
fn contend(directory: &Path, host: &str, wins: usize) -> Vec<u64> {
    let mut arbiter = arbiter(directory, host);
    let mut terms = Vec::new();
    while terms.len() < wins {
        let current = arbiter.read().unwrap();
        let term = current
            .as_ref()
            .map_or(1, |current| current.value.term.number() + 1);
        let expected = current.map(|current| current.revision);
        if let Swap::Won(revision) = arbiter
            .compare_and_swap(expected, &standing(term, host))
            .unwrap()
        {
            assert_eq!(revision.0, term, "one revision a term here");
            terms.push(term);
        }
    }
    terms
}

/// Every term won once, none left out.
fn assert_partition(all: impl IntoIterator<Item = u64>, count: usize) {
    let mut wins = BTreeMap::new();
    for term in all {
        *wins.entry(term).or_insert(0) += 1;
    }
    assert_eq!(wins.len(), count);
    assert_eq!(
        wins.keys().copied().collect::<Vec<_>>(),
        (1..=count as u64).collect::<Vec<_>>()
    );
}

#[test]
fn a_swap_wins_once_and_the_loser_learns_who_was_first() {
    let directory = tempfile::tempdir().unwrap();
    let (mut alpha, mut beta) = (
        arbiter(directory.path(), "alpha"),
        arbiter(directory.path(), "beta"),
    );
    assert_eq!(alpha.read().unwrap(), None);
    let first = won(&alpha.compare_and_swap(None, &standing(1, "alpha")).unwrap());
    let current = Some(Versioned {
        revision: first,
        value: standing(1, "alpha"),
    });
    let lost = beta.compare_and_swap(None, &standing(1, "beta")).unwrap();
    assert_eq!(lost, Swap::Lost(current.clone()));
    assert_eq!(beta.read().unwrap(), current);
    won(&beta
        .compare_and_swap(Some(first), &standing(2, "beta"))
        .unwrap());
    assert!(matches!(
        alpha.compare_and_swap(Some(first), &standing(2, "alpha")),
        Ok(Swap::Lost(_))
    ));
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        2,
        "temporary files are gone"
    );
}

#[test]
fn threads_that_race_never_win_the_same_revision() {
    let directory = tempfile::tempdir().unwrap();
    let barrier = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|index| {
            let (path, barrier) = (directory.path().to_owned(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                contend(&path, &format!("host-{index}"), 10)
            })
        })
        .collect();
    assert_partition(
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap()),
        80,
    );
}

const CHILD_DIRECTORY: &str = "SAMSARA_FILE_ARBITER_TEST_DIRECTORY";

#[test]
fn processes_that_race_never_win_the_same_revision() {
    let directory = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..4)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "arbiter::file::tests::racing_process",
                    "--nocapture",
                ])
                .env(CHILD_DIRECTORY, directory.path())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let wins = children.into_iter().flat_map(|child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let wins = text
            .split("won=")
            .skip(1)
            .map(|rest| rest.lines().next().unwrap().to_owned());
        wins.map(|term| term.parse().unwrap()).collect::<Vec<u64>>()
    });
    assert_partition(wins, 80);
}

/// The other end of the test above; alone it has nothing to do.
#[test]
fn racing_process() {
    let Ok(directory) = std::env::var(CHILD_DIRECTORY) else {
        return;
    };
    let host = format!("host-{}", std::process::id());
    for term in contend(Path::new(&directory), &host, 20) {
        println!("won={term}");
    }
}

#[test]
fn a_writer_that_slept_through_a_pruning_does_not_win_an_old_revision() {
    let directory = tempfile::tempdir().unwrap();
    let mut alpha = arbiter(directory.path(), "alpha");
    contend(directory.path(), "beta", KEPT_REVISIONS as usize + 10);
    assert!(!alpha.path_of(Revision(2)).exists(), "pruned");
    // As if it had compared revision 1 before all of those.
    let temporary = alpha
        .write_temporary(&alpha.encode(Revision(2), &standing(2, "alpha")).unwrap())
        .unwrap();
    assert!(
        alpha
            .link(&temporary, Revision(2), &standing(2, "alpha"))
            .unwrap()
    );
    drop(temporary);
    let current = alpha.read().unwrap().unwrap();
    assert_eq!(
        current.value.holder.as_str(),
        "beta",
        "the stale name is not current"
    );
    // And the whole swap reports the loss.
    let swap = alpha
        .compare_and_swap(Some(Revision(1)), &standing(2, "alpha"))
        .unwrap();
    assert_eq!(swap, Swap::Lost(Some(current)));
}

#[test]
fn a_bad_record_is_named_and_never_guessed_around() {
    let good = r#"{"format":1,"vm":"vm","revision":1,"term":1,"holder":"alpha","phase":"running"}"#;
    let cases = [
        ("not JSON", "{".to_owned(), "EOF"),
        ("empty", String::new(), "EOF"),
        (
            "a later format",
            good.replace("\"format\":1", "\"format\":2"),
            "format 2",
        ),
        (
            "another VM",
            good.replace("\"vm\":\"vm\"", "\"vm\":\"other\""),
            "directory of its own",
        ),
        (
            "renamed",
            good.replace("\"revision\":1", "\"revision\":7"),
            "copied or renamed",
        ),
        (
            "a bad holder",
            good.replace("alpha", "../x"),
            "no host name",
        ),
        ("a bad phase", good.replace("running", "walking"), "walking"),
        (
            "an unknown key",
            good.replace("{\"f", "{\"x\":1,\"f"),
            "unknown field",
        ),
        (
            "huge",
            " ".repeat(MAX_RECORD_BYTES as usize + 1),
            "longer than",
        ),
    ];
    for (what, text, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let mut arbiter = arbiter(directory.path(), "alpha");
        let path = arbiter.path_of(Revision(1));
        fs::write(&path, &text).unwrap();
        let error = arbiter.read().unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{what}: {error}");
        assert!(error.contains(expected), "{what}: {error}");
        assert!(!error.contains('\n'), "{what}: {error}");
        assert!(
            arbiter
                .compare_and_swap(Some(Revision(1)), &standing(2, "alpha"))
                .is_err(),
            "{what}"
        );
        fs::write(&path, good).unwrap();
        assert!(arbiter.read().is_ok(), "{what}: it would have been fine");
    }
}

#[test]
fn names_that_look_like_ours_are_errors_and_others_are_not_ours() {
    let directory = tempfile::tempdir().unwrap();
    let mut arbiter = arbiter(directory.path(), "alpha");
    fs::write(directory.path().join(".nfs0001"), "x").unwrap();
    fs::create_dir(directory.path().join("lost+found")).unwrap();
    assert_eq!(arbiter.read().unwrap(), None);
    for name in [
        "standing-7.json",
        "standing-00000000000000000000.json",
        "standing-x",
        "standing-99999999999999999999.json",
    ] {
        let path = directory.path().join(name);
        fs::write(&path, "x").unwrap();
        let error = arbiter.read().unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_directory_that_is_not_there_is_unreachable_and_comes_back() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("arbiter");
    let mut arbiter = arbiter(&directory, "alpha");
    for error in [
        arbiter.read().unwrap_err(),
        arbiter
            .compare_and_swap(None, &standing(1, "alpha"))
            .unwrap_err(),
    ] {
        assert!(matches!(error, ArbiterError::Unreachable { .. }));
        assert!(
            error.to_string().contains(directory.to_str().unwrap()),
            "{error}"
        );
    }
    fs::create_dir(&directory).unwrap();
    won(&arbiter
        .compare_and_swap(None, &standing(1, "alpha"))
        .unwrap());
}
