//! Real gdb, over the log of vCPUs that are made up.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use samsara_commitlog::{Boundary, Exit, Input};
use samsara_machine::bare::register;

use super::*;
use crate::ctl::made::{Made, store};

pub(super) const COMMITS: u64 = 60;

/// A log of many commits: commit `n` stores `n` at 0x500000 + 4000 n, unless it is an input.
pub(super) fn long() -> Made {
    let mut made = Made::new();
    for at in 1..COMMITS {
        match at % 5 {
            0 => made.input(Input::Console("typed".into())),
            1 => made.chunk(0, Boundary::Exit, store(register::CONSOLE, at % 26 + 97)),
            2 => made.chunk(1, Boundary::Exit, store(register::MARK, at)),
            _ => made.chunk((at % 2) as u8, Boundary::Timer, Exit::Cut),
        }
        if at % 7 == 0 {
            made.digest();
        }
    }
    made.chunk(0, Boundary::Exit, store(register::EXIT, 7));
    made
}

/// What gdb says to these commands after it has connected; nothing where there is no gdb.
fn gdb(at: Option<u64>, commands: &[&str]) -> Option<String> {
    if Command::new("gdb").arg("--version").output().is_err() {
        println!("skipped: there is no gdb here");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = Source {
        path: long().write(folder.path()),
        begin: Begin::First,
        disks: Vec::new(),
        kept_bytes: 8 << 10,
    };
    let (told, lines) = mpsc::channel();
    let server = std::thread::spawn(move || {
        serve(source, at.map(CommitSeq), 0, |line: &str| {
            told.send(line.to_owned()).unwrap();
        })
    });
    let line = lines.recv().unwrap();
    let (_, connect) = line.split_once("in gdb: ").unwrap();
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", connect.trim_end_matches(')')]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    // What the monitor says is among gdb's errors.
    let (mut said, writer) = std::io::pipe().unwrap();
    gdb.stdin(Stdio::null()).stderr(writer.try_clone().unwrap());
    let mut child = gdb.stdout(writer).spawn().unwrap();
    drop(gdb);
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    server.join().unwrap().unwrap();
    println!("{text}");
    Some(text)
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    let mut rest = said;
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            panic!("{part:?} is not said where it belongs in:\n{said}");
        };
        rest = after;
    }
}

#[test]
fn gdb_goes_over_commits_in_both_directions() {
    let said = gdb(
        Some(22),
        &[
            "info threads",
            "print $commit",
            "print *(long*)(0x500000 + 4000*23)",
            "stepi",
            "print $commit",
            "print *(long*)(0x500000 + 4000*23)",
            "reverse-stepi",
            "print $commit",
            "print *(long*)(0x500000 + 4000*23)",
            "stepi 10",
            "print $commit",
            "reverse-stepi 30",
            "print $commit",
            "reverse-stepi 30",
            "print $commit",
            "continue",
            "print $commit",
        ],
    );
    let Some(said) = said else { return };
    assert_says(
        &said,
        &[
            "Thread 1.1 (vCPU 0 runs)",
            "Thread 1.2 (vCPU 1 runs)",
            "$1 = 22\n",
            "$2 = 0\n",
            "$3 = 23\n",
            "$4 = 23\n",
            "$5 = 22\n",
            "$6 = 0\n",
            "$7 = 32\n",
            "$8 = 2\n",
            "No more reverse-execution history",
            "$9 = 0\n",
            "No more reverse-execution history",
            "$10 = 60\n",
        ],
    );
}

