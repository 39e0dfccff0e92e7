"""Application layer confusion (ALPACA): each server name has its protocols, and bytes of another never reach a handler
or an upstream, whatever the client offers, says, or asks for on a connection that it has for another name."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from support import h3
from support.certificates import Authority
from support.client import Address, Http1, connect, context, until_alert
from support.gateway import Gateway, Settings, configuration, listener, to_app, upstream
from support.h2 import PREFACE, Http2
from support.h3 import connected
from support.net import eventually
from support.recording import H1Recorder
from support.servers import Loop, Reader, Server, Writer

from .conftest import Start

NO_APPLICATION_PROTOCOL = 0x100 + 120
REFUSED = "no application protocol"
# MQTT 3.1.1: CONNECT with the client identifier `zoo`.
MQTT_CONNECT = b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03zoo"
MQTT_CONNACK = b"\x20\x02\x00\x00"
GREETING = b"220 files.test FTP ready\r\n"
H1_REQUEST = b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"
H2_REQUEST = PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@dataclass
class Zoo:
    """A gateway whose server names have little in common, and what has reached its upstreams."""

    gateway: Gateway
    ca: Authority
    app: H1Recorder
    told: dict[str, bytearray] = field(default_factory=dict)

    @property
    def address(self) -> Address:
        return self.gateway.address()

    def connect(self, name: str | None, *offers: str) -> ssl.SSLSocket:
        made = context(self.ca.certificate, offers or None)
        if name is None:
            made.check_hostname = False
        return connect(self.address, made, name=name)

    def refuses(self, name: str, *offers: str) -> None:
        assert until_alert(self.address, context(self.ca.certificate, offers or None), name=name) == REFUSED

    def verdicts(self, site: str, verdict: str, outcome: str) -> float:
        labels = {"site": site, "verdict": verdict, "outcome": outcome}
        return self.gateway.metric("mitu_alpn_verdicts_total", listener="edge", **labels)

    def untouched(self) -> bool:
        """Whether nothing has reached an upstream since the last look."""
        recording = self.app.look(0)
        seen = (*recording.messages, *recording.malformed, *recording.incomplete, *recording.waiting, *recording.wire)
        told = [bytes(one) for one in self.told.values() if one]
        for one in self.told.values():
            one.clear()
        return not seen and not told


@pytest.fixture(scope="module")
def zoo(shared_gateway: Start, authority: Authority, loop: Loop) -> Iterator[Zoo]:
    names = ("web.test", "devices.test", "strict.test", "old.test", "files.test", "plain.test", "twin.test")
    many, other = authority.issue("many", names), authority.issue("other", ("other.test",))
    told = {"broker": bytearray(), "files": bytearray()}

    async def broker(reader: Reader, writer: Writer) -> None:
        while piece := await reader.read(65536):
            told["broker"] += piece
            writer.write(MQTT_CONNACK)

    async def files(reader: Reader, writer: Writer) -> None:
        writer.write(GREETING)
        while piece := await reader.read(65536):
            told["files"] += piece

    with H1Recorder(loop) as app, Server(loop, broker) as devices, Server(loop, files) as ftp:
        edge = listener(
            [many, other],
            protocols=["h3", "h2", "http/1.1", {"alpn": "mqtt", "relay": "broker"}, {"alpn": "ftp", "relay": "files"}],
            sites=[
                {"names": ["web.test"], "protocols": ["h3", "h2", "http/1.1"]},
                {"names": ["devices.test"], "alpn_mode": "strict", "protocols": ["mqtt"]},
                {"names": ["strict.test"], "alpn_mode": "strict", "protocols": ["http/1.1"]},
                {"names": ["old.test"], "alpn_mode": "observe", "protocols": ["http/1.1"]},
                {"names": ["files.test"], "protocols": ["ftp"], "no_alpn": "ftp"},
            ],
            routes=[to_app()],
        )
        upstreams = (
            upstream("app", app.endpoint),
            upstream("broker", devices.endpoint),
            upstream("files", ftp.endpoint),
        )
        log: Settings = {"access": {"path": "access.log", "connections": True}}
        yield Zoo(shared_gateway(configuration([edge], *upstreams, logging=log)), authority, app, told)


@pytest.mark.parametrize(
    ("name", "offers", "chosen", "verdict"),
    [
        ("web.test", ("mqtt", "http/1.1", "h2"), "h2", "agreed"),
        ("web.test", (), None, "absent"),
        ("devices.test", ("h2", "mqtt"), "mqtt", "agreed"),
        ("strict.test", ("h2", "http/1.1"), "http/1.1", "agreed"),
        ("old.test", ("h2", "http/1.1"), "http/1.1", "agreed"),
        ("old.test", ("h2",), "h2", "not_allowed"),
        ("old.test", ("imap",), None, "mismatch"),
        ("old.test", (), None, "absent"),
        ("plain.test", ("mqtt",), "mqtt", "agreed"),
        ("plain.test", (), None, "absent"),
    ],
)
def test_who_is_served(zoo: Zoo, name: str, offers: tuple[str, ...], chosen: str | None, verdict: str) -> None:
    before = zoo.verdicts(name, verdict, "served")
    with zoo.connect(name, *offers) as stream:
        assert stream.selected_alpn_protocol() == chosen
    assert zoo.verdicts(name, verdict, "served") == before + 1


@pytest.mark.parametrize(
    ("name", "offers", "verdict"),
    [
        ("web.test", ("mqtt",), "not_allowed"),
        ("web.test", ("imap", "smtp"), "mismatch"),
        ("devices.test", ("h2", "http/1.1"), "not_allowed"),
        ("devices.test", ("imap",), "mismatch"),
        ("devices.test", (), "absent"),
        ("strict.test", ("h2",), "not_allowed"),
        ("strict.test", (), "absent"),
        ("files.test", ("http/1.1",), "not_allowed"),
        ("plain.test", ("imap",), "mismatch"),
    ],
)
def test_who_is_refused(zoo: Zoo, name: str, offers: tuple[str, ...], verdict: str) -> None:
    before = zoo.verdicts(name, verdict, "refused")
    zoo.refuses(name, *offers)
    assert zoo.verdicts(name, verdict, "refused") == before + 1
    assert zoo.untouched()


def test_clients_of_no_name_get_what_the_listener_says(zoo: Zoo) -> None:
    """Not what the first certificate's first name has."""
    before = zoo.verdicts("plain.test", "agreed", "served")
    with zoo.connect(None, "mqtt") as stream:
        assert stream.selected_alpn_protocol() == "mqtt"
    assert zoo.verdicts("plain.test", "agreed", "served") == before + 1


