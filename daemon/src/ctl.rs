//! samsaractl: the operator's command.

mod contention;
mod error;
mod log;
#[cfg(test)]
mod made;
mod render;
mod replay;

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::control::{self, CLIENT_TIMEOUT, Request, Response};
use crate::pki::{self, HostRequest, Written};

pub use error::CtlError;
pub use render::render;

/// Where the unit file puts control sockets, one directory for each VM.
const RUN_DIRECTORY: &str = "/run/samsarad";
const SOCKET_NAME: &str = "control.sock";

/// Watches and controls a running samsarad, makes certificates for its hosts, looks at commit logs and replays them, and
/// measures what protection costs.
#[derive(Debug, Parser)]
#[command(name = "samsaractl", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says what a running samsarad is doing, and why.
    Status {
        #[command(flatten)]
        socket: Socket,
        /// Print JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Says which pages cost vCPUs their chunks, who lost to whom, and where in the guest's code both were.
    Contention(contention::ContentionArgs),
    /// Tells the backup on this host to go live (failover.arbiter = "manual").
    ///
    /// You answer for it that the other host is down, or will never release output again: if both run, the outside world
    /// sees two diverging VMs.
    Promote {
        #[command(flatten)]
        socket: Socket,
    },
    /// Makes a certificate authority and certificates for hosts.
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Measures what recording and protecting a guest cost on this host, beside an ordinary VM.
    ///
    /// Guest programs run native, recorded and protected, in turn, as processes of this host; nothing else is touched. The suite of
    /// 3 rounds takes about a quarter of an hour. Each program checks its own answer, and must give the same one in every mode.
    Bench(Box<BenchArgs>),
    /// Looks at the commit log that samsarad --record FILE wrote.
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Follows a commit log to the end of its guest: the guest's output, its exit status, all digests compared.
    #[command(after_help = replay::after_help())]
    Replay(replay::ReplayArguments),
}

#[derive(Debug, Args)]
struct Socket {
    /// The daemon's control socket (its control.socket); default: the only one below /run/samsarad.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum PkiCommand {
    /// Makes a CA: ca.pem for every host, ca.key to keep safe.
    Init {
        /// Directory of the CA; created if need be.
        #[arg(long)]
        dir: PathBuf,
        /// Name of the CA.
        #[arg(long, default_value = "samsara CA")]
        name: String,
        /// Days of validity.
        #[arg(long, default_value_t = 3650)]
        days: u32,
    },
    /// Makes a host's certificate and key with the CA.
    Issue {
        /// Directory of the CA.
        #[arg(long)]
        dir: PathBuf,
        /// The host's name, as the configurations of both hosts have it.
        #[arg(long)]
        name: String,
        /// An address by which the other host reaches it; repeatable.
        #[arg(long = "address", value_name = "IP")]
        addresses: Vec<IpAddr>,
        /// Days of validity.
        #[arg(long, default_value_t = 825)]
        days: u32,
        /// Where to write; default: the CA's directory.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

impl Arguments {
    /// Does what was asked, and writes the answer to `out`, which is standard output. Gives the status to exit with.
    ///
    /// # Errors
    ///
    /// What went wrong, for standard error.
    pub fn run(self, out: &mut dyn Write) -> Result<u8, CtlError> {
        let text = match self.command {
            Command::Status { socket, json } => status(&socket.path()?, json)?,
            Command::Contention(asked) => asked.run()?,
            Command::Bench(asked) => asked.run()?,
            Command::Promote { socket } => promote(&socket.path()?)?,
            Command::Pki(command) => command.run()?,
            Command::Log(command) => {
                command.run(out)?;
                String::new()
            }
            Command::Replay(arguments) => return arguments.run(out),
        };
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(0)
    }
}

impl PkiCommand {
    fn run(self) -> Result<String, CtlError> {
        match self {
            Self::Init { dir, name, days } => Ok(describe_ca(&pki::init(&dir, &name, days)?, &dir)),
            Self::Issue {
                dir,
                name,
                addresses,
                days,
                out,
            } => {
                let request = HostRequest {
                    name,
                    addresses,
                    days,
                };
                let written = pki::issue(&dir, &request, out.as_deref().unwrap_or(&dir))?;
                Ok(describe_host(&written, &request))
            }
        }
    }
}

fn status(socket: &Path, json: bool) -> Result<String, CtlError> {
    match control::request(socket, Request::Status, CLIENT_TIMEOUT)? {
        Response::Status(status) if json => Ok(serde_json::to_string_pretty(&status)? + "\n"),
        Response::Status(status) => Ok(render(&status, crate::status::unix_ms())),
        Response::Refused(why) => Err(CtlError::Refused(why)),
        _ => Err(CtlError::Unexpected),
    }
}

fn promote(socket: &Path) -> Result<String, CtlError> {
    match control::request(socket, Request::Promote, CLIENT_TIMEOUT)? {
        Response::Done(what) => Ok(what + "\n"),
        Response::Refused(why) => Err(CtlError::Refused(why)),
        _ => Err(CtlError::Unexpected),
    }
}

impl Socket {
    fn path(self) -> Result<PathBuf, CtlError> {
        self.socket
            .map_or_else(|| only_socket(Path::new(RUN_DIRECTORY)), Ok)
    }
}

/// The control socket below `run`, if there is just one.
fn only_socket(run: &Path) -> Result<PathBuf, CtlError> {
    let entries = std::fs::read_dir(run)
        .into_iter()
        .flatten()
        .filter_map(io::Result::ok);
    let mut sockets: Vec<PathBuf> = entries
        .map(|entry| entry.path().join(SOCKET_NAME))
        .filter(|path| path.exists())
        .collect();
    sockets.sort();
    match sockets.as_slice() {
        [only] => Ok(only.clone()),
        [] => {
            let found = format!("no control socket below {}", run.display());
            Err(CtlError::WhichSocket { found })
        }
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            let found = format!("more than one samsarad runs here ({})", names.join(", "));
            Err(CtlError::WhichSocket { found })
        }
    }
}

fn describe_ca(written: &Written, dir: &Path) -> String {
    let (ca, key) = (written.ca.display(), written.key.display());
    let dir = dir.display();
    format!(
        "\
wrote {ca}   the CA's certificate: every host needs a copy
wrote {key}   the CA's key: keep it safe and off the hosts

next, for each of the two hosts:
    samsaractl pki issue --dir {dir} --name NAME [--address IP]
"
    )
}

fn describe_host(written: &Written, request: &HostRequest) -> String {
    let HostRequest { name, days, .. } = request;
    let Written {
        ca,
        certificate,
        key,
    } = written;
    let (ca_file, certificate_file, key_file) =
        (ca.display(), certificate.display(), key.display());
    format!(
        "\
wrote {certificate_file}   {name}'s certificate, for {days} days
wrote {key_file}   its key, for {name} alone
with {ca_file}   the CA's certificate

configuration of {name} (with the places of the files there):
    [tls]
    ca = {ca}
    cert = {certificate}
    key = {key}

    [replication]
    host_name = {name:?}

configuration of the other host:
    [replication]
    peer_name = {name:?}
",
        ca = quoted(ca),
        certificate = quoted(certificate),
        key = quoted(key),
    )
}

/// A path as a TOML string; JSON strings are.
fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests;
