//! Where outputs go: console and network.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::sync::Arc;
use std::thread::JoinHandle;

use samsara_config::Console;
use samsara_machine::Output;

use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::net::Network;
use crate::world::World;

/// An open console.
pub enum Sink {
    /// Standard output.
    Stdout,
    /// A file.
    File(File),
}

impl Sink {
    /// Opens the console. What an earlier run left stays until a guest starts, see [`Leftovers`]:
    /// most hosts that cannot start one find out later than here.
    pub fn open(console: &Console) -> Result<Self, Failure> {
        let Console::File(path) = console else {
            return Ok(Self::Stdout);
        };
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.map(Self::File).map_err(|error| {
            let message = format!("cannot open vm.console {}: {error}", path.display());
            Failure::text(ExitCode::Output, message)
        })
    }

    /// What an earlier run left in it.
    pub fn leftovers(&self) -> Result<Leftovers, Failure> {
        let file = match self {
            Self::Stdout => None,
            Self::File(file) => Some(file.try_clone().map_err(|error| clear_failure(&error))?),
        };
        Ok(Leftovers(file))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
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

/// What an earlier run left in the console's file.
pub struct Leftovers(Option<File>);

impl Leftovers {
    /// Clears it: the guest starts from its first instruction, and has written nothing yet.
    pub fn clear(&self) -> Result<(), Failure> {
        let Some(file) = &self.0 else { return Ok(()) };
        let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if is_regular {
            file.set_len(0).map_err(|error| clear_failure(&error))?;
        }
        Ok(())
    }
}

fn clear_failure(error: &io::Error) -> Failure {
    Failure::text(
        ExitCode::Output,
        format!("cannot clear vm.console: {error}"),
    )
}

/// Starts the thread that emits what the gate lets through.
pub fn start(
    world: &Arc<World>,
    mut sink: Sink,
    network: Arc<Network>,
) -> Result<JoinHandle<()>, Failure> {
    let world = Arc::clone(world);
    let emit = move |output: &Output| match output {
        Output::Console(bytes) => sink.write(bytes),
        Output::Frame { device, bytes } => {
            network.emit(*device, bytes);
            Ok(())
        }
        Output::Ended(_) => Ok(()),
    };
    let body = move || world.emit(emit);
    let thread = std::thread::Builder::new()
        .name("emitter".into())
        .spawn(body);
    thread.map_err(|error| Failure::new(ExitCode::Internal, &error))
}
