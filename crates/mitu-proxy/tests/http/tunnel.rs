//! WebSocket over HTTP/2: CONNECT makes a connection of a stream, and an upgraded one of h1 is its other half.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use data_encoding::BASE64;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::harness::{Gateway, LONG_DRAIN, PATIENCE, any, app, backend, config, echo, read_head, respond, to_app};

/// A connection of HTTP/2 whose streams are the test's to end.
async fn connect(gateway: &Gateway) -> SendRequest<Bytes> {
    let (sender, driver) = h2::client::handshake(gateway.connect(b"h2").await).await.unwrap();
    tokio::spawn(driver);
    sender.ready().await.unwrap()
}

fn begin(sender: &mut SendRequest<Bytes>, protocol: Option<&'static str>) -> (ResponseFuture, SendStream<Bytes>) {
    let (uri, version) = match protocol {
        Some(_) => ("https://a.example/chat?x=1", "13"),
        None => ("a.example:443", "13"),
    };
    let mut request = Request::builder().method(Method::CONNECT).uri(uri).header("sec-websocket-version", version);
    if let Some(protocol) = protocol {
        request = request.extension(h2::ext::Protocol::from_static(protocol));
    }
    sender.send_request(request.body(()).unwrap(), false).unwrap()
}

struct Tunnel {
    headers: HeaderMap,
    send: SendStream<Bytes>,
    receive: RecvStream,
}

impl Tunnel {
    async fn open(sender: &mut SendRequest<Bytes>) -> Self {
        let (response, send) = begin(sender, Some("websocket"));
        let response = timeout(PATIENCE, response).await.expect("a response in time").unwrap();
        assert_eq!(response.status(), 200);
        let (parts, receive) = response.into_parts();
        Self { headers: parts.headers, send, receive }
    }

    fn say(&mut self, text: &'static str) {
        self.send.send_data(Bytes::from_static(text.as_bytes()), false).unwrap();
    }

    async fn expect(&mut self, text: &str) {
        let mut read = BytesMut::new();
        while read.len() < text.len() {
            let piece = timeout(PATIENCE, self.receive.data()).await.expect("bytes in time").unwrap().unwrap();
            self.receive.flow_control().release_capacity(piece.len()).unwrap();
            read.extend_from_slice(&piece);
        }
        assert_eq!(read, text);
    }

    /// How the gateway ends the stream: with a code, or in good order.
    async fn end(&mut self) -> Option<Reason> {
        loop {
            match timeout(PATIENCE, self.receive.data()).await.expect("an end in time") {
                None => return None,
                // The end may come with a frame of its own.
                Some(Ok(more)) => assert_eq!(more, ""),
                Some(Err(error)) => return error.reason(),
            }
        }
    }
}

/// Reads a request to upgrade, and switches.
async fn switch(stream: &mut TcpStream) -> String {
    let head = String::from_utf8(read_head(stream).await.to_vec()).unwrap();
    let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
    assert_eq!(BASE64.decode(key.as_bytes()).unwrap().len(), 16);
    let accept = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = BASE64.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, accept.as_bytes()).as_ref());
    let switched = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 9\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    );
    stream.write_all(switched.as_bytes()).await.unwrap();
    head
}

