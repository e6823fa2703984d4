//! The HTTP endpoint: `GET /metrics` for Prometheus, `GET /healthz` for health checks.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::metrics::{Metrics, Observed};
use crate::status::Status;

/// Connections served at once: a Prometheus server, a health check, and people. More wait in the backlog.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to send a request, or keep a connection idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may last, however it is used: a client that does not read must not keep its place.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(10);
/// How long accepting pauses when the system is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const TEXT: &str = "text/plain; charset=utf-8";
const METRICS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address} (metrics.listen){}", hint(.source))]
pub struct HttpError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => ": the port is in use; choose another",
        std::io::ErrorKind::AddrNotAvailable => ": the address is not one of this host's",
        std::io::ErrorKind::PermissionDenied => ": not permitted; choose a port above 1023",
        _ => "",
    }
}

/// The endpoint, open but not yet serving.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
}

impl HttpServer {
    /// Opens the address.
    pub async fn bind(address: SocketAddr) -> Result<Self, HttpError> {
        let listener = TcpListener::bind(address).await;
        listener
            .map(|listener| Self { listener })
            .map_err(|source| HttpError { address, source })
    }

    /// The address in use: of interest if port 0 was asked for.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped.
    pub async fn serve(self, metrics: Arc<Metrics>, observed: Arc<dyn Observed>) -> Infallible {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        // Owns the connections: they end with this future.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            // The semaphore is never closed: there is always a permit in the end.
            let permit = Arc::clone(&room).acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (metrics, observed) = (Arc::clone(&metrics), Arc::clone(&observed));
                    connections.spawn(async move {
                        serve_connection(stream, &metrics, observed.as_ref()).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("metrics endpoint: cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }
}

async fn serve_connection(stream: TcpStream, metrics: &Metrics, observed: &dyn Observed) {
    let service = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(answer(
            request.method(),
            request.uri().path(),
            metrics,
            observed,
        ))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("metrics endpoint: connection ended: {error}"),
        Err(_) => tracing::debug!("metrics endpoint: connection cut after {CONNECTION_TIMEOUT:?}"),
    }
}

fn answer(
    method: &Method,
    path: &str,
    metrics: &Metrics,
    observed: &dyn Observed,
) -> Response<Full<Bytes>> {
    if !matches!(path, "/metrics" | "/healthz") {
        let body = "not here: try /metrics or /healthz\n";
        return response(StatusCode::NOT_FOUND, TEXT, body.to_owned());
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refused = response(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "GET or HEAD only\n".to_owned(),
        );
        refused
            .headers_mut()
            .insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let snapshot = observed.snapshot();
    if path == "/healthz" {
        return response(StatusCode::OK, TEXT, health(&snapshot.status));
    }
    match metrics.render(&snapshot) {
        Ok(body) => response(StatusCode::OK, METRICS_TEXT, body),
        Err(error) => response(
            StatusCode::INTERNAL_SERVER_ERROR,
            TEXT,
            format!("{error}\n"),
        ),
    }
}

/// One line, the role first: load balancers match on it.
fn health(status: &Status) -> String {
    let protected = if status.protected {
        "protected"
    } else {
        "unprotected"
    };
    format!(
        "{} {protected} term {}: {}\n",
        status.role, status.term, status.state
    )
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use samsara_config::{Config, Role};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::metrics::Snapshot;

    struct Fixed;

    impl Observed for Fixed {
        fn snapshot(&self) -> Snapshot {
            let mut status = Status::new(&Config::default(), Role::Primary, "alpha");
            status.counters.commits = 42;
            Snapshot::new(status)
        }
    }

    async fn start() -> (SocketAddr, tokio::task::JoinHandle<Infallible>) {
        let server = HttpServer::bind("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = server.local_address().unwrap();
        let metrics = Arc::new(Metrics::new("vm", "alpha").unwrap());
        (
            address,
            tokio::spawn(server.serve(metrics, Arc::new(Fixed))),
        )
    }

    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    fn request(method: &str, path: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn metrics_and_health_are_served_and_nothing_else() {
        let (address, _server) = start().await;
        let text = exchange(address, &request("GET", "/metrics")).await;
        assert!(
            text.starts_with("HTTP/1.1 200 OK") && text.contains("version=0.0.4"),
            "{text}"
        );
        let commits = text
            .lines()
            .find(|line| line.starts_with("samsara_commits_total{"));
        assert!(commits.is_some_and(|line| line.ends_with("} 42")), "{text}");
        let text = exchange(address, &request("GET", "/healthz?x=1")).await;
        assert!(
            text.ends_with("\r\n\r\nprimary unprotected term 0: starting\n"),
            "{text}"
        );
        let text = exchange(address, &request("HEAD", "/metrics")).await;
        assert!(
            text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\n"),
            "{text}"
        );
        assert!(
            exchange(address, &request("GET", "/"))
                .await
                .starts_with("HTTP/1.1 404")
        );
        let text = exchange(address, &request("POST", "/metrics")).await;
        assert!(
            text.starts_with("HTTP/1.1 405") && text.contains("allow: GET, HEAD"),
            "{text}"
        );
        assert!(
            exchange(address, "nonsense\r\n\r\n")
                .await
                .starts_with("HTTP/1.1 400")
        );
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_key() {
        let (address, _server) = start().await;
        let error = HttpServer::bind(address).await.unwrap_err();
        let wanted = format!(
            "cannot serve metrics on {address} (metrics.listen): the port is in use; choose another"
        );
        assert_eq!(error.to_string(), wanted);
    }

    #[tokio::test]
    async fn silent_clients_do_not_take_the_place_of_others_for_ever() {
        let (address, server) = start().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX - 1 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(
            exchange(address, &request("GET", "/healthz"))
                .await
                .contains("200 OK")
        );
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        let mut byte = [0];
        let closed = silent[0].read(&mut byte).await;
        assert!(
            matches!(closed, Ok(0) | Err(_)),
            "connections outlive the server"
        );
    }
}
