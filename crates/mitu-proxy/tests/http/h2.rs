//! HTTP/2 on either side, gRPC's ways among them.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::harness::h2::{Body, app_h2, empty, fed, get, h2_backend};
use crate::harness::{
    Gateway, LONG_DRAIN, PATIENCE, any, app, backend, config, echo, read_head, refusing, respond, to_app,
};

#[tokio::test(flavor = "multi_thread")]
async fn requests_become_h1_at_the_upstream() {
    let gateway = Gateway::start(to_app(), app(&[echo().await]));
    let mut client = gateway.h2().await;
    for _ in 0..3 {
        let response = client.send_request(get("/x?y")).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key("connection"));
        let head = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert!(head.starts_with("GET /x?y HTTP/1.1\r\n") && head.contains("\r\nhost: a.example\r\n"), "{head}");
        assert!(!head.contains("transfer-encoding") && !head.contains("content-length"), "{head}");
    }
    gateway.counts(&["mitu_http_requests_total", "protocol=\"h2\"", "status=\"200\""], 3.0).await;
    assert_eq!(gateway.metric(&["mitu_upstream_connects_total"]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_at_once() {
    let gateway = Gateway::start(to_app(), app(&[echo().await]));
    let client = gateway.h2().await;
    let requests: Vec<_> = (0..200)
        .map(|number| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let response = client.send_request(get(&format!("/{number}"))).await.unwrap();
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert!(body.starts_with(format!("GET /{number} ").as_bytes()));
            })
        })
        .collect();
    for request in requests {
        request.await.unwrap();
    }
    gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_trailers_pass_through_h1() {
    let upstream = backend(|mut stream, _| async move {
        let head = String::from_utf8(read_head(&mut stream).await.to_vec()).unwrap();
        assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
        let mut wire = Vec::new();
        while !wire.ends_with(b"x-sum: 7\r\n\r\n") {
            wire.push(stream.read_u8().await.unwrap());
        }
        assert_eq!(wire, b"5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n");
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-more: 1\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let (feed, body) = fed();
    feed.send(Frame::data(Bytes::from_static(b"hello"))).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    feed.send(Frame::trailers(trailers)).unwrap();
    drop(feed);
    let request = Request::post("https://a.example/").body(body).unwrap();
    let response = gateway.h2().await.send_request(request).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-more"], "1");
    assert_eq!(collected.to_bytes(), "abc");
}

/// Answers each message as it comes; `grpc-status` in the trailers.
async fn grpc(request: Request<Incoming>) -> http::Response<Body> {
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.uri().authority().unwrap(), "a.example");
    assert!(!request.headers().contains_key("host"));
    if request.uri().path() == "/fail" {
        return http::Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "5")
            .body(empty())
            .unwrap();
    }
    let (feed, body) = fed();
    tokio::spawn(async move {
        let mut incoming = request.into_body();
        while let Some(Ok(frame)) = incoming.frame().await {
            if let Ok(data) = frame.into_data() {
                feed.send(Frame::data(data)).unwrap();
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        feed.send(Frame::trailers(trailers)).unwrap();
    });
    http::Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

fn call(path: &str, body: Body) -> Request<Body> {
    Request::post(format!("https://a.example{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_streams_both_ways_end_to_end() {
    let gateway = Gateway::start(to_app(), app_h2(&[h2_backend(grpc).await]));
    let mut client = gateway.h2().await;
    let (feed, body) = fed();
    let response = client.send_request(call("/stream", body)).await.unwrap();
    let mut answers = response.into_body();
    for message in ["one", "two", "three"] {
        feed.send(Frame::data(Bytes::from(message))).unwrap();
        let frame = tokio::time::timeout(PATIENCE, answers.frame()).await.expect("an answer in time");
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), message);
    }
    drop(feed);
    let trailers = answers.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");

    let response = client.send_request(call("/fail", empty())).await.unwrap();
    assert_eq!((response.status(), &response.headers()["grpc-status"]), (StatusCode::OK, &"5".parse().unwrap()));
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    assert_eq!(gateway.metric(&["mitu_upstream_connects_total"]), 1.0, "one connection for all");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_learns_of_failures_in_its_own_words() {
    let gateway = Gateway::start(to_app(), app_h2(&[refusing().await]));
    let response = gateway.h2().await.send_request(call("/x", empty())).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-message"], "connect_refused");
    gateway.counts(&["mitu_http_errors_total", "connect_refused"], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_stream_closes_its_h1_connection() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let upstream = backend(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            read_head(&mut stream).await;
            tell.send("begun").unwrap();
            assert!(stream.read_u8().await.is_err());
            tell.send("closed").unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h2().await;
    let request = tokio::spawn(client.send_request(get("/")));
    assert_eq!(told.recv().await, Some("begun"));
    request.abort();
    assert_eq!(tokio::time::timeout(PATIENCE, told.recv()).await.expect("told in time"), Some("closed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_must_agree_and_limits_hold() {
    let gateway = Gateway::start(to_app(), app(&[echo().await]));
    let mut client = gateway.h2().await;
    let mut status = async |request: Request<Body>| client.send_request(request).await.unwrap().status().as_u16();
    let request =
        |name: &str, value: &str| Request::get("https://a.example/").header(name, value).body(empty()).unwrap();
    assert_eq!(status(request("host", "b.example")).await, 400);
    assert_eq!(status(request("host", "A.example")).await, 200);
    assert_eq!(status(request("expect", "tea")).await, 417);
    assert_eq!(status(request("x-large", &"x".repeat(20_000))).await, 431);
    assert_eq!(status(get("/../x")).await, 400);
    let mut many = get("/");
    for number in 0..51 {
        many.headers_mut().insert(http::HeaderName::try_from(format!("x-{number}")).unwrap(), "1".parse().unwrap());
    }
    assert_eq!(status(many).await, 431);
    assert_eq!(status(Request::builder().method(Method::TRACE).uri("https://a/").body(empty()).unwrap()).await, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_the_limit_are_refused() {
    let upstream = backend(|mut stream, _| async move {
        if read_head(&mut stream).await.starts_with(b"GET") {
            respond(&mut stream, "200 OK", "", b"").await;
        }
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let mut config = config(to_app(), app(&[upstream]));
    config["listeners"][0]["limits"]["request_body_bytes"] = json!(10);
    let gateway = Gateway::start_with(&config);
    let mut client = gateway.h2().await;
    let known = Full::new(Bytes::from(vec![0; 11])).boxed();
    let (feed, unknown) = fed();
    for piece in ["six by", "six by"] {
        feed.send(Frame::data(Bytes::from(piece))).unwrap();
    }
    for body in [known, unknown] {
        let request = Request::post("https://a.example/").body(body).unwrap();
        assert_eq!(client.send_request(request).await.unwrap().status(), 413);
    }
    assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200, "the connection goes on");
}

/// curl gives up on a response whose stream is reset while it is still sending.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_comes_early_resets_nothing() {
    let mut config = config(to_app(), app(&[]));
    config["listeners"][0]["limits"]["request_body_bytes"] = json!(10);
    let gateway = Gateway::start_with(&config);
    let mut client = gateway.h2().await;
    let (feed, body) = fed();
    let request = Request::post("https://a.example/").header("content-length", "20").body(body).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 413);
    assert!(response.into_body().collect().await.is_ok());
    for _ in 0..2 {
        // A client whose stream has been reset drops what it is to send.
        tokio::time::sleep(Duration::from_millis(50)).await;
        feed.send(Frame::data(Bytes::from("ten bytes."))).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_what_has_begun() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        respond(&mut stream, "200 OK", "", b"done").await;
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h2().await;
    let begun = tokio::spawn(client.send_request(get("/")));
    tokio::time::sleep(Duration::from_millis(100)).await;
    gateway.server.drain(LONG_DRAIN);
    let response = begun.await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "done");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(client.is_closed(), "GOAWAY, and closed when the last stream has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_closed() {
    let mut config = config(to_app(), app(&[echo().await]));
    config["listeners"][0]["timeouts"]["idle_ms"] = json!(300);
    let gateway = Gateway::start_with(&config);
    let mut client = gateway.h2().await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200);
    }
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(client.is_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_become_one_field_for_h1() {
    let gateway = Gateway::start(to_app(), app(&[echo().await]));
    let mut request = get("/");
    for crumb in ["a=1", "b=2", "c=3"] {
        request.headers_mut().append("cookie", crumb.parse().unwrap());
    }
    let response = gateway.h2().await.send_request(request).await.unwrap();
    let head = response.into_body().collect().await.unwrap().to_bytes();
    let head = String::from_utf8(head.to_vec()).unwrap();
    assert!(head.contains("\r\ncookie: a=1; b=2; c=3\r\n"), "{head}");
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
    let mut client = gateway.h2().await;
    let response = client.send_request(get("/")).await.unwrap();
    gateway.counts(&["mitu_http_errors_total", "client_closed"], 1.0).await;
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_its_upstream_is_not_idle() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc").await.unwrap();
        tokio::time::sleep(Duration::from_millis(900)).await;
        stream.write_all(b"def").await.unwrap();
    })
    .await;
    let mut config = config(to_app(), app(&[upstream]));
    config["listeners"][0]["timeouts"]["idle_ms"] = json!(300);
    let gateway = Gateway::start_with(&config);
    let response = gateway.h2().await.send_request(get("/")).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "abcdef");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_is_given_up_though_its_upstream_had_paused() {
    const WINDOW: u32 = 65_535;
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
        let _ = stream.write_all(&[b'x'; WINDOW as usize]).await;
        tokio::time::sleep(Duration::from_millis(900)).await;
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    })
    .await;
    let mut config = config(to_app(), app(&[upstream]));
    config["listeners"][0]["timeouts"]["idle_ms"] = json!(300);
    let gateway = Gateway::start_with(&config);
    // What comes before the pause fills the client's windows to the byte; what comes after wakes nobody.
    let (mut client, driver) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(TokioIo::new(gateway.connect(b"h2").await))
        .await
        .unwrap();
    tokio::spawn(driver);
    let _unread = client.send_request(get("/")).await.unwrap();
    gateway.counts(&["mitu_http_errors_total", "client_closed"], 1.0).await;
    gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_request_that_fails_has_no_body() {
    let gateway = Gateway::start(to_app(), app(&[refusing().await]));
    let request = Request::head("https://a.example/").body(empty()).unwrap();
    let response = gateway.h2().await.send_request(request).await.unwrap();
    assert_eq!(response.status(), 502);
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    gateway.counts(&["mitu_http_errors_total", "connect_refused"], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_without_a_body_count_as_delivered() {
    let upstream = backend(|mut stream, _| async move {
        for head in
            ["200 OK\r\ncontent-length: 7", "304 Not Modified", "204 No Content", "203 OK\r\ncontent-length: 0"]
        {
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes()).await.unwrap();
        }
    })
    .await;
    let mut old = any();
    old["path"] = json!({"kind": "prefix", "value": "/old"});
    let routes = json!([
        {"name": "old", "match": old, "filters": [],
         "action": {"kind": "redirect", "status": 308, "scheme": null, "host": "new.example", "path": null}},
        to_app()[0],
    ]);
    let gateway = Gateway::start(routes, app(&[upstream]));
    let mut client = gateway.h2().await;
    for (method, path, status) in
        [("HEAD", "/", 200), ("GET", "/", 304), ("GET", "/", 204), ("GET", "/", 203), ("GET", "/old", 308)]
    {
        let request = Request::builder().method(method).uri(format!("https://a.example{path}")).body(empty()).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), status);
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
        gateway.counts(&["mitu_http_requests_total", &format!("status=\"{status}\"")], 1.0).await;
        assert_eq!(gateway.metric(&["mitu_http_errors_total", "client_closed"]), 0.0, "{method}, {status}");
    }
}