/// Switches, says `hi`, echoes until the client finishes, says `bye` and closes. How each connection ended is told.
async fn chatting() -> (SocketAddr, mpsc::UnboundedReceiver<&'static str>) {
    let (tell, told) = mpsc::unbounded_channel();
    let address = backend(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            let head = switch(&mut stream).await;
            assert!(head.starts_with("GET /chat?x=1 HTTP/1.1\r\n"), "{head}");
            for field in ["host: a.example", "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13"]
            {
                assert!(head.contains(&format!("\r\n{field}\r\n")), "{field} in {head}");
            }
            stream.write_all(b"hi").await.unwrap();
            let mut piece = [0; 1024];
            loop {
                match stream.read(&mut piece).await {
                    Ok(0) => break tell.send("ended").unwrap(),
                    Ok(length) => stream.write_all(&piece[..length]).await.unwrap(),
                    Err(_) => break tell.send("reset").unwrap(),
                }
            }
            let _ = stream.write_all(b"bye").await;
        }
    })
    .await;
    (address, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_flow_both_ways_and_ends_are_passed_on() {
    let (upstream, _told) = chatting().await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut sender = connect(&gateway).await;
    let mut tunnel = Tunnel::open(&mut sender).await;
    assert_eq!(tunnel.headers["sec-websocket-protocol"], "chat");
    for of_h1 in ["sec-websocket-accept", "upgrade", "connection", "content-length"] {
        assert!(!tunnel.headers.contains_key(of_h1), "{of_h1}");
    }
    tunnel.expect("hi").await;
    for _ in 0..3 {
        tunnel.say("ping");
        tunnel.expect("ping").await;
    }
    // Half-close: the upstream still has something to say.
    tunnel.send.send_data(Bytes::new(), true).unwrap();
    tunnel.expect("bye").await;
    assert_eq!(tunnel.end().await, None);
    gateway.counts(&["mitu_http_requests_total", "\"h2\"", "status=\"200\""], 1.0).await;
    gateway.counts(&["mitu_http_body_bytes_total", "\"app\"", "\"h2\"", "received"], 12.0).await;
    gateway.counts(&["mitu_http_body_bytes_total", "\"app\"", "\"h2\"", "sent"], 17.0).await;
    gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
    assert_eq!(gateway.metric(&["mitu_http_errors_total"]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_share_a_connection_with_requests() {
    let (upstream, _told) = chatting().await;
    let mut routes = to_app();
    routes.as_array_mut().unwrap().insert(
        0,
        json!({"name": "ok", "match": {"hosts": [], "path": {"kind": "exact", "value": "/ok"}, "methods": [], "headers": []},
               "filters": [], "action": {"kind": "respond", "status": 200, "headers": [], "body": "ok"}}),
    );
    let gateway = Gateway::start(routes, app(&[upstream]));
    let mut sender = connect(&gateway).await;
    let (mut one, mut two) = (Tunnel::open(&mut sender).await, Tunnel::open(&mut sender).await);
    for _ in 0..2 {
        let request = Request::get("https://a.example/ok").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        assert_eq!(timeout(PATIENCE, response).await.unwrap().unwrap().status(), 200);
    }
    for (tunnel, text) in [(&mut one, "one"), (&mut two, "two")] {
        tunnel.expect("hi").await;
        tunnel.say(text);
        tunnel.expect(text).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_by_the_client_ends_the_upstreams_connection() {
    // Neither says anything, so that nothing but the reset can be noticed; `keep` does not mind that the client is done.
    let (tell, mut told) = mpsc::unbounded_channel();
    let upstream = backend(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            switch(&mut stream).await;
            let ended = stream.read(&mut [0]).await;
            assert!(!matches!(ended, Ok(1)));
            tell.send(stream).unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut sender = connect(&gateway).await;
    for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
        let mut tunnel = Tunnel::open(&mut sender).await;
        gateway.counts(&["mitu_upstream_requests_active"], 1.0).await;
        tunnel.send.send_reset(reason);
        let _kept = timeout(PATIENCE, told.recv()).await.expect("told in time").unwrap();
        gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_by_the_upstream_is_a_reset() {
    let upstream = backend(|mut stream, _| async move {
        switch(&mut stream).await;
        stream.write_all(b"hi").await.unwrap();
        stream.read_exact(&mut [0; 2]).await.unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut tunnel = Tunnel::open(&mut connect(&gateway).await).await;
    tunnel.expect("hi").await;
    tunnel.say("go");
    assert_eq!(tunnel.end().await, Some(Reason::CANCEL));
    gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_tunnel_ends_and_one_that_speaks_does_not() {
    let (upstream, mut told) = chatting().await;
    let mut config = config(to_app(), app(&[upstream]));
    config["listeners"][0]["timeouts"]["relay_idle_ms"] = json!(2000);
    config["listeners"][0]["timeouts"]["idle_ms"] = json!(2000);
    let gateway = Gateway::start_with(&config);
    let mut tunnel = Tunnel::open(&mut connect(&gateway).await).await;
    tunnel.expect("hi").await;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        tunnel.say("ping");
        tunnel.expect("ping").await;
    }
    assert!(timeout(PATIENCE, told.recv()).await.expect("ended in time").is_some());
    gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_tunnel_goes_on_in_a_drain() {
    let (upstream, _told) = chatting().await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut sender = connect(&gateway).await;
    let mut tunnel = Tunnel::open(&mut sender).await;
    tunnel.expect("hi").await;
    gateway.server.drain(LONG_DRAIN);
    // No further one on this connection, once GOAWAY has come.
    timeout(PATIENCE, async { while sender.clone().ready().await.is_ok() {} }).await.expect("GOAWAY in time");
    tunnel.say("ping");
    tunnel.expect("ping").await;
    tunnel.send.send_data(Bytes::new(), true).unwrap();
    tunnel.expect("bye").await;
    assert_eq!(tunnel.end().await, None);
    gateway.counts(&["mitu_connections_active"], 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_leaves_nothing_behind() {
    let (upstream, mut told) = chatting().await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let (mut sender, driver) = h2::client::handshake(gateway.connect(b"h2").await).await.unwrap();
    let driver = tokio::spawn(driver);
    let mut tunnel = Tunnel::open(&mut sender).await;
    tunnel.expect("hi").await;
    driver.abort();
    assert!(timeout(PATIENCE, told.recv()).await.expect("ended in time").is_some());
    gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
    gateway.counts(&["mitu_connections_active"], 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_stops_its_upstream() {
    let taken = Arc::new(AtomicU64::new(0));
    let count = taken.clone();
    let upstream = backend(move |mut stream, _| {
        let count = count.clone();
        async move {
            socket2::SockRef::from(&stream).set_send_buffer_size(16 * 1024).unwrap();
            switch(&mut stream).await;
            while let Ok(written) = stream.write(&[b'x'; 16 * 1024]).await {
                count.fetch_add(written as u64, Ordering::Relaxed);
            }
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut tunnel = Tunnel::open(&mut connect(&gateway).await).await;
    // Until nothing moves any more.
    let mut before = u64::MAX;
    while before != taken.load(Ordering::Relaxed) {
        before = taken.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // The client's window, a few buffers of 64 KiB, and what the kernel keeps of loopback.
    assert!((65_535..8 << 20).contains(&before), "{before}");
    let mut read = 0;
    while read < before + (1 << 20) {
        let piece = timeout(PATIENCE, tunnel.receive.data()).await.expect("it goes on").unwrap().unwrap();
        tunnel.receive.flow_control().release_capacity(piece.len()).unwrap();
        read += piece.len() as u64;
    }
}

async fn refusal(response: ResponseFuture) -> Response<String> {
    let (parts, mut body) = timeout(PATIENCE, response).await.expect("a response in time").unwrap().into_parts();
    let mut text = String::new();
    while let Some(piece) = timeout(PATIENCE, body.data()).await.expect("a body in time") {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    Response::from_parts(parts, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upstream_says_that_does_not_switch_is_passed_on() {
    let upstream = backend(|mut stream, _| async move {
        for _ in 0..2 {
            let head = String::from_utf8(read_head(&mut stream).await.to_vec()).unwrap();
            assert!(head.starts_with("GET /chat?x=1 HTTP/1.1\r\n"), "{head}");
            respond(&mut stream, "403 Forbidden", "x-why: closed\r\n", b"not here").await;
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut sender = connect(&gateway).await;
    for _ in 0..2 {
        let (response, mut send) = begin(&mut sender, Some("websocket"));
        // Nothing of this may be found on the connection to the upstream, which is used again.
        let _ = send.send_data(Bytes::from_static(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"), false);
        let response = refusal(response).await;
        assert_eq!((response.status(), response.body().as_str()), (StatusCode::FORBIDDEN, "not here"));
        assert_eq!(response.headers()["x-why"], "closed");
    }
    assert_eq!(gateway.metric(&["mitu_upstream_connects_total"]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_is_not_taken_for_open_when_it_is_not() {
    let switched = |head: &'static str| async move {
        backend(move |mut stream, _| async move {
            read_head(&mut stream).await;
            stream.write_all(head.as_bytes()).await.unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "bytes of a client that was refused");
        })
        .await
    };
    let plain = echo().await;
    let wrong = switched(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    )
    .await;
    let none = switched("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    for upstream in [plain, wrong, none] {
        let gateway = Gateway::start(to_app(), app(&[upstream]));
        let (response, mut send) = begin(&mut connect(&gateway).await, Some("websocket"));
        let _ = send.send_data(Bytes::from_static(b"early"), false);
        let response = refusal(response).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        assert!(response.body().contains("bad_response"), "{}", response.body());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_is_for_websocket_to_an_upstream_alone() {
    let (upstream, _told) = chatting().await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut sender = connect(&gateway).await;
    for (protocol, status) in [(Some("connect-udp"), 501), (Some("h2c"), 501), (None, 405)] {
        let (response, _send) = begin(&mut sender, protocol);
        assert_eq!(refusal(response).await.status().as_u16(), status, "{protocol:?}");
    }
    let fixed = json!([{"name": "ok", "match": any(), "filters": [],
                        "action": {"kind": "respond", "status": 200, "headers": [], "body": "ok"}}]);
    let gateway = Gateway::start(fixed, json!([]));
    let (response, _send) = begin(&mut connect(&gateway).await, Some("websocket"));
    let response = refusal(response).await;
    assert_eq!(response.status().as_u16(), 501);
    assert!(response.body().contains("protocol_not_supported"), "{}", response.body());
}
