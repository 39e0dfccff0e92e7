//! Connections that come to nothing before their first request, and what they are counted as.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::harness::{Gateway, LONG_DRAIN, Response, app, config, echo, is_closed, to_app};

const FAILURES: &str = "mitu_tls_handshake_failures_total";

/// Every series of failed handshakes.
fn failures(gateway: &Gateway) -> Vec<String> {
    let text = String::from_utf8(gateway.server.metrics().unwrap()).unwrap();
    text.lines().filter(|line| line.starts_with(FAILURES)).map(str::to_owned).collect()
}

async fn says(gateway: &Gateway, words: &[u8]) -> TcpStream {
    let mut tcp = TcpStream::connect(gateway.address).await.unwrap();
    tcp.write_all(words).await.unwrap();
    tcp
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_has_a_series_once_it_is_counted() {
    let gateway = Gateway::start(json!([]), json!([]));
    assert_eq!(failures(&gateway), [""; 0]);
    for count in 1..=3 {
        drop(says(&gateway, b"GET / HTTP/1.1\r\n\r\n").await);
        gateway.counts(&[FAILURES, "\"edge\"", "\"not_tls\""], f64::from(count)).await;
    }
    drop(says(&gateway, b"\x16").await);
    gateway.counts(&[FAILURES, "\"edge\"", "\"client_closed\""], 1.0).await;
    assert_eq!(failures(&gateway).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_proxy_header_is_told_from_one_that_never_came() {
    let mut config = config(json!([]), json!([]));
    config["listeners"][0]["proxy_protocol_from"] = json!(["127.0.0.0/8"]);
    let gateway = Gateway::start_with(&config);
    assert!(is_closed(&mut says(&gateway, b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n").await).await);
    gateway.counts(&[FAILURES, "\"proxy_protocol\""], 1.0).await;
    drop(says(&gateway, b"\r\n\r\n").await);
    gateway.counts(&[FAILURES, "\"client_closed\""], 1.0).await;
    assert_eq!(gateway.metric(&["mitu_connections_refused_total", "\"proxy_protocol\""]), 2.0);
}

/// A gateway that leaves handshakes all the time in the world.
fn patient(mut config: Value) -> Gateway {
    config["listeners"][0]["timeouts"]["handshake_ms"] = json!(3_600_000);
    Gateway::start_with(&config)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_closes_what_is_silent() {
    let gateway = patient(config(json!([]), json!([])));
    let mut silent = says(&gateway, b"").await;
    gateway.server.drain(LONG_DRAIN);
    assert!(is_closed(&mut silent).await);
    gateway.counts(&[FAILURES, "\"draining\""], 1.0).await;
    assert_eq!(gateway.server.active(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_closes_what_has_sent_a_proxy_header_and_no_more() {
    const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let mut config = config(json!([]), json!([]));
    config["listeners"][0]["proxy_protocol_from"] = json!(["127.0.0.0/8"]);
    let gateway = patient(config);
    let mut silent = [says(&gateway, b"").await, says(&gateway, &LOCAL[..9]).await, says(&gateway, LOCAL).await];
    gateway.server.drain(LONG_DRAIN);
    for client in &mut silent {
        assert!(is_closed(client).await);
    }
    gateway.counts(&[FAILURES, "\"draining\""], 3.0).await;
}

/// Passes a connection on to `gateway`: one byte, which `begun` tells of, and the rest after `go_on`.
async fn halting(gateway: SocketAddr, begun: Arc<Notify>, go_on: Arc<Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut client = listener.accept().await.unwrap().0;
        let mut server = TcpStream::connect(gateway).await.unwrap();
        server.write_u8(client.read_u8().await.unwrap()).await.unwrap();
        begun.notify_one();
        go_on.notified().await;
        copy_bidirectional(&mut client, &mut server).await.unwrap();
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_a_handshake_go_on_that_has_begun() {
    let gateway = Arc::new(patient(config(to_app(), app(&[echo().await]))));
    let (begun, go_on) = <(Arc<Notify>, Arc<Notify>)>::default();
    let address = halting(gateway.address, begun.clone(), go_on.clone()).await;
    let asking = tokio::spawn({
        let gateway = gateway.clone();
        async move {
            let mut client = gateway.greet(b"http/1.1", TcpStream::connect(address).await.unwrap()).await;
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            Response::read(&mut client, &Method::GET).await
        }
    });
    begun.notified().await;
    let mut silent = says(&gateway, b"").await;
    gateway.server.drain(LONG_DRAIN);
    assert!(is_closed(&mut silent).await, "the time to linger is over");
    go_on.notify_one();
    let response = asking.await.unwrap();
    assert_eq!((response.status.as_u16(), response.header("connection")), (200, "close"));
}
