"""Routes, filters, and what upstreams are told of the request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.certificates import Authority, Pair
from support.client import Http1, Response
from support.gateway import Gateway, configuration, listener, to_app, upstream
from support.process import output
from support.servers import Server

from .conftest import Start


def fixed(body: str, **match: object) -> dict[str, Any]:
    return {"match": match, "respond": {"body": body}}


FILTERS = [
    {"request_headers": {"set": {"x-set": "new"}, "add": {"x-add": "second"}, "remove": ["x-remove"]}},
    {"response_headers": {"set": {"x-from": "edge"}, "add": {"x-more": "1"}, "remove": ["x-hidden"]}},
]
ROUTES = [
    fixed("host", host="app.test"),
    fixed("wildcard", host="*.wild.test"),
    fixed("exact", path="/exact"),
    fixed("method", path="/method", method="PUT"),
    fixed("methods", path="/method", methods=["PATCH", "DELETE"]),
    fixed("header", path="/header", headers={"x-mode": "on"}),
    fixed("header regex", path="/header", headers={"x-mode": {"regex": "v[0-9]+"}}),
    fixed("header absent", path="/header", headers={"x-mode": {"present": False}}),
    fixed("header other", path="/header"),
    fixed("regex", path_regex="/item/[0-9]+"),
    {"match": {"path": "/old"}, "redirect": {"status": 301, "path": "/new"}},
    {"match": {"path_prefix": "/moved"}, "redirect": {"scheme": "https", "host": "new.test"}},
    {"match": {"path_prefix": "/cut"}, "filters": [{"rewrite": {"prefix": "/"}}], "upstream": "app"},
    {
        "match": {"path_prefix": "/user"},
        "filters": [{"rewrite": {"regex": "^/user/([a-z]+)", "to": "/people/$1"}}, {"host": "internal.test"}],
        "upstream": "app",
    },
    {"match": {"path_prefix": "/filtered"}, "filters": FILTERS, "upstream": "app"},
    to_app(match={"path_prefix": "/api"}),
]


@pytest.fixture(scope="module")
def gateway(shared_gateway: Start, edge: Pair, app: Server) -> Gateway:
    listeners = [
        listener(edge, routes=ROUTES),
        listener(edge, name="trusting", routes=[to_app()], trusted_proxies=["127.0.0.0/8"]),
    ]
    return shared_gateway(configuration(listeners, upstream("app", app.endpoint)))


def ask(gateway: Gateway, authority: Authority, path: str, name: str = "edge", **options: Any) -> Response:
    with Http1.open(gateway.address(name), authority.certificate) as client:
        return client.request(path, **options)


def seen(response: Response) -> dict[str, Any]:
    assert response.status == 200, response
    found: dict[str, Any] = json.loads(response.body)
    return found


def named(request: dict[str, Any], name: str) -> list[str]:
    return [value for key, value in request["headers"] if key.lower() == name]


@pytest.mark.parametrize(
    ("path", "options", "body"),
    [
        ("/anything", {"host": "app.test"}, "host"),
        ("/anything", {"host": "APP.test:8443"}, "host"),
        ("/anything", {"host": "a.wild.test"}, "wildcard"),
        ("/exact", {}, "exact"),
        ("/exact?query=1", {}, "exact"),
        ("/%65xact", {}, "exact"),
        ("/a/../exact", {}, "exact"),
        ("/method", {"method": "PUT"}, "method"),
        ("/method", {"method": "DELETE"}, "methods"),
        ("/header", {"headers": [("X-Mode", "on")]}, "header"),
        ("/header", {"headers": [("X-Mode", "v12")]}, "header regex"),
        ("/header", {}, "header absent"),
        ("/header", {"headers": [("X-Mode", "v12x")]}, "header other"),
        ("/item/42", {}, "regex"),
    ],
)
def test_routes(gateway: Gateway, authority: Authority, path: str, options: dict[str, Any], body: str) -> None:
    response = ask(gateway, authority, path, **options)
    assert (response.status, response.body.decode()) == (200, body)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/exact/", {}),
        ("/apix", {}),
        ("/item/42/x", {}),
        ("/method", {"method": "GET"}),
        ("/x", {"host": "wild.test"}),
        ("/", {}),
    ],
)
def test_no_route(gateway: Gateway, authority: Authority, path: str, options: dict[str, Any]) -> None:
    response = ask(gateway, authority, path, **options)
    assert (response.status, response.body.decode()) == (404, "404 Not Found: no_route\n")


@pytest.mark.parametrize(
    ("path", "status", "location"),
    [
        ("/old?x=1", 301, "https://localhost/new"),
        ("/moved/page?x=1", 308, "https://new.test/moved/page?x=1"),
    ],
)
def test_redirects(gateway: Gateway, authority: Authority, path: str, status: int, location: str) -> None:
    response = ask(gateway, authority, path)
    assert (response.status, response.header("location"), response.body) == (status, location, b"")


@pytest.mark.parametrize(
    ("path", "target", "host"),
    [
        ("/api?x=%20y", "/api?x=%20y", "localhost"),
        ("/api/a%2Fb", "/api/a%2Fb", "localhost"),
        ("/cut/a/b?x=1", "/a/b?x=1", "localhost"),
        ("/cut", "/", "localhost"),
        ("/user/ann/mail?x=1", "/people/ann/mail?x=1", "internal.test"),
    ],
)
def test_rewrites(gateway: Gateway, authority: Authority, path: str, target: str, host: str) -> None:
    request = seen(ask(gateway, authority, path))
    assert (request["target"], named(request, "host")) == (target, [host])


def test_header_filters(gateway: Gateway, authority: Authority) -> None:
    sent = [("X-Set", "old"), ("X-Add", "first"), ("X-Remove", "gone"), ("X-Keep", "kept")]
    response = ask(gateway, authority, "/filtered", headers=sent)
    request = seen(response)
    assert named(request, "x-set") == ["new"]
    assert named(request, "x-add") == ["first", "second"]
    assert named(request, "x-remove") == []
    assert named(request, "x-keep") == ["kept"]
    assert (response.header("x-from"), response.header("x-more")) == ("edge", "1")


def test_hop_by_hop_headers_stay_here(gateway: Gateway, authority: Authority) -> None:
    sent = [
        ("Connection", "keep-alive, X-Private"),
        ("X-Private", "for the gateway"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("TE", "gzip"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
        ("X-End-To-End", "passes"),
    ]
    request = seen(ask(gateway, authority, "/api", headers=sent))
    for name in ("x-private", "keep-alive", "proxy-connection", "te", "upgrade", "http2-settings"):
        assert named(request, name) == [], name
    assert named(request, "x-end-to-end") == ["passes"]
    assert not any("private" in value.lower() for value in named(request, "connection"))


FORGED = [
    ("X-Forwarded-For", "203.0.113.9"),
    ("X-Forwarded-Proto", "http"),
    ("X-Forwarded-Host", "forged.test"),
    ("Forwarded", "for=203.0.113.9;proto=http"),
    ("X-Real-IP", "203.0.113.9"),
    ("X_Forwarded_For", "203.0.113.9"),
]


def test_forwarding_headers_are_ours(gateway: Gateway, authority: Authority) -> None:
    request = seen(ask(gateway, authority, "/api", headers=FORGED))
    assert named(request, "x-forwarded-for") == ["127.0.0.1"]
    assert named(request, "x-forwarded-proto") == ["https"]
    assert named(request, "x-forwarded-host") == ["localhost"]
    assert named(request, "forwarded") == ['for=127.0.0.1;proto=https;host="localhost"']
    assert "203.0.113.9" not in json.dumps(request)


def test_a_trusted_proxys_forwarding_headers_are_extended(gateway: Gateway, authority: Authority) -> None:
    request = seen(ask(gateway, authority, "/", name="trusting", headers=FORGED))
    assert named(request, "x-forwarded-for") == ["203.0.113.9, 127.0.0.1"]
    assert named(request, "x-forwarded-proto") == ["http"]
    assert named(request, "x-forwarded-host") == ["forged.test"]
    assert named(request, "forwarded")[0].startswith("for=203.0.113.9;proto=http, for=127.0.0.1;proto=https")
    assert named(request, "x_forwarded_for") == []


@pytest.mark.needs("curl")
def test_http2_requests_are_told_alike(gateway: Gateway, authority: Authority) -> None:
    curl = ["curl", "-sS", "--http2", "--cacert", authority.certificate]
    forged = [word for name, value in FORGED for word in ("-H", f"{name}: {value}")]
    url = f"https://localhost:{gateway.address()[1]}"
    request = json.loads(output([*curl, *forged, "-H", "cookie: a=1", "-H", "cookie: b=2", f"{url}/api/x?y=1"]))
    assert request["target"] == "/api/x?y=1"
    assert named(request, "host") == [f"localhost:{gateway.address()[1]}"]
    assert named(request, "x-forwarded-for") == ["127.0.0.1"]
    assert named(request, "x-forwarded-proto") == ["https"]
    # Split for compression in h2, one header in h1 (RFC 9113, section 8.2.3).
    assert named(request, "cookie") == ["a=1; b=2"]
    assert output([*curl, f"{url}/item/7"]) == "regex"
