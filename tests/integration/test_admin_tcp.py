"""The admin endpoint on loopback TCP: nobody gets in without the token, and no browser gets in from elsewhere."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.certificates import Authority, Pair
from support.client import Address, Http1, Response
from support.gateway import Gateway, Settings, configuration, health, listener
from support.net import eventually
from support.process import run

from .conftest import Start

TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105 - the test's own
PATHS = ("/healthz", "/readyz", "/status", "/metrics", "/connections", "/certificates", "/config")
Headers = Sequence[tuple[str, str]]


def settings(edge: Pair, **admin: object) -> Settings:
    form = {"socket": "admin.sock", "listen": "127.0.0.1:0", "token": TOKEN, **admin}
    return configuration([listener(edge, routes=[health()])], admin=form)


@pytest.fixture(scope="module")
def running(shared_gateway: Start, edge: Pair) -> Gateway:
    return shared_gateway(settings(edge))


def bound(gateway: Gateway) -> Address:
    host, _, port = str(gateway.status()["admin"]["listen"]).rpartition(":")
    return host.strip("[]"), int(port)


def ask(
    gateway: Gateway,
    path: str,
    *,
    method: str = "GET",
    token: str | None = TOKEN,
    host: str = "127.0.0.1",
    headers: Headers = (),
) -> Response:
    with socket.create_connection(bound(gateway), timeout=10) as stream:
        bearer = [] if token is None else [("Authorization", f"Bearer {token}")]
        return Http1(stream).request(path, method=method, host=host, headers=[*bearer, *headers])


def error(response: Response) -> str:
    found: str = json.loads(response.body)["error"]
    return found


@pytest.mark.parametrize("path", PATHS)
def test_with_the_token(running: Gateway, path: str) -> None:
    response = ask(running, path)
    assert response.status == 200
    # The same is said on the socket.
    if path == "/config":
        assert json.loads(response.body) == running.json("/config")


@pytest.mark.parametrize("path", [*PATHS, "/nowhere", "/reload", "/drain"])
@pytest.mark.parametrize(
    "given", [None, "", "wrong", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), f" {TOKEN}", "\xff" * 32, "None"]
)
def test_without_the_token(running: Gateway, path: str, given: str | None) -> None:
    method = "POST" if path in ("/reload", "/drain") else "GET"
    response = ask(running, path, method=method, token=given)
    assert (response.status, response.header("www-authenticate")) == (401, "Bearer")
    assert error(response) == "a bearer token is needed: the value of admin.token"
    assert running.status()["state"] == "serving"


@pytest.mark.parametrize("scheme", ["Basic", "Token", "bearer", ""])
def test_another_scheme(running: Gateway, scheme: str) -> None:
    response = ask(running, "/status", token=None, headers=[("Authorization", f"{scheme} {TOKEN}".strip())])
    assert response.status == 401


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:1", "127.8.8.8", "[::1]", "[::1]:80"])
def test_a_host_that_is_this_machine(running: Gateway, host: str) -> None:
    assert ask(running, "/status", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "attacker.test",
        "attacker.test:80",
        "localhost.attacker.test",
        "192.0.2.1",
        "[2001:db8::1]",
        "",
        "127.0.0.1.",
        "a b",
    ],
)
def test_a_page_that_rebinds_its_name_is_refused(running: Gateway, host: str) -> None:
    """With the right token even, and before it is looked at."""
    for token in (TOKEN, None):
        response = ask(running, "/config", host=host, token=token)
        assert response.status in (400, 403), host
        assert b"listeners" not in response.body


def test_no_host_at_all(running: Gateway) -> None:
    with socket.create_connection(bound(running), timeout=10) as stream:
        stream.sendall(f"GET /config HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        answer = stream.makefile("rb").read()
    assert answer.split()[1] in (b"400", b"403"), answer[:100]


@pytest.mark.parametrize("origin", ["https://attacker.test", "null", "http://127.0.0.1:1", "http://localhost"])
@pytest.mark.parametrize("path", ["/reload", "/drain"])
def test_a_post_from_another_origin_is_refused(running: Gateway, path: str, origin: str) -> None:
    """As a form on a page elsewhere sends it: no preflight, and the browser names its origin."""
    form = [("Origin", origin), ("Content-Type", "application/x-www-form-urlencoded")]
    for token in (TOKEN, None):
        response = ask(running, path, method="POST", token=token, headers=form)
        assert (response.status, error(response)) == (403, "requests from other origins are refused")
    assert running.status()["state"] == "serving"
    assert running.status()["reloads"]["succeeded"] == 0


def test_the_same_origin_may_ask(running: Gateway) -> None:
    host = "{}:{}".format(*bound(running))
    assert ask(running, "/status", host=host, headers=[("Origin", f"http://{host}")]).status == 200


def test_no_other_page_may_read_an_answer(running: Gateway) -> None:
    preflight = ask(
        running,
        "/status",
        method="OPTIONS",
        headers=[("Origin", "https://attacker.test"), ("Access-Control-Request-Headers", "authorization")],
    )
    assert preflight.status == 403
    for response in (preflight, ask(running, "/status")):
        assert not [name for name, _ in response.headers if name.lower().startswith("access-control")]


def test_a_body_is_refused(running: Gateway) -> None:
    with socket.create_connection(bound(running), timeout=10) as stream:
        headers = [("Authorization", f"Bearer {TOKEN}")]
        response = Http1(stream).request("/reload", method="POST", host="localhost", headers=headers, body=b"x" * 1000)
    assert (response.status, error(response)) == (413, "no body is expected")
    assert running.status()["reloads"]["succeeded"] == 0


def test_the_commands_of_curl(running: Gateway) -> None:
    url = "http://{}:{}".format(*bound(running))
    done = run(["curl", "-sS", "-H", f"Authorization: Bearer {TOKEN}", "-X", "POST", f"{url}/reload"])
    assert json.loads(done.stdout)["ok"] is True, done.stderr


def test_over_ipv6(gateway: Start, edge: Pair) -> None:
    running = gateway(settings(edge, listen="[::1]:0"))
    assert bound(running)[0] == "::1"
    assert ask(running, "/readyz", host=f"[::1]:{bound(running)[1]}").body == b"serving\n"


def test_a_token_in_a_file_is_renewed(gateway: Start, edge: Pair) -> None:
    """And counts at once, for those who had the old one as well."""
    other = TOKEN[::-1]
    running = gateway(configuration([listener(edge, routes=[health()])]), flags=["--no-watch"])
    assert running.stop() == 0
    token = running.folder / "token"
    token.write_text(f"{TOKEN}\n")
    running.write(settings(edge, token={"file": "token"}))
    running.restart()
    digest = running.status()["config"]["digest"]
    assert ask(running, "/status").status == 200
    token.write_text(f"{other}\n")
    assert ask(running, "/status").status == 200, "nothing has been reloaded yet"
    assert json.loads(running.admin("/reload", "POST")[1])["changed"] is True
    assert ask(running, "/status").status == 401
    assert ask(running, "/status", token=other).status == 200
    assert running.status()["config"]["digest"] != digest
    # A file that has gone leaves the last good one.
    token.unlink()
    status, body = running.admin("/reload", "POST")
    assert (status, "cannot read admin.token" in body.decode()) == (422, True)
    assert ask(running, "/status", token=other).status == 200


def test_a_token_in_a_file_is_watched(gateway: Start, edge: Pair, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    running = gateway(settings(edge, token={"file": str(token)}))
    token.write_text(TOKEN[::-1])
    assert eventually(lambda: ask(running, "/status").status == 401)
    assert ask(running, "/status", token=TOKEN[::-1]).status == 200


def test_where_it_listens_cannot_change(gateway: Start, authority: Authority, edge: Pair) -> None:
    running = gateway(settings(edge), flags=["--no-watch"])
    for admin in ({"listen": "127.0.0.1:1"}, {"listen": "[::1]:0"}, {"socket": "other.sock"}):
        running.write(settings(edge, **admin))
        status, body = running.admin("/reload", "POST")
        (name,) = admin
        assert (status, f"cannot change admin.{name} without a restart" in body.decode()) == (422, True)
    running.write(configuration([listener(edge, routes=[health()])]))
    assert running.admin("/reload", "POST")[0] == 422
    assert ask(running, "/status").status == 200


def test_a_port_that_is_taken(gateway: Start, edge: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        running = gateway(settings(edge, listen=listen), wait=False)
        assert running.program.wait() == 1
    assert f"cannot bind admin.listen {listen}" in running.program.log
    assert not running.socket.exists()


@pytest.mark.parametrize(
    ("admin", "code"),
    [
        ({"listen": "127.0.0.1:0"}, "E057"),
        ({"listen": "0.0.0.0:0", "token": TOKEN}, "E056"),
        ({"listen": ":9000", "token": TOKEN}, "E056"),
        ({"listen": "127.0.0.1:0", "token": "short"}, "E067"),
    ],
)
def test_what_is_not_guarded_is_not_started(gateway: Start, edge: Pair, admin: Settings, code: str) -> None:
    form = {"socket": "admin.sock", **admin}
    running = gateway(configuration([listener(edge, routes=[health()])], admin=form), wait=False)
    assert running.program.wait() == 1
    assert code in running.program.log
