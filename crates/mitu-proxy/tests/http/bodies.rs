//! Bodies in both directions: whole, streamed, limited, with trailers, with back-pressure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::harness::{Gateway, PATIENCE, Response, app, backend, config, echo, is_closed, read_head, respond, to_app};

/// Reads `length` bytes.
async fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("bytes in time").unwrap();
    bytes
}

/// Reads a chunked body as it stands on the wire.
async fn read_chunked(stream: &mut TcpStream) -> String {
    let mut wire = Vec::new();
    let is_whole = |wire: &[u8]| {
        let has_last_chunk = wire.starts_with(b"0\r\n") || wire.windows(5).any(|five| five == b"\r\n0\r\n");
        has_last_chunk && wire.ends_with(b"\r\n\r\n")
    };
    while !is_whole(&wire) {
        wire.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("bytes in time").unwrap());
    }
    String::from_utf8(wire).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_on_both_sides_are_reused() {
    let gateway = Gateway::start(to_app(), app(&[echo().await]));
    let mut client = gateway.h1().await;
    for _ in 0..5 {
        client.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let response = Response::read(&mut client, &Method::GET).await;
        assert_eq!((response.status.as_u16(), response.header("x-connection")), (200, "0"));
    }
    let response = gateway.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(response.header("x-connection"), "0", "another client's request");
    assert_eq!(gateway.metric(&["mitu_upstream_connects_total"]), 1.0);
    assert_eq!(gateway.metric(&["mitu_upstream_connection_reuses_total"]), 5.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_known_length_keeps_it() {
    let upstream = backend(|mut stream, _| async move {
        let head = String::from_utf8(read_head(&mut stream).await.to_vec()).unwrap();
        assert!(head.contains("\r\ncontent-length: 100000\r\n") && !head.contains("transfer-encoding"), "{head}");
        let body = read_exactly(&mut stream, 100_000).await;
        respond(&mut stream, "200 OK", "", &body).await;
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let body = "0123456789".repeat(10_000);
    let response = gateway.ask(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{body}")).await;
    assert_eq!(response.text(), body);
    for direction in ["\"received\"", "\"sent\""] {
        gateway.counts(&["mitu_http_body_bytes_total", "\"app\"", "\"h1\"", direction], 100_000.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_and_trailers_pass_both_ways() {
    let upstream = backend(|mut stream, _| async move {
        let head = String::from_utf8(read_head(&mut stream).await.to_vec()).unwrap();
        assert!(head.contains("\r\ntransfer-encoding: chunked\r\n") && !head.contains("content-length"), "{head}");
        assert!(head.contains("\r\nte: trailers\r\n") && head.contains("\r\nconnection: te\r\n"), "{head}");
        let wire = read_chunked(&mut stream).await;
        assert_eq!(wire, "5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n");
        let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-more: 1\r\nSet-Cookie: a=b\r\n\r\n";
        stream.write_all(response.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nConnection: TE\r\n\r\n\
                   5;ext=1\r\nhello\r\n0\r\nX-Sum: 7\r\nX-Client-Verified: SUCCESS\r\n\r\n";
    let response = gateway.ask(request).await;
    assert_eq!(response.text(), "abc");
    assert_eq!(response.trailers.len(), 1, "{:?}", response.trailers);
    assert_eq!(response.trailers["x-more"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_without_a_body_have_none() {
    let upstream = backend(|mut stream, _| async move {
        for head in [
            "200 OK\r\ncontent-length: 1000",
            "304 Not Modified\r\ncontent-length: 1000",
            "204 No Content",
            "200 OK\r\ncontent-length: 0",
        ] {
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes()).await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h1().await;
    for (method, status, length) in [("HEAD", 200, "1000"), ("GET", 304, "1000"), ("GET", 204, ""), ("GET", 200, "0")]
    {
        client.write_all(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let response = Response::read(&mut client, &method.parse().unwrap()).await;
        assert_eq!((response.status.as_u16(), response.header("content-length")), (status, length));
    }
    assert_eq!(gateway.metric(&["mitu_upstream_connects_total"]), 1.0);
    for (status, responses) in [("200", 2.0), ("204", 1.0), ("304", 1.0)] {
        gateway.counts(&["mitu_http_requests_total", &format!("status=\"{status}\"")], responses).await;
    }
    // Whoever answers the next request is done with those before.
    client.write_all(b"GET /../x HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(Response::read(&mut client, &Method::GET).await.status, 400);
    assert_eq!(gateway.metric(&["mitu_http_errors_total", "client_closed"]), 0.0, "they count as delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_to_the_connections_end_becomes_chunked() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nsome ").await.unwrap();
        stream.write_all(b"text").await.unwrap();
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h1().await;
    for _ in 0..2 {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let response = Response::read(&mut client, &Method::GET).await;
        assert_eq!((response.text(), response.header("transfer-encoding")), ("some text", "chunked"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_clients_get_what_they_understand() {
    let upstream = backend(|mut stream, _| async move {
        for _ in 0..2 {
            read_head(&mut stream).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
                .await
                .unwrap();
        }
        read_head(&mut stream).await;
        respond(&mut stream, "200 OK", "", b"hi").await;
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    for request in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"] {
        let response = gateway.ask(request).await;
        assert_eq!((response.text(), response.header("connection")), ("hi", "close"));
        assert!(!response.headers.contains_key("transfer-encoding"));
    }
    let response = gateway.ask("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!((response.text(), response.header("connection")), ("hi", "keep-alive"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_streamed_both_ways_at_once() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        for _ in 0..3 {
            let piece = read_exactly(&mut stream, 6).await;
            stream.write_all(&piece).await.unwrap();
        }
        assert_eq!(read_exactly(&mut stream, 5).await, b"0\r\n\r\n");
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h1().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    read_head(&mut client).await;
    for number in 0..3 {
        let piece = format!("1\r\n{number}\r\n");
        client.write_all(piece.as_bytes()).await.unwrap();
        let mut answer = vec![0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, piece.as_bytes());
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 5];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"0\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_slows_the_upstream_down() {
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let upstream = backend(move |mut stream, _| {
        let count = count.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
            let piece = [b'x'; 65536];
            while stream.write_all(&piece).await.is_ok() {
                count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h1().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_head(&mut client).await;
    // Until nothing moves any more.
    let mut before = u64::MAX;
    while before != written.load(Ordering::Relaxed) {
        before = written.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < 32_000_000, "{before} bytes taken from the upstream for a client that reads nothing");
    let mut piece = vec![0; 8_000_000];
    client.read_exact(&mut piece).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(written.load(Ordering::Relaxed) > before, "it goes on when the client reads");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upstream_slows_the_client_down() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h1().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
    let mut sent = 0_u64;
    let piece = [b'x'; 65536];
    while tokio::time::timeout(Duration::from_millis(500), client.write_all(&piece)).await.is_ok() {
        sent += piece.len() as u64;
        assert!(sent < 32_000_000, "the gateway takes whatever it is given");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_the_limit_are_refused() {
    let upstream = backend(|mut stream, _| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
    })
    .await;
    let mut config = config(to_app(), app(&[upstream]));
    config["listeners"][0]["limits"]["request_body_bytes"] = json!(10);
    let gateway = Gateway::start_with(&config);
    for body in ["Content-Length: 11\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n6\r\nsix by\r\n6\r\nsix by\r\n"] {
        let mut client = gateway.h1().await;
        client.write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}").as_bytes()).await.unwrap();
        let response = Response::read(&mut client, &Method::POST).await;
        assert_eq!((response.status.as_u16(), response.header("connection")), (413, "close"), "{body}");
        assert!(response.text().contains("body_too_large"));
    }
    gateway.counts(&["mitu_http_errors_total", "body_too_large"], 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expectation_is_the_upstreams_to_meet() {
    let upstream = backend(|mut stream, _| async move {
        let head = String::from_utf8(read_head(&mut stream).await.to_vec()).unwrap();
        assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");
        // The client has not sent its body, so there is none yet.
        let nothing = tokio::time::timeout(Duration::from_millis(200), stream.read_u8()).await;
        assert!(nothing.is_err());
        if head.starts_with("POST /yes") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            let body = read_exactly(&mut stream, 5).await;
            respond(&mut stream, "200 OK", "", &body).await;
        } else {
            respond(&mut stream, "401 Unauthorized", "", b"who?").await;
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let ask = async |path: &str| {
        let mut client = gateway.h1().await;
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client
    };
    let mut client = ask("/yes").await;
    assert_eq!(read_head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hello").await.unwrap();
    let response = Response::read(&mut client, &Method::POST).await;
    assert_eq!((response.status.as_u16(), response.text()), (200, "hello"));

    let mut client = ask("/no").await;
    let response = Response::read(&mut client, &Method::POST).await;
    assert_eq!((response.status.as_u16(), response.text()), (401, "who?"));
    assert_eq!(response.header("connection"), "close", "whether the body comes or not, nobody waits for it");
    client.shutdown().await.unwrap();
    assert!(is_closed(&mut client).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_ignores_an_expectation_gets_the_body_all_the_same() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        let body = read_exactly(&mut stream, 5).await;
        respond(&mut stream, "200 OK", "", &body).await;
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h1().await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hello").await.unwrap();
    assert_eq!(Response::read(&mut client, &Method::POST).await.text(), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_does_not_wait_for_the_body() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        respond(&mut stream, "403 Forbidden", "", b"no").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h1().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome").await.unwrap();
    let response = Response::read(&mut client, &Method::POST).await;
    assert_eq!((response.status.as_u16(), response.text(), response.header("connection")), (403, "no", "close"));
    // The rest is read and thrown away for a while, so that the client can finish its write and read the answer.
    client.write_all(&vec![b'x'; 500_000]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let gateway = Gateway::start(to_app(), app(&[echo().await]));
    let mut client = gateway.h1().await;
    let requests: String = (0..10).map(|number| format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.write_all(requests.as_bytes()).await.unwrap();
    for number in 0..10 {
        let response = Response::read(&mut client, &Method::GET).await;
        assert!(response.text().starts_with(&format!("GET /{number} ")), "{}", response.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_behind_a_body_is_not_lost() {
    let upstream = backend(|mut stream, _| async move {
        loop {
            let head = read_head(&mut stream).await;
            if head.starts_with(b"POST") {
                read_exactly(&mut stream, 5).await;
            }
            respond(&mut stream, "200 OK", "", &head[..6]).await;
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h1().await;
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(Response::read(&mut client, &Method::POST).await.text(), "POST /");
    assert_eq!(Response::read(&mut client, &Method::GET).await.text(), "GET / ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_takes_its_request_with_it() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let upstream = backend(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            read_head(&mut stream).await;
            tell.send("asked").unwrap();
            let ended = stream.read_u8().await;
            tell.send(if ended.is_err() { "closed" } else { "bytes" }).unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h1().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(told.recv().await, Some("asked"));
    drop(client);
    let closed = tokio::time::timeout(PATIENCE, told.recv()).await.expect("the upstream is told");
    assert_eq!(closed, Some("closed"));
    gateway.counts(&["mitu_http_requests_total", "499"], 1.0).await;
    gateway.counts(&["mitu_http_errors_total", "client_closed"], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_mid_response_is_noticed_while_its_upstream_is_quiet() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let upstream = backend(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            read_head(&mut stream).await;
            let begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
            stream.write_all(begun).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
            tell.send(()).unwrap();
        }
    })
    .await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        let gateway = Gateway::start(to_app(), app(&[upstream]));
        let mut client = gateway.h1().await;
        client.write_all(request.as_bytes()).await.unwrap();
        read_head(&mut client).await;
        drop(client);
        tokio::time::timeout(PATIENCE, told.recv())
            .await
            .unwrap_or_else(|_| panic!("the upstream is told: {request}"));
        gateway.counts(&["mitu_http_errors_total", "client_closed"], 1.0).await;
        gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
        gateway.counts(&["mitu_connections_active"], 0.0).await;
    }
}
