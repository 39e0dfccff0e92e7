"""What compiling adds to the golden pairs: files that fail, and what is derived."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mitu import Config, ConfigError, check, load_config, parse_config
from mitu.config import compile_runtime
from mitu.config.compile import Compiler, socket_address
from mitu.gateway import Loaded


@pytest.fixture
def base(certs: Path, tmp_path: Path) -> Path:
    (tmp_path / "certs").symlink_to(certs)
    return tmp_path


def config(base: Path, certificate: str = "edge", **listener: Any) -> Config:
    pair = {"certificate": f"certs/{certificate}.crt", "key": f"certs/{certificate}.key"}
    edge = {
        "name": "edge",
        "bind": "127.0.0.1:0",
        "protocols": ["h2", "http/1.1"],
        "tls": {"certificates": [pair]},
        "routes": [{"respond": {}}],
    }
    return parse_config({"listeners": [edge | listener]}, base=base)


def compiled(built: Config, **sockets: str) -> Any:
    return json.loads(compile_runtime(built, sockets).runtime)


def test_a_certificate_outside_its_dates_fails_the_check_but_is_served(base: Path) -> None:
    assert compile_runtime(config(base)).warnings == ()
    early = config(base, "future")
    assert [one.code for one in compile_runtime(early).warnings] == ["E075"]
    assert [one.code for one in check(early).errors] == ["E075"]


@pytest.mark.parametrize(("certificate", "code"), [("absent", "E070"), ("broken", "E071"), ("weak", "E076")])
def test_files_that_cannot_be_used(base: Path, certificate: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compile_runtime(config(base, certificate))
    assert code in {one.code for one in caught.value.errors}


def test_a_half_written_certificate_is_refused_whole(base: Path, tmp_path: Path) -> None:
    whole = (base / "certs" / "edge.crt").read_bytes()
    (tmp_path / "edge.crt").write_bytes(whole[: len(whole) - 40])
    pair = {"certificate": str(tmp_path / "edge.crt"), "key": "certs/edge.key"}
    built = config(base, tls={"certificates": [pair]})
    with pytest.raises(ConfigError, match="E071"):
        compile_runtime(built)


def test_a_configuration_built_in_code_is_checked_too(base: Path) -> None:
    listener = config(base).listeners[0]
    twice = Config(listeners=(listener, listener))
    assert {one.code for one in check(twice).errors} == {"E041"}
    with pytest.raises(ConfigError):
        compile_runtime(twice)


def test_a_handler_is_a_relay_to_its_socket(base: Path) -> None:
    built = config(base, protocols=[{"alpn": "a/1", "handler": "json:loads"}], routes=[])
    document = json.loads(compile_runtime(built, {"json:loads": "/run/h.sock"}).runtime)
    assert document["listeners"][0]["protocols"][0]["handler"] == {"kind": "relay", "upstream": "@json:loads"}
    (upstream,) = document["upstreams"]
    assert upstream["name"] == "@json:loads"
    assert upstream["endpoints"] == [{"address": "unix:/run/h.sock", "weight": 1}]
    assert upstream["proxy_protocol"] is True


@pytest.mark.parametrize(
    ("protocols", "wanted", "expected"),
    [
        (["h2", "http/1.1"], None, 1),
        (["h2"], None, None),
        (["h2", "http/1.1"], "refuse", None),
        (["h2", "http/1.1"], "h2", 0),
    ],
)
def test_clients_without_alpn(base: Path, protocols: list[str], wanted: str | None, expected: int | None) -> None:
    document = compiled(config(base, protocols=protocols, no_alpn=wanted))
    (site,) = document["listeners"][0]["sites"]
    assert site["alpn"]["no_alpn"] == expected


@pytest.mark.parametrize(
    ("bind", "dual", "expected"),
    [
        (":80", True, "[::]:80"),
        (":80", False, "0.0.0.0:80"),
        ("localhost:80", True, "127.0.0.1:80"),
        ("[::1]:80", True, "[::1]:80"),
        ("10.0.0.1:80", True, "10.0.0.1:80"),
    ],
)
def test_socket_address(monkeypatch: pytest.MonkeyPatch, bind: str, dual: bool, expected: str) -> None:
    monkeypatch.setattr("socket.has_dualstack_ipv6", lambda: dual)
    assert socket_address(bind) == expected


def test_nothing_that_is_printed_shows_a_secret(base: Path, tmp_path: Path) -> None:
    """Keys, tokens, and headers that routes set, in what stands for a configuration on its way to the data plane."""
    token, upstream_key, cookie = "token-of-the-admin-endpoint", "key-of-the-upstream", "crumbs-of-the-upstream"
    first, second = "ticket-secret-as-a-variable-0123456789", "ticket-secret-in-a-file-0123456789"
    (tmp_path / "token").write_text(token)
    (tmp_path / "ticket").write_text(second)
    pair = {"certificate": "certs/edge.crt", "key": "certs/edge.key"}
    filled = {"set": {"x-from": "${APP_KEY}", "authorization": f"Basic {cookie}"}}
    data = {
        "admin": {"listen": "127.0.0.1:0", "token": {"file": "token"}},
        "tickets": {"secrets": ["${FIRST}", {"file": "ticket"}]},
        "listeners": [
            {
                "name": "edge",
                "bind": "127.0.0.1:0",
                "protocols": ["h2"],
                "tls": {"certificates": [pair], "client_ca": "certs/ca.crt", "client_auth": "optional"},
                "routes": [{"upstream": "app", "filters": [{"request_headers": filled}]}],
            }
        ],
        "upstreams": [{"name": "app", "endpoints": ["127.0.0.1:1"], "tls": {"server_name": "app", **pair}}],
    }
    (tmp_path / "mitu.json").write_text(json.dumps(data))
    built = load_config(tmp_path / "mitu.json", environ={"APP_KEY": upstream_key, "FIRST": first})
    done = compile_runtime(built)
    compiler = Compiler(built, {})
    compiler.document()
    key = (base / "certs" / "edge.key").read_text().splitlines()[1]
    # They are there to be found.
    assert upstream_key in done.runtime and cookie in done.runtime
    assert any(key.encode() in secret for secret in done.secrets.values())
    assert {first.encode(), second.encode()} <= set(done.secrets.values())
    assert first not in done.runtime and second not in done.runtime
    for what in (built, built.document, done, compiler, Loaded.of(built, done), built.admin, built.tickets):
        for secret in (token, upstream_key, cookie, key, first, second):
            assert secret not in repr(what), type(what)
            assert secret not in str(what), type(what)
    told = {"admin": {"listen": "127.0.0.1:0", "token": token}, "tickets": {"secrets": [first]}}
    named = parse_config(data | told, base=tmp_path)
    for secret in (token, first):
        assert secret not in repr(named) and secret not in repr(compile_runtime(named))


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (None, "E057"),
        ("", "E067"),
        ("fifteen-letters", "E067"),
        (b"", "E067"),
        (b"\n", "E067"),
        (b"fifteen-letters\n", "E067"),
        (b"\xff" * 32, "E070"),
        (b"sixteen--letters\n", None),
        ("sixteen--letters", None),
    ],
)
def test_the_token_of_an_admin_endpoint_over_tcp(base: Path, token: str | bytes | None, code: str | None) -> None:
    """As it is written, or as its file has it."""
    value: Any = token
    if isinstance(token, bytes):
        (base / "token").write_bytes(token)
        value = {"file": "token"}
    listeners = config(base).model_dump(mode="json", exclude_none=True)["listeners"]
    admin = {"listen": "127.0.0.1:0"} | ({} if token is None else {"token": value})
    try:
        report = check(parse_config({"listeners": listeners, "admin": admin}, base=base))
    except ConfigError as error:
        report = error.report
    assert [one.code for one in report.errors] == ([] if code is None else [code])
    assert code != "E067" or report.errors[0].message == "the token is shorter than 16 characters"
    assert code != "E067" or report.errors[0].hint == "openssl rand -hex 32"


def test_equal_configurations_compile_to_equal_text(base: Path) -> None:
    assert compile_runtime(config(base)) == compile_runtime(config(base))
