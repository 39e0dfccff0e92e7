//! Connections that come to nothing before their first request, and what they are counted as.

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{Gateway, config, is_closed};

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
