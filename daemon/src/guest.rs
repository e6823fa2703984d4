//! Making a machine from the configuration, and letting it run.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use samsara_commitlog::Shape;
use samsara_config::{Config, ConsoleInput};
use samsara_engine::{NativeRun, Recorder, Settings, Stats};
use samsara_machine::Machine;
use samsara_machine::bare::{self, Program};
use samsara_machine::kvm::Host;
use samsara_machine::memory::Image;

use crate::board::{Board, GuestView};
use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::world::World;

/// Pause while the guest does not read what was typed.
const CONSOLE_FULL_PAUSE: Duration = Duration::from_millis(5);

/// Opens KVM for what the configuration wants.
pub fn open_host(recorded: bool) -> Result<Host, Failure> {
    let host = Host::open()?;
    if recorded {
        host.check_recording()?;
    }
    Ok(host)
}

/// Opens the input file, if there is one; gives its length too.
pub fn open_input(config: &Config) -> Result<Option<(File, u64)>, Failure> {
    let Some(path) = &config.vm.input else {
        return Ok(None);
    };
    let fail = |error: std::io::Error| {
        let message = format!("cannot read vm.input {}: {error}", path.display());
        Failure::text(ExitCode::Input, message)
    };
    let file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if metadata.is_dir() {
        return Err(fail(std::io::ErrorKind::IsADirectory.into()));
    }
    Ok(Some((file, metadata.len())))
}

/// The machine's shape.
pub fn shape(config: &Config) -> Result<Shape, Failure> {
    let shape = Shape::new(config.vm.vcpus as u8, config.vm.memory.bytes());
    shape.map_err(|error| Failure::new(ExitCode::Config, &error))
}

/// Opens the program, so that a bad one is found before anything else happens.
pub fn open_program(config: &Config) -> Result<Option<Program>, Failure> {
    let program = config.vm.program.as_deref().map(Program::open).transpose();
    program.map_err(|error| Failure::new(ExitCode::Input, &error))
}

/// Boots a machine.
pub fn boot(host: &Host, config: &Config, program: &Program) -> Result<Machine, Failure> {
    let shape = shape(config)?;
    let image = Arc::new(Image::new(shape)?);
    let vcpus = bare::boot(host, &image, shape.vcpu_count, program, &config.vm.params)?;
    Ok(Machine::new(shape, image, vcpus))
}

/// Lets a machine run, recorded.
pub fn run(
    host: &Host,
    config: &Config,
    machine: Machine,
    world: &Arc<World>,
    board: &Board,
    stats: &Arc<Stats>,
) -> Result<Arc<Recorder>, Failure> {
    let recording = &config.recording;
    let settings = Settings {
        chunk_min: Duration::from_micros(recording.chunk_min_us),
        chunk_max: Duration::from_micros(recording.chunk_max_us),
        digest_every: recording.digest_every,
        held_pages_max: recording.held_pages_max as usize,
        squashes_before_exclusive: recording.squashes_before_exclusive,
        faults: samsara_engine::Faults::default(),
    };
    let recorder = Recorder::start(host, machine, world.clone(), stats.clone(), settings)?;
    let recorder = Arc::new(recorder);
    let shown = recorder.clone();
    board.set_guest(move || {
        shown.peek(|machine| GuestView {
            time: machine.guest_time(),
            mark: machine.devices().mark(),
        })
    });
    if config.vm.console_input == ConsoleInput::Stdin {
        let typed = Arc::downgrade(&recorder);
        feed_console(move |bytes| typed.upgrade()?.console_input(bytes).ok())?;
    }
    Ok(recorder)
}

/// Lets a machine run natively: the baseline for comparisons.
pub fn run_native(
    host: &Host,
    config: &Config,
    machine: &Machine,
    world: &Arc<World>,
    board: &Board,
) -> Result<Arc<NativeRun>, Failure> {
    let native = Arc::new(NativeRun::start(host, machine, world.clone())?);
    let shown = native.clone();
    board.set_guest(move || GuestView {
        time: shown.time(),
        mark: shown.mark(),
    });
    if config.vm.console_input == ConsoleInput::Stdin {
        let typed = Arc::downgrade(&native);
        feed_console(move |bytes| Some(typed.upgrade()?.console_input(bytes)))?;
    }
    Ok(native)
}

/// Hands standard input to the guest, as far as it has room, until either ends. `typed` says how
/// many bytes it took; nothing when the guest is gone.
fn feed_console(typed: impl Fn(&[u8]) -> Option<usize> + Send + 'static) -> Result<(), Failure> {
    let body = move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = std::io::Read::read(&mut std::io::stdin(), &mut buffer) {
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let Some(taken) = typed(rest) else { return };
                rest = &rest[taken..];
                if taken == 0 {
                    std::thread::sleep(CONSOLE_FULL_PAUSE);
                }
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("console".into())
        .spawn(body);
    thread
        .map(drop)
        .map_err(|error| Failure::new(ExitCode::Internal, &error))
}
