//! The table of keys: the one place that says what each is called, means, accepts and defaults to.

/// A key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Full name, `section.key`.
    pub name: &'static str,
    /// Default as TOML, or `None` where unset is the default.
    pub default: Option<&'static str>,
    /// A valid value as TOML, for the example file.
    pub sample: &'static str,
    /// What a value may be; reads on from "takes".
    pub accepts: &'static str,
    /// One line of meaning.
    pub meaning: &'static str,
}

impl Key {
    /// The section, and the name in it.
    pub fn parts(&self) -> (&'static str, &'static str) {
        self.name.split_once('.').unwrap_or(("", self.name))
    }
}

const fn set(
    name: &'static str,
    default: &'static str,
    accepts: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        default: Some(default),
        sample: default,
        accepts,
        meaning,
    }
}

const fn unset(
    name: &'static str,
    sample: &'static str,
    accepts: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        default: None,
        sample,
        accepts,
        meaning,
    }
}

const FILE: &str = "the path of a file";
const HOST: &str = "a host name: letters, digits, '-', '_' and '.', at most 253 bytes";

/// All keys, by section.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    set("vm.name", "\"vm\"", "letters, digits, '-', '_' and '.', at most 63 bytes", "name of the VM in messages, metrics and status"),
    unset("vm.program", "\"/var/lib/samsarad/guest.elf\"", FILE, "the bare guest program, a static ELF64; a backup gets it from the primary"),
    unset("vm.kernel", "\"/var/lib/samsarad/vmlinuz\"", FILE, "the Linux kernel, a bzImage or ELF file, in place of vm.program; a backup gets it from the primary"),
    unset("vm.initrd", "\"/var/lib/samsarad/initrd.img\"", FILE, "the kernel's initial file system"),
    set("vm.cmdline", "\"\"", "text of at most 2047 bytes without NUL", "the kernel's command line"),
    set("vm.vcpus", "1", "a whole number from 1 to 16", "count of vCPUs"),
    set("vm.cpu", "\"baseline\"", "\"baseline\" or \"host\"", "processor features that the guest is shown: those that hosts of the last ten years share, or all of this host's"),
    set("vm.memory", "\"64MiB\"", "a size in whole 4 KiB pages from \"16MiB\" to \"64GiB\"", "guest memory"),
    set("vm.params", "\"\"", "text of at most 4095 bytes without NUL", "parameter string handed to the guest"),
    unset("vm.input", "\"/var/lib/samsarad/input\"", FILE, "file that the guest reads through INPUT"),
    set("vm.console", "\"stdout\"", "\"stdout\" or the path of a file", "where guest console output goes"),
    set("vm.console_input", "\"none\"", "\"none\" or \"stdin\"", "where guest console input comes from"),
    set("vm.console_device", "\"serial\"", "\"serial\" or \"virtio\"", "what a Linux guest's console is: ttyS0 or hvc0"),
    unset("vm.disks", "[{ path = \"/var/lib/samsarad/disk.raw\", read_only = false }]", "a list of at most 4 tables { path = file, read_only = true or false (default) }", "disks of a Linux guest, raw images on this host; a backup needs its own copies"),
    unset("vm.net", "[{ tap = \"tap0\", mac = \"52:54:00:12:34:56\" }]", "a list of at most 3 tables { tap = interface name, mac = unicast address }", "network cards of a Linux guest, each on a tap interface of this host; a backup needs its own"),
    set("vm.entropy", "true", "true or false", "whether a Linux guest has a device that gives it random numbers"),

    set("recording.mode", "\"on\"", "\"on\" or \"off\"", "\"off\" runs an ordinary VM: no log, no backup; for comparisons"),
    set("recording.isolation", "\"auto\"", "\"parallel\", \"serial\" or \"auto\"", "vCPUs run at the same time in views of their own, or one after the other in one view; \"auto\": as suits host and guest"),
    set("recording.form", "\"auto\"", "\"auto\", \"effects\" or \"order\"", "what travels of a chunk: the bytes that it changed, or the order to run it again, which is a few bytes; \"auto\": orders while the network is what is slow"),
    set("recording.counter", "\"auto\"", "\"auto\", \"exits\" or \"single-step\"", "what counts the progress of vCPUs, so that chunks that were cut can be run again; \"exits\": nothing, only chunks that end by exits are; \"single-step\": slow, for tests"),
    set("recording.chunk_min_us", "200", "a whole number from 10 to 1000000", "shortest chunk timer, microseconds"),
    set("recording.chunk_max_us", "5000", "a whole number from 10 to 1000000", "longest chunk timer, microseconds; up to 8 times that for a guest that writes so much that commits take long"),
    set("recording.digest_every", "256", "a whole number from 0 to 1000000000", "commits between two digests of the whole machine; 0: never"),
    set("recording.held_pages_max", "0", "a whole number from 0 to 16777216", "most pages that a view keeps writable across chunks; 0: automatic"),
    set("recording.squashes_before_exclusive", "4", "a whole number from 1 to 1000", "squashes in a row after which a chunk runs while the others wait"),

    set("log.checkpoint_every_s", "30", "a whole number from 1 to 86400", "of --record DIRECTORY: seconds between two checkpoints, from which a replay can begin; each costs as much writing as the guest has memory"),
    set("log.keep_minutes", "0", "a whole number from 0 to 5256000", "of --record DIRECTORY: minutes that are kept at least, older segments are removed; 0: all"),
    unset("log.max_bytes", "\"10GiB\"", "a size in whole 4 KiB pages from \"1MiB\" to \"1024GiB\"", "of --record DIRECTORY: the oldest segments are removed beyond this; unset: any size"),

    unset("replication.listen", "\"0.0.0.0:7400\"", "an address and port such as \"0.0.0.0:7400\"", "UDP address on which this host takes a backup; a backup needs it once it is primary"),
    unset("replication.peer", "\"beta.example:7400\"", "host:port such as \"beta.example:7400\" or \"[fd00::2]:7400\"", "the other host; a backup connects to it"),
    unset("replication.peer_name", "\"beta\"", HOST, "name that the other host's certificate must carry; default: the host part of replication.peer"),
    unset("replication.host_name", "\"alpha\"", HOST, "name of this host, as in its certificate; default: the system's host name"),
    set("replication.ack", "\"verified\"", "\"verified\" or \"received\"", "which answer of the backup releases outputs"),
    set("replication.queue_bytes", "\"64MiB\"", "a size in whole 4 KiB pages from \"1MiB\" to \"16GiB\"", "bound of the queue to the backup; when it is full, the guest waits"),
    set("replication.lag_max_ms", "20", "a whole number from 1 to 60000", "milliseconds that a backup in sync may be behind; when it is, the guest waits"),
    set("replication.heartbeat_ms", "30", "a whole number from 1 to 60000", "milliseconds between two signs of life"),

    unset("tls.ca", "\"/etc/samsarad/ca.pem\"", FILE, "certificate of your CA (samsaractl pki init)"),
    unset("tls.cert", "\"/etc/samsarad/alpha.pem\"", FILE, "this host's certificate (samsaractl pki issue)"),
    unset("tls.key", "\"/etc/samsarad/alpha.key\"", FILE, "this host's key"),

    unset("failover.arbiter", "\"file\"", "\"file\" or \"manual\"", "what settles who may run alone: a directory both hosts see, or samsaractl promote"),
    unset("failover.arbiter_dir", "\"/mnt/shared/samsara\"", "the path of a directory", "directory of the file arbiter, the same one for both hosts"),
    set("failover.dead_after_ms", "150", "a whole number from 2 to 600000", "milliseconds of silence after which the other host counts as dead"),
    set("failover.start", "\"protected\"", "\"protected\" or \"alone\"", "whether the guest's first instruction waits for a backup in sync"),

    unset("metrics.listen", "\"127.0.0.1:9740\"", "an address and port such as \"127.0.0.1:9740\"", "TCP address of /metrics and /healthz; unset: none"),
    unset("control.socket", "\"/run/samsarad/vm.sock\"", "the path of a Unix socket", "socket for samsaractl; unset: none"),
];

/// The key of that name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The known key that a mistyped name most likely means.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    let written = name.rsplit('.').next().unwrap_or(name);
    // A right name in the wrong section, or in none, is as close as one wrong letter.
    let distances = |key: &Key| {
        let whole = edits(name, key.name);
        (
            whole.min(edits(written, key.parts().1).saturating_add(1)),
            whole,
        )
    };
    let best = KEYS.iter().min_by_key(|key| distances(key))?;
    (distances(best).0 <= (written.chars().count() / 3).max(2)).then_some(best.name)
}

/// Longest name compared: the comparison takes time in proportion to both lengths.
const COMPARED_CHARS_MAX: usize = 64;

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    if a.chars().count() > COMPARED_CHARS_MAX {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
