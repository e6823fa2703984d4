//! What gdb's `monitor` command can ask of a replay.

use std::fmt::Write as _;

use samsara_commitlog::{CommitSeq, Gpa, Record, VcpuIndex};
use samsara_machine::Machine;

use super::target::Session;
use crate::ctl::CtlError;
use crate::ctl::log::record_line;
use crate::ctl::render::aligned;
use crate::world::exit_status;

/// The most bytes that are dumped at a time.
const DUMP_BYTES_MAX: u64 = 4096;
/// The most changed ranges of memory that are listed.
const RANGES_MAX: usize = 16;

const HELP: &str = "\
a step (stepi, reverse-stepi) is a commit; continue and reverse-continue stop at watchpoints (watch: the commit that changed
the memory), at breakpoints (break *ADDRESS: a commit at which a vCPU is there), and at commits:

monitor status              where the replay is, what its vCPUs do
monitor commit              what the last commit did: the vCPU, its exit, the memory that it changed
monitor break SEQ           stops after this commit, in either direction
monitor delete [SEQ]        not any more; without SEQ at none
monitor goto SEQ|+N|-N      goes there at once; then, so that gdb looks anew: maintenance flush register-cache
monitor phys ADDRESS [N]    N bytes of physical memory (64)
monitor translate ADDRESS   where the vCPU that gdb looks at has an address in physical memory
monitor digest              the digest of the whole state

registers and memory are read only; print $commit is the last commit, print $guest_ns the guest's clock, info threads lists vCPUs";

/// Does what a command says.
pub(super) fn answer(session: &mut Session, command: &str) -> Result<String, CtlError> {
    let words: Vec<_> = command.split_whitespace().collect();
    Ok(match words[..] {
        [] | ["help"] => HELP.to_owned(),
        ["status"] => status(session),
        ["commit"] => commit(session),
        ["break", seq] => match seq.parse() {
            Ok(seq) => {
                session.commits().insert(CommitSeq(seq));
                format!("continue and reverse-continue stop after commit {seq}")
            }
            Err(_) => no_number(seq),
        },
        ["delete"] => {
            session.commits().clear();
            "stops at no commit".to_owned()
        }
        ["delete", seq] => match seq.parse() {
            Ok(seq) if session.commits().remove(&CommitSeq(seq)) => {
                format!("does not stop after commit {seq}")
            }
            Ok(seq) => format!("there was no stop after commit {seq}"),
            Err(_) => no_number(seq),
        },
        ["goto", place] => goto(session, place)?,
        ["phys", address] => phys(session, address, "64"),
        ["phys", address, count] => phys(session, address, count),
        ["translate", address] => translate(session, address),
        ["digest"] => format!(
            "digest after commit {}: {:032x}",
            session.timeline.seq(),
            session.timeline.digest()
        ),
        _ => "there is no such command; monitor help lists what there is".to_owned(),
    })
}

/// What a vCPU is doing, in a few words.
pub(super) fn vcpu_text(machine: &Machine, vcpu: VcpuIndex) -> String {
    let devices = machine.devices();
    let what = if devices.can_run(vcpu) {
        "runs"
    } else if devices.is_halted(vcpu) {
        "has halted"
    } else {
        "waits"
    };
    format!("vCPU {vcpu} {what}")
}

fn status(session: &mut Session) -> String {
    let commits: Vec<_> = session.commits().iter().map(ToString::to_string).collect();
    let timeline = &session.timeline;
    let machine = timeline.machine();
    let (first, seq) = (timeline.first(), timeline.seq());
    let end = match timeline.end() {
        Some((last, why)) => format!("to {last}: {why}"),
        None => "on".to_owned(),
    };
    let guest = match machine.ended() {
        Some(ended) => exit_status(ended).1,
        None => "runs".to_owned(),
    };
    let mut rows = vec![
        (
            "commit",
            format!("{seq}; the log can be gone through from {first} {end}"),
        ),
        (
            "guest time",
            format!("{:.9} s", machine.guest_time().0 as f64 / 1e9),
        ),
        ("guest", guest),
    ];
    for vcpu in (0..machine.shape().vcpu_count).map(VcpuIndex) {
        let regs = machine.vcpu(vcpu).regs();
        let text = format!("{}, rip {:#x}", vcpu_text(machine, vcpu), regs.rip);
        rows.push(("thread", format!("{}: {text}", vcpu.0 + 1)));
    }
    if !commits.is_empty() {
        rows.push(("stops after", commits.join(", ")));
    }
    aligned(&rows)
}

