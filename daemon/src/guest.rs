//! Making a machine from the configuration, and letting it run.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use samsara_commitlog::{DeviceIndex, Shape};
use samsara_config::{Config, ConsoleDevice, ConsoleInput, Counter};
use samsara_engine::{Isolation, NativeRun, Recorder, Settings};
use samsara_machine::bare::{self, Program};
use samsara_machine::kvm::CounterKind;
use samsara_machine::linux::{self, Kernel, VirtioSlot};
use samsara_machine::memory::Image;
use samsara_machine::pc::virtio::{Blocks, Device};
use samsara_machine::pc::{self, Pc};
use samsara_machine::{Machine, Platform};

use crate::board::GuestView;
use crate::exit::ExitCode;
use crate::failure::Failure;
pub use crate::kvm::Kvm;
use crate::kvm::isolation;
use crate::net::{Network, Taken, TapConfig};
use crate::run::Base;

/// Pause while the guest does not read what was typed.
const CONSOLE_FULL_PAUSE: Duration = Duration::from_millis(5);
/// What a guest's disk says its serial number is, with its place behind it.
const DISK_SERIAL: &[u8] = b"samsara-disk-";

/// What a machine boots from.
pub enum Source {
    /// A bare program.
    Program(Program),
    /// A Linux kernel.
    Kernel(Kernel),
}

impl Source {
    /// What boots from it.
    pub fn platform(&self) -> Platform {
        match self {
            Self::Program(_) => Platform::Bare,
            Self::Kernel(_) => Platform::Pc,
        }
    }

