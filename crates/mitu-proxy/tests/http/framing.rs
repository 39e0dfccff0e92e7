//! Bytes that could be read in two ways, or in none: refused, and the connection closed.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Gateway, Response, any, app, config, echo, is_closed, to_app};

/// Sends `bytes` and expects a refusal for `reason`, the connection's end, and nothing at the upstream.
async fn refused(gateway: &Gateway, bytes: &[u8], status: u16, reason: &str) {
    let shown = bytes[..bytes.len().min(200)].escape_ascii().to_string();
    let count = || gateway.metric(&["mitu_http_errors_total", &format!("reason=\"{reason}\"")]);
    let before = count();
    let mut client = gateway.h1().await;
    client.write_all(bytes).await.unwrap();
    let response = Response::read(&mut client, &http::Method::GET).await;
    assert_eq!(response.status, status, "{shown}");
    assert!(response.text().contains(reason), "{shown}: {}", response.text());
    assert_eq!(response.header("connection"), "close", "{shown}");
    assert!(is_closed(&mut client).await, "{shown}");
    assert_eq!(count(), before + 1.0, "{shown}: counted as {reason}");
}

async fn gateway() -> Gateway {
    Gateway::start(to_app(), app(&[echo().await]))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_framings_are_refused() {
    let gateway = gateway().await;
    let post = |headers: &str| {
        format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    };
    for headers in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: 5,6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length:\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
    ] {
        refused(&gateway, post(headers).as_bytes(), 400, "ambiguous_framing").await;
    }
    let old = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    refused(&gateway, old, 400, "ambiguous_framing").await;
    assert_eq!(gateway.metric(&["mitu_upstream_connects_total"]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_heads_are_refused() {
    let gateway = gateway().await;
    for bytes in [
        &b"GET / HTTP/1.1\nHost: a\n\n"[..],
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n: empty\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: 1\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\r\nHost: a\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\r\n\r\n",
    ] {
        refused(&gateway, bytes, 400, "bad_request").await;
    }
    for bytes in
        [&b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\n", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"]
    {
        refused(&gateway, bytes, 505, "unsupported_version").await;
    }
    assert_eq!(gateway.metric(&["mitu_upstream_connects_total"]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn blank_lines_before_a_request_are_ignored() {
    let gateway = gateway().await;
    assert_eq!(gateway.ask("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_line_may_come_in_two_pieces() {
    let gateway = gateway().await;
    let mut client = gateway.h1().await;
    client.write_all(b"\r").await.unwrap();
    // Long enough to be read on its own.
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.write_all(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(Response::read(&mut client, &http::Method::GET).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_read_in_two_ways_ends_the_connection() {
    let gateway = gateway().await;
    for (request, reason) in [
        ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", "bad_request"),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", "bad_request"),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "bad_request"),
        ("GET / HTTP/1.1\r\n\r\n", "bad_host"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "bad_host"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "bad_host"),
        ("GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", "bad_host"),
        ("GET / HTTP/1.1\r\nHost: \r\n\r\n", "bad_host"),
        ("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", "bad_host"),
        ("GET /../x HTTP/1.1\r\nHost: a\r\n\r\n", "bad_path"),
        ("GET /%2e%2e/x HTTP/1.1\r\nHost: a\r\n\r\n", "bad_path"),
        ("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", "bad_path"),
    ] {
        refused(&gateway, request.as_bytes(), 400, reason).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_clear_but_unwanted_leaves_the_connection_open() {
    let gateway = gateway().await;
    for (request, status, reason) in [
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method_not_allowed"),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417, "expectation_failed"),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue, tea\r\n\r\n", 417, "expectation_failed"),
    ] {
        let mut client = gateway.h1().await;
        for _ in 0..2 {
            client.write_all(request.as_bytes()).await.unwrap();
            let response = Response::read(&mut client, &http::Method::GET).await;
            assert_eq!(response.status, status, "{request}");
            assert!(response.text().contains(reason), "{request}: {}", response.text());
        }
    }
    assert_eq!(gateway.metric(&["mitu_upstream_connects_total"]), 0.0);
}

/// What follows a CONNECT is meant for the tunnel that there is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connect_ends_the_connection() {
    let gateway = gateway().await;
    let mut client = gateway.h1().await;
    let tunnelled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let request = format!("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n{tunnelled}");
    client.write_all(request.as_bytes()).await.unwrap();
    let response = Response::read(&mut client, &http::Method::GET).await;
    assert_eq!(response.status, 405);
    assert_eq!(response.header("connection"), "close");
    let read = client.read(&mut [0; 64]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(gateway.metric(&["mitu_upstream_connects_total"]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_are_limited() {
    let gateway = gateway().await;
    let long = "x".repeat(20_000);
    refused(&gateway, format!("GET /{long}").as_bytes(), 414, "uri_too_long").await;
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n");
    refused(&gateway, head.as_bytes(), 431, "header_too_large").await;
    let endless = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}");
    refused(&gateway, endless.as_bytes(), 431, "header_too_large").await;
    let many: String = (0..50).map(|number| format!("x-{number}: 1\r\n")).collect();
    refused(&gateway, format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes(), 431, "header_too_large").await;
    let enough: String = (0..49).map(|number| format!("x-{number}: 1\r\n")).collect();
    assert_eq!(gateway.ask(&format!("GET / HTTP/1.1\r\nHost: a\r\n{enough}\r\n")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_can_finish_sending_a_head_that_is_refused() {
    let gateway = gateway().await;
    let mut client = gateway.h1().await;
    let piece = "x".repeat(20_000);
    client.write_all(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {piece}").as_bytes()).await.unwrap();
    let response = Response::read(&mut client, &http::Method::GET).await;
    assert_eq!((response.status.as_u16(), response.header("connection")), (431, "close"));
    for _ in 0..20 {
        client.write_all(piece.as_bytes()).await.expect("no reset while it sends");
        client.flush().await.expect("no reset while it sends");
    }
    client.shutdown().await.unwrap();
    assert!(is_closed(&mut client).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_chunks_are_refused() {
    let gateway = gateway().await;
    for chunks in ["x\r\n", "5\nhello\r\n0\r\n\r\n", "5\r\nhelloo\r\n0\r\n\r\n", "-1\r\n", "5 \r\nhello\r\n0\r\n\r\n"]
    {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        refused(&gateway, request.as_bytes(), 400, "bad_body").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_matcher_sees_the_path_that_the_upstream_gets() {
    let forbidden = json!({"hosts": [], "path": {"kind": "prefix", "value": "/admin"}, "methods": [], "headers": []});
    let routes = json!([
        {"name": "admin", "match": forbidden, "filters": [],
         "action": {"kind": "respond", "status": 403, "headers": [], "body": "no"}},
        {"name": "app", "match": any(), "filters": [],
         "action": {"kind": "upstream", "upstream": "app", "timeout_ms": 5000}},
    ]);
    let gateway = Gateway::start_with(&config(routes, app(&[echo().await])));
    for path in ["/admin", "/admin/x", "/health/../admin", "/health/%2e%2e/admin", "/%61dmin/x", "/./admin"] {
        let response = gateway.ask(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(response.status, 403, "{path}: {}", response.text());
    }
    let response = gateway.ask("GET /a%2Fb/./c?q=../d HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(response.text().starts_with("GET /a%2Fb/c?q=../d HTTP/1.1\r\n"), "{}", response.text());
}
