//! Requests that are tried once more, and what is known of the endpoints then.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, Request};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::harness::h2::{Body, app_h2, empty, h2_backend};
use crate::harness::{
    Gateway, Response, app, backend, certificate, echo, read_head, refusing, respond, silent, to_app,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// What the gateway knows of the endpoint at `address`.
fn report(gateway: &Gateway, address: SocketAddr) -> Value {
    let all: Value = serde_json::from_str(&gateway.server.endpoints().unwrap()).unwrap();
    let endpoints = all["app"].as_array().unwrap();
    endpoints.iter().find(|endpoint| endpoint["address"] == address.to_string()).unwrap().clone()
}

/// Refuses every stream, and counts them.
async fn refusing_streams(refused: Arc<AtomicUsize>) -> SocketAddr {
    backend(move |stream, _| {
        let refused = refused.clone();
        async move {
            let service = service_fn(move |_: Request<Incoming>| {
                refused.fetch_add(1, Ordering::Relaxed);
                async { Err::<http::Response<Body>, _>(h2::Error::from(h2::Reason::REFUSED_STREAM)) }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_streams_go_to_another_endpoint() {
    let refused = Arc::new(AtomicUsize::new(0));
    let (busy, free) =
        (refusing_streams(refused.clone()).await, h2_backend(|_| async { http::Response::new(empty()) }).await);
    let gateway = Gateway::start(to_app(), app_h2(&[busy, free]));
    for method in ["GET", "POST", "GET", "POST"] {
        let asked = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(gateway.ask(&asked).await.status, 200, "{method}");
    }
    let refused = refused.load(Ordering::Relaxed);
    assert!(refused >= 1);
    assert_eq!(gateway.metric(&["mitu_upstream_retries_total", "refused_stream"]), refused as f64);
    assert_eq!(report(&gateway, busy)["failures"], refused);
    // It is no connection that fails: the one there is is used again.
    assert_eq!(report(&gateway, busy)["causes"][0], "reset_before_response");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_endpoint_alone_is_tried_again() {
    let upstream = backend(|mut stream, number| async move {
        read_head(&mut stream).await;
        if number >= 2 {
            respond(&mut stream, "200 OK", "", b"third").await;
        }
    })
    .await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    assert_eq!(gateway.ask(GET).await.text(), "third");
    assert_eq!(gateway.metric(&["mitu_upstream_retries_total", "reset"]), 2.0);
    let report = report(&gateway, upstream);
    assert_eq!((&report["successes"], &report["failures"]), (&json!(1), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_can_be_turned_off() {
    let mut upstreams = app(&[refusing().await, echo().await]);
    upstreams[0]["retries"]["attempts"] = json!(0);
    let gateway = Gateway::start(to_app(), upstreams.clone());
    let statuses = [gateway.ask(GET).await.status.as_u16(), gateway.ask(GET).await.status.as_u16()];
    assert!(statuses.contains(&502), "{statuses:?}");
    upstreams[0]["retries"] = json!({"attempts": 2, "budget": 0.2, "min_per_second": 10, "connect": false, "reset": true,
                                     "refused_stream": true, "statuses": []});
    let gateway = Gateway::start(to_app(), upstreams);
    let statuses = [gateway.ask(GET).await.status.as_u16(), gateway.ask(GET).await.status.as_u16()];
    assert!(statuses.contains(&502), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_does_not_use_up_its_try() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        let mut body = [0; 10];
        stream.read_exact(&mut body).await.unwrap();
        respond(&mut stream, "200 OK", "", &body).await;
    })
    .await;
    let mut routes = to_app();
    routes[0]["action"]["try_timeout_ms"] = json!(150);
    let gateway = Gateway::start(routes, app(&[upstream]));
    let mut client = gateway.h1().await;
    client.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    client.write_all(b"world").await.unwrap();
    let response = Response::read(&mut client, &Method::PUT).await;
    assert_eq!((response.status.as_u16(), response.text()), (200, "helloworld"));
    assert_eq!(report(&gateway, upstream)["failures"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_are_no_endpoints_failure() {
    let upstream = silent().await;
    let gateway = Gateway::start(to_app(), app(&[upstream]));
    for _ in 0..3 {
        let mut client = gateway.h1().await;
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").await.unwrap();
        while report(&gateway, upstream)["active"] == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(client);
        gateway.counts(&["mitu_upstream_requests_active"], 0.0).await;
    }
    let report = report(&gateway, upstream);
    assert_eq!((&report["failures"], &report["successes"]), (&json!(0), &json!(0)), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_many_wait_for_is_one_failure() {
    let upstream = silent().await;
    let mut upstreams = app(&[upstream]);
    upstreams[0]["protocol"] = json!("h2");
    upstreams[0]["tls"] = json!({"server_name": null, "ca": null, "client_certificate": null, "verify": false});
    upstreams[0]["connect_timeout_ms"] = json!(60_000);
    upstreams[0]["retries"]["attempts"] = json!(0);
    let mut routes = to_app();
    routes[0]["action"]["try_timeout_ms"] = json!(1_000);
    let gateway = Gateway::start(routes, upstreams);
    let asked = tokio::join!(gateway.ask(GET), gateway.ask(GET), gateway.ask(GET), gateway.ask(GET));
    assert_eq!([asked.0, asked.1, asked.2, asked.3].map(|response| response.status.as_u16()), [504; 4]);
    assert_eq!(report(&gateway, upstream)["failures"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waited_longer_than_it_was_served_blames_nobody() {
    let upstream = backend(|mut stream, _| async move {
        while matches!(stream.peek(&mut [0]).await, Ok(1)) {
            read_head(&mut stream).await;
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            respond(&mut stream, "200 OK", "", b"x").await;
        }
    })
    .await;
    let mut upstreams = app(&[upstream]);
    upstreams[0]["limits"]["connections"] = json!(1);
    let mut routes = to_app();
    routes[0]["action"]["timeout_ms"] = json!(2_500);
    let gateway = Gateway::start(routes, upstreams);
    let (first, second) = tokio::join!(gateway.ask(GET), gateway.ask(GET));
    let mut statuses = [first.status.as_u16(), second.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 504]);
    assert_eq!(report(&gateway, upstream)["failures"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_were_asked_each_is_blamed_once() {
    let leaving = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    })
    .await;
    let silent = silent().await;
    let mut upstreams = app(&[leaving, silent]);
    upstreams[0]["hedge_after_ms"] = json!(50);
    upstreams[0]["retries"]["attempts"] = json!(0);
    let mut routes = to_app();
    routes[0]["action"]["try_timeout_ms"] = json!(1_500);
    for order in [[leaving, silent], [silent, leaving]] {
        for (at, address) in order.iter().enumerate() {
            upstreams[0]["endpoints"][at]["address"] = json!(address.to_string());
        }
        let gateway = Gateway::start(routes.clone(), upstreams.clone());
        let status = gateway.ask(GET).await.status.as_u16();
        assert!([502, 504].contains(&status), "{status}");
        assert_eq!(gateway.metric(&["mitu_upstream_retries_total", "hedge"]), 1.0);
        let failures = order.map(|address| report(&gateway, address)["failures"].clone());
        assert_eq!(failures, [json!(1), json!(1)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_is_seen_behind_a_queue_too() {
    let upstream = silent().await;
    let mut upstreams = app(&[upstream]);
    upstreams[0]["limits"]["connections"] = json!(1);
    upstreams[0]["retries"]["attempts"] = json!(0);
    let mut routes = to_app();
    routes[0]["action"]["timeout_ms"] = json!(1_000);
    let gateway = Gateway::start(routes, upstreams);
    // Each begins when the one before it has waited for most of its time.
    let late = |milliseconds| {
        let gateway = &gateway;
        async move {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            gateway.ask(GET).await
        }
    };
    tokio::join!(late(0), late(300), late(600), late(900));
    assert!(report(&gateway, upstream)["failures"].as_u64().unwrap() >= 3, "{}", report(&gateway, upstream));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_were_asked_in_vain_are_followed_by_a_retry() {
    let way = |leaves: bool| {
        move |mut stream: tokio::net::TcpStream, number| async move {
            read_head(&mut stream).await;
            match (leaves, number) {
                (true, 0) => tokio::time::sleep(Duration::from_millis(300)).await,
                (false, 0) => drop(stream.read_to_end(&mut Vec::new()).await),
                _ => respond(&mut stream, "200 OK", "", b"again").await,
            }
        }
    };
    let mut upstreams = app(&[backend(way(true)).await, backend(way(false)).await]);
    upstreams[0]["hedge_after_ms"] = json!(50);
    upstreams[0]["retries"]["reset"] = json!(false);
    let mut routes = to_app();
    routes[0]["action"]["try_timeout_ms"] = json!(1_500);
    let gateway = Gateway::start(routes, upstreams);
    assert_eq!(gateway.ask(GET).await.text(), "again");
    assert_eq!(gateway.metric(&["mitu_upstream_retries_total", "timeout"]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_bodies_are_no_endpoints_failure() {
    for upstreams in [app(&[echo().await]), app_h2(&[h2_backend(|_| async { http::Response::new(empty()) }).await])] {
        let address: SocketAddr = upstreams[0]["endpoints"][0]["address"].as_str().unwrap().parse().unwrap();
        let gateway = Gateway::start(to_app(), upstreams);
        let response =
            gateway.ask("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n").await;
        assert_eq!(response.status, 400, "{}", response.text());
        assert_eq!(report(&gateway, address)["failures"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_endpoints_is_told() {
    let (well, gone) = (echo().await, refusing().await);
    let mut upstreams = app(&[well, gone]);
    upstreams[0]["endpoints"][0]["weight"] = json!(3);
    upstreams[0]["outlier_detection"]["consecutive_failures"] = json!(1);
    let gateway = Gateway::start(to_app(), upstreams);
    for _ in 0..8 {
        assert_eq!(gateway.ask(GET).await.status, 200);
    }
    let told = report(&gateway, well);
    assert_eq!(
        told,
        json!({"address": well.to_string(), "weight": 3, "active": 0, "ejected": null, "causes": [], "ejections": 0,
               "alpn": null, "successes": 8, "failures": 0})
    );
    let told = report(&gateway, gone);
    assert_eq!((&told["causes"], &told["ejections"]), (&json!(["connect_refused"]), &json!(1)), "{told}");
    assert!((20.0..=33.0).contains(&told["ejected"].as_f64().unwrap()), "{told}");
    assert_eq!(gateway.metric(&["mitu_upstream_ejected", &gone.to_string()]), 1.0);
}

/// A TLS backend that answers each request with `x`, as far as HTTP/1.1 goes.
async fn tls_backend(alpn: &[&str]) -> SocketAddr {
    let (chain, key) = certificate();
    let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    backend(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                read_head(&mut stream).await;
                respond(&mut stream, "200 OK", "", b"x").await;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_endpoint_chose_by_alpn_is_told() {
    for (alpn, protocol, told) in [
        (&["http/1.1"][..], "auto", json!("http/1.1")),
        (&["h2", "http/1.1"], "auto", json!("h2")),
        (&["h2", "http/1.1"], "http/1.1", json!("http/1.1")),
        (&[], "auto", json!(null)),
        // It will not do, and is seen all the same.
        (&[], "h2", json!(null)),
    ] {
        let upstream = tls_backend(alpn).await;
        let mut upstreams = app(&[upstream]);
        upstreams[0]["protocol"] = json!(protocol);
        upstreams[0]["tls"] = json!({"server_name": null, "ca": null, "client_certificate": null, "verify": false});
        let gateway = Gateway::start(to_app(), upstreams);
        gateway.ask(GET).await;
        assert_eq!(report(&gateway, upstream)["alpn"], told, "{alpn:?}, {protocol}");
    }
}
