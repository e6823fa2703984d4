//! What there is to run, and with which parameters.

/// Parameters every program accepts, as [`Program::params`] writes them.
///
/// `spin` is how many PAUSEs a wait loop makes before its first YIELD; 0 never yields, as a program would that does
/// not know it is being recorded.
pub const COMMON_PARAMS: &str = "spin=0..1048576";

/// One guest program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name, as in `programs/NAME.c`.
    pub name: &'static str,
    /// Where the ELF file was built. For an installed binary use [`Program::image`].
    pub path: &'static str,
    /// The bytes of the ELF file.
    pub image: &'static [u8],
    /// What it does, in one line.
    pub about: &'static str,
    /// Accepted parameters: `key=low..high` or `key=a|b|c`, separated by spaces; see also [`COMMON_PARAMS`].
    /// Numbers may end in K, M or G.
    pub params: &'static str,
    /// The parameters that an empty parameter string stands for.
    pub default_params: &'static str,
    /// Memory that the default parameters fit in, as the `vm.memory` setting takes it.
    pub default_memory: &'static str,
    /// Whether it reads an input file.
    pub needs_input: bool,
}

/// The program called `name`.
pub fn program(name: &str) -> Option<Program> {
    PROGRAMS
        .iter()
        .find(|program| program.name == name)
        .copied()
}

/// All programs, in order of their names.
pub fn programs() -> &'static [Program] {
    PROGRAMS
}

macro_rules! guest {
    ($name:literal, $memory:literal, $about:literal, params: $params:literal, default: $default:literal) => {
        guest!($name, $memory, $about, params: $params, default: $default, input: false)
    };
    ($name:literal, $memory:literal, $about:literal, params: $params:literal, default: $default:literal, input: $input:literal) => {
        Program {
            name: $name,
            path: concat!(env!("OUT_DIR"), "/", $name, ".elf"),
            image: include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".elf")),
            about: $about,
            params: $params,
            default_params: $default,
            default_memory: $memory,
            needs_input: $input,
        }
    };
}

const PROGRAMS: &[Program] = &[
    guest!("baddev", "16MiB", "makes a device access that the contract does not allow; the machine must stop",
        params: "kind=size1|size2|size4|size16|misaligned|across|unknown|writeunknown|readexit|writeclock|locked|string|outside",
        default: "kind=size4"),
    guest!("baddma", "16MiB", "gives INPUT or OUTPUT a bad descriptor; the machine must stop",
        params: "dir=input|output kind=outside|straddle|wrapping|hole|device|descriptor|misaligned|descriptorend|toolong",
        default: "dir=input kind=outside", input: true),
    guest!("blackscholes", "64MiB", "prices of options, every vCPU its own; doubles, the same to the bit for any vCPU count",
        params: "n=1..268435456 passes=1..1048576", default: "n=8192 passes=10"),
    guest!("clock", "16MiB", "CLOCK never goes back on any vCPU, RANDOM does not repeat itself",
        params: "n=2..4294967296", default: "n=1000"),
    guest!("compute", "16MiB", "points with whole coordinates in a circle, from divisions alone; touches no memory, and ends its chunks itself if it keeps a pace",
        params: "n=1..1099511627776 pace=0..1000000", default: "n=10000000 pace=0"),
    guest!("console", "16MiB", "answers lines typed at the console until the line q",
        params: "", default: ""),
    guest!("counter", "16MiB", "n increments of one counter by all vCPUs, by atomics or under a lock",
        params: "n=1..1099511627776 mode=atomic|lock|ticket", default: "n=1000000 mode=atomic"),
    guest!("echo", "16MiB", "copies the input file to the console by DMA",
        params: "piece=1..1048576", default: "piece=65536", input: true),
    guest!("fault", "16MiB", "raises an exception; the machine must stop and say which and where",
        params: "kind=ud|pf|pfwrite|pfexec|gp|de|bp|xm|mf|hlt|io|loader vcpu=0..15", default: "kind=ud vcpu=0"),
    guest!("fft", "64MiB", "radix-2 FFT of complex doubles forward and back, the same to the bit for any vCPU count",
        params: "log2=5..28 passes=1..1048576", default: "log2=16 passes=4"),
    guest!("hashtable", "64MiB", "puts, look-ups and takings in a table under striped locks",
        params: "n=1..1099511627776 keys=4..16777216 stripes=1..4096 work=0..1048576",
        default: "n=100000 keys=4096 stripes=64 work=16"),
    guest!("hello", "16MiB", "every vCPU greets, in index order",
        params: "via=dma|register|byte", default: "via=dma"),
    guest!("kmeans", "64MiB", "clusters of points by Lloyd's algorithm, sums under a lock, centres between barriers",
        params: "n=1..16777216 k=1..64 rounds=1..1048576 tries=1..1048576", default: "n=8192 k=16 rounds=10 tries=2"),
    guest!("litmus", "64MiB", "memory-model litmus tests, locks of plain accesses, storms of atomics",
        params: "test=all|sb|sb-nofence|mp|lb|iriw|corr|2+2w|wrc|peterson|dekker|xchg|cas|fetchadd|falseshare|pingpong layout=both|same|apart iters=1..1099511627776 batch=1..65536 cut=0..1048576 info=no|yes",
        default: "test=all layout=both iters=100000 batch=4096 cut=256 info=no"),
    guest!("lu", "64MiB", "blocked LU factorisation of doubles, the same to the bit for any vCPU count",
        params: "n=32..16384", default: "n=512"),
    guest!("nbody", "64MiB", "bodies that attract each other, there and back; forces are added up under locks",
        params: "n=1..65536 steps=1..1048576", default: "n=512 steps=10"),
    guest!("ocean", "64MiB", "red-black relaxation of a grid of doubles, the same to the bit for any vCPU count",
        params: "n=3..16384 sweeps=1..1048576", default: "n=254 sweeps=200"),
    guest!("outputs", "16MiB", "n numbered lines from the vCPUs in turn",
        params: "n=1..999999 run=1..1000 delay=0..1073741824", default: "n=1000 run=1 delay=0"),
    guest!("private", "64MiB", "random reads and writes of every vCPU on pages of its own",
        params: "n=1..1099511627776 pages=1..1048576", default: "n=10000000 pages=64"),
    guest!("radix", "64MiB", "parallel radix sort of n 64-bit keys",
        params: "n=1..4294967296 passes=1..1048576", default: "n=1000000 passes=1"),
    guest!("registers", "16MiB", "all registers keep their values across chunk ends",
        params: "n=1..1099511627776 loops=0..1048576", default: "n=1000 loops=1000"),
    guest!("sha256tree", "256MiB", "root of the SHA-256 tree of the input file",
        params: "passes=1..16777216 claim=1..16", default: "passes=1 claim=16", input: true),
    guest!("status", "16MiB", "ends with the exit status asked for",
        params: "status=0..255", default: "status=0"),
    guest!("stream", "256MiB", "copies, scales and adds large arrays; every vCPU writes pages of its own",
        params: "n=1..4294967296 passes=1..1048576", default: "n=1048576 passes=4"),
    guest!("tsc", "16MiB", "stores the time stamp counter now and then; its answer does not depend on it",
        params: "n=1..1099511627776 every=1..4294967296", default: "n=2000 every=4"),
    guest!("workqueue", "16MiB", "producers and consumers of blocks of data and a bounded queue",
        params: "n=1..1099511627776 slots=1..1024 work=1..1048576", default: "n=2000 slots=16 work=4"),
];
