//! What the upstream and the client see of each other's headers.

use std::net::SocketAddr;

use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::harness::h2::get;
use crate::harness::{Gateway, any, app, backend, config, echo, read_head, respond, to_app};

/// The head as the upstream saw it, for a request with these header lines.
async fn seen(gateway: &Gateway, headers: &str) -> String {
    gateway.ask(&format!("GET /x?y=1 HTTP/1.1\r\nHost: a.example\r\n{headers}\r\n")).await.text().to_owned()
}

fn lines(head: &str) -> Vec<&str> {
    let mut lines: Vec<_> = head.trim_end().lines().collect();
    lines[1..].sort_unstable();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_request_arrives_with_what_a_proxy_knows() {
    let gateway = Gateway::start(to_app(), app(&[echo().await]));
    let head = seen(&gateway, "Accept: */*\r\nX-Two: 1\r\nX-Two: 2\r\n").await;
    assert_eq!(
        lines(&head),
        [
            "GET /x?y=1 HTTP/1.1",
            "accept: */*",
            "forwarded: for=127.0.0.1;proto=https;host=\"a.example\"",
            "host: a.example",
            "x-client-verified: NONE",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: a.example",
            "x-forwarded-proto: https",
            "x-two: 1",
            "x-two: 2",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_connection_headers_of_a_client_are_removed() {
    let gateway = Gateway::start(to_app(), app(&[echo().await]));
    let plain = seen(&gateway, "").await;
    let spoofed = "X-Client-Verified: SUCCESS\r\nX_Client_Verified: SUCCESS\r\nX-Client-Cert-Subject: CN=root\r\n\
                   x-client_cert-san: DNS:root\r\nX-Client-Cert-Fingerprint: 00\r\nX-Forwarded-For: 1.1.1.1\r\n\
                   X_Forwarded_For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\nX-Forwarded-Proto: http\r\n\
                   Connection: keep-alive, X-Secret, Host\r\nKeep-Alive: timeout=5\r\nX-Secret: 1\r\nTE: gzip\r\n\
                   X.Client.Verified: SUCCESS\r\nX-Client.Verified: SUCCESS\r\nX-Forwarded.For: 1.1.1.1\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AA\r\nProxy-Connection: keep-alive\r\n";
    assert_eq!(lines(&seen(&gateway, spoofed).await), lines(&plain));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxys_claims_are_extended() {
    let mut config = config(to_app(), app(&[echo().await]));
    config["listeners"][0]["trusted_proxies"] = json!(["127.0.0.0/8"]);
    let gateway = Gateway::start_with(&config);
    let head =
        seen(&gateway, "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-Client-Verified: SUCCESS\r\n")
            .await;
    assert!(head.contains("x-forwarded-for: 192.0.2.1, 127.0.0.1\r\n"), "{head}");
    assert!(head.contains("x-forwarded-proto: http\r\n"), "{head}");
    assert!(head.contains("x-client-verified: NONE\r\n"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_ipv4_proxy_is_known_on_a_dual_stack_listener() {
    let mut config = config(to_app(), app(&[echo().await]));
    config["listeners"][0]["bind"] = json!("[::]:0");
    config["listeners"][0]["trusted_proxies"] = json!(["127.0.0.0/8"]);
    let mut gateway = Gateway::start_with(&config);
    gateway.address = SocketAddr::from(([127, 0, 0, 1], gateway.address.port()));
    let head = seen(&gateway, "X-Forwarded-For: 192.0.2.1\r\n").await;
    assert!(head.contains("\r\nx-forwarded-for: 192.0.2.1, 127.0.0.1\r\n"), "{head}");
}

/// A route for requests with a header of this value.
fn asks(name: &str, value: &str, action: Value) -> Value {
    let mut matcher = any();
    matcher["headers"] = json!([{"name": name, "value": {"kind": "exact", "value": value}}]);
    json!({"name": format!("{name} is {value}"), "match": matcher, "filters": [], "action": action})
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_do_not_believe_what_a_client_says_of_itself() {
    let claims = [
        ("x-client-verified", "SUCCESS"),
        ("x_client_verified", "SUCCESS"),
        ("x.client.verified", "SUCCESS"),
        ("x-client.verified", "SUCCESS"),
        ("x-client-cert-subject", "CN=root"),
        ("x_client-cert_subject", "CN=root"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-real-ip", "192.0.2.1"),
    ];
    let fixed = |body: &str| json!({"kind": "respond", "status": 200, "headers": [], "body": body});
    let mut routes: Vec<_> = claims.iter().map(|(name, value)| asks(name, value, fixed("believed"))).collect();
    routes.push(asks("x-client-verified", "NONE", fixed("a stranger")));
    let gateway = Gateway::start_with(&config(json!(routes), json!([])));
    let mut h2 = gateway.h2().await;
    for (name, value) in claims {
        let response = gateway.ask(&format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\n\r\n")).await;
        assert_eq!(response.text(), "a stranger", "{name}");
        let mut request = get("/");
        request.headers_mut().insert(name, value.parse().unwrap());
        let response = h2.send_request(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "a stranger", "{name} over h2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_have_the_gateways_claims_removed() {
    let route = asks("x-client-verified", "NONE", to_app()[0]["action"].clone());
    let gateway = Gateway::start(json!([route]), app(&[echo().await]));
    let head = seen(&gateway, "Connection: X-Client-Verified, X-Forwarded-For, Forwarded\r\n").await;
    for line in ["x-client-verified: NONE", "x-forwarded-for: 127.0.0.1", "forwarded: for=127.0.0.1;"] {
        assert!(head.contains(&format!("\r\n{line}")), "{line}: {head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absolute_target_becomes_a_path() {
    let gateway = Gateway::start(to_app(), app(&[echo().await]));
    let response = gateway.ask("GET http://b.example/x HTTP/1.1\r\nHost: b.example\r\n\r\n").await;
    assert!(response.text().starts_with("GET /x HTTP/1.1\r\nhost: b.example\r\n"), "{}", response.text());
    let response = gateway.ask("GET http://b.example?q HTTP/1.1\r\nHost: b.example\r\n\r\n").await;
    assert!(response.text().starts_with("GET /?q HTTP/1.1\r\n"), "{}", response.text());
}

fn route(filters: Value) -> Value {
    let mut matcher = any();
    matcher["path"] = json!({"kind": "prefix", "value": "/api"});
    json!([{"name": "api", "match": matcher, "filters": filters,
            "action": {"kind": "upstream", "upstream": "app", "timeout_ms": 5000}}])
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_change_path_host_and_headers() {
    let filters = json!([
        {"kind": "request_headers", "remove": ["cookie"], "set": [["X-Team", "edge"]], "add": [["x-two", "2"]]},
        {"kind": "rewrite_prefix", "to": "/v2"},
        {"kind": "rewrite_regex", "pattern": "/user/([0-9]+)", "to": "/account/$1"},
        {"kind": "host", "to": "app.internal"},
        {"kind": "response_headers", "remove": ["server", "x-connection"], "set": [["X-Frame-Options", "DENY"]], "add": []},
    ]);
    let gateway = Gateway::start(route(filters), app(&[echo().await]));
    let request = "GET /api/user/7?a=b HTTP/1.1\r\nHost: a.example\r\nCookie: c\r\nX-Team: spoof\r\nX-Two: 1\r\n\r\n";
    let response = gateway.ask(request).await;
    let head = response.text();
    assert!(head.starts_with("GET /v2/account/7?a=b HTTP/1.1\r\n"), "{head}");
    for line in ["host: app.internal", "x-forwarded-host: a.example", "x-team: edge", "x-two: 1", "x-two: 2"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
    assert!(!head.contains("cookie") && !head.contains("spoof"), "{head}");
    assert_eq!((response.header("x-frame-options"), response.header("x-connection")), ("DENY", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_may_add_a_query_and_leaves_no_dots() {
    let mut routes = to_app();
    routes[0]["filters"] = json!([{"kind": "rewrite_regex", "pattern": "^/u-(.*)$", "to": "/$1?user=1"}]);
    let gateway = Gateway::start(routes, app(&[echo().await]));
    for (target, expected) in [("/u-a", "/a?user=1"), ("/u-a?x=1", "/a?user=1&x=1"), ("/u-a?x=1?y", "/a?user=1&x=1?y")]
    {
        let response = gateway.ask(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(response.text().starts_with(&format!("GET {expected} HTTP/1.1\r\n")), "{target}: {}", response.text());
    }
    for target in ["/u-./b", "/u-../admin", "/u-."] {
        let response = gateway.ask(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(response.status, 400, "{target}: {}", response.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_headers_of_an_upstream_are_removed() {
    let upstream = backend(|mut stream, _| async move {
        read_head(&mut stream).await;
        let headers = "Connection: X-Internal, keep-alive\r\nX-Internal: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nX-Public: 1\r\n";
        respond(&mut stream, "200 OK", headers, b"").await;
    })
    .await;
    let response = Gateway::start(to_app(), app(&[upstream])).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut names: Vec<_> = response.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "date", "x-public"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn fixed_responses_and_redirects_need_no_upstream() {
    let path = |path: &str| {
        let mut matcher = any();
        matcher["path"] = json!({"kind": "prefix", "value": path});
        matcher
    };
    let routes = json!([
        {"name": "health", "match": path("/health"), "filters": [],
         "action": {"kind": "respond", "status": 200, "headers": [["content-type", "application/json"]], "body": "{\"ok\":true}"}},
        {"name": "old", "match": path("/old"), "filters": [],
         "action": {"kind": "redirect", "status": 308, "scheme": null, "host": "new.example", "path": null}},
        {"name": "empty", "match": path("/empty"), "filters": [],
         "action": {"kind": "respond", "status": 204, "headers": [], "body": ""}},
    ]);
    let gateway = Gateway::start(routes, json!([]));
    let response = gateway.ask("GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((response.text(), response.header("content-type")), ("{\"ok\":true}", "application/json"));
    assert!(response.header("date").ends_with(" GMT"));
    let response = gateway.ask("HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((response.header("content-length"), response.body.len()), ("11", 0));
    let response = gateway.ask("GET /old/./x?y HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((response.status.as_u16(), response.header("location")), (308, "https://new.example/old/x?y"));
    let response = gateway.ask("GET /empty HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((response.status.as_u16(), response.header("content-length")), (204, ""));
    let response = gateway.ask("POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").await;
    assert_eq!((response.status.as_u16(), response.header("connection")), (200, ""), "a small body is skipped");
}
