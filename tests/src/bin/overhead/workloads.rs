//! What is run, each for about a second native, as far as it can be made to.

/// A program with parameters.
#[derive(Debug)]
pub(crate) struct Workload {
    /// As in the table.
    pub(crate) name: &'static str,
    /// In the catalogue of guests.
    pub(crate) program: &'static str,
    /// Its parameters.
    pub(crate) params: &'static str,
    /// Whether it reads the input file.
    pub(crate) has_input: bool,
}

const fn with_input(name: &'static str, program: &'static str, params: &'static str) -> Workload {
    Workload {
        has_input: true,
        ..workload(name, program, params)
    }
}

const fn workload(name: &'static str, program: &'static str, params: &'static str) -> Workload {
    Workload {
        name,
        program,
        params,
        has_input: false,
    }
}

/// Every guest program that does something and ends by itself; of programs with kinds of work, each
/// kind that two vCPUs can do. Left out: `counter mode=ticket`, because a lock that is handed over in order
/// needs a commit each time, so the ratio is the price of a commit over that of a cache miss, and no mean says
/// anything beside it; `console`, which waits for somebody who types, `status`, which only ends, and
/// `baddev`, `baddma` and `fault`, which end in an error. `hello` is mostly the start of a machine.
pub(crate) const WORKLOADS: &[Workload] = &[
    workload("private", "private", "n=200000000"),
    workload("counter-atomic", "counter", "n=60000000 mode=atomic"),
    workload("counter-lock", "counter", "n=15000000 mode=lock"),
    with_input("sha256tree", "sha256tree", "passes=16"),
    workload("radix", "radix", "n=1000000 passes=24"),
    workload("lu", "lu", "n=1536"),
    workload("fft", "fft", "log2=18 passes=32"),
    workload("ocean", "ocean", "n=1022 sweeps=1000"),
    workload("nbody", "nbody", "n=1024 steps=200"),
    workload("blackscholes", "blackscholes", "n=65536 passes=160"),
    workload("kmeans", "kmeans", "n=65536 rounds=20 tries=10"),
    workload("hashtable", "hashtable", "n=3M work=100"),
    workload("workqueue", "workqueue", "n=50000 slots=64 work=30"),
    workload("stream", "stream", "n=4M passes=50"),
    workload("compute", "compute", "n=750M"),
    workload("hello", "hello", ""),
    workload("registers", "registers", "n=2000 loops=20000"),
    workload("clock", "clock", "n=5000"),
    workload("outputs", "outputs", "n=4000 run=16"),
    with_input("echo", "echo", ""),
    workload("litmus-sb", "litmus", "test=sb iters=1000000"),
    workload("litmus-mp", "litmus", "test=mp iters=1000000"),
    workload("litmus-lb", "litmus", "test=lb iters=1000000"),
    workload("litmus-corr", "litmus", "test=corr iters=1000000"),
    workload("litmus-2+2w", "litmus", "test=2+2w iters=1000000"),
    workload("litmus-peterson", "litmus", "test=peterson iters=100000"),
    workload("litmus-dekker", "litmus", "test=dekker iters=100000"),
    workload("litmus-xchg", "litmus", "test=xchg iters=3000000"),
    workload("litmus-cas", "litmus", "test=cas iters=3000000"),
    workload("litmus-fetchadd", "litmus", "test=fetchadd iters=3000000"),
    workload(
        "litmus-falseshare",
        "litmus",
        "test=falseshare iters=100000000",
    ),
    workload("litmus-pingpong", "litmus", "test=pingpong iters=20000"),
];

/// Their names, for a message.
pub(crate) fn names() -> String {
    WORKLOADS
        .iter()
        .map(|workload| workload.name)
        .collect::<Vec<_>>()
        .join(", ")
}
