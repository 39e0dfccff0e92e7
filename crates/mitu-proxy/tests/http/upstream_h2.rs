//! HTTP/2 towards the upstream: one connection, shared by clients that have nothing to do with each other.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::harness::h2::{app_h2, empty, fed, get, h2_backend, narrow_h2_backend};
use crate::harness::{Gateway, PATIENCE, backend, config, read_head, swamped, to_app};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A body without an end, which counts what is taken of it.
struct Endless(Arc<AtomicU64>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = Bytes::from_static(&[b'x'; 16 * 1024]);
        self.0.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_stream_is_cancelled_at_an_h2_upstream() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let upstream = h2_backend(move |request| {
        let tell = tell.clone();
        async move {
            tell.send("begun").unwrap();
            let ended = request.into_body().collect().await;
            tell.send(if ended.is_err() { "reset" } else { "ended" }).unwrap();
            http::Response::new(empty())
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app_h2(&[upstream]));
    let mut client = gateway.h2().await;
    let (_feed, body) = fed();
    let request = Request::post("https://a.example/").body(body).unwrap();
    let request = tokio::spawn(client.send_request(request));
    assert_eq!(told.recv().await, Some("begun"));
    request.abort();
    assert_eq!(tokio::time::timeout(PATIENCE, told.recv()).await.expect("told in time"), Some("reset"));
    gateway.counts(&["mitu_http_errors_total", "client_closed"], 1.0).await;
    gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstreams_goaway_costs_no_request() {
    // Each connection serves one request, says so, and closes.
    let upstream = backend(|stream: TcpStream, number| async move {
        let (served, mut done) = mpsc::unbounded_channel();
        let service = service_fn(move |_: Request<Incoming>| {
            let _ = served.send(());
            async move { Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(number.to_string())).boxed())) }
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => {}
            _ = done.recv() => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app_h2(&[upstream]));
    let mut client = gateway.h2().await;
    for number in 0..20 {
        let response = client.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 200, "request {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_h1_client_reaches_an_h2_upstream() {
    let upstream = h2_backend(|request| async move {
        assert_eq!(request.uri().authority().unwrap(), "a");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        http::Response::new(Full::new(body).boxed())
    })
    .await;
    let gateway = Gateway::start(to_app(), app_h2(&[upstream]));
    for framed in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        let response = gateway.ask(&format!("POST / HTTP/1.1\r\nHost: a\r\n{framed}")).await;
        assert_eq!((response.status.as_u16(), response.text()), (200, "hello"), "{framed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_stop_nobody_else() {
    let taken = Arc::new(AtomicU64::new(0));
    let count = taken.clone();
    let upstream = h2_backend(move |request| {
        let count = count.clone();
        async move {
            http::Response::new(match request.uri().path() {
                "/small" => Full::new(Bytes::from_static(b"small")).boxed(),
                _ => Endless(count).boxed(),
            })
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app_h2(&[upstream]));
    let small = "GET /small HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(gateway.ask(small).await.text(), "small");
    let mut idler = gateway.h2().await;
    let mut unread = Vec::new();
    for _ in 0..60 {
        unread.push(idler.send_request(get("/endless")).await.unwrap());
    }
    // Until nothing moves any more.
    let mut before = u64::MAX;
    while before != taken.load(Ordering::Relaxed) {
        before = taken.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let response = gateway.ask(small).await;
    assert_eq!((response.status.as_u16(), response.text()), (200, "small"));
    assert_eq!(gateway.metric(&["mitu_upstream_connects_total"]), 1.0, "one connection for all");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_nobody_waits_for_leave_room_for_others() {
    let (hold, mut held) = mpsc::unbounded_channel();
    let upstream = narrow_h2_backend(5, move |request: Request<Incoming>| {
        let hold = hold.clone();
        async move {
            if request.method() == Method::POST {
                hold.send(request.into_body()).unwrap();
            }
            http::Response::new(Full::new(Bytes::from_static(b"early")).boxed())
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app_h2(&[upstream]));
    let mut client = gateway.h2().await;
    let mut feeds = Vec::new();
    let mut begun = Vec::new();
    for _ in 0..10 {
        let (feed, body) = fed();
        feed.send(Frame::data(Bytes::from_static(b"hello"))).unwrap();
        feeds.push(feed);
        let request = Request::post("https://a.example/").body(body).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "early");
        begun.push(held.recv().await.unwrap());
    }
    let response = gateway.ask(GET).await;
    assert_eq!((response.status.as_u16(), response.text()), (200, "early"));
    assert_eq!(gateway.metric(&["mitu_upstream_connects_total"]), 1.0, "one connection for all");
    for body in begun {
        let ended = timeout(PATIENCE, body.collect()).await.expect("the upstream is told");
        assert!(ended.is_err(), "half a body is not passed off as whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_given_up_is_cut_off_with_its_upload() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let upstream = h2_backend(move |request: Request<Incoming>| {
        let tell = tell.clone();
        tokio::spawn(async move {
            let ended = request.into_body().collect().await;
            tell.send(if ended.is_err() { "reset" } else { "ended" }).unwrap();
        });
        async { http::Response::new(Endless(Arc::default()).boxed()) }
    })
    .await;
    let mut config = config(to_app(), app_h2(&[upstream]));
    config["listeners"][0]["timeouts"]["idle_ms"] = json!(300);
    let gateway = Gateway::start_with(&config);
    let mut client = gateway.narrow_h1().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await.unwrap();
    read_head(&mut client).await;
    gateway.counts(&["mitu_http_errors_total", "client_closed"], 1.0).await;
    gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
    assert_eq!(timeout(PATIENCE, told.recv()).await.expect("told in time"), Some("reset"));
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, client.read_to_end(&mut rest)).await.expect("the client's connection is closed, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_dead_endpoint_does_not_make_everybody_queue() {
    let (_socket, dead) = swamped().await;
    let alive = h2_backend(|_| async { http::Response::new(empty()) }).await;
    let gateway = Arc::new(Gateway::start(to_app(), app_h2(&[dead, alive])));
    // Half of them choose the dead one first. One by one they would take longer than the route allows.
    let requests: Vec<_> = (0..24)
        .map(|_| {
            let gateway = gateway.clone();
            tokio::spawn(async move { gateway.ask(GET).await.status })
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
}
