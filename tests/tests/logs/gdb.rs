//! Real gdb over the replay of a real run.

use std::process::{Child, Command, Stdio};

use samsara_commitlog::{Effects, Frame, LogHistory};
use samsara_tests::{Capture, Ran, kvm_shared_or_skip};

use crate::BOUND;
use crate::recorded::{Recorded, recorded};

/// samsaractl that waits for gdb.
struct Server {
    child: Child,
    said: Capture,
    /// gdb's command to connect.
    connect: String,
}

impl Server {
    fn start(run: &Recorded, words: &[&str]) -> Self {
        let mut command = Command::new(&run.site.binaries().samsaractl);
        command
            .args(["replay", run.log_name(), "--gdb", "0"])
            .args(words);
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let said = Capture::start(child.stderr.take().unwrap());
        let connect = said.wait(BOUND, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let (_, rest) = text.split_once("(in gdb: ")?;
            Some(rest.split_once(')')?.0.to_owned())
        });
        Self {
            connect: connect.expect("samsaractl says how to connect"),
            child,
            said,
        }
    }

    /// Runs gdb with a script after it has connected. samsaractl ends with it.
    fn gdb(mut self, run: &Recorded, program: &str, script: &str) -> Ran {
        let script = format!("{}\n{script}", self.connect);
        let script = run.site.write("script.gdb", script.as_bytes()).unwrap();
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-batch", "-x"]).arg(script);
        gdb.arg(run.site.path(program));
        let ran = Ran::run(&mut gdb, BOUND).unwrap();
        self.said.finish();
        let code = self.child.wait().unwrap().code();
        let said = String::from_utf8_lossy(&self.said.bytes()).into_owned();
        assert_eq!(code, Some(0), "{said}\n{ran:?}");
        println!("{}{}", String::from_utf8_lossy(&ran.stdout), ran.stderr);
        ran
    }
}

fn has_gdb(test: &str) -> bool {
    let has = Command::new("gdb").arg("--version").output().is_ok();
    if !has {
        println!("skipped: {test}: there is no gdb here");
    }
    has
}

/// A commit that changed a word: its number, the value since, the vCPU.
type Changed = (u64, u64, u64);

/// The commits that changed the 8 bytes at a physical address, by the log alone.
fn changes(run: &Recorded, address: u64) -> Vec<Changed> {
    let mut history = LogHistory::open(&run.log).unwrap();
    let mut word = [0; 8];
    let mut changes = Vec::new();
    while let Some(frame) = history.next_frame().unwrap() {
        let Frame::Record(record) = &frame else {
            continue;
        };
        let Some(chunk) = record.chunk() else {
            continue;
        };
        let Effects { memory, .. } = &chunk.effects;
        let old = word;
        for (start, bytes) in memory.iter() {
            for (at, byte) in (start..).zip(bytes) {
                if let Some(place) = at.checked_sub(address)
                    && let Some(target) = word.get_mut(place as usize)
                {
                    *target = *byte;
                }
            }
        }
        if word != old {
            let value = u64::from_le_bytes(word);
            changes.push((record.seq.0, value, chunk.vcpu.0.into()));
        }
    }
    changes
}

/// The numbers in the lines that begin with a word.
fn numbers(ran: &Ran, word: &str) -> Vec<Vec<u64>> {
    let text = String::from_utf8_lossy(&ran.stdout);
    let lines = text.lines().filter_map(|line| line.strip_prefix(word));
    let numbers = |line: &str| {
        let numbers = line
            .split_whitespace()
            .map(|number| number.parse().unwrap());
        numbers.collect()
    };
    lines.map(numbers).collect()
}

const COUNT: u64 = 2_000_000;
const HITS: usize = 6;

