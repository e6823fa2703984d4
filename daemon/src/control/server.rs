//! The answering side.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{ControlError, Request, Response};

/// Longest request line.
const REQUEST_BYTES_MAX: u64 = 4096;
/// Conversations at once: people and their scripts.
const CONNECTIONS_MAX: usize = 16;
/// How long a client may be silent, or not read.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// Names tried for the directory that a socket is made in: others are left only by daemons that died while opening one.
const PRIVATE_DIRECTORY_ATTEMPTS: u32 = 100;
/// How long accepting pauses when the system is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The control socket, open; its file goes when this is dropped.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    file: SocketFile,
}

/// A socket's file, by path and identity: after we die and another replaces it, it is not ours to remove.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity) {
            // The directory may have gone with its service; then so has the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl ControlServer {
    /// Opens the socket at `path`. Must be called within a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let open = |source| ControlError::Open {
            path: path.to_owned(),
            source,
        };
        // The name is given by a link, which may be longer than what a client can connect to.
        std::os::unix::net::SocketAddr::from_pathname(path).map_err(open)?;
        clear_stale(path)?;
        let (listener, identity) = publish(path).map_err(|source| match source.kind() {
            // Another daemon was quicker.
            io::ErrorKind::AlreadyExists => ControlError::AlreadyRuns {
                path: path.to_owned(),
            },
            _ => open(source),
        })?;
        Ok(Self {
            listener,
            file: SocketFile {
                path: path.to_owned(),
                identity,
            },
        })
    }

    /// Answers with `handler` until dropped.
    pub async fn serve<H, F>(self, handler: H) -> Infallible
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Response> + Send,
    {
        let Self {
            listener,
            file: _file,
        } = self;
        let handler = Arc::new(handler);
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        // Owns the conversations: they end with this future.
        let mut conversations = tokio::task::JoinSet::new();
        loop {
            // The semaphore is never closed: there is always a permit in the end.
            let permit = Arc::clone(&room).acquire_owned().await.ok();
            match listener.accept().await {
                Ok((stream, _)) => {
                    let handler = Arc::clone(&handler);
                    conversations.spawn(async move {
                        if let Err(error) = converse(stream, handler.as_ref()).await {
                            tracing::debug!("control socket: conversation ended: {error}");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("control socket: cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            while conversations.try_join_next().is_some() {}
        }
    }
}

/// Removes what a dead daemon left.
fn clear_stale(path: &Path) -> Result<(), ControlError> {
    let open = |source| ControlError::Open {
        path: path.to_owned(),
        source,
    };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(open(error)),
    };
    if !found.file_type().is_socket() {
        return Err(ControlError::NotASocket {
            path: path.to_owned(),
        });
    }
    match BlockingStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(open)
        }
        // It answers, or its backlog is full.
        Ok(_) => Err(ControlError::AlreadyRuns {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ControlError::AlreadyRuns {
            path: path.to_owned(),
        }),
        Err(error) => Err(open(error)),
    }
}

/// Binds within a directory that only we can enter, restricts the socket, then links it to its name: nobody can connect
/// before the mode is set, and of two daemons one wins.
fn publish(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let private = private_directory(path)?;
    let hidden = private.join("s");
    let bound = || {
        let listener = UnixListener::bind(&hidden)?;
        fs::set_permissions(&hidden, Permissions::from_mode(0o600))?;
        fs::hard_link(&hidden, path)?;
        let identity = identity(&fs::symlink_metadata(path)?);
        Ok((listener, identity))
    };
    let result = bound();
    // What cannot be removed does no harm.
    let _ = fs::remove_file(&hidden);
    let _ = fs::remove_dir(&private);
    result
}

/// A new directory beside the socket. One that is there already may be anybody's, so it is not used.
fn private_directory(path: &Path) -> io::Result<PathBuf> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    for attempt in 0..PRIVATE_DIRECTORY_ATTEMPTS {
        let private = parent.join(format!(".s{}.{attempt}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&private) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| private),
        }
    }
    Err(io::Error::other(
        "too many private directories (.sPID.N) are left behind beside it",
    ))
}

async fn converse<H, F>(stream: UnixStream, handler: &H) -> io::Result<()>
where
    H: Fn(Request) -> F,
    F: Future<Output = Response>,
{
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    while let Some(line) = timeout(IDLE_TIMEOUT, read_line(&mut reader)).await?? {
        let response = match serde_json::from_slice(&line) {
            Ok(request) => handler(request).await,
            Err(error) => Response::Refused(format!("not a request: {error}")),
        };
        timeout(IDLE_TIMEOUT, write_line(&mut writer, &response)).await??;
    }
    Ok(())
}

/// A line without its end; `None` at the end of the stream.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader
        .take(REQUEST_BYTES_MAX)
        .read_until(b'\n', &mut line)
        .await?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() == Some(b'\n') {
        return Ok(Some(line));
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "a request is too long or cut off",
    ))
}

async fn write_line(writer: &mut OwnedWriteHalf, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
