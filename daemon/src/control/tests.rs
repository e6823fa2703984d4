use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use samsara_config::{Config, Role};

use super::*;

async fn answer(request: Request) -> Response {
    match request {
        Request::Status => {
            let mut status = Status::new(&Config::default(), Role::Backup, "beta");
            // Not the moment of the question: two answers are compared.
            status.since_unix_ms = 0;
            status.lag.verified.seconds = 0.1;
            Response::Status(Box::new(status))
        }
        Request::Contention => Response::Done("it is asked elsewhere".to_owned()),
        Request::Promote => Response::Refused("the primary is alive".to_owned()),
    }
}

/// A client is blocking, so it gets a thread.
async fn ask(path: &Path, asked: Request) -> Result<Response, ControlError> {
    let path = path.to_owned();
    let asked = tokio::task::spawn_blocking(move || request(&path, asked, Duration::from_secs(5)));
    asked.await.unwrap()
}

#[tokio::test]
async fn asked_and_answered_and_gone_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let server = ControlServer::bind(&path).unwrap();
    assert_eq!(fs_mode(&path), 0o600);
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "the private directory stays"
    );
    let server = tokio::spawn(server.serve(answer));
    assert_eq!(
        ask(&path, Request::Status).await.unwrap(),
        answer(Request::Status).await
    );
    assert_eq!(
        ask(&path, Request::Promote).await.unwrap(),
        answer(Request::Promote).await
    );
    server.abort();
    let _ = server.await;
    assert!(!path.exists());
    let error = ask(&path, Request::Status).await.unwrap_err().to_string();
    assert!(error.contains("no such socket"), "{error}");
}

fn fs_mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path)
        .unwrap()
        .permissions()
        .mode()
        & 0o777
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let error = ask(&path, Request::Status).await.unwrap_err().to_string();
    assert!(error.contains("left behind"), "{error}");
    let server = tokio::spawn(ControlServer::bind(&path).unwrap().serve(answer));
    ask(&path, Request::Status).await.unwrap();
    let error = ControlServer::bind(&path).unwrap_err();
    assert!(matches!(error, ControlError::AlreadyRuns { .. }), "{error}");
    ask(&path, Request::Status).await.unwrap();
    server.abort();
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    std::fs::write(&path, "precious").unwrap();
    let error = ControlServer::bind(&path).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("is not a socket: remove it, or choose another control.socket")
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    // Another daemon took the name after we had died in its eyes: our end must not remove its socket.
    let ours = ControlServer::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let theirs = UnixListener::bind(&path).unwrap();
    drop(ours);
    assert!(path.exists());
    drop(theirs);
    let error = ControlServer::bind(&dir.path().join("none/control.sock")).unwrap_err();
    assert!(matches!(error, ControlError::Open { .. }), "{error}");
    let long = dir.path().join("x".repeat(200));
    assert!(matches!(
        ControlServer::bind(&long).unwrap_err(),
        ControlError::Open { .. }
    ));
}

#[tokio::test]
async fn nonsense_gets_an_answer_or_an_end_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let server = tokio::spawn(ControlServer::bind(&path).unwrap().serve(answer));
    let talk = path.clone();
    let lines = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(&talk).unwrap();
        stream
            .write_all(b"{\n{\"request\":\"explode\"}\n\xff\n{\"request\":\"promote\"}\n")
            .unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        let lines: Vec<String> = reader.lines().take(4).map(Result::unwrap).collect();
        // Longer than any request: the conversation ends.
        let _ = stream.write_all(&[b'x'; 10_000]);
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        // The end may come as a reset, as not all was read; what must not come is a time-out.
        let rest = BufReader::new(stream)
            .read_line(&mut String::new())
            .map_err(|e| e.kind());
        (lines, rest)
    });
    let (lines, rest) = lines.await.unwrap();
    assert!(
        lines[..3].iter().all(|line| line.contains("not a request")),
        "{lines:?}"
    );
    assert!(lines[3].contains("the primary is alive"), "{lines:?}");
    assert!(
        matches!(rest, Ok(0) | Err(io::ErrorKind::ConnectionReset)),
        "{rest:?}"
    );
    ask(&path, Request::Status).await.unwrap();
    server.abort();
}

#[test]
fn an_answer_of_another_version_is_reported_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let daemon = std::thread::spawn(move || {
        for reply in ["{\"response\":\"new\"}\n", "{\"response\":"] {
            let (stream, _) = listener.accept().unwrap();
            BufReader::new(&stream)
                .read_line(&mut String::new())
                .unwrap();
            (&stream).write_all(reply.as_bytes()).unwrap();
        }
    });
    let ask = || request(&path, Request::Status, Duration::from_secs(5)).unwrap_err();
    assert!(matches!(ask(), ControlError::Answer { .. }));
    assert!(matches!(ask(), ControlError::NoAnswer { .. }));
    daemon.join().unwrap();
}