#[test]
fn gdb_finds_the_commit_that_changed_a_word() {
    let said = gdb(
        None,
        &[
            "watch *(long*)(0x500000 + 4000*23)",
            "continue",
            "print $commit",
            "monitor commit",
            "continue",
            "reverse-continue",
            "print $commit",
            "thread",
            "reverse-continue",
            "rwatch *(long*)(0x500000 + 4000*24)",
            "delete",
            "monitor break 40",
            "continue",
            "print $commit",
            "set var *(long*)0x500000 = 1",
            "set var $rax = 1",
        ],
    );
    let Some(said) = said else { return };
    assert_says(
        &said,
        &[
            "Old value = 0\nNew value = 23\n",
            "$1 = 23\n",
            "changed physical memory:\n  0x516760 1 B\n",
            "No more reverse-execution history",
            "Old value = 23\nNew value = 0\n",
            "$2 = 22\n",
            "Current thread is 2",
            "No more reverse-execution history",
            "$3 = 40\n",
            "Cannot access memory at address 0x500000",
            "Could not write registers",
        ],
    );
}

#[test]
fn gdb_asks_the_monitor() {
    let said = gdb(
        Some(7),
        &[
            "monitor help",
            "monitor status",
            "monitor goto +3",
            "maintenance flush register-cache",
            "print $commit",
            "monitor goto 5000",
            "maintenance flush register-cache",
            "print $commit",
            "monitor status",
            "monitor goto -58",
            "monitor phys 0x500fa0 8",
            "monitor translate 0x1234",
            "monitor digest",
            "monitor nonsense",
            "monitor break x",
            "x/8xb 0x500fa0",
            "x/8xb 0xfffffffffffffff8",
        ],
    );
    let Some(said) = said else { return };
    assert_says(
        &said,
        &[
            "monitor goto SEQ",
            "commit  7; the log can be gone through from 0 on",
            "at commit 10.",
            "$1 = 10\n",
            "at commit 60: the guest has ended",
            "$2 = 60\n",
            "from 0 to 60: the guest has ended",
            "at commit 2.",
            "01 00 00 00 00 00 00 00",
            "vCPU 0 has 0x1234 at physical 0x1234",
            "digest after commit 2: ",
            "there is no such command",
            "\"x\" is no number",
            "0x01\t0x00\t0x00",
            "Cannot access memory",
        ],
    );
}

/// Whoever connects may send anything: the replay ends, with an error or without.
#[test]
fn what_is_not_gdb_ends_the_session() {
    let packet = |body: &str| {
        let sum = body.bytes().fold(0_u8, u8::wrapping_add);
        format!("${body}#{sum:02x}").into_bytes()
    };
    let strange = [
        Vec::new(),
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_vec(),
        vec![0xff; 5000],
        [packet("Hg0"), packet("Hc-1"), packet("bs")].concat(),
        [packet("Hg63"), packet("g"), packet("Hg0"), packet("g")].concat(),
        [packet("Hg1"), packet("m0,fffffff")].concat(),
        [packet("Hg1"), packet("mfffffffffffffffe,4")].concat(),
        packet("Z2,ffffffffffffffff,ffffffffffffffff"),
        packet("Z2,500000,8"),
        packet("G0011"),
        [packet("vCont;s:999;c"), packet("vCont;c"), vec![3]].concat(),
        [
            packet("bc"),
            vec![3],
            packet("qRcmd,676f746f202d39"),
            packet("k"),
        ]
        .concat(),
    ];
    for bytes in strange {
        let folder = tempfile::tempdir().unwrap();
        let source = Source {
            path: long().write(folder.path()),
            begin: Begin::First,
            disks: Vec::new(),
            kept_bytes: 8 << 10,
        };
        let (told, lines) = mpsc::channel();
        let server = std::thread::spawn(move || {
            serve(source, None, 0, |line: &str| {
                told.send(line.to_owned()).unwrap();
            })
        });
        let line = lines.recv().unwrap();
        let address = line.rsplit(' ').next().unwrap().trim_end_matches(')');
        let mut connection = TcpStream::connect(address).unwrap();
        // It may have hung up already.
        let _ = connection.write_all(&bytes);
        drop(connection);
        // No panic.
        let _ = server.join().unwrap();
    }
}
