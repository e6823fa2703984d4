//! The asking side: blocking, one request.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{ControlError, Request, Response};

/// How long to wait for an answer.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Far more than a status takes, even with many role changes.
const RESPONSE_BYTES_MAX: u64 = 16 << 20;

/// Asks the daemon at `path`.
///
/// # Errors
///
/// Nobody there, no answer in time, or one that makes no sense.
pub fn request(path: &Path, request: Request, timeout: Duration) -> Result<Response, ControlError> {
    let connect = |source| ControlError::Connect {
        path: path.to_owned(),
        source,
    };
    let stream = UnixStream::connect(path).map_err(connect)?;
    let line = exchange(stream, request, timeout).map_err(|source| ControlError::NoAnswer {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(&line).map_err(|source| ControlError::Answer {
        path: path.to_owned(),
        source,
    })
}

fn exchange(mut stream: UnixStream, request: Request, timeout: Duration) -> io::Result<String> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut line = serde_json::to_string(&request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    line.clear();
    BufReader::new(stream.take(RESPONSE_BYTES_MAX)).read_line(&mut line)?;
    if line.ends_with('\n') {
        Ok(line)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}
