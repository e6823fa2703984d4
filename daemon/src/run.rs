//! A run of the daemon, from its command line to its exit status.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use samsara_config::{AckPolicy, Config, Role};
use samsara_engine::Stats;
use samsara_replication::{AckLevel, QueueLimits};
use tokio::sync::mpsc;

use crate::board::Board;
use crate::cli::Args;
use crate::control::{ControlServer, Request, Response};
use crate::disk::Disks;
use crate::emitter::{self, Leftovers, Sink};
use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::http::HttpServer;
use crate::log_file::LogFile;
use crate::metrics::Metrics;
use crate::net::Network;
use crate::node::{self, Ended};
use crate::notify::Notifier;
use crate::report::Report;
use crate::world::{Notice, World};
use crate::{guest, standalone};

/// Frames in a queue: with records of some kilobytes the byte bound comes first.
const QUEUE_FRAMES: usize = 65536;

/// How long a host that stops before its guest has ended waits for a write to the console.
const EMITTER_PATIENCE: Duration = Duration::from_secs(1);

/// What every role works with.
pub(crate) struct Base {
    /// The configuration.
    pub(crate) config: Config,
    /// This host's name.
    pub(crate) host: String,
    /// Gate and queues.
    pub(crate) world: Arc<World>,
    /// What is shown.
    pub(crate) board: Arc<Board>,
    /// What the engine counts.
    pub(crate) stats: Arc<Stats>,
    /// The log file, if there is one.
    pub(crate) log: Option<LogFile>,
    /// The guest's disks on this host.
    pub(crate) disks: Arc<Disks>,
    /// Length of the input file.
    pub(crate) input_bytes: Option<u64>,
    /// What the machine's threads say.
    pub(crate) notices: mpsc::UnboundedReceiver<Notice>,
    /// The service manager.
    pub(crate) notifier: Arc<Notifier>,
    /// Requests of the operator to promote.
    pub(crate) promotions: mpsc::Receiver<node::Promotion>,
    /// Set by the run loop whenever it turns.
    pub(crate) alive: Arc<AtomicBool>,
    /// The taps of the guest's network devices.
    pub(crate) network: Arc<Network>,
    /// What an earlier run left in the console's file; goes when a guest starts here.
    pub(crate) leftovers: Leftovers,
}

/// Runs to the end; gives the exit status of the process.
pub fn run(args: &Args) -> u8 {
    match try_run(args) {
        Ok(status) => status,
        Err(failure) => {
            tracing::error!("{failure}");
            failure.code.code()
        }
    }
}

fn try_run(args: &Args) -> Result<u8, Failure> {
    let config = Config::load(args.config.as_deref(), &args.sets)
        .and_then(|config| config.check(args.role).map(|()| config))
        .map_err(|error| Failure::new(ExitCode::Config, &error))?;
    config
        .warnings(args.role)
        .iter()
        .for_each(|line| tracing::warn!("{line}"));
    if let Some(path) = &args.report {
        Report::probe(path).map_err(|error| Failure::new(ExitCode::Output, &error))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(ExitCode::Internal, &error))?;
    let result = runtime.block_on(serve(args, config));
    // A thread that waits for standard input would keep the process.
    runtime.shutdown_background();
    result
}

async fn serve(args: &Args, config: Config) -> Result<u8, Failure> {
    let role = args.role;
    let limits = QueueLimits {
        bytes: config.replication.queue_bytes.bytes() as usize,
        frames: QUEUE_FRAMES,
    };
    let host = host_name(&config);
    let input = guest::open_input(&config)?;
    let input_bytes = input.as_ref().map(|(_, bytes)| *bytes);
    let disks = Arc::new(Disks::open(&config)?);
    let log = args
        .record
        .as_deref()
        .map(|path| LogFile::create(path, &config.log, limits))
        .transpose()?;
    let network = Arc::new(guest::open_network(&config)?);
    let sink = Sink::open(&config.vm.console)?;
    let leftovers = sink.leftovers()?;
    let (sender, notices) = mpsc::unbounded_channel();
    let lag_max = Duration::from_millis(config.replication.lag_max_ms);
    let form = config.recording.form;
    let world = World::new(ack_level(&config), form, lag_max, input, sender);
    let world = Arc::new(world.map_err(|error| Failure::new(ExitCode::Internal, &error))?);
    let stats = Arc::new(Stats::new(samsara_commitlog::Shape::VCPUS_MAX));
    let board = Arc::new(Board::new(
        &config,
        role,
        &host,
        world.clone(),
        stats.clone(),
        network.clone(),
    ));
    let (promote, promotions) = mpsc::channel(1);
    let services = start_services(&config, &host, &board, promote).await?;
    let emitter = emitter::start(&world, sink, network.clone())?;
    let notifier = Arc::new(Notifier::from_env());
    let alive = Arc::new(AtomicBool::new(true));
    let base = Base {
        config,
        host,
        world: world.clone(),
        board: board.clone(),
        stats,
        log,
        disks,
        input_bytes,
        notices,
        notifier: notifier.clone(),
        promotions,
        alive: alive.clone(),
        network: network.clone(),
        leftovers,
    };
    let feeder = notifier.clone();
    let watchdog = tokio::spawn(async move {
        feeder
            .feed_watchdog(|| alive.swap(false, Ordering::Relaxed))
            .await;
    });
    let result = match role {
        Role::Standalone => standalone::run(base).await,
        Role::Primary | Role::Backup => node::run(base, role, limits).await,
    };
    notifier.stopping();
    world.stop();
    network.stop();
    for service in services.into_iter().chain([watchdog]) {
        service.abort();
        // Until it is gone: the control socket's file goes with it.
        let _ = service.await;
    }
    finish(args, &board, result, emitter).await
}

