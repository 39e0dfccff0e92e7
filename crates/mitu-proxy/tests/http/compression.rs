//! Responses that are compressed on their way.

use std::io::Read;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use tokio::sync::mpsc;

use crate::harness::h2::{Body, app_h2, empty, fed, get, h2_backend};
use crate::harness::{Gateway, app, backend, read_head, to_app};

fn compressing(types: &[&str]) -> Value {
    let mut routes = to_app();
    routes[0]["compress"] = json!({"encodings": ["gzip"], "min_bytes": 1, "types": types});
    routes
}

fn asking(path: &str) -> Request<Body> {
    let mut request = get(path);
    request.headers_mut().insert("accept-encoding", "gzip".parse().unwrap());
    request
}

/// What can be read of a stream that has not ended.
fn readable(sent: &[u8]) -> String {
    let (mut decoder, mut text, mut piece) = (GzDecoder::new(sent), Vec::new(), [0; 256]);
    while let Ok(length @ 1..) = decoder.read(&mut piece) {
        text.extend_from_slice(&piece[..length]);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_pauses_leaves_nothing_behind() {
    let (feed, fed) = mpsc::unbounded_channel::<&str>();
    let fed = std::sync::Arc::new(Mutex::new(fed));
    let upstream = backend(move |mut stream, _| {
        let fed = fed.clone();
        async move {
            read_head(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            while let Some(event) = fed.lock().await.recv().await {
                stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.unwrap();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(compressing(&["text/*"]), app(&[upstream]));
    let response = gateway.h2::<Body>().await.send_request(asking("/")).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert!(!response.headers().contains_key("content-length"));
    let (mut body, mut sent, mut expected) = (response.into_body(), Vec::new(), String::new());
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        feed.send(event).unwrap();
        expected.push_str(event);
        while readable(&sent) != expected {
            sent.extend_from_slice(body.frame().await.unwrap().unwrap().data_ref().unwrap());
        }
    }
    drop(feed);
    sent.extend_from_slice(&body.collect().await.unwrap().to_bytes());
    let mut whole = String::new();
    GzDecoder::new(&*sent).read_to_string(&mut whole).unwrap();
    assert_eq!(whole, expected);
    gateway.counts(&["mitu_http_body_bytes_total", "\"app\"", "\"h2\"", "\"sent\""], sent.len() as f64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_is_left_alone() {
    let upstream = h2_backend(|_| async {
        let (feed, body) = fed();
        feed.send(Frame::data(Bytes::from("\0\0\0\0\x03abc"))).unwrap();
        feed.send(Frame::trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect()))
            .unwrap();
        Response::builder().header("content-type", "application/grpc").body(body).unwrap()
    })
    .await;
    let gateway = Gateway::start(compressing(&["application/*"]), app_h2(&[upstream]));
    let call = Request::post("https://a.example/talk").header("content-type", "application/grpc");
    let call = call.header("accept-encoding", "gzip").body(empty()).unwrap();
    let response = gateway.h2::<Body>().await.send_request(call).await.unwrap();
    assert!(!response.headers().contains_key("content-encoding"));
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.to_bytes(), "\0\0\0\0\x03abc");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_of_what_the_upstream_sends() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
        let body = "x".repeat(5000);
        stream.write_all(format!("{head}1388\r\n{body}\r\n0\r\n\r\n").as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    for (limit, whole) in [(5000, true), (4999, false)] {
        let mut routes = compressing(&["text/*"]);
        routes[0]["response_body_bytes"] = json!(limit);
        let gateway = Gateway::start(routes, app(&[upstream]));
        let mut client = gateway.h2::<Body>().await;
        // The stream may be reset before its head is out.
        let sent = match client.send_request(asking("/")).await {
            Ok(response) => response.into_body().collect().await.ok(),
            Err(_) => None,
        };
        let text = sent.map(|sent| readable(&sent.to_bytes()));
        assert_eq!(text, whole.then(|| "x".repeat(5000)));
    }
}