    /// Opens what the configuration names, so that a bad one is found before anything else happens.
    pub fn open(config: &Config) -> Result<Option<Self>, Failure> {
        let vm = &config.vm;
        let unusable = |error: &dyn std::error::Error| Failure::new(ExitCode::Input, error);
        if let Some(path) = &vm.kernel {
            let kernel = Kernel::open(path, vm.initrd.as_deref(), &vm.cmdline);
            return kernel
                .map(|kernel| Some(Self::Kernel(kernel)))
                .map_err(|error| unusable(&error));
        }
        let program = vm.program.as_deref().map(Program::open).transpose();
        program
            .map(|program| program.map(Self::Program))
            .map_err(|error| unusable(&error))
    }
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

/// Opens the taps of the guest's network devices: they follow the disks.
pub fn open_network(config: &Config) -> Result<Network, Failure> {
    let first = config.vm.disks.len() as u8;
    let taps = (first..).map(DeviceIndex).zip(&config.vm.net);
    let taps: Vec<_> = taps
        .map(|(device, net)| TapConfig {
            device,
            tap: net.tap.clone(),
            mac: net.mac.bytes(),
        })
        .collect();
    let failed = |error| Failure::new(ExitCode::Network, &error);
    let network = Network::open(&taps).map_err(failed)?;
    network.start().map_err(failed)?;
    Ok(network)
}

/// The machine's shape.
pub fn shape(config: &Config) -> Result<Shape, Failure> {
    let shape = Shape::new(config.vm.vcpus as u8, config.vm.memory.bytes());
    shape.map_err(|error| Failure::new(ExitCode::Config, &error))
}

/// Boots a machine.
pub(crate) fn boot(kvm: &Kvm, base: &Base, source: &Source) -> Result<Machine, Failure> {
    let config = &base.config;
    let shape = shape(config)?;
    let image = Arc::new(Image::new(shape)?);
    match source {
        Source::Program(program) => {
            let params = &config.vm.params;
            let vcpus = bare::boot(&kvm.host, &image, shape.vcpu_count, program, params)?;
            Ok(Machine::new(shape, image, vcpus))
        }
        Source::Kernel(kernel) => {
            let disks = base.disks.blocks();
            let pc = pc_of(config, shape, &disks);
            let slots: Vec<_> = (0..pc.device_count()).map_while(VirtioSlot::new).collect();
            let vcpus = linux::boot(&kvm.host, &image, shape, kernel, &slots)?;
            let mut machine = Machine::new_pc(shape, image, vcpus, pc, disks);
            prepare(kvm, config, &mut machine);
            Ok(machine)
        }
    }
}

/// The devices of a PC, in the order of their addresses: disks, network, console, entropy.
fn pc_of(config: &Config, shape: Shape, disks: &[Arc<dyn Blocks>]) -> Pc {
    let vm = &config.vm;
    let disks = (0..).zip(disks).map(|(place, disk)| {
        let mut serial = [0; 20];
        serial[..DISK_SERIAL.len()].copy_from_slice(DISK_SERIAL);
        serial[DISK_SERIAL.len()] = b'0' + place;
        Device::block(disk.bytes(), disk.is_read_only(), serial)
    });
    let nets = vm.net.iter().map(|net| Device::net(net.mac.bytes()));
    let mut devices: Vec<_> = disks.chain(nets).collect();
    let console = match vm.console_device {
        ConsoleDevice::Serial => pc::ConsoleDevice::Serial,
        ConsoleDevice::Virtio => {
            devices.push(Device::console());
            pc::ConsoleDevice::Virtio(devices.len() as u8 - 1)
        }
    };
    if vm.entropy {
        devices.push(Device::entropy());
    }
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let time_of_day = since_epoch.unwrap_or_default().as_nanos() as u64;
    Pc::new(shape.vcpu_count, time_of_day, devices, console)
}

/// Has a machine take interrupts as it will when it runs here. Part of its state: to be done before
/// anybody takes a snapshot of it.
pub(crate) fn prepare(kvm: &Kvm, config: &Config, machine: &mut Machine) {
    let isolation = isolation(config, kvm.traits, machine.platform());
    machine.set_delivery(isolation.delivery());
}

/// What counts the progress of vCPUs.
fn counter(config: &Config) -> Option<CounterKind> {
    match config.recording.counter {
        Counter::SingleStep => Some(CounterKind::SingleStep),
        Counter::Auto | Counter::Exits => None,
    }
}

/// How chunks run on this host.
pub(crate) fn settings(kvm: &Kvm, config: &Config, isolation: Isolation) -> Settings {
    let recording = &config.recording;
    Settings {
        isolation,
        paging: kvm.traits.paging,
        tsc: kvm.traits.tsc,
        tsc_khz: kvm.tsc_khz(),
        counter: counter(config),
        chunk_min: Duration::from_micros(recording.chunk_min_us),
        chunk_max: Duration::from_micros(recording.chunk_max_us),
        digest_every: recording.digest_every,
        held_pages_max: recording.held_pages_max as usize,
        squashes_before_exclusive: recording.squashes_before_exclusive,
        faults: samsara_engine::Faults::default(),
    }
}

/// Lets a machine run, recorded.
pub(crate) fn run(kvm: &mut Kvm, base: &Base, machine: Machine) -> Result<Arc<Recorder>, Failure> {
    let config = &base.config;
    let isolation = isolation(config, kvm.traits, machine.platform());
    base.board
        .update(|status| isolation.as_str().clone_into(&mut status.isolation));
    if machine.platform() == Platform::Pc {
        kvm.warn(base);
    }
    kvm.set_vcpu_count(machine.shape().vcpu_count)?;
    let settings = settings(kvm, config, isolation);
    let (world, stats) = (base.world.clone(), base.stats.clone());
    let recorder = Recorder::start(&kvm.host, machine, world, stats, settings)?;
    let recorder = Arc::new(recorder);
    let shown = recorder.clone();
    base.board.set_guest(move || {
        let (time, mark) = shown.shown();
        GuestView { time, mark }
    });
    if config.vm.console_input == ConsoleInput::Stdin {
        let typed = Arc::downgrade(&recorder);
        feed_console(move |bytes| typed.upgrade()?.console_input(bytes))?;
    }
    let receiver = Arc::downgrade(&recorder);
    connect(&base.network, move |device, frame| {
        receiver
            .upgrade()
            .map(|recorder| recorder.frame_input(device, &frame))
    })?;
    Ok(recorder)
}

/// Lets a machine run natively: the baseline for comparisons.
pub(crate) fn run_native(
    kvm: &Kvm,
    base: &Base,
    machine: Machine,
) -> Result<Arc<NativeRun>, Failure> {
    let native = Arc::new(NativeRun::start(&kvm.host, machine, base.world.clone())?);
    let shown = native.clone();
    base.board.set_guest(move || GuestView {
        time: shown.time(),
        mark: shown.mark(),
    });
    if base.config.vm.console_input == ConsoleInput::Stdin {
        let typed = Arc::downgrade(&native);
        feed_console(move |bytes| typed.upgrade()?.console_input(bytes))?;
    }
    let receiver = Arc::downgrade(&native);
    connect(&base.network, move |device, frame| {
        receiver
            .upgrade()
            .map(|native| native.frame_input(device, &frame))
    })?;
    Ok(native)
}

/// From now on frames for the guest reach it. `take` gives nothing once the guest is gone.
fn connect(
    network: &Network,
    take: impl Fn(DeviceIndex, Bytes) -> Option<samsara_engine::Taken> + Send + Sync + 'static,
) -> Result<(), Failure> {
    let take = move |device, frame| match take(device, frame) {
        Some(samsara_engine::Taken::Yes) => Taken::Yes,
        Some(samsara_engine::Taken::NoRoom) => Taken::NoRoom,
        Some(samsara_engine::Taken::Gone) | None => Taken::Gone,
    };
    network
        .go_live(Arc::new(take))
        .map_err(|error| Failure::new(ExitCode::Network, &error))
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
