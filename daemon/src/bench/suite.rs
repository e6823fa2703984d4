//! What is run: programs with parameters.

use clap::ValueEnum;

/// Which workloads are run if none is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Programs {
    /// The suite
    Suite,
    /// All that there are
    All,
    /// None: only machines that are given by --machine
    None,
}

/// A guest program with parameters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workload {
    /// As in the tables.
    pub(super) name: &'static str,
    /// In the catalogue of guests.
    pub(super) program: &'static str,
    /// Its parameters.
    pub(super) params: &'static str,
    /// Whether it reads the input file.
    pub(super) has_input: bool,
    /// Whether it is run when none is named.
    pub(super) is_in_suite: bool,
}

const fn suite(name: &'static str, program: &'static str, params: &'static str) -> Workload {
    Workload {
        name,
        program,
        params,
        has_input: false,
        is_in_suite: true,
    }
}

const fn other(name: &'static str, program: &'static str, params: &'static str) -> Workload {
    Workload {
        is_in_suite: false,
        ..suite(name, program, params)
    }
}

const fn reads_input(workload: Workload) -> Workload {
    Workload {
        has_input: true,
        ..workload
    }
}

/// Every guest program that does something and ends by itself; of programs with kinds of work, each kind that two vCPUs
/// can do. The suite is of the classes that papers on recording use: sorting, dense linear algebra, a transform, a stencil,
/// bodies, independent pricing, clustering, a table and a queue under locks, memory beyond the caches, and the two
/// extremes: computing alone and writing private pages alone, and a lock that all want. Each takes two seconds or
/// more native, on two vCPUs.
///
/// Left out: `counter mode=ticket`, because a lock that is handed over in order needs a commit each time, so the ratio is
/// the price of a commit over that of a cache miss, and no mean says anything beside it; `console`, which waits for
/// somebody who types, `status`, which only ends, and `baddev`, `baddma` and `fault`, which end in an error. `hello` is
/// mostly the start of a machine. `paced` is `compute`, but that it ends its chunks itself, shortly before the chunk timer
/// would: with `recording.form = "order"`, the least that a vCPU ships.
pub(super) const WORKLOADS: &[Workload] = &[
    suite("radix", "radix", "n=1000000 passes=120"),
    suite("lu", "lu", "n=2592"),
    suite("fft", "fft", "log2=18 passes=160"),
    suite("ocean", "ocean", "n=1022 sweeps=2400"),
    suite("nbody", "nbody", "n=1024 steps=400"),
    suite("blackscholes", "blackscholes", "n=65536 passes=410"),
    suite("kmeans", "kmeans", "n=65536 rounds=20 tries=28"),
    suite("hashtable", "hashtable", "n=5500K work=100"),
    suite("workqueue", "workqueue", "n=84000 slots=64 work=30"),
    suite("stream", "stream", "n=4M passes=256"),
    suite("compute", "compute", "n=1600M"),
    suite("private", "private", "n=400M"),
    suite("counter-lock", "counter", "n=90M mode=lock"),
    other("counter-atomic", "counter", "n=60M mode=atomic"),
    reads_input(other("sha256tree", "sha256tree", "passes=16")),
    other("paced", "compute", "n=1600M pace=4600"),
    other("hello", "hello", ""),
    other("registers", "registers", "n=2000 loops=20000"),
    other("clock", "clock", "n=5000"),
    other("outputs", "outputs", "n=4000 run=16"),
    reads_input(other("echo", "echo", "")),
    other("litmus-sb", "litmus", "test=sb iters=1M"),
    other("litmus-mp", "litmus", "test=mp iters=1M"),
    other("litmus-lb", "litmus", "test=lb iters=1M"),
    other("litmus-corr", "litmus", "test=corr iters=1M"),
    other("litmus-2+2w", "litmus", "test=2+2w iters=1M"),
    other("litmus-peterson", "litmus", "test=peterson iters=100K"),
    other("litmus-dekker", "litmus", "test=dekker iters=100K"),
    other("litmus-xchg", "litmus", "test=xchg iters=3M"),
    other("litmus-cas", "litmus", "test=cas iters=3M"),
    other("litmus-fetchadd", "litmus", "test=fetchadd iters=3M"),
    other("litmus-falseshare", "litmus", "test=falseshare iters=100M"),
    other("litmus-pingpong", "litmus", "test=pingpong iters=20K"),
];

/// Those whose name has one of these texts in it; without any text those of `programs`.
pub(super) fn chosen(only: &[String], programs: Programs) -> Vec<&'static Workload> {
    let is_chosen = |workload: &&Workload| match programs {
        _ if !only.is_empty() => only.iter().any(|part| workload.name.contains(part)),
        Programs::Suite => workload.is_in_suite,
        Programs::All => true,
        Programs::None => false,
    };
    WORKLOADS.iter().filter(is_chosen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_is_a_program_that_there_is() {
        for workload in WORKLOADS {
            let program = samsara_guests::program(workload.program);
            let program = program.unwrap_or_else(|| panic!("no {}", workload.program));
            assert!(
                !program.needs_input || workload.has_input,
                "{} needs an input file",
                workload.name
            );
        }
        let mut names: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), WORKLOADS.len(), "a name twice");
    }

    #[test]
    fn who_names_none_gets_the_suite() {
        let names = |only: &[&str], programs| {
            let only: Vec<_> = only.iter().map(ToString::to_string).collect();
            let chosen = chosen(&only, programs).into_iter();
            chosen.map(|workload| workload.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&[], Programs::Suite).len(), 13);
        assert_eq!(names(&[], Programs::All).len(), WORKLOADS.len());
        assert!(names(&[], Programs::None).is_empty());
        let counters = ["counter-lock", "counter-atomic"];
        assert_eq!(names(&["counter"], Programs::Suite), counters);
        let two = names(&["counter-a", "fft"], Programs::Suite);
        assert_eq!(two, ["fft", "counter-atomic"]);
        assert!(names(&["none"], Programs::All).is_empty());
    }
}
