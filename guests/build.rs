//! Compiles the guest programs: `programs/NAME.c`, with `programs/NAME/*.c` if there are any, and the runtime,
//! into `OUT_DIR/NAME.elf`; and kernels for tests, `kernels/NAME.c` and `kernels/NAME/*`, into `OUT_DIR/kernel-NAME.elf`. Needs a C compiler that can make x86-64 code (`CC`, default `cc`) and nothing else.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs, thread};

/// No operating system, no red zone surprises, nothing beyond SSE2, and floating point exactly as written.
const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-pic",
    "-fno-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-ffp-contract=off",
    "-mno-red-zone",
    "-mcmodel=small",
    "-Iruntime",
    "-march=x86-64",
    "-mtune=generic",
];

const LINK_FLAGS: &[&str] = &[
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=4096",
];

/// A kernel's code at CPL 0 may be emulated by KVM, which knows no vector registers; and there is no `memset`.
const KERNEL_FLAGS: &[&str] = &["-mgeneral-regs-only", "-fno-tree-loop-distribute-patterns"];

type Outcome<T> = Result<T, String>;

fn main() -> ExitCode {
    for changed in ["build.rs", "runtime", "programs", "kernels"] {
        println!("cargo::rerun-if-changed={changed}");
    }
    println!("cargo::rerun-if-env-changed=CC");
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("cargo::error=guest programs: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Outcome<()> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if arch != "x86_64" {
        return Err(format!(
            "they are x86-64 programs; the target is {arch}, build for x86_64"
        ));
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run cargo")?);
    let compiler = Compiler::from_env()?;
    let runtime = objects(&compiler, &sources("runtime")?, &out)?;
    let programs = sources("programs")?;
    parallel(&programs, |program| {
        let target = out.join(stem(program)).with_extension("elf");
        link(&compiler, program, &runtime, &[], &target)
    })?;
    parallel(&sources("kernels")?, |kernel| {
        let name = format!("kernel-{}.elf", stem(kernel).display());
        link(&compiler, kernel, &[], KERNEL_FLAGS, &out.join(name))
    })?;
    Ok(())
}

/// The C compiler: a program and the arguments it always gets (`CC="ccache gcc"`).
struct Compiler {
    program: String,
    arguments: Vec<String>,
}

impl Compiler {
    fn from_env() -> Outcome<Self> {
        let text = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let mut words = text.split_whitespace().map(str::to_owned);
        let program = words
            .next()
            .ok_or("CC is empty: name a C compiler or unset it")?;
        Ok(Self {
            program,
            arguments: words.collect(),
        })
    }

    /// Runs the compiler with `arguments`; its messages become part of the error.
    fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome<()> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(arguments);
        let output = command.output().map_err(|error| {
            format!(
                "cannot run the C compiler `{}` ({error}): install one or set CC",
                self.program
            )
        })?;
        if output.status.success() {
            return Ok(());
        }
        let mut reason = format!("`{}` failed ({})", self.program, output.status);
        for line in String::from_utf8_lossy(&output.stderr).lines().take(20) {
            let _ = write!(reason, " | {line}");
        }
        Err(reason)
    }
}

/// The C and assembly files of a folder, in order of their names.
fn sources(folder: impl AsRef<Path>) -> Outcome<Vec<PathBuf>> {
    let folder = folder.as_ref();
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(|error| format!("{}: {error}", folder.display()))?
            .path();
        if path.extension().is_some_and(|e| e == "c" || e == "S") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn stem(path: &Path) -> &OsStr {
    path.file_stem().unwrap_or(path.as_os_str())
}

/// Compiles every file to an object of the runtime.
fn objects(compiler: &Compiler, files: &[PathBuf], out: &Path) -> Outcome<Vec<PathBuf>> {
    parallel(files, |file| {
        let object = out.join(stem(file)).with_extension("o");
        let mut arguments: Vec<&OsStr> = FLAGS.iter().map(OsStr::new).collect();
        arguments.extend(["-c".as_ref(), file.as_os_str()]);
        arguments.extend(["-o".as_ref(), object.as_os_str()]);
        compiler.run(arguments)?;
        Ok(object)
    })
}

/// Compiles a program, or a kernel, and links it with the runtime, if it has one.
fn link(
    compiler: &Compiler,
    program: &Path,
    runtime: &[PathBuf],
    more_flags: &[&str],
    target: &Path,
) -> Outcome<()> {
    let folder = program.with_extension("");
    let parts = if folder.is_dir() {
        sources(&folder)?
    } else {
        Vec::new()
    };
    let script = "-Wl,-T,runtime/link.ld";
    let flags = FLAGS.iter().chain(more_flags);
    let flags = flags.chain(LINK_FLAGS).chain([&script]);
    let mut arguments: Vec<&OsStr> = flags.map(OsStr::new).collect();
    arguments.extend(["-o".as_ref(), target.as_os_str(), program.as_os_str()]);
    arguments.extend(parts.iter().chain(runtime).map(|path| path.as_os_str()));
    compiler.run(arguments)
}

/// Does `work` on every item, on as many threads as cargo grants jobs; the first error wins.
fn parallel<T: Send>(
    items: &[PathBuf],
    work: impl Fn(&Path) -> Outcome<T> + Sync,
) -> Outcome<Vec<T>> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok());
    let each = items.len().div_ceil(jobs.unwrap_or(1).max(1)).max(1);
    thread::scope(|scope| {
        let work = &work;
        let parts: Vec<_> = items
            .chunks(each)
            .map(|part| scope.spawn(move || part.iter().map(|item| work(item)).collect::<Vec<_>>()))
            .collect();
        let mut done = Vec::new();
        for part in parts {
            done.extend(part.join().map_err(|_| "a build thread panicked")?);
        }
        done.into_iter().collect()
    })
}
