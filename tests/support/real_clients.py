"""Clients that people use, each asked to make one request to every port of a gateway and to say how that went.

What a client is called with beyond that are flags of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from aiohttp import ClientSession, ClientWebSocketResponse

from support import h3, openssl
from support.build import CLIENTS, go_client
from support.client import Http1, connect, context
from support.h2 import Http2
from support.net import eventually
from support.process import Program, output, run

OK = '{"ok":true}'
GRPC_METHOD = "/matrix.Matrix/Nothing"
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Ports:
    """Where to go, by name. `folder`: for whatever a client must have on disk."""

    ca: Path
    by_name: dict[str, int]
    folder: Path
    path: str = "/health"

    def url(self, port: int) -> str:
        return f"https://localhost:{port}{self.path}"

    def urls(self) -> list[str]:
        return [self.url(port) for port in self.by_name.values()]

    def request(self) -> bytes:
        """In HTTP/1.1, for clients that speak no HTTP of their own."""
        return f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


@dataclass(frozen=True, slots=True)
class Said:
    """Whether a client got its answer, and all that it printed."""

    ok: bool
    words: str


Client = Callable[[Ports], dict[str, Said]]
One = Callable[[Ports, int], Said]


def each(one: One) -> Client:
    """A client that goes to one port at a time; several of it at once."""

    def all_of_them(ports: Ports) -> dict[str, Said]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            said = pool.map(lambda port: one(ports, port), ports.by_name.values())
            return dict(zip(ports.by_name, said, strict=True))

    return all_of_them


def command(
    words: Callable[[Ports, int], Sequence[object]],
    *,
    answer: str = OK,
    stdin: Callable[[Ports], bytes] = lambda _: b"",
) -> Client:
    """A program that prints `answer`, a pattern, when all is well."""

    def one(ports: Ports, port: int) -> Said:
        done = run(words(ports, port), stdin=stdin(ports), timeout=30)
        text = (done.stdout + done.stderr).decode(errors="replace")
        return Said(re.search(answer, text) is not None, text)

    return each(one)


def curl(*flags: str) -> Client:
    return command(lambda ports, port: ["curl", "-sS", *flags, "--cacert", ports.ca, ports.url(port)])


wget = command(lambda ports, port: ["wget", "-t1", "-O-", f"--ca-certificate={ports.ca}", ports.url(port)])


def s_client(*flags: str) -> Client:
    def words(ports: Ports, port: int) -> list[str]:
        return openssl.command(("127.0.0.1", port), ports.ca, "-ign_eof", "-verify_return_error", *flags)

    return command(words, stdin=Ports.request)


def h2load(*flags: str) -> Client:
    return command(lambda ports, port: ["h2load", "-n1", "-c1", *flags, ports.url(port)], answer=r"\b1 succeeded")


def oha(version: str) -> Client:
    flags = ("-n1", "-c1", "--no-tui", "--no-color", "--http-version", version, "--cacert")
    # It reads no IPv6 address of localhost's, where nobody would be.
    return command(lambda ports, port: ["oha", "--ipv4", *flags, ports.ca, ports.url(port)], answer=r"\[200\] 1 resp")


gnutls_cli = command(
    lambda ports, port: ["gnutls-cli", f"--x509cafile={ports.ca}", f"--port={port}", "localhost"],
    stdin=Ports.request,
)
wrk = command(lambda ports, port: ["wrk", "-t1", "-c1", "-d1s", ports.url(port)], answer=r"\b[1-9]\d* requests in")
mosquitto_pub = command(
    lambda ports, port: [
        *("mosquitto_pub", "-h", "localhost", "-p", port, "--cafile", ports.ca),
        *("--tls-alpn", "mqtt", "-q", "1", "-t", "matrix", "-m", "hello", "-d"),
    ],
    answer="received PUBACK",
)


def python_ssl(*alpn: str) -> Client:
    """HTTP is the tests' own, in the version that was negotiated."""

    def one(ports: Ports, port: int) -> Said:
        try:
            with connect(("127.0.0.1", port), context(ports.ca, alpn)) as stream:
                if stream.selected_alpn_protocol() == "h2":
                    return Said(True, Http2.begin(stream).get(ports.path).body.decode())
                return Said(True, Http1(stream).request(ports.path).body.decode())
        except OSError as error:
            return Said(False, str(error))

    return each(one)