def test_h3_is_for_the_names_that_have_it(zoo: Zoo) -> None:
    def status(name: str) -> int:
        return h3.get(zoo.address, zoo.ca.certificate, "/", name=name, host=name).status

    async def refused(name: str) -> None:
        async with connected(zoo.address, zoo.ca.certificate, name=name, wait_connected=False) as client:
            client.transmit()
            assert (await client.closed()).error_code == NO_APPLICATION_PROTOCOL

    assert status("web.test") == 200
    # Only observed: what strict would refuse is counted, and served.
    assert status("old.test") == 200
    assert zoo.verdicts("old.test", "not_allowed", "served") >= 1
    zoo.app.look(0)
    asyncio.run(refused("devices.test"))
    assert zoo.untouched()


def test_h3_is_advertised_where_it_is_to_be_had(zoo: Zoo) -> None:
    told = {}
    for name in ("web.test", "strict.test"):
        with Http1(zoo.connect(name, "http/1.1")) as client:
            told[name] = client.request("/", host=name).header("alt-svc")
    assert told["strict.test"] is None
    assert told["web.test"] is not None
    zoo.app.look(0)


def test_the_log_tells_who_would_be_refused(zoo: Zoo) -> None:
    zoo.refuses("web.test", "imap", "mqtt")
    with Http1(zoo.connect("old.test", "imap")) as client:
        assert client.request("/", host="old.test").status == 200
    zoo.app.look(0)

    def told() -> bool:
        lines = zoo.gateway.logged()
        failed = [one for one in lines if one["event"] == "handshake_failed"]
        served = [one for one in lines if one["event"] == "connection"]
        refused = ("no_application_protocol", "not_allowed", "mqtt,imap")
        return refused in [(one["reason"], one.get("alpn_verdict"), one.get("alpn_offered")) for one in failed] and (
            "old.test",
            "http/1.1",
            "mismatch",
            "imap",
        ) in [(one["server_name"], one["alpn"], one.get("alpn_verdict"), one.get("alpn_offered")) for one in served]

    eventually(told, 10)
    agreed = [one for one in zoo.gateway.logged() if one["event"] == "connection" and "alpn_verdict" not in one]
    assert agreed


def sent(stream: ssl.SSLSocket, data: bytes) -> bytes:
    """What comes back for `data` until the gateway closes."""
    stream.settimeout(30)
    answer = b""
    with stream, contextlib.suppress(ConnectionResetError, ssl.SSLEOFError, BrokenPipeError):
        stream.sendall(data)
        while piece := stream.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    ("name", "offers"),
    [("web.test", ("http/1.1",)), ("web.test", ()), ("old.test", ("mqtt-sn",)), ("strict.test", ("http/1.1",))],
    ids=("agreed", "no ALPN", "observed", "strict"),
)
@pytest.mark.parametrize(
    "data",
    [
        MQTT_CONNECT,
        PREFACE,
        H2_REQUEST,
        b"EHLO mail.test\r\nMAIL FROM:<a@mail.test>\r\nRCPT TO:<b@mail.test>\r\nDATA\r\n",
        b"USER anonymous\r\nPASS guest\r\nRETR /etc/passwd\r\n",
        GREETING,
        b"a001 LOGIN user secret\r\n",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    ],
    ids=("mqtt", "h2 preface", "h2 settings", "smtp", "ftp", "ftp greeting", "imap", "tls"),
)
def test_another_protocol_over_http1(zoo: Zoo, name: str, offers: tuple[str, ...], data: bytes) -> None:
    """It is no request: refused, the connection closed, and the upstream sees nothing of it."""
    answer = sent(zoo.connect(name, *offers), data + b"\r\n\r\n" + H1_REQUEST)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 505 "))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()
    assert zoo.untouched()


