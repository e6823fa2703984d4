//! Compiling a program against the shim and running it.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, RwLock};

const RUNTIME: &[&str] = &["console", "memory", "params", "sha256", "start", "sync"];

pub(crate) const MIB: u64 = 1 << 20;

/// Programs whose vCPUs wait for each other have the processors to themselves: beside others they mostly wait. What is
/// compiled or has one vCPU shares them.
static PROCESSORS: RwLock<()> = RwLock::new(());

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Exit status, or 128 and the signal that ended it.
    pub(crate) status: i32,
    pub(crate) output: Vec<u8>,
}

impl Outcome {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

/// A run to be: a program, with 64 MiB of memory, no parameters, and no input unless told otherwise.
pub(crate) struct Run<'a> {
    executable: PathBuf,
    vcpus: u32,
    memory: u64,
    params: &'a str,
    input: PathBuf,
    typed: &'a [u8],
}

impl<'a> Run<'a> {
    pub(crate) fn of(program: &str) -> Self {
        Self::of_executable(built(program))
    }

    pub(crate) fn of_executable(executable: PathBuf) -> Self {
        Self {
            executable,
            vcpus: 1,
            memory: 64 * MIB,
            params: "",
            input: "/dev/null".into(),
            typed: b"",
        }
    }

    pub(crate) fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self
    }

    pub(crate) fn memory(mut self, memory: u64) -> Self {
        self.memory = memory;
        self
    }

    pub(crate) fn params(mut self, params: &'a str) -> Self {
        self.params = params;
        self
    }

    pub(crate) fn input(mut self, input: &Path) -> Self {
        input.clone_into(&mut self.input);
        self
    }

    pub(crate) fn typed(mut self, typed: &'a [u8]) -> Self {
        self.typed = typed;
        self
    }

    pub(crate) fn outcome(self) -> Outcome {
        if self.vcpus > 1 {
            let _alone = PROCESSORS.write().unwrap_or_else(PoisonError::into_inner);
            return self.ended();
        }
        let _shared = PROCESSORS.read().unwrap_or_else(PoisonError::into_inner);
        self.ended()
    }

    fn ended(self) -> Outcome {
        let mut child = Command::new(&self.executable)
            .args([self.vcpus.to_string(), self.memory.to_string()])
            .arg(self.params)
            .arg(&self.input)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start a guest program");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(self.typed).expect("type");
        let output = child.wait_with_output().expect("wait for it");
        drop(stdin);
        let signal = output.status.signal().map(|signal| 128 + signal);
        Outcome {
            status: output.status.code().or(signal).expect("one of the two"),
            output: output.stdout,
        }
    }

    /// The text of a run that must end with status 0.
    pub(crate) fn answer(self) -> String {
        let what = format!(
            "{} x{} [{}]",
            self.executable.display(),
            self.vcpus,
            self.params
        );
        let outcome = self.outcome();
        assert_eq!(outcome.status, 0, "{what}: {}", outcome.text());
        outcome.text()
    }
}

/// A file of `bytes` pseudo-random bytes.
pub(crate) fn input_file(bytes: usize) -> PathBuf {
    let path = scratch(&format!("input-{bytes}"));
    fs::write(&path, input_bytes(bytes)).expect("write the input");
    path
}

pub(crate) fn input_bytes(bytes: usize) -> Vec<u8> {
    let mut state = bytes as u64;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
    .take(bytes)
    .collect()
}

pub(crate) fn source_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// The C compiler with the flags that everything is compiled with.
fn compiler() -> Command {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut words = compiler.split_whitespace();
    let mut command = Command::new(words.next().expect("CC names a compiler"));
    command
        .args(words)
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"])
        .args(["-ffp-contract=off", "-pthread", "-DSAMSARA_HOSTED", "-I"])
        .arg(source_folder().join("runtime"));
    command
}

fn run(command: &mut Command) {
    let _shared = PROCESSORS.read().unwrap_or_else(PoisonError::into_inner);
    let output = command.output().expect("run the C compiler");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {messages}");
}

/// The runtime and the shim, compiled once.
fn runtime() -> &'static [PathBuf] {
    static OBJECTS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    OBJECTS.get_or_init(|| {
        let folder = scratch("runtime");
        fs::create_dir_all(&folder).expect("create a folder");
        let runtime = source_folder().join("runtime");
        let shim = source_folder().join("tests/hosted/shim.c");
        let names = RUNTIME.iter();
        let mut sources: Vec<_> = names
            .map(|name| runtime.join(name).with_extension("c"))
            .collect();
        sources.push(shim);
        run(compiler().current_dir(&folder).arg("-c").args(&sources));
        let names = RUNTIME.iter().chain(&["shim"]);
        names
            .map(|name| folder.join(name).with_extension("o"))
            .collect()
    })
}

/// Compiles `NAME.c` and `NAME/*` in the folder `programs`, with the runtime and the shim.
pub(crate) fn compile(programs: &Path, program: &str, executable: &Path) {
    let folder = fs::read_dir(programs.join(program));
    let parts = folder.into_iter().flatten();
    let parts = parts.filter_map(|entry| Some(entry.ok()?.path()));
    run(compiler()
        .arg("-o")
        .arg(executable)
        .arg(programs.join(program).with_extension("c"))
        .args(parts.filter(|path| path.extension().is_some_and(|e| e != "h")))
        .args(runtime()));
}

/// The program's executable, compiled on first use.
fn built(program: &str) -> PathBuf {
    type Built = Mutex<HashMap<String, Arc<OnceLock<PathBuf>>>>;
    static BUILT: LazyLock<Built> = LazyLock::new(Mutex::default);
    let cell = {
        let mut built = BUILT.lock().expect("no test panics with this lock");
        Arc::clone(built.entry(program.to_owned()).or_default())
    };
    cell.get_or_init(|| {
        let executable = scratch(&format!("hosted-{program}"));
        compile(&source_folder().join("programs"), program, &executable);
        executable
    })
    .clone()
}