fn commit(session: &Session) -> String {
    let timeline = &session.timeline;
    let Some(record) = timeline.record() else {
        return format!(
            "the state after commit {} is what a snapshot in the log has; what led to it is not known",
            timeline.seq()
        );
    };
    let mut text = record_line(record);
    if let Some(step) = timeline.step() {
        text += &ranges_text(
            step.change
                .memory()
                .iter()
                .map(|(at, bytes)| (at, bytes.len())),
        );
    } else {
        text += &not_kept(record);
    }
    text
}

/// Ranges of memory that a commit changed.
fn ranges_text(ranges: impl Iterator<Item = (u64, usize)>) -> String {
    let ranges: Vec<_> = ranges.collect();
    if ranges.is_empty() {
        return "changed no memory\n".to_owned();
    }
    let mut text = "changed physical memory:\n".to_owned();
    for (address, bytes) in ranges.iter().take(RANGES_MAX) {
        let _ = writeln!(text, "  {address:#x} {bytes} B");
    }
    if let Some(more) = ranges
        .len()
        .checked_sub(RANGES_MAX)
        .filter(|&more| more > 0)
    {
        let _ = writeln!(text, "  and {more} more ranges");
    }
    text
}

fn not_kept(record: &Record) -> String {
    let before = record.seq.0 - 1;
    format!("which memory it changed is not kept: monitor goto {before}, then stepi\n")
}

/// A commit by its number, or so many forth (`+`) or back (`-`).
fn goto(session: &mut Session, place: &str) -> Result<String, CtlError> {
    let here = session.timeline.seq().0;
    let (sign, digits) = match place.split_at_checked(1) {
        Some((sign @ ("+" | "-"), digits)) => (sign, digits),
        _ => ("", place),
    };
    let Ok(number) = digits.parse::<u64>() else {
        return Ok(no_number(place));
    };
    let wanted = CommitSeq(match sign {
        "+" => here.saturating_add(number),
        "-" => here.saturating_sub(number),
        _ => number,
    });
    session.timeline.goto(wanted)?;
    let seq = session.timeline.seq();
    let why = match session.timeline.end() {
        _ if seq > wanted => ", the first state that there is".to_owned(),
        Some((_, why)) if seq < wanted => format!(": {why}"),
        _ => String::new(),
    };
    Ok(format!(
        "at commit {seq}{why}. What gdb shows it has read before; to look anew: maintenance flush register-cache"
    ))
}

fn phys(session: &Session, address: &str, count: &str) -> String {
    let (Some(address), Some(count)) = (number(address), number(count)) else {
        return no_number(&format!("{address} {count}"));
    };
    let count = count.clamp(1, DUMP_BYTES_MAX);
    let mut bytes = vec![0; count as usize];
    match session
        .timeline
        .machine()
        .image()
        .read(Gpa(address), &mut bytes)
    {
        Ok(()) => dump(address, &bytes),
        Err(error) => error.to_string(),
    }
}

fn dump(address: u64, bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, bytes) in (0..).zip(bytes.chunks(16)) {
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let shown = |&byte: &u8| match byte {
            b' '..=b'~' => char::from(byte),
            _ => '.',
        };
        let shown: String = bytes.iter().map(shown).collect();
        let _ = writeln!(
            text,
            "{:#012x}  {:<47}  {shown}",
            address + line * 16,
            hex.join(" ")
        );
    }
    text
}

fn translate(session: &Session, address: &str) -> String {
    let Some(address) = number(address) else {
        return no_number(address);
    };
    let vcpu = session.focus();
    match session.timeline.machine().translate(vcpu, address) {
        Some(place) => format!("vCPU {vcpu} has {address:#x} at physical {:#x}", place.0),
        None => format!("vCPU {vcpu} has nothing at {address:#x}"),
    }
}

/// A number as gdb's users write them.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn no_number(text: &str) -> String {
    format!("{text:?} is no number that goes here; monitor help says what does")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_dumped_in_lines() {
        let bytes: Vec<u8> = (0x38..0x4a).collect();
        assert_eq!(
            dump(0x1000, &bytes),
            "0x0000001000  38 39 3a 3b 3c 3d 3e 3f 40 41 42 43 44 45 46 47  89:;<=>?@ABCDEFG\n\
             0x0000001010  48 49                                            HI\n"
        );
    }

    #[test]
    fn many_ranges_are_not_all_listed() {
        assert_eq!(ranges_text(std::iter::empty()), "changed no memory\n");
        let one = ranges_text([(0x5000, 8)].into_iter());
        assert_eq!(one, "changed physical memory:\n  0x5000 8 B\n");
        let many = ranges_text((0..20).map(|at| (at * 64, 1)));
        assert!(many.ends_with("  and 4 more ranges\n"), "{many}");
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("0x1f"), Some(31));
        assert_eq!(number("31"), Some(31));
        assert_eq!(number("1f"), None);
    }
}