/// Two vCPUs count in one word: which commit changed it, and what it was before.
#[test]
fn gdb_steps_back_over_a_commit_and_sees_the_old_value() {
    const TEST: &str = "gdb_steps_back_over_a_commit_and_sees_the_old_value";
    let Some(_machine) = kvm_shared_or_skip(TEST) else {
        return;
    };
    if !has_gdb(TEST) {
        return;
    }
    let run = recorded(
        "counter",
        &format!("n={COUNT}"),
        &["recording.chunk_max_us=500"],
    );
    assert_eq!(run.ran.code, Some(0), "{}", run.ran.stderr);
    let script = format!(
        "printf \"word %lu\\n\", (unsigned long)&shared
watch *(long*)&shared
set $hits = 0
while $hits < {HITS}
  continue
  printf \"forward %lu %lu %d\\n\", $commit, *(long*)&shared, $_thread
  set $hits = $hits + 1
end
while $hits > 0
  reverse-continue
  printf \"back %lu %lu %d\\n\", $commit, *(long*)&shared, $_thread
  set $hits = $hits - 1
end
info threads
delete
continue
printf \"end %lu %lu\\n\", $commit, *(long*)&shared
reverse-stepi
stepi
printf \"again %lu %lu\\n\", $commit, *(long*)&shared
monitor translate 0x200000
"
    );
    let ran = Server::start(&run, &[]).gdb(&run, "counter.elf", &script);
    let address = numbers(&ran, "word ")[0][0];
    let changes = changes(&run, address);
    assert!(changes.len() > HITS, "{changes:?}");
    let both = [0, 1].map(|vcpu| changes.iter().any(|change| change.2 == vcpu));
    assert_eq!(both, [true, true], "{changes:?}");
    let hits = &changes[..HITS];
    let forward: Vec<_> = hits
        .iter()
        .map(|&(seq, value, vcpu)| vec![seq, value, vcpu + 1])
        .collect();
    assert_eq!(numbers(&ran, "forward "), forward);
    // Back is to before the commit: the value is what the commit before left.
    let before = std::iter::once(0).chain(hits.iter().map(|&(_, value, _)| value));
    let mut back: Vec<_> = hits
        .iter()
        .zip(before)
        .map(|(&(seq, _, vcpu), old)| vec![seq - 1, old, vcpu + 1])
        .collect();
    back.reverse();
    assert_eq!(numbers(&ran, "back "), back);
    let end = vec![vec![run.report.commits, COUNT]];
    assert_eq!(numbers(&ran, "end "), end);
    assert_eq!(numbers(&ran, "again "), end);
    let stdout = String::from_utf8_lossy(&ran.stdout);
    for part in ["(vCPU 0 ", "(vCPU 1 ", "No more reverse-execution history"] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let stderr = &ran.stderr;
    assert!(
        stderr.contains(" has 0x200000 at physical 0x200000"),
        "{stderr}"
    );
}

/// States are those of a replay without gdb, wherever gdb comes from; breakpoints are commits at which a vCPU is there.
#[test]
fn gdb_goes_to_the_states_that_a_replay_comes_to() {
    const TEST: &str = "gdb_goes_to_the_states_that_a_replay_comes_to";
    let Some(_machine) = kvm_shared_or_skip(TEST) else {
        return;
    };
    if !has_gdb(TEST) {
        return;
    }
    let run = recorded("outputs", "n=400", &[]);
    let (one, other) = (run.report.commits / 3, run.report.commits / 2);
    let script = format!(
        "printf \"at %lu\\n\", $commit
monitor digest
monitor break {other}
continue
printf \"at %lu\\n\", $commit
monitor digest
set $where = $rip
reverse-stepi
monitor goto {one}
maintenance flush register-cache
printf \"at %lu\\n\", $commit
monitor digest
monitor delete
monitor goto 0
maintenance flush register-cache
break *$where
continue
printf \"broke %lu %lu\\n\", $commit, $rip == $where
continue
printf \"broke %lu %lu\\n\", $commit, $rip == $where
reverse-continue
printf \"broke %lu %lu\\n\", $commit, $rip == $where
delete
continue
monitor status
"
    );
    let words = ["--until", &one.to_string()];
    let ran = Server::start(&run, &words).gdb(&run, "outputs.elf", &script);
    assert_eq!(numbers(&ran, "at "), [vec![one], vec![other], vec![one]]);
    for seq in [one, other] {
        let seq = seq.to_string();
        let part = run.json(&["replay", run.log_name(), "--json", "--until", &seq]);
        let digest = part["digest"].as_str().unwrap();
        let line = format!("digest after commit {seq}: {digest}\n");
        assert!(ran.stderr.contains(&line), "{line}: {}", ran.stderr);
    }
    let broke = numbers(&ran, "broke ");
    assert_eq!(broke.len(), 3);
    assert!(broke[..2].iter().all(|line| line[1] == 1), "{broke:?}");
    // gdb steps off the breakpoint that it stands at: where the commit before is there, too, it goes on.
    let is_next = broke[1][0] == broke[0][0] + 1;
    assert!(broke[2][1] == 1 || is_next, "{broke:?}");
    assert!(0 < broke[0][0] && broke[0][0] < broke[1][0], "{broke:?}");
    assert!(broke[2][0] < broke[1][0], "{broke:?}");
    let ended = format!("to {}: the guest has ended", run.report.commits);
    assert!(ran.stderr.contains(&ended), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("the guest exited with status 0"),
        "{}",
        ran.stderr
    );
}
