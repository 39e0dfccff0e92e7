//! A gateway under test, its backends, and clients that see the bytes.

pub mod h2;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mitu_proxy::protocol::http::h1::decode::{Decoded, Decoder};
use mitu_proxy::protocol::http::h1::head::{Framing, HeadLimits, find_end, parse_response};
use mitu_proxy::server::Server;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// No step of a test takes longer, unless something hangs.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// So long that nothing has to leave while a test lasts.
pub const LONG_DRAIN: Duration = Duration::from_secs(7200);

const LIMITS: HeadLimits = HeadLimits { bytes: 1 << 20, headers: 100 };

pub type Client = TlsStream<TcpStream>;

/// Certificate and key for `localhost`, made once.
pub fn certificate() -> &'static (String, String) {
    static PAIR: OnceLock<(String, String)> = OnceLock::new();
    PAIR.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    })
}

pub struct Gateway {
    pub server: Server,
    pub address: SocketAddr,
}

/// A route for every path to the upstream `app`.
pub fn to_app() -> Value {
    json!([{"name": "app", "match": any(), "filters": [],
            "action": {"kind": "upstream", "upstream": "app", "timeout_ms": 5000}}])
}

/// The matcher that leaves nothing out.
pub fn any() -> Value {
    json!({"hosts": [], "path": null, "methods": [], "headers": []})
}

/// An upstream `app` with these endpoints.
pub fn app(endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<_> =
        endpoints.iter().map(|address| json!({"address": address.to_string(), "weight": 1})).collect();
    json!([{"name": "app", "endpoints": endpoints, "balancer": {"kind": "round_robin"}, "protocol": "http/1.1",
            "tls": null, "proxy_protocol": false, "connect_timeout_ms": 1000, "idle_timeout_ms": 60000, "max_idle": 64,
            "drain_ms": 30000,
            "outlier_detection": {"consecutive_failures": 5, "statuses": [502, 503, 504], "ejection_ms": 30000,
                                  "max_ejection_ms": 300_000, "max_ejected": 0.5},
            "slow_start_ms": null, "hedge_after_ms": null,
            "limits": {"connections": null, "pending": 100, "requests": null},
            "retries": {"attempts": 2, "budget": 0.2, "min_per_second": 10, "connect": true, "reset": true,
                        "refused_stream": true, "statuses": []}}])
}

/// A configuration with one listener, which the caller may change.
pub fn config(routes: Value, upstreams: Value) -> Value {
    let tls = json!({"provider": "aws-lc", "min_version": "1.2", "max_version": "1.3", "cipher_suites": [], "groups": [],
                     "post_quantum": "allow", "client_auth": {"mode": "none"}, "tickets": 1, "early_data": false});
    json!({
        "workers": 1, "scheduler": "per_core", "kept_files": null, "access_log": null,
        "tickets": {"secrets": [], "rotation_ms": 3_600_000, "lifetime_ms": 7_200_000},
        "handshakes": {"patience_ms": 8_000, "queue": null, "source_prefix": {"ipv4": 24, "ipv6": 48},
                       "source_rate": null, "server_name_rate": null},
        "overload": {"memory_bytes": null, "disable_keepalive": 0.85, "stop_accepting_requests": 0.9,
                     "reject_connections": 0.95},
        "certificates": [{"id": "edge", "chain": "edge.crt", "key": "edge.key"}],
        "upstreams": upstreams,
        "listeners": [{
            "name": "edge", "bind": "127.0.0.1:0", "backlog": 128, "proxy_protocol_from": [], "trusted_proxies": [],
            "protocols": [{"alpn": "h2", "handler": {"kind": "http2"}, "tls": tls},
                          {"alpn": "http/1.1", "handler": {"kind": "http1"}, "tls": tls}],
            "alt_svc": null,
            "sites": [{"names": ["localhost"], "certificates": ["edge"],
                       "alpn": {"mode": "lenient", "protocols": [0, 1], "no_alpn": 1}}],
            "default_site": 0,
            "routes": routes,
            "limits": {"connections": 1000, "request_header_bytes": 16384, "request_headers": 50,
                       "request_body_bytes": null, "concurrent_streams": 100, "buffer_bytes": 65536},
            "timeouts": {"handshake_ms": 10000, "request_header_ms": 10000, "idle_ms": 30000, "relay_idle_ms": 30000,
                         "relay_drain_ms": null},
        }],
    })
}

impl Gateway {
    pub fn start(routes: Value, upstreams: Value) -> Self {
        Self::start_with(&config(routes, upstreams))
    }

    pub fn start_with(config: &Value) -> Self {
        let (certificate, key) = certificate();
        let secrets = HashMap::from([
            ("edge.crt".to_owned(), certificate.clone().into_bytes()),
            ("edge.key".to_owned(), key.clone().into_bytes()),
        ]);
        let server = Server::start(&config.to_string(), &secrets, "{}", HashMap::new()).unwrap();
        let address = server.addresses()["edge"];
        Self { server, address }
    }

    /// A connection after its handshake.
    pub async fn connect(&self, alpn: &[u8]) -> Client {
        self.greet(alpn, TcpStream::connect(self.address).await.unwrap()).await
    }

    /// The same, on a TCP connection that is there.
    pub async fn greet(&self, alpn: &[u8], tcp: TcpStream) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate().0.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    /// A connection that speaks HTTP/1.1.
    pub async fn h1(&self) -> Client {
        self.connect(b"http/1.1").await
    }