def aioquic(*alpn: str) -> Client:
    async def ask(ports: Ports, port: int) -> Said:
        async with h3.connected(("127.0.0.1", port), ports.ca, alpn=alpn, wait_connected=False) as client:
            try:
                return Said(True, (await client.get(ports.path)).body.decode())
            except ConnectionError as error:
                return Said(False, str(error))

    return each(lambda ports, port: asyncio.run(ask(ports, port)))


def go(protocol: str) -> Client:
    def one(ports: Ports, port: int) -> Said:
        report = json.loads(output([go_client(), "-ca", ports.ca, "-protocol", protocol, ports.url(port)]))
        return Said(report["body"] == OK, "\n".join(report["failures"]))

    return each(one)


def _told(words: Sequence[object], ports: Ports) -> dict[str, Said]:
    """A program that takes every URL, and prints a line for each."""
    lines = [line.partition("\t") for line in output([*words, ports.ca, *ports.urls()]).splitlines()]
    said = [Said(how == "ok" and what == OK, what) for how, _, what in lines]
    return dict(zip(ports.by_name, said, strict=True))


def node(kind: str) -> Client:
    return lambda ports: _told(["node", CLIENTS / "node" / "once.js", kind], ports)


def java(version: str) -> Client:
    # What runs once is not worth compiling well.
    return lambda ports: _told(["java", "-XX:TieredStopAtLevel=1", CLIENTS / "java" / "Once.java", version], ports)


def grpcio(ports: Ports, port: int) -> Said:
    trusting = grpc.ssl_channel_credentials(ports.ca.read_bytes())
    with grpc.secure_channel(f"localhost:{port}", trusting) as channel:
        try:
            call = channel.unary_stream(GRPC_METHOD, bytes, bytes)
            return Said(list(call(b"", timeout=20)) == [], "")
        except grpc.RpcError as error:
            return Said(False, str(error.details()))


class Chromium:
    """A headless browser that is told where to go over its DevTools protocol.

    `quic`: it speaks HTTP/3 from the first request on, since it believes no `Alt-Svc` of servers under private roots.
    """

    FLAGS = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
        "--remote-debugging-port=0",
    )

    def __init__(self, *flags: str, quic: bool = False) -> None:
        self._flags, self._quic = flags, quic

    def _speaking(self, ports: Ports) -> list[str]:
        if not self._quic:
            return ["--disable-quic", *self._flags]
        origins = ",".join(f"localhost:{port}" for port in ports.by_name.values())
        # Its QUIC looks for no other address where nobody answers at the first.
        return [f"--origin-to-force-quic-on={origins}", "--host-resolver-rules=MAP localhost 127.0.0.1", *self._flags]

    def __call__(self, ports: Ports) -> dict[str, Said]:
        home, profile = ports.folder / "home", ports.folder / "profile"
        database = home / ".pki" / "nssdb"
        database.mkdir(parents=True)
        for words in (("-N", "--empty-password"), ("-A", "-n", "root", "-t", "C,,", "-i", ports.ca)):
            output(["certutil", "-d", f"sql:{database}", *words])
        browser = ["chromium", *self.FLAGS, *self._speaking(ports), f"--user-data-dir={profile}", "about:blank"]
        with Program(browser, ports.folder / "chromium.log", environment={"HOME": str(home)}):
            told = profile / "DevToolsActivePort"
            port = int(eventually(lambda: told.exists() and told.read_text().partition("\n")[0], 30))
            return asyncio.run(self._visit(port, ports))

    async def _visit(self, debugging: int, ports: Ports) -> dict[str, Said]:
        said = {}
        async with ClientSession(f"http://127.0.0.1:{debugging}") as session:
            async with session.get("/json/list") as listed:
                page = next(one for one in await listed.json() if one["type"] == "page")
            async with session.ws_connect(page["webSocketDebuggerUrl"]) as tools:
                for name, port in ports.by_name.items():
                    said[name] = await self._look(tools, ports.url(port))
                with contextlib.suppress(ConnectionError):
                    await tools.send_json({"id": 0, "method": "Browser.close"})
        return said

    async def _look(self, tools: ClientWebSocketResponse, url: str) -> Said:
        gone = await self._call(tools, "Page.navigate", url=url)
        return Said("errorText" not in gone, gone.get("errorText", ""))

    @staticmethod
    async def _call(tools: ClientWebSocketResponse, method: str, **parameters: Any) -> dict[str, Any]:
        await tools.send_json({"id": 1, "method": method, "params": parameters})
        while (answer := await tools.receive_json(timeout=60)).get("id") != 1:
            pass
        result: dict[str, Any] = answer["result"]
        return result
