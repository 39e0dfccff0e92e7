//! Upstreams that fail, and what the client and the metrics are told.

use std::time::{Duration, Instant};

use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::harness::h2::{app_h2, empty, h2_backend};
use crate::harness::{
    Gateway, Response, any, app, backend, config, echo, read_head, refusing, respond, silent, swamped, to_app,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

async fn fails(gateway: &Gateway, status: u16, reason: &str) {
    let response = gateway.ask(GET).await;
    assert_eq!(response.status, status, "{}", response.text());
    assert!(response.text().contains(reason), "{}", response.text());
    gateway.counts(&["mitu_http_errors_total", "\"upstream\"", &format!("\"{reason}\"")], 1.0).await;
}

fn with_timeout(milliseconds: u64) -> Value {
    let mut routes = to_app();
    routes[0]["action"]["timeout_ms"] = json!(milliseconds);
    routes
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_are_502() {
    let gateway = Gateway::start(to_app(), app(&[refusing().await]));
    fails(&gateway, 502, "connect_refused").await;
    assert_eq!(gateway.metric(&["mitu_upstream_connect_errors_total", "connect_refused"]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_without_weight_do_not_hide_why_the_others_failed() {
    let mut upstreams = app(&[refusing().await, refusing().await]);
    upstreams[0]["endpoints"][1]["weight"] = json!(0);
    fails(&Gateway::start(to_app(), upstreams), 502, "connect_refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_endpoint_is_tried() {
    let gateway = Gateway::start(to_app(), app(&[refusing().await, refusing().await, echo().await]));
    for _ in 0..6 {
        assert_eq!(gateway.ask(GET).await.status, 200);
    }
    // Those that refuse are left alone for a while once they have.
    let text = String::from_utf8(gateway.server.metrics().unwrap()).unwrap();
    let errors: f64 = text
        .lines()
        .filter(|line| line.starts_with("mitu_upstream_connect_errors_total"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert!((1.0..=2.0).contains(&errors), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_endpoint_is_503() {
    fails(&Gateway::start(to_app(), app(&[])), 503, "no_endpoint").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unresolved_names_are_502() {
    let mut upstreams = app(&[]);
    upstreams[0]["endpoints"] = json!([{"address": "no-such-host.invalid:80", "weight": 1}]);
    fails(&Gateway::start(to_app(), upstreams), 502, "resolve_failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connects_have_a_time_limit() {
    let (_socket, address) = swamped().await;
    let mut upstreams = app(&[address]);
    upstreams[0]["connect_timeout_ms"] = json!(300);
    let started = Instant::now();
    fails(&Gateway::start(to_app(), upstreams), 504, "connect_timeout").await;
    assert!((250..3000).contains(&started.elapsed().as_millis()));
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_upstreams_are_504() {
    let upstream = silent().await;
    let gateway = Gateway::start(with_timeout(200), app(&[upstream]));
    let started = Instant::now();
    fails(&gateway, 504, "response_timeout").await;
    assert!((150..3000).contains(&started.elapsed().as_millis()));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_never_come_are_408() {
    let silent = silent().await;
    let silent_h2 = h2_backend(|request: http::Request<hyper::body::Incoming>| async move {
        let _ = request.into_body().collect().await;
        http::Response::new(empty())
    })
    .await;
    for upstreams in [app(&[silent]), app_h2(&[silent_h2])] {
        let gateway = Gateway::start(with_timeout(300), upstreams);
        for framed in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
            let response = gateway.ask(&format!("POST / HTTP/1.1\r\nHost: a\r\n{framed}")).await;
            assert_eq!((response.status.as_u16(), response.header("connection")), (408, "close"), "{framed}");
            assert!(response.text().contains("body_timeout"), "{}", response.text());
        }
        gateway.counts(&["mitu_http_errors_total", "\"downstream\"", "body_timeout"], 2.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_connection_survives_a_failure() {
    let upstream = silent().await;
    let gateway = Gateway::start(with_timeout(100), app(&[upstream]));
    let mut client = gateway.h1().await;
    for _ in 0..3 {
        client.write_all(GET.as_bytes()).await.unwrap();
        assert_eq!(Response::read(&mut client, &Method::GET).await.status, 504);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_before_a_response_is_502() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
    })
    .await;
    fails(&Gateway::start(to_app(), app(&[upstream])), 502, "reset_before_response").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_make_no_sense_are_502() {
    let nonsense = [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 99 Low\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ];
    for (number, answer) in nonsense.into_iter().enumerate() {
        let upstream = backend(move |mut stream, _| async move {
            read_head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let gateway = Gateway::start(to_app(), app(&[upstream]));
        let response = gateway.ask(GET).await;
        assert_eq!(response.status, 502, "{number}: {answer:?}");
        assert!(response.text().contains("bad_response"), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_responses_are_passed_over() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n").await.unwrap();
        respond(&mut stream, "200 OK", "", b"done").await;
    })
    .await;
    assert_eq!(Gateway::start(to_app(), app(&[upstream])).ask(GET).await.text(), "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_cut_short_is_not_passed_off_as_whole() {
    for head in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        let upstream = backend(move |mut stream, _| async move {
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes()).await.unwrap();
        })
        .await;
        let gateway = Gateway::start(to_app(), app(&[upstream]));
        let response = gateway.ask(GET).await;
        assert_eq!((response.status.as_u16(), response.text(), response.complete), (200, "hello", false), "{head}");
        gateway.counts(&["mitu_http_errors_total", "response_incomplete"], 1.0).await;
        gateway.counts(&["mitu_upstream_response_errors_total", "response_incomplete"], 1.0).await;
    }
}

/// Closes each connection when the second request comes on it, as a server does whose idle time is over.
async fn closes_on_the_second_request() -> std::net::SocketAddr {
    backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        respond(&mut stream, "200 OK", "", b"first").await;
        let mut first = [0];
        let _ = stream.peek(&mut first).await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_connection_costs_an_idempotent_request_nothing() {
    let gateway = Gateway::start(to_app(), app(&[closes_on_the_second_request().await]));
    let mut client = gateway.h1().await;
    for request in 0..10 {
        client.write_all(GET.as_bytes()).await.unwrap();
        let response = Response::read(&mut client, &Method::GET).await;
        assert_eq!((response.status.as_u16(), response.text()), (200, "first"), "request {request}");
    }
    assert_eq!(gateway.metric(&["mitu_upstream_retries_total"]), 9.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_done_twice_is_not_sent_twice() {
    let gateway = Gateway::start(to_app(), app(&[closes_on_the_second_request().await]));
    let mut client = gateway.h1().await;
    let posts = [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
    ];
    for post in posts {
        client.write_all(GET.as_bytes()).await.unwrap();
        assert_eq!(Response::read(&mut client, &Method::GET).await.status, 200);
        client.write_all(post.as_bytes()).await.unwrap();
        let response = Response::read(&mut client, &Method::POST).await;
        assert_eq!(response.status, 502);
        assert!(response.text().contains("reset_before_response"));
    }
    assert_eq!(gateway.metric(&["mitu_upstream_retries_total"]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_begun_is_not_sent_twice() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let upstream = backend(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            tell.send(read_head(&mut stream).await).unwrap();
            respond(&mut stream, "200 OK", "", b"first").await;
            let _ = stream.peek(&mut [0]).await;
        }
    })
    .await;
    for method in ["PUT", "DELETE"] {
        for framed in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
            let gateway = Gateway::start(to_app(), app(&[upstream]));
            let mut client = gateway.h1().await;
            client.write_all(GET.as_bytes()).await.unwrap();
            assert_eq!(Response::read(&mut client, &Method::GET).await.status, 200);
            assert!(told.recv().await.unwrap().starts_with(b"GET"));
            client.write_all(format!("{method} / HTTP/1.1\r\nHost: a\r\n{framed}").as_bytes()).await.unwrap();
            let response = Response::read(&mut client, &Method::PUT).await;
            assert_eq!(response.status, 502, "{method}, {framed}");
            assert!(response.text().contains("reset_before_response"), "{}", response.text());
            assert_eq!(gateway.metric(&["mitu_upstream_retries_total"]), 0.0);
        }
    }
    assert!(told.try_recv().is_err(), "no request but the first has come with its head alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_not_taken_for_the_body_of_the_one_before() {
    // Answers as soon as it has a head; the first connection ends with its second request.
    let upstream = backend(|mut stream, number| async move {
        for served in 0.. {
            let waiting = matches!(stream.peek(&mut [0]).await, Ok(1));
            if !waiting || (number == 0 && served == 1) {
                return;
            }
            let head = String::from_utf8(read_head(&mut stream).await.to_vec()).unwrap();
            respond(&mut stream, "200 OK", "", head.as_bytes()).await;
            if let Some((_, length)) = head.split_once("content-length: ") {
                let length: usize = length.lines().next().unwrap().parse().unwrap();
                if stream.read_exact(&mut vec![0; length]).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    assert_eq!(gateway.ask(GET).await.status, 200);
    let body = "0123456789".repeat(10);
    let put = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(gateway.ask(&put).await.status, 502);
    for path in ["/one", "/two"] {
        let response = gateway.ask(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(response.text().starts_with(&format!("GET {path} ")), "{}: {}", response.status, response.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_while_idle_is_not_used() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        respond(&mut stream, "200 OK", "", b"once").await;
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    let mut client = gateway.h1().await;
    for _ in 0..5 {
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        assert_eq!(Response::read(&mut client, &Method::POST).await.text(), "once");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_upstream_connections_are_closed() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let upstream = backend(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            read_head(&mut stream).await;
            respond(&mut stream, "200 OK", "", b"x").await;
            let answered = Instant::now();
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            tell.send(answered.elapsed()).unwrap();
        }
    })
    .await;
    let mut upstreams = app(&[upstream]);
    upstreams[0]["idle_timeout_ms"] = json!(300);
    let gateway = Gateway::start(to_app(), upstreams);
    gateway.ask(GET).await;
    let after = tokio::time::timeout(Duration::from_secs(5), told.recv()).await.unwrap().unwrap();
    assert!((250..2000).contains(&after.as_millis()), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_in_the_clients_language() {
    let gateway = Gateway::start(to_app(), app(&[refusing().await]));
    let json = gateway.ask("GET / HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n\r\n").await;
    let body: Value = serde_json::from_slice(&json.body).unwrap();
    assert_eq!(body, json!({"status": 502, "reason": "connect_refused"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_no_route_wants_are_404() {
    let mut matcher = any();
    matcher["hosts"] = json!(["a.example"]);
    let routes = json!([{"name": "only", "match": matcher, "filters": [],
                         "action": {"kind": "respond", "status": 200, "headers": [], "body": "yes"}}]);
    let gateway = Gateway::start_with(&config(routes, json!([])));
    assert_eq!(gateway.ask("GET / HTTP/1.1\r\nHost: A.Example:8443\r\n\r\n").await.text(), "yes");
    let response = gateway.ask("GET / HTTP/1.1\r\nHost: b.example\r\n\r\n").await;
    assert_eq!(response.status, 404);
    assert!(response.text().contains("no_route"));
    gateway.counts(&["mitu_http_requests_total", "route=\"\"", "status=\"404\""], 1.0).await;
}
