//! How long connections live: idle times, slow clients, draining.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::harness::{
    Gateway, LONG_DRAIN, Response, any, app, backend, config, echo, is_closed, read_head, respond, to_app,
};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

async fn with_timeouts(request_header_ms: u64, idle_ms: u64) -> Gateway {
    let mut config = config(to_app(), app(&[echo().await]));
    config["listeners"][0]["timeouts"]["request_header_ms"] = json!(request_header_ms);
    config["listeners"][0]["timeouts"]["idle_ms"] = json!(idle_ms);
    Gateway::start_with(&config)
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_closed() {
    let gateway = with_timeouts(10_000, 300).await;
    let mut client = gateway.h1().await;
    for _ in 0..2 {
        client.write_all(GET).await.unwrap();
        assert_eq!(Response::read(&mut client, &Method::GET).await.status, 200);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let started = Instant::now();
    assert!(is_closed(&mut client).await);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_must_be_complete_in_time() {
    let gateway = with_timeouts(300, 10_000).await;
    let mut client = gateway.h1().await;
    // Waiting before the first byte is idling, and allowed for longer.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let started = Instant::now();
    for byte in &GET[..10] {
        client.write_all(&[*byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let response = Response::read(&mut client, &Method::GET).await;
    assert_eq!(response.status, 408);
    assert!((250..2000).contains(&started.elapsed().as_millis()));
    assert!(is_closed(&mut client).await);
    gateway.counts(&["mitu_http_errors_total", "header_timeout"], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_given_up() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    })
    .await;
    let mut config = config(to_app(), app(&[upstream]));
    config["listeners"][0]["timeouts"]["idle_ms"] = json!(300);
    let gateway = Gateway::start_with(&config);
    let mut client = gateway.h1().await;
    client.write_all(GET).await.unwrap();
    read_head(&mut client).await;
    gateway.counts(&["mitu_http_errors_total", "client_closed"], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_is_not_given_up() {
    const LENGTH: usize = 12_000_000;
    let routes = json!([{"name": "large", "match": any(), "filters": [],
                         "action": {"kind": "respond", "status": 200, "headers": [], "body": "x".repeat(LENGTH)}}]);
    let mut config = config(routes, json!([]));
    config["listeners"][0]["timeouts"]["idle_ms"] = json!(700);
    let gateway = Gateway::start_with(&config);
    let mut client = gateway.narrow_h1().await;
    client.write_all(GET).await.unwrap();
    read_head(&mut client).await;
    let started = Instant::now();
    let (mut total, mut piece) = (0, vec![0; 65536]);
    while total < LENGTH {
        total += match client.read(&mut piece).await {
            Ok(length) if length > 0 => length,
            ended => panic!("{ended:?} after {total} bytes"),
        };
        if started.elapsed() < Duration::from_millis(1500) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    gateway.counts(&["mitu_http_body_bytes_total", "\"large\"", "\"h1\"", "\"sent\""], LENGTH as f64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_loses_no_request() {
    let upstream = backend(|mut stream, _| async move {
        loop {
            let mut first = [0];
            if !matches!(stream.peek(&mut first).await, Ok(1)) {
                return;
            }
            let head = read_head(&mut stream).await;
            if head.starts_with(b"GET /slow") {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            respond(&mut stream, "200 OK", "", b"x").await;
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let (mut busy, mut idle, mut silent) = (gateway.h1().await, gateway.h1().await, gateway.h1().await);
    for client in [&mut idle, &mut silent] {
        client.write_all(GET).await.unwrap();
        assert_eq!(Response::read(client, &Method::GET).await.header("connection"), "");
    }
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    gateway.server.drain(LONG_DRAIN);

    // A request that was on its way when the drain began.
    tokio::time::sleep(Duration::from_millis(200)).await;
    idle.write_all(GET).await.unwrap();
    for client in [&mut idle, &mut busy] {
        let response = Response::read(client, &Method::GET).await;
        assert_eq!((response.status.as_u16(), response.header("connection")), (200, "close"));
        assert!(is_closed(client).await);
    }
    let started = Instant::now();
    assert!(is_closed(&mut silent).await);
    assert!(started.elapsed() < Duration::from_secs(3), "idle connections are closed when the time to linger is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_not_told_of_the_drain_may_ask_once_more() {
    let go_on = Arc::new(Notify::new());
    let upstream = backend({
        let go_on = go_on.clone();
        move |mut stream, _| {
            let go_on = go_on.clone();
            async move {
                read_head(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc").await.unwrap();
                go_on.notified().await;
                stream.write_all(b"def").await.unwrap();
                read_head(&mut stream).await;
                respond(&mut stream, "200 OK", "", b"more").await;
            }
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let (mut busy, mut idle) = (gateway.h1().await, gateway.h1().await);
    busy.write_all(GET).await.unwrap();
    assert!(!read_head(&mut busy).await.windows(10).any(|ten| ten == b"connection"));
    gateway.server.drain(LONG_DRAIN);
    assert!(is_closed(&mut idle).await, "the time to linger is over");
    go_on.notify_one();
    busy.read_exact(&mut [0; 6]).await.unwrap();
    busy.write_all(GET).await.unwrap();
    let response = Response::read(&mut busy, &Method::GET).await;
    assert_eq!((response.status.as_u16(), response.text(), response.header("connection")), (200, "more", "close"));
    assert!(is_closed(&mut busy).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_mqtt_client_does_not_hold_up_a_drain() {
    let mut config = config(to_app(), app(&[echo().await]));
    config["upstreams"][0]["balancer"] = json!({"kind": "hash", "on": {"kind": "mqtt_client_id"}});
    let listener = &mut config["listeners"][0];
    let tls = listener["protocols"][0]["tls"].clone();
    let relay = json!({"alpn": "mqtt", "handler": {"kind": "relay", "upstream": "app"}, "tls": tls});
    listener["protocols"].as_array_mut().unwrap().push(relay);
    listener["sites"][0]["alpn"]["protocols"] = json!([0, 1, 2]);
    let gateway = Gateway::start_with(&config);
    let (mut silent, mut halfway) = (gateway.connect(b"mqtt").await, gateway.connect(b"mqtt").await);
    halfway.write_all(b"\x10\x14\0\x04MQ").await.unwrap();
    gateway.counts(&["mitu_connections_active"], 2.0).await;
    let begun = Instant::now();
    gateway.server.drain(LONG_DRAIN);
    assert!(is_closed(&mut silent).await && is_closed(&mut halfway).await);
    assert!(begun.elapsed() < Duration::from_secs(5), "a handshake may take ten seconds");
    gateway.counts(&["mitu_relay_ends_total", "\"mqtt\"", "\"drain\""], 2.0).await;
    gateway.counts(&["mitu_relay_ends_total", "\"mqtt\"", "\"not_mqtt\""], 0.0).await;
}
