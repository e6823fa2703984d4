//! What is run: from a few hundredths of a second to above one, native.

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

const fn workload(name: &'static str, program: &'static str, params: &'static str) -> Workload {
    Workload {
        name,
        program,
        params,
        has_input: false,
    }
}

/// All of them.
pub(crate) const WORKLOADS: &[Workload] = &[
    workload("private", "private", "n=40000000"),
    workload("counter-atomic", "counter", "n=20000000 mode=atomic"),
    workload("counter-lock", "counter", "n=30000000 mode=lock"),
    Workload {
        name: "sha256tree",
        program: "sha256tree",
        params: "passes=4",
        has_input: true,
    },
    workload("radix", "radix", "n=500000 passes=3"),
    workload("lu", "lu", "n=640"),
    workload("fft", "fft", "log2=16 passes=4"),
    workload("litmus-sb", "litmus", "test=sb iters=100000"),
    workload("litmus-mp", "litmus", "test=mp iters=100000"),
    workload("litmus-peterson", "litmus", "test=peterson iters=5000"),
    workload(
        "litmus-falseshare",
        "litmus",
        "test=falseshare iters=8000000",
    ),
];

/// Their names, for a message.
pub(crate) fn names() -> String {
    WORKLOADS
        .iter()
        .map(|workload| workload.name)
        .collect::<Vec<_>>()
        .join(", ")
}