    /// A connection that speaks HTTP/1.1 and has little room for what its client has not read.
    pub async fn narrow_h1(&self) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(32 * 1024).unwrap();
        self.greet(b"http/1.1", socket.connect(self.address).await.unwrap()).await
    }

    /// A connection that speaks HTTP/2.
    pub async fn h2<B>(&self) -> SendRequest<B>
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (sender, driver) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(self.connect(b"h2").await)).await.unwrap();
        tokio::spawn(driver);
        sender
    }

    /// Sends `request` on a connection of its own and reads the response.
    pub async fn ask(&self, request: &str) -> Response {
        let mut client = self.h1().await;
        client.write_all(request.as_bytes()).await.unwrap();
        Response::read(&mut client, &method(request)).await
    }

    /// The value of the one sample whose line contains all of `parts`; 0 when there is none.
    pub fn metric(&self, parts: &[&str]) -> f64 {
        let text = String::from_utf8(self.server.metrics().unwrap()).unwrap();
        let found = text.lines().find(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)));
        found.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Waits for a metric to have `value`: it is counted when the response is out, not before.
    pub async fn counts(&self, parts: &[&str], value: f64) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.metric(parts) != value {
            assert!(tokio::time::Instant::now() < deadline, "{parts:?} is {} and not {value}", self.metric(parts));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn method(request: &str) -> Method {
    request.split(' ').next().unwrap().parse().unwrap_or(Method::GET)
}

#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
    /// The body came to its proper end.
    pub complete: bool,
}

impl Response {
    /// Reads one response, and not a byte more.
    pub async fn read<S: AsyncRead + Unpin>(stream: &mut S, method: &Method) -> Self {
        timeout(PATIENCE, Self::read_patiently(stream, method)).await.expect("a response in time")
    }

    async fn read_patiently<S: AsyncRead + Unpin>(stream: &mut S, method: &Method) -> Self {
        let head = read_head(stream).await.freeze();
        let head = parse_response(&head, LIMITS, method).unwrap();
        let mut response = Self {
            status: head.status,
            headers: head.headers,
            body: Vec::new(),
            trailers: HeaderMap::new(),
            complete: true,
        };
        let mut decoder = Decoder::new(head.framing, LIMITS);
        let mut buffer = BytesMut::new();
        loop {
            match decoder.decode(&mut buffer).unwrap() {
                Decoded::Data(data) => response.body.extend_from_slice(&data),
                Decoded::Trailers(trailers) => response.trailers = trailers,
                Decoded::End => break,
                Decoded::More => {
                    // One byte at a time where the end is not known beforehand.
                    let room = if head.framing == Framing::Chunked { 1 } else { 65536 };
                    let mut piece = vec![0; room.min(decoder.remaining().unwrap_or(room as u64) as usize)];
                    match stream.read(&mut piece).await {
                        Ok(length) if length > 0 => buffer.extend_from_slice(&piece[..length]),
                        ended => {
                            response.complete = ended.is_ok() && decoder.end_of_input().is_ok();
                            break;
                        }
                    }
                }
            }
        }
        response
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Reads up to the empty line.
pub async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> BytesMut {
    let (mut buffer, mut scanned) = (BytesMut::new(), 0);
    while find_end(&buffer, &mut scanned, false).unwrap().is_none() {
        let byte = timeout(PATIENCE, stream.read_u8()).await.expect("a head in time");
        buffer.extend_from_slice(&[byte.unwrap_or_else(|error| panic!("{error} after {buffer:?}"))]);
    }
    buffer
}

/// Whether the peer has closed the connection; it must not send anything more.
pub async fn is_closed<S: AsyncRead + Unpin>(stream: &mut S) -> bool {
    let mut rest = Vec::new();
    match timeout(PATIENCE, stream.read_to_end(&mut rest)).await {
        Ok(Ok(_)) => assert!(rest.is_empty(), "unexpected: {}", rest.escape_ascii()),
        Ok(Err(_)) => {}
        Err(_) => return false,
    }
    true
}

/// Starts a backend; `serve` is given each connection with its number.
pub async fn backend<F, S>(serve: S) -> SocketAddr
where
    S: Fn(TcpStream, usize) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, number));
        }
    });
    address
}

/// A backend that answers every request with its head as the body, and says which connection it came on.
pub async fn echo() -> SocketAddr {
    backend(|mut stream, number| async move {
        loop {
            let mut first = [0];
            if !matches!(stream.peek(&mut first).await, Ok(1)) {
                return;
            }
            let head = read_head(&mut stream).await;
            respond(&mut stream, "200 OK", &format!("x-connection: {number}\r\n"), &head).await;
        }
    })
    .await
}

/// Writes a response with a `Content-Length`. `headers`: whole lines.
pub async fn respond<S: AsyncWrite + Unpin>(stream: &mut S, status: &str, headers: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
}

/// A backend that takes all that comes, and never says a word.
pub async fn silent() -> SocketAddr {
    backend(|mut stream, _| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await
}

/// An address that refuses connections.
pub async fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// An address that takes no connection, and does not refuse any either: a full queue drops what comes.
pub async fn swamped() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    while let Ok(connected) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
        connected.unwrap();
    }
    (socket, address)
}
