//! Limits of single routes: requests by client, and the size of bodies.

use std::collections::HashMap;

use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::harness::h2::{Body, empty, get};
use crate::harness::{Gateway, app, backend, certificate, config, echo, read_head, respond, to_app};

/// Two requests at once for each key, and hardly another one.
fn two_for_each(key: Value) -> Value {
    json!([{"key": key, "every_ns": 1_000_000_000_000_u64, "burst": 2}])
}

/// A route to the upstream `app` with something more.
fn app_with(field: &str, value: Value) -> Value {
    let mut routes = to_app();
    routes[0][field] = value;
    routes
}

/// The statuses of requests with these header lines.
async fn statuses(gateway: &Gateway, requests: &[&str]) -> Vec<u16> {
    let mut statuses = Vec::new();
    for headers in requests {
        statuses.push(gateway.ask(&format!("GET / HTTP/1.1\r\n{headers}\r\n")).await.status.as_u16());
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_over_its_rate_is_told_when_to_come_back() {
    let source = json!({"kind": "source", "value": {"ipv4": 24, "ipv6": 48}});
    let gateway = Gateway::start(app_with("rate_limits", two_for_each(source)), app(&[echo().await]));
    let mut client = gateway.h2::<Body>().await;
    assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200);
    assert_eq!(gateway.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 200);
    // Whatever it speaks, and however it connects.
    let refused = client.send_request(get("/")).await.unwrap();
    assert_eq!(refused.status(), 429);
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((900..=1000).contains(&wait), "{wait}");
    assert_eq!(refused.into_body().collect().await.unwrap().to_bytes(), "429 Too Many Requests: rate_limited\n");
    assert_eq!(gateway.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 429);
    let grpc = Request::post("https://a.example/").header("content-type", "application/grpc").body(empty()).unwrap();
    let refused = client.send_request(grpc).await.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["grpc-status"]), (200, &"8".parse().unwrap()));
    gateway.counts(&["mitu_http_errors_total", "\"h2\"", "\"downstream\"", "\"rate_limited\""], 2.0).await;
    gateway.counts(&["mitu_http_errors_total", "\"h1\"", "\"downstream\"", "\"rate_limited\""], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_have_buckets_of_their_own() {
    let by_header = two_for_each(json!({"kind": "header", "value": "x-api-key"}));
    let gateway = Gateway::start(app_with("rate_limits", by_header), app(&[echo().await]));
    let (a, b, none) = ("Host: a\r\nX-Api-Key: a\r\n", "Host: a\r\nX-Api-Key: b\r\n", "Host: a\r\n");
    assert_eq!(statuses(&gateway, &[a, b, a, b, none, none]).await, [200; 6]);
    assert_eq!(statuses(&gateway, &[a, b, none]).await, [429; 3]);

    let by_host = two_for_each(json!({"kind": "host"}));
    let gateway = Gateway::start(app_with("rate_limits", by_host), app(&[echo().await]));
    let spellings = ["Host: a.example\r\n", "Host: A.Example.:8443\r\n", "Host: a.example:443\r\n", "Host: b\r\n"];
    assert_eq!(statuses(&gateway, &spellings).await, [200, 200, 429, 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_only_a_proxy_may_set_is_not_the_clients() {
    let by_address = two_for_each(json!({"kind": "header", "value": "x-forwarded-for"}));
    let gateway = Gateway::start(app_with("rate_limits", by_address), app(&[echo().await]));
    let claims = ["1.1.1.1", "2.2.2.2", "3.3.3.3"].map(|claim| format!("Host: a\r\nX-Forwarded-For: {claim}\r\n"));
    let claims: Vec<_> = claims.iter().map(String::as_str).collect();
    assert_eq!(statuses(&gateway, &claims).await, [200, 200, 429]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_the_count_of_a_limit_that_stays() {
    let mut config = config(app_with("rate_limits", two_for_each(json!({"kind": "host"}))), app(&[echo().await]));
    let gateway = Gateway::start_with(&config);
    assert_eq!(statuses(&gateway, &["Host: a\r\n"; 3]).await, [200, 200, 429]);
    let (chain, key) = certificate().clone();
    let secrets = HashMap::from([("edge.crt".into(), chain.into_bytes()), ("edge.key".into(), key.into_bytes())]);
    config["listeners"][0]["routes"][0]["action"]["timeout_ms"] = json!(4000);
    gateway.server.reload(&config.to_string(), &secrets, "{}").unwrap();
    assert_eq!(statuses(&gateway, &["Host: a\r\n"]).await, [429]);
    config["listeners"][0]["routes"][0]["rate_limits"][0]["burst"] = json!(3);
    gateway.server.reload(&config.to_string(), &secrets, "{}").unwrap();
    assert_eq!(statuses(&gateway, &["Host: a\r\n"; 4]).await, [200, 200, 200, 429]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_has_its_own_limit_of_request_bodies() {
    let mut routes = app_with("request_body_bytes", json!(20));
    routes[0]["match"]["path"] = json!({"kind": "exact", "value": "/more"});
    routes.as_array_mut().unwrap().extend(to_app().as_array().unwrap().clone());
    routes[1]["name"] = json!("rest");
    for route in routes.as_array_mut().unwrap() {
        route["action"] = json!({"kind": "respond", "status": 200, "headers": [], "body": "ok"});
    }
    let mut config = config(routes, json!([]));
    config["listeners"][0]["limits"]["request_body_bytes"] = json!(10);
    let gateway = Gateway::start_with(&config);
    for (path, length, status) in [("/", 10, 200), ("/", 11, 413), ("/more", 20, 200), ("/more", 21, 413)] {
        let body = "x".repeat(length);
        let request = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
        assert_eq!(gateway.ask(&request).await.status, status, "{path} {length}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_no_larger_than_its_route_allows() {
    let upstream = backend(|mut stream, _| async move {
        let head = String::from_utf8(read_head(&mut stream).await.to_vec()).unwrap();
        let body = "x".repeat(if head.contains("/more") { 11 } else { 10 });
        if head.starts_with("HEAD") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n").await.unwrap();
        } else if head.contains("announced") {
            respond(&mut stream, "200 OK", "connection: close\r\n", body.as_bytes()).await;
        } else {
            let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(format!("{head}{chunk}").as_bytes()).await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(app_with("response_body_bytes", json!(10)), app(&[upstream]));
    let ask = |path: &'static str| gateway.ask(path);
    assert_eq!(ask("GET /announced HTTP/1.1\r\nHost: a\r\n\r\n").await.text(), "x".repeat(10));
    assert_eq!(ask("HEAD /announced HTTP/1.1\r\nHost: a\r\n\r\n").await.header("content-length"), "1000");
    let refused = ask("GET /announced/more HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((refused.status.as_u16(), refused.text()), (502, "502 Bad Gateway: response_too_large\n"));
    assert!(ask("GET /chunked HTTP/1.1\r\nHost: a\r\n\r\n").await.complete);
    let cut = ask("GET /chunked/more HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((cut.status.as_u16(), cut.complete, cut.body.len()), (200, false, 0));
    let mut client = gateway.h2::<Body>().await;
    // The stream may be reset before its head is out.
    if let Ok(cut) = client.send_request(get("/chunked/more")).await {
        assert_eq!(cut.status(), 200);
        assert!(cut.into_body().collect().await.is_err(), "the stream is reset");
    }
    let counted =
        |protocol: &'static str| ["mitu_http_errors_total", protocol, "\"upstream\"", "\"response_too_large\""];
    gateway.counts(&counted("\"h1\""), 2.0).await;
    gateway.counts(&counted("\"h2\""), 1.0).await;
    assert_eq!(gateway.metric(&["mitu_upstream_response_errors_total", "\"response_too_large\""]), 3.0);
}