@pytest.mark.parametrize("data", [H1_REQUEST, MQTT_CONNECT, b"EHLO mail.test\r\n" * 4, b"USER anonymous\r\n" * 4])
def test_another_protocol_over_h2(zoo: Zoo, data: bytes) -> None:
    answer = sent(zoo.connect("web.test", "h2"), data)
    # Frames of HTTP/2, if anything: its SETTINGS, and GOAWAY.
    assert b"HTTP/1.1" not in answer
    assert zoo.untouched()


@pytest.mark.parametrize("data", [H1_REQUEST, H2_REQUEST])
def test_http_on_a_connection_for_mqtt(zoo: Zoo, data: bytes) -> None:
    """Nobody but the broker gets it, and nobody answers it as HTTP: no route is reached from here."""
    with zoo.connect("devices.test", "mqtt") as stream:
        stream.sendall(data)
        assert stream.recv(100) == MQTT_CONNACK
    assert zoo.told["broker"] == data
    zoo.told["broker"].clear()
    assert zoo.untouched()


def test_a_server_that_speaks_first_is_not_heard_over_http(zoo: Zoo) -> None:
    """What a browser would be led to: it offers h2 and http/1.1, and gets an alert in place of a greeting."""
    zoo.refuses("files.test", "h2", "http/1.1")
    for offers in (("ftp",), ()):
        with zoo.connect("files.test", *offers) as stream:
            assert stream.recv(100) == GREETING
    assert zoo.untouched()


class TestMisdirected:
    """Requests for one name on a connection for another one, as clients send them if one certificate is for both."""

    def status(self, zoo: Zoo, version: str, name: str, host: str) -> int:
        if version == "h3":
            return h3.get(zoo.address, zoo.ca.certificate, "/", name=name, host=host).status
        if version == "h2":
            with Http2.begin(zoo.connect(name, "h2")) as client:
                client.host = host
                return client.get("/").status
        with Http1(zoo.connect(name, "http/1.1")) as client:
            return client.request("/", host=host).status

    @pytest.mark.parametrize("version", ["h3", "h2", "http/1.1"])
    @pytest.mark.parametrize("host", ["devices.test", "DEVICES.test:8443", "files.test"])
    def test_a_name_that_has_other_protocols(self, zoo: Zoo, version: str, host: str) -> None:
        assert self.status(zoo, version, "web.test", host) == 421
        assert zoo.untouched()

    @pytest.mark.parametrize("version", ["h3", "h2"])
    def test_a_name_that_has_not_this_protocol(self, zoo: Zoo, version: str) -> None:
        assert self.status(zoo, version, "web.test", "strict.test") == 421
        assert zoo.untouched()

    def test_a_name_that_wants_alpn(self, zoo: Zoo) -> None:
        """A connection without it cannot get there by its Host header, one with it can."""
        with Http1(zoo.connect("web.test")) as client:
            assert client.request("/", host="strict.test").status == 421
            assert zoo.untouched()
            # It is good for its own name as before.
            assert client.request("/", host="web.test").status == 200
        assert self.status(zoo, "http/1.1", "web.test", "strict.test") == 200
        zoo.app.look(0)

    @pytest.mark.parametrize("version", ["h3", "h2"])
    def test_a_name_with_another_certificate(self, zoo: Zoo, version: str) -> None:
        assert self.status(zoo, version, "web.test", "other.test") == 421
        assert self.status(zoo, version, "other.test", "plain.test") == 421
        assert zoo.untouched()

    @pytest.mark.parametrize("version", ["h3", "h2", "http/1.1"])
    @pytest.mark.parametrize("host", ["web.test", "WEB.test", "web.test:443", "plain.test", "nobody.test"])
    def test_names_that_may_share_a_connection(self, zoo: Zoo, version: str, host: str) -> None:
        assert self.status(zoo, version, "web.test", host) == 200
        assert len(zoo.app.look(0).messages) == 1

    def test_it_is_counted(self, zoo: Zoo) -> None:
        assert self.status(zoo, "h2", "web.test", "devices.test") == 421
        labels = {"protocol": "h2", "reason": "misdirected"}
        assert eventually(lambda: zoo.gateway.metric("mitu_http_errors_total", **labels) >= 1)
