//! Each self-check fails when what it checks is wrong: programs are compiled with one mistake in them and must notice.

mod suite;

use std::fs;
use std::path::Path;

use samsara_testing::by_effort;

use crate::host::{Run, compile, scratch, source_folder};

struct Mutation {
    program: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    params: &'static str,
}

const fn mutation(
    program: &'static str,
    file: &'static str,
    params: &'static str,
    from: &'static str,
    to: &'static str,
) -> Mutation {
    Mutation {
        program,
        file,
        from,
        to,
        params,
    }
}

const LITMUS: &str = "programs/litmus/outcomes.c";
const LOCKS: &str = "programs/litmus/locks.c";
const HOLD: &str = "programs/registers/hold.S";
const STORMS: &str = "programs/litmus/storms.c";

const MUTATIONS: &[Mutation] = &[
    mutation(
        "counter",
        "programs/counter.c",
        "n=1000 mode=lock",
        "*count + 1",
        "*count + (*count != 500)",
    ),
    mutation(
        "private",
        "programs/private.c",
        "n=1000",
        "added += state",
        "added += state + (i == 77)",
    ),
    mutation(
        "radix",
        "programs/radix.c",
        "n=1000",
        "shift += 8",
        "shift += 16",
    ),
    mutation(
        "radix",
        "programs/radix.c",
        "n=1000",
        "keys[i] = mix(i)",
        "keys[i] = mix(i) + (i == 3)",
    ),
    mutation(
        "lu",
        "programs/lu.c",
        "n=64",
        "a[i][j] -= l[i][k] * u[k][j]",
        "a[i][j] -= l[i][k] * u[j][k]",
    ),
    mutation(
        "fft",
        "programs/fft.c",
        "log2=8",
        "case 2: return (struct complex){-s, -c}",
        "case 2: return (struct complex){-s, c}",
    ),
    mutation(
        "fft",
        "programs/fft.c",
        "log2=8",
        "times(data[j], (struct complex){w.re, -w.im})",
        "times(data[j], w)",
    ),
    mutation(
        "sha256tree",
        "programs/sha256tree.c",
        "passes=2",
        "sha256_prefixed(0, slot",
        "sha256_prefixed((u8)tree.leaves_before, slot",
    ),
    mutation(
        "clock",
        "programs/clock.c",
        "n=100",
        "shared.last = now",
        "shared.last = now + 1000000000",
    ),
    mutation(
        "clock",
        "programs/clock.c",
        "n=100",
        "drawn = device_read(RANDOM)",
        "drawn = 5",
    ),
    mutation(
        "litmus",
        LITMUS,
        "test=sb",
        "fence(); a = *y;",
        "fence(); a = 0 * *y;",
    ),
    mutation(
        "litmus",
        LITMUS,
        "test=mp cut=3",
        "{ *x = s->first; *y = s->first; }",
        "{ *y = s->first; }",
    ),
    mutation(
        "litmus",
        LITMUS,
        "test=lb",
        "{ a = *x; *y = s->first; }",
        "{ a = s->first; *y = s->first; }",
    ),
    mutation(
        "litmus",
        LITMUS,
        "test=2+2w",
        "{ *y = s->first; *x = s->second; }",
        "{ *y = s->first; *x = s->first; *y = s->first; }",
    ),
    mutation(
        "litmus",
        LITMUS,
        "test=wrc cut=3",
        "b = *x; })\nROLE(read_x_x",
        "b = 0 * *x; })\nROLE(read_x_x",
    ),
    mutation(
        "litmus",
        LITMUS,
        "test=iriw cut=3",
        "ROLE(read_x_y, { a = *x; b = *y; })",
        "ROLE(read_x_y, { a = s->first; b = 0 * (*x + *y); })",
    ),
    mutation(
        "litmus",
        LOCKS,
        "test=peterson iters=1000",
        "= count + 1;",
        "= count + (i != 5);",
    ),
    mutation(
        "litmus",
        LOCKS,
        "test=dekker iters=1000",
        "= count + 1;",
        "= count + (i != 5);",
    ),
    mutation(
        "litmus",
        STORMS,
        "test=xchg iters=1000",
        "in += value;",
        "in += value + (i == 5);",
    ),
    mutation(
        "litmus",
        STORMS,
        "test=cas iters=1000",
        "seen + 1, false",
        "seen + 1 + (i == 5), false",
    ),
    mutation(
        "litmus",
        STORMS,
        "test=fetchadd iters=1000",
        "returned += fetch_add",
        "returned += (i == 5) + fetch_add",
    ),
    mutation(
        "litmus",
        STORMS,
        "test=falseshare iters=1000",
        "*mine = *mine + 1",
        "*mine = *mine + 1 + (i == 5)",
    ),
    mutation(
        "litmus",
        STORMS,
        "test=pingpong iters=1000",
        "*ball = *ball + 1",
        "*ball = *ball + 1 + (mine == 2)",
    ),
    mutation(
        "registers",
        HOLD,
        "n=50",
        "fldcw 124(%rdi)",
        "fldcw usual_mxcsr(%rip)",
    ),
    mutation(
        "registers",
        HOLD,
        "n=50",
        "2:  movq (%rsp), %rcx",
        "2:  pxor %xmm7, %xmm7\n movq (%rsp), %rcx",
    ),
    mutation(
        "registers",
        HOLD,
        "n=50",
        "1:  loop 1b",
        "1:  dec %rcx\n jnz 1b",
    ),
];

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create a folder");
    for entry in fs::read_dir(from).expect("read a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copy a file");
        }
    }
}

fn run(index: usize, mutation: &Mutation) {
    let root = scratch(&format!("mutation-{index}"));
    let _ = fs::remove_dir_all(&root);
    copy_tree(&source_folder().join("programs"), &root.join("programs"));
    let file = root.join(mutation.file);
    let text = fs::read_to_string(&file).expect("read the source");
    let places = text.matches(mutation.from).count();
    assert_eq!(places, 1, "`{}` in {}", mutation.from, mutation.file);
    fs::write(&file, text.replace(mutation.from, mutation.to)).expect("write the source");
    let executable = root.join("program");
    compile(&root.join("programs"), mutation.program, &executable);
    let vcpus = if mutation.params.contains("iriw") {
        4
    } else {
        3
    };
    let input = source_folder().join("programs/litmus.c");
    let run = Run::of_executable(executable)
        .vcpus(vcpus)
        .params(mutation.params)
        .input(&input);
    let outcome = run.outcome();
    let what = format!(
        "{} [{}] `{}`",
        mutation.program, mutation.params, mutation.to
    );
    assert_eq!(
        outcome.status,
        1,
        "{what} was not noticed: {}",
        outcome.text()
    );
}

/// A sixth of them, all with `SAMSARA_TESTS=full`.
#[test]
fn every_self_check_notices_a_mistake() {
    let step = by_effort(6, 1);
    std::thread::scope(|scope| {
        for part in 0..2 {
            scope.spawn(move || {
                let all = MUTATIONS.iter().chain(suite::MUTATIONS);
                let tried = all.enumerate().step_by(step);
                let mine = tried.skip(part).step_by(2);
                mine.for_each(|(index, mutation)| run(index, mutation));
            });
        }
    });
}
