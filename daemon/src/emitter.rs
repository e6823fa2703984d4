//! Where console output goes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::sync::Arc;
use std::thread::JoinHandle;

use samsara_config::{Console, Role};
use samsara_machine::Output;

use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::world::World;

/// An open console.
pub enum Sink {
    /// Standard output.
    Stdout,
    /// A file.
    File(File),
}

impl Sink {
    /// Opens the console. Only a host that starts the guest clears what an earlier run left.
    pub fn open(console: &Console, role: Role) -> Result<Self, Failure> {
        let Console::File(path) = console else { return Ok(Self::Stdout) };
        let clear = role != Role::Backup;
        let mut options = OpenOptions::new();
        let file = if clear {
            options.create(true).write(true).truncate(true).open(path)
        } else {
            options.create(true).append(true).open(path)
        };
        file.map(Self::File).map_err(|error| {
            let message = format!("cannot open vm.console {}: {error}", path.display());
            Failure::text(ExitCode::Output, message)
        })
    }

    fn write(&mut self, output: &Output) -> io::Result<()> {
        let Output::Console(bytes) = output else { return Ok(()) };
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            Self::File(file) => file.write_all(bytes),
        }
    }
}

/// Starts the thread that emits what the gate lets through.
pub fn start(world: &Arc<World>, mut sink: Sink) -> Result<JoinHandle<()>, Failure> {
    let world = Arc::clone(world);
    let body = move || world.emit(|output| sink.write(output));
    let thread = std::thread::Builder::new().name("emitter".into()).spawn(body);
    thread.map_err(|error| Failure::new(ExitCode::Internal, &error))
}