async fn finish(
    args: &Args,
    board: &Board,
    result: Result<Ended, Failure>,
    emitter: std::thread::JoinHandle<()>,
) -> Result<u8, Failure> {
    if !matches!(&result, Err(failure) if failure.code == ExitCode::Output) {
        let joined = tokio::task::spawn_blocking(move || emitter.join());
        if result.is_ok() {
            let _ = joined.await;
        } else {
            // It may be in a write that nobody reads; a host that stops does not wait for that.
            let _ = tokio::time::timeout(EMITTER_PATIENCE, joined).await;
        }
    }
    let stop = match &result {
        Ok(ended) => ended.how.clone(),
        Err(failure) => failure.message.clone(),
    };
    if let Some(path) = &args.report {
        let mut report = board.report(&stop);
        if let Ok(Ended {
            digest: Some(digest),
            ..
        }) = &result
        {
            report.digest = Some(format!("{:032x}", digest.digest));
            report.digest_seq = Some(digest.seq.0);
        }
        report
            .write(path)
            .map_err(|error| Failure::new(ExitCode::Output, &error))?;
    }
    let ended = result?;
    if ended.status == ExitCode::GuestFault.code() && ended.is_fault {
        return Err(Failure::text(ExitCode::GuestFault, ended.how));
    }
    tracing::info!("{}", ended.how);
    Ok(ended.status)
}

/// Starts what answers to others: metrics and the control socket.
async fn start_services(
    config: &Config,
    host: &str,
    board: &Arc<Board>,
    promote: mpsc::Sender<node::Promotion>,
) -> Result<Vec<tokio::task::JoinHandle<()>>, Failure> {
    let mut services = Vec::new();
    if let Some(address) = config.metrics.listen {
        let server = HttpServer::bind(address)
            .await
            .map_err(|error| Failure::new(ExitCode::Network, &error))?;
        let metrics = Metrics::new(&config.vm.name, host)
            .map_err(|error| Failure::new(ExitCode::Internal, &error))?;
        let observed = board.clone();
        services.push(tokio::spawn(async move {
            server.serve(Arc::new(metrics), observed).await;
        }));
    }
    if let Some(path) = &config.control.socket {
        let server =
            ControlServer::bind(path).map_err(|error| Failure::new(ExitCode::Config, &error))?;
        let board = board.clone();
        services.push(tokio::spawn(async move {
            server
                .serve(move |request| answer(request, board.clone(), promote.clone()))
                .await;
        }));
    }
    Ok(services)
}

async fn answer(
    request: Request,
    board: Arc<Board>,
    promote: mpsc::Sender<node::Promotion>,
) -> Response {
    match request {
        Request::Status => Response::Status(Box::new(board.status())),
        Request::Contention => {
            // Names are read from a file.
            let found = tokio::task::spawn_blocking(move || board.contention()).await;
            found.map_or_else(
                |_| {
                    Response::Refused(
                        "the account of conflicts cannot be given: see the log".into(),
                    )
                },
                |found| Response::Contention(Box::new(found)),
            )
        }
        Request::Promote => {
            let (reply, answer) = tokio::sync::oneshot::channel();
            let asked = promote.send(node::Promotion { reply }).await.is_ok();
            match answer.await {
                Ok(Ok(())) if asked => Response::Done("promoted: this host may go on alone".into()),
                Ok(Err(reason)) => Response::Refused(reason),
                _ => Response::Refused("this host takes no promotions".into()),
            }
        }
    }
}

/// Which acknowledgement releases outputs.
pub(crate) fn ack_level(config: &Config) -> AckLevel {
    match config.replication.ack {
        AckPolicy::Verified => AckLevel::Verified,
        AckPolicy::Received => AckLevel::Received,
    }
}

/// The configured name, or the system's.
fn host_name(config: &Config) -> String {
    config.replication.host_name.clone().unwrap_or_else(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = name.trim();
        if name.is_empty() {
            "localhost".into()
        } else {
            name.to_owned()
        }
    })
}
