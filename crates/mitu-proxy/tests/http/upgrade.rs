//! `101 Switching Protocols`: WebSocket and its like, end to end.

use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Client, Gateway, PATIENCE, Response, app, backend, config, is_closed, read_head, to_app};

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";

/// Switches, says `hi` with the same write, and echoes until the client finishes; then says `bye` and closes.
async fn chatting() -> std::net::SocketAddr {
    backend(|mut stream, _| async move {
        let head = String::from_utf8(read_head(&mut stream).await.to_vec()).unwrap();
        assert!(head.contains("\r\nconnection: upgrade\r\n") && head.contains("\r\nupgrade: websocket\r\n"), "{head}");
        assert!(head.contains("\r\nsec-websocket-key: k\r\n"), "{head}");
        let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhi";
        stream.write_all(switched.as_bytes()).await.unwrap();
        let mut piece = [0; 1024];
        loop {
            match stream.read(&mut piece).await.unwrap() {
                0 => break,
                length => stream.write_all(&piece[..length]).await.unwrap(),
            }
        }
        stream.write_all(b"bye").await.unwrap();
    })
    .await
}

async fn expect(client: &mut Client, bytes: &[u8]) {
    let mut read = vec![0; bytes.len()];
    tokio::time::timeout(PATIENCE, client.read_exact(&mut read)).await.expect("bytes in time").unwrap();
    assert_eq!(read, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_flow_both_ways_and_each_side_may_finish_first() {
    let gateway = Gateway::start(to_app(), app(&[chatting().await]));
    let mut client = gateway.h1().await;
    client.write_all(format!("{UPGRADE}early").as_bytes()).await.unwrap();
    let head = String::from_utf8(read_head(&mut client).await.to_vec()).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("connection: upgrade\r\nupgrade: websocket\r\n"), "{head}");
    assert!(head.contains("sec-websocket-accept: x\r\n"), "{head}");
    expect(&mut client, b"hi").await;
    expect(&mut client, b"early").await;
    for _ in 0..3 {
        client.write_all(b"ping").await.unwrap();
        expect(&mut client, b"ping").await;
    }
    // Half-close: the upstream still has something to say.
    client.shutdown().await.unwrap();
    expect(&mut client, b"bye").await;
    assert!(is_closed(&mut client).await);
    gateway.counts(&["mitu_http_requests_total", "status=\"101\""], 1.0).await;
    gateway.counts(&["mitu_http_body_bytes_total", "\"app\"", "\"h1\"", "received"], 17.0).await;
    gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_upgrade_ends() {
    let mut config = config(to_app(), app(&[chatting().await]));
    config["listeners"][0]["timeouts"]["relay_idle_ms"] = json!(300);
    let gateway = Gateway::start_with(&config);
    let mut client = gateway.h1().await;
    client.write_all(UPGRADE.as_bytes()).await.unwrap();
    read_head(&mut client).await;
    expect(&mut client, b"hi").await;
    let started = std::time::Instant::now();
    assert!(is_closed(&mut client).await);
    assert!((250..3000).contains(&started.elapsed().as_millis()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_may_decline() {
    let gateway = Gateway::start(to_app(), app(&[crate::harness::echo().await]));
    let response = gateway.ask(UPGRADE).await;
    assert_eq!(response.status, 200);
    assert!(response.text().contains("upgrade: websocket"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_declined_upgrade_is_the_next_request() {
    let gateway = Gateway::start(to_app(), app(&[crate::harness::echo().await]));
    let mut client = gateway.h1().await;
    client.write_all(format!("{UPGRADE}GET /next HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
    for path in ["/chat", "/next"] {
        let response = Response::read(&mut client, &Method::GET).await;
        assert!(response.text().starts_with(&format!("GET {path} ")), "{}", response.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_websocket_is_passed_on() {
    let gateway = Gateway::start(to_app(), app(&[crate::harness::echo().await]));
    for request in [
        // Further requests could hide in what is taken for one.
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
    ] {
        let response = gateway.ask(request).await;
        assert_eq!(response.status, 200, "{request}");
        let head = response.text();
        assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{request}: {head}");
    }
}
