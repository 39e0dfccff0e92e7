"""One port, every protocol: what each ALPN list gets, from clients that say exactly what they offer."""

from __future__ import annotations

import os
import ssl
import subprocess
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest

from support import openssl
from support.certificates import Authority, Pair
from support.client import Http1, connect, context, until_alert
from support.gateway import Gateway, configuration, health, listener, on, to_app, upstream
from support.net import eventually
from support.process import output, run
from support.servers import Loop, Server, echo

from .conftest import Start

TESTS = Path(__file__).parents[1]
PROTOCOLS = [
    "h2",
    "http/1.1",
    {"alpn": "mqtt", "relay": "broker"},
    {"alpn": "private/1", "relay": "echo"},
    {"alpn": "private/2", "handler": "support.handlers:shout"},
    {"alpn": "private/3", "handler": "support.handlers:broken"},
]


@pytest.fixture(scope="module")
def gateway(shared_gateway: Start, edge: Pair, app: Server, loop: Loop, mosquitto: int, provider: str) -> Gateway:
    echoing = Server(loop, echo)
    upstreams = [
        upstream("app", app.endpoint),
        upstream("echo", echoing.endpoint),
        upstream("broker", f"127.0.0.1:{mosquitto}"),
    ]
    settings = listener(edge, protocols=PROTOCOLS, routes=[health(), to_app()])
    return shared_gateway(on(provider, configuration([settings], *upstreams)), environment={"PYTHONPATH": str(TESTS)})


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (("h2", "http/1.1"), "h2"),
        (("http/1.1", "h2"), "h2"),  # The server's order counts (RFC 7301, section 3.2).
        (("http/1.1",), "http/1.1"),
        (("unheard-of", "http/1.1"), "http/1.1"),
        (("mqtt", "private/1"), "mqtt"),
        (("private/2",), "private/2"),
        (None, None),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_python_ssl(
    gateway: Gateway,
    authority: Authority,
    offered: tuple[str, ...] | None,
    chosen: str | None,
    version: ssl.TLSVersion,
) -> None:
    with connect(gateway.address(), context(authority.certificate, offered, version=version)) as stream:
        assert stream.selected_alpn_protocol() == chosen
        if chosen in (None, "http/1.1"):
            assert Http1(stream).request("/health").body == b'{"ok":true}'


@pytest.mark.parametrize("offered", [("unheard-of",), ("h3",), ("H2",), ("http/1.0", "spdy/3"), ("private",)])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_nothing_in_common_is_a_fatal_alert(
    gateway: Gateway, authority: Authority, offered: tuple[str, ...], version: ssl.TLSVersion
) -> None:
    def count() -> float:
        return gateway.metric("mitu_tls_handshake_failures_total", reason="no_application_protocol")

    refused = count()
    alert = until_alert(gateway.address(), context(authority.certificate, offered, version=version))
    assert alert == "no application protocol"
    # The alert goes out first.
    eventually(lambda: count() == refused + 1)


@pytest.mark.needs("openssl")
def test_openssl_talks_to_an_echo_server(gateway: Gateway, authority: Authority) -> None:
    flags = ("-alpn", "private/1", "-verify_return_error")
    negotiated = openssl.negotiate(gateway.address(), authority.certificate, *flags)
    assert "ALPN protocol: private/1" in negotiated
    assert "Verify return code: 0 (ok)" in negotiated
    talking = openssl.command(gateway.address(), authority.certificate, *flags, "-quiet", "-no_ign_eof")
    with subprocess.Popen(talking, stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for line in (b"hello, edge\n", b"again\n"):
            client.stdin.write(line)
            client.stdin.flush()
            assert client.stdout.readline() == line
        client.stdin.close()
        assert client.wait(20) == 0


@pytest.mark.needs("openssl")
def test_openssl_talks_to_a_python_handler(gateway: Gateway, authority: Authority) -> None:
    words = openssl.command(gateway.address(), authority.certificate, "-alpn", "private/2", "-quiet")
    done = run(words, stdin=b"hello\nWorld\nbye\n", timeout=60)
    assert done.stdout == b"HELLO\nWORLD\n"


def test_a_python_handler_serves_many_at_once(gateway: Gateway, authority: Authority) -> None:
    tls = context(authority.certificate, ["private/2"])
    with ExitStack() as stack:
        streams = [stack.enter_context(connect(gateway.address(), tls)) for _ in range(50)]
        for number, stream in enumerate(streams):
            stream.sendall(f"client {number}\n".encode())
        for number, stream in enumerate(streams):
            assert stream.makefile("rb").readline() == f"CLIENT {number}\n".encode()
        streams[0].sendall(b"bye\n")
        assert streams[0].recv(1) == b""


def test_a_python_handler_that_fails_ends_its_connection_only(gateway: Gateway, authority: Authority) -> None:
    with (
        connect(gateway.address(), context(authority.certificate, ["private/2"])) as healthy,
        connect(gateway.address(), context(authority.certificate, ["private/3"])) as broken,
    ):
        broken.sendall(b"anything\n")
        assert Http1(broken).closed()
        healthy.sendall(b"still here\n")
        assert healthy.recv(100) == b"STILL HERE\n"
    assert "this handler always fails" in eventually(lambda: gateway.program.log)


@pytest.mark.needs("mosquitto_pub")
class TestMosquitto:
    """mosquitto_pub and mosquitto_sub through the gateway to a real broker."""

    @staticmethod
    def words(program: str, gateway: Gateway, authority: Authority, topic: str, *flags: str | Path) -> list[str]:
        host = ["-h", "localhost", "-p", str(gateway.address()[1]), "--cafile", str(authority.certificate)]
        return [program, *host, "--tls-alpn", "mqtt", "-q", "1", "-t", topic, *map(str, flags)]

    def test_retained_message(self, gateway: Gateway, authority: Authority) -> None:
        text = f"retained {os.getpid()}"
        output(self.words("mosquitto_pub", gateway, authority, "test/retained", "-r", "-m", text))
        # -W 5 ends a subscriber that gets nothing, with an error.
        subscribe = self.words("mosquitto_sub", gateway, authority, "test/retained", "-C", "1", "-W", "5")
        assert output(subscribe) == text + "\n"

    def test_a_megabyte_at_qos_1(self, gateway: Gateway, authority: Authority, tmp_path: Path) -> None:
        content = os.urandom(1 << 20)
        file = tmp_path / "payload"
        file.write_bytes(content)
        # Retained, so that the subscriber need not be there first.
        output(self.words("mosquitto_pub", gateway, authority, "test/large", "-r", "-f", file))
        done = run(self.words("mosquitto_sub", gateway, authority, "test/large", "-C", "1", "-N", "-W", "20"))
        assert done.returncode == 0, done.stderr
        assert done.stdout == content

    def test_a_client_that_offers_something_else(self, gateway: Gateway, authority: Authority) -> None:
        words = self.words("mosquitto_pub", gateway, authority, "test/never", "-m", "lost")
        words[words.index("mqtt")] = "mqtt/5"
        done = run(words)
        assert done.returncode != 0
        assert b"TLS error" in done.stderr, done.stderr
