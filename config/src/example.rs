//! The documented example, made from the table of keys so that it cannot lag behind.

use crate::keys::{KEYS, Key};

const HEAD: &str = "\
# samsarad configuration, with every key.
#
# A line that starts with '#' and a key shows the default, or a sample where the comment says that there is none:
# to change a value, remove the '#'. Any key can also be given on the command line: --set vm.vcpus=2
# Values set here make a primary that works once the files exist; a backup needs replication.peer as well.
";

/// Keys that the example sets: what a primary cannot do without.
const SET: &[&str] = &[
    "vm.program",
    "replication.listen",
    "tls.ca",
    "tls.cert",
    "tls.key",
    "failover.arbiter",
    "failover.arbiter_dir",
];

/// The text of `samsarad.toml.example`.
pub fn example() -> String {
    let mut text = vec![HEAD.to_owned()];
    let mut section = "";
    for key in KEYS {
        let (of, _) = key.parts();
        if of != section {
            section = of;
            text.push(format!("\n[{section}]\n"));
        }
        text.push(entry(key));
    }
    text.concat()
}

fn entry(key: &Key) -> String {
    let is_set = SET.contains(&key.name);
    let note = if is_set || key.default.is_some() {
        ""
    } else {
        " (a sample; not set by default)"
    };
    let mark = if is_set { "" } else { "#" };
    let (_, last) = key.parts();
    format!(
        "# {}.\n# Takes {}{note}.\n{mark}{last} = {}\n",
        key.meaning, key.accepts, key.sample
    )
}
