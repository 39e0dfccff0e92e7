"""What there is an end of: files, connections, memory, upstreams, patience.

When it is used up, whoever is connected goes on, whoever runs the gateway reaches it, and afterwards it is as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attack import few_ports
from support import frames, h3
from support.client import Address, Http1, connect, context
from support.crowd import KINDS, Opening, crowd
from support.gateway import Settings, configuration, health, listener, to_app, upstream
from support.h2 import PREFACE, SETTINGS
from support.net import eventually, free_port
from support.process import output, run
from support.raw_tls import Hello
from support.servers import Reader, Writer, echo, http_head, http_response
from support.target import Site, Target, attacked

PACK = "exhaustion"
KIB, MIB = 1 << 10, 1 << 20
FILES = 140
FEW = 20
"""Connections that the listener of this name takes at once."""
PROTOCOLS = ["h3", "h2", "http/1.1", {"alpn": "mqtt", "relay": "echo"}]


async def app(reader: Reader, writer: Writer) -> None:
    """Answers at once; `/never` and `/stuck` not at all, without reading the body, and `/endless` without end."""
    while (head := await http_head(reader)) is not None:
        path = head[0].split(" ")[1]
        if path in ("/never", "/stuck"):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            return
        if path == "/endless":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
                await writer.drain()
        writer.write(http_response("200 OK", b"ok"))
        await writer.drain()


async def silent(reader: Reader, _: Writer) -> None:
    """Takes everything and says nothing."""
    while await reader.read(65_536):
        pass


async def hasty(_: Reader, writer: Writer) -> None:
    """Ends each connection when it begins."""
    writer.close()


@contextlib.contextmanager
def full() -> Iterator[int]:
    """The port of a program that does not accept, and has no room for another connection that waits."""
    with socket.socket() as listening, contextlib.ExitStack() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            tcp = waiting.enter_context(socket.socket())
            tcp.setblocking(False)
            tcp.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def settings(site: Site, port: int = 1) -> Settings:
    pair = site.authority.issue("edge", ("localhost",))
    failing = [
        {"match": {"path": f"/{name}"}, "upstream": name, "timeout": "1s"}
        for name in ("silent", "hasty", "refused", "full")
    ]
    stuck = {**to_app(match={"path": "/stuck"}), "timeout": "3s"}
    shared = {"protocols": PROTOCOLS, "routes": [health(), stuck, *failing, to_app()]}
    patient = {"timeouts": {"handshake": "2m"}}
    return configuration(
        [
            listener(pair, **shared, **patient),
            listener(pair, name="few", limits={"connections": FEW}, **shared, **patient),
            # Who goes away behind what nobody takes is not seen to be gone until time is up.
            listener(pair, name="brief", timeouts={"relay_idle": "3s"}, **shared),
        ],
        upstream("app", site.serve(app).endpoint),
        upstream("echo", site.serve(echo).endpoint),
        upstream("silent", site.serve(silent).endpoint),
        upstream("hasty", site.serve(hasty).endpoint),
        upstream("refused", f"127.0.0.1:{free_port()}"),
        upstream("full", f"127.0.0.1:{port}", timeouts={"connect": "300ms"}),
    )


def limited(files: int) -> tuple[str, ...]:
    """In front of a command that may have so many files open."""
    return ("sh", "-c", f'ulimit -n {files}; exec "$@"', "sh")


def current(target: Target) -> Settings:
    found: Settings = json.loads(target.gateway.file.read_text())
    return found


numbers = itertools.count(60)


def reload(target: Target) -> None:
    """With another value each time, since nothing happens otherwise."""
    changed = current(target)
    changed["listeners"][0]["timeouts"]["idle"] = f"{next(numbers)}s"
    target.gateway.apply(changed)


def warmed(target: Target) -> Target:
    """The first reload takes memory that stays, and so does the first connection of each kind."""
    for _ in range(3):
        reload(target)
    target.serves()
    assert h3.get(target.addresses["edge"], target.ca, "/health").status == 200
    return target


@pytest.fixture(scope="module")
def poor() -> Iterator[Target]:
    """A gateway that may have few files open."""
    with attacked(settings, wrapper=limited(FILES)) as target:
        yield warmed(target)


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with full() as port, attacked(functools.partial(settings, port=port)) as target:
        yield warmed(target)


def active(target: Target, name: str = "edge") -> float:
    return target.gateway.metric("mitu_connections_active", listener=name)


def files(target: Target) -> int:
    return len(list(Path(f"/proc/{target.gateway.program.pid}/fd").iterdir()))


def threads(target: Target) -> int:
    return len(list(Path(f"/proc/{target.gateway.program.pid}/task").iterdir()))


@pytest.mark.parametrize("kind", KINDS)
def test_files_run_out(poor: Target, kind: str) -> None:
    """Clients are sent away before the last file is taken. QUIC's connections take none."""
    address = poor.addresses["edge"]

    def refused() -> float:
        return poor.gateway.metric("mitu_connections_refused_total")

    with poor.watched():
        eventually(lambda: active(poor) == 0)
        with Http1.open(address, poor.ca) as client:
            assert client.request("/health").status == 200
            before, sent_away = files(poor), refused()
            with crowd(kind, 40 if kind == "h3" else FILES, address, poor.ca):
                assert kind == "h3" or eventually(lambda: refused() > sent_away)
                assert files(poor) < FILES
                assert client.request("/health").status == 200
                assert poor.gateway.status()["state"] == "serving"
                reload(poor)
                assert client.request("/health").status == 200
            eventually(lambda: active(poor) <= 1)
            eventually(lambda: files(poor) <= before + 8)
        assert poor.gateway.mitu("status").returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_connections_run_out(target: Target, kind: str) -> None:
    address = target.addresses["few"]

    def refused() -> float:
        return target.gateway.metric("mitu_connections_refused_total", listener="few", reason="limit")

    with target.watched():
        eventually(lambda: active(target, "few") == 0)
        before = refused()
        with crowd(kind, FEW + 10, address, target.ca):
            assert eventually(lambda: refused() >= before + 10)
            assert active(target, "few") == FEW
            target.serves()
            reload(target)
        eventually(lambda: active(target, "few") == 0)
        target.serves("few")


# --- memory


def push(stream: socket.socket, data: bytes) -> int:
    """As much of it as is taken within a moment."""
    stream.settimeout(0.02)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < len(data):
            sent += stream.send(data[sent : sent + 16 * KIB])
    return sent


def half_hello(address: Address, _: Path) -> socket.socket:
    tcp = socket.create_connection(address, timeout=5)
    large = Hello().add((21, bytes(60_000))).wire()
    tcp.sendall(large[:-1])
    return tcp


def half_head(address: Address, ca: Path) -> socket.socket:
    stream = connect(address, context(ca), timeout=5)
    stream.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Fill: " + b"a" * 60_000)
    return stream


def half_body(address: Address, ca: Path) -> socket.socket:
    stream = connect(address, context(ca), timeout=5)
    stream.sendall(b"POST /stuck HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n")
    assert push(stream, bytes(16 * MIB)) < 16 * MIB
    return stream


def half_chunk(address: Address, ca: Path) -> socket.socket:
    stream = connect(address, context(ca), timeout=5)
    head = b"POST /stuck HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    stream.sendall(head + b"ffffff\r\n")
    assert push(stream, bytes(16 * MIB)) < 16 * MIB
    return stream


def half_record(address: Address, ca: Path) -> socket.socket:
    """The largest record, whose last byte does not come."""
    stream = connect(address, context(ca), timeout=5)
    tcp = socket.socket(fileno=stream.detach())
    tcp.sendall(struct.pack("!BHH", 23, 0x0303, 16_384 + 256) + bytes(16_384 + 255))
    return tcp


def unread(address: Address, ca: Path) -> socket.socket:
    stream = connect(address, context(ca), timeout=5)
    stream.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return stream


def half_bodies_in_h2(address: Address, ca: Path) -> socket.socket:
    """100 requests whose bodies nobody reads: as much as the windows let through."""
    stream = connect(address, context(ca, ["h2"]), timeout=5)
    post = ((b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/stuck"))
    streams = range(1, 200, 2)
    begin = b"".join(frames.request(number, post, end=False) for number in streams)
    bodies = b"".join(frames.data(number, bytes(16_000)) for number in streams)
    stream.sendall(PREFACE + frames.frame(SETTINGS, 0, 0) + begin)
    push(stream, bodies * 4)
    return stream


def relayed(address: Address, ca: Path) -> socket.socket:
    """What comes back is not read."""
    stream = connect(address, context(ca, ["mqtt"]), timeout=5)
    push(stream, bytes(16 * MIB))
    return stream


#: By what a client does: how many do it, and what each may cost. A buffer holds 64 KiB at most, a head as much.
HALVES: dict[str, tuple[Opening, int, int]] = {
    "hellos": (half_hello, 200, 128 * KIB),
    "heads": (half_head, 200, 192 * KIB),
    "bodies": (half_body, 12, 256 * KIB),
    "chunks": (half_chunk, 12, 256 * KIB),
    "records": (half_record, 200, 64 * KIB),
    "responses": (unread, 20, 256 * KIB),
    "relays": (relayed, 8, 256 * KIB),
    "h2 bodies": (half_bodies_in_h2, 10, 2 * MIB),
}


@pytest.mark.parametrize("what", HALVES)
def test_halves_are_bounded(target: Target, what: str) -> None:
    opening, count, each = HALVES[what]
    with target.watched(count * each + 4 * MIB), contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(opening(target.addresses["brief"], target.ca))
        target.serves("brief")
    eventually(lambda: active(target, "brief") == 0, 30)


# --- upstreams


def ask(target: Target, path: str, at_once: int, rounds: int) -> Counter[int]:
    """The statuses of so many clients' requests; others are served meanwhile."""
    found: Counter[int] = Counter()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Http1.open(target.addresses["edge"], target.ca)) for _ in range(at_once)]
        for _ in range(rounds):
            for client in clients:
                client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            target.serves()
            found.update(client.response().status for client in clients)
    return found


@pytest.mark.parametrize(
    ("path", "status", "rounds"), [("/refused", 502, 10), ("/hasty", 502, 10), ("/silent", 504, 1), ("/full", 504, 1)]
)
def test_upstreams_that_are_none(target: Target, path: str, status: int, rounds: int) -> None:
    before = files(target)
    with target.watched():
        assert ask(target, path, 50, rounds) == {status: 50 * rounds}
        eventually(lambda: target.gateway.metric("mitu_upstream_requests_active") == 0)
        eventually(lambda: files(target) <= before + 8)


def unshared(*kinds: str) -> list[str]:
    """In front of a command that has namespaces of its own."""
    words = ["unshare", "--map-root-user", *kinds]
    if shutil.which("unshare") is None or run([*words, "true"]).returncode:
        pytest.skip("namespaces are missing: the kernel has to allow them to this user")
    return words


def test_ports_run_out() -> None:
    """Those for connections to one upstream. Whoever wants another is told, and everything else goes on."""
    tests = Path(__file__).parents[1]
    command = [*unshared("--net"), "env", f"PYTHONPATH={tests}", sys.executable, "-m", "attack.few_ports"]
    told = json.loads(output(command).splitlines()[-1])
    refused = few_ports.REQUESTS - few_ports.PORTS
    assert told == {"refused": {"502": refused}, "meanwhile": 200, "errors": refused}


def test_a_disk_runs_out() -> None:
    """The access log's, of 64 KiB. Lines are lost and counted, requests are not."""
    mounted = 'mkdir log && mount -t tmpfs -o size=64k none log && exec "$@"'

    def logged(site: Site) -> Settings:
        return settings(site) | {"logging": {"access": {"path": "log/access.log"}}}

    with attacked(logged, wrapper=[*unshared("--mount"), "sh", "-c", mounted, "sh"]) as small:

        def lost() -> float:
            return small.gateway.metric("mitu_access_log_dropped_total", reason="write_failed")

        # Only the gateway sees that disk.
        folder = small.gateway.folder
        log = Path(f"/proc/{small.gateway.program.pid}/root", *folder.parts[1:], "log", "access.log")
        with small.watched(), Http1.open(small.addresses["edge"], small.ca) as client:
            for _ in range(300):
                assert client.request("/health?" + "x" * 500).status == 200
            assert eventually(lost)
            reload(small)
            written = eventually(lambda: log.read_text().count("\n"))
            eventually(lambda: written + lost() == 300)
            os.truncate(log, 0)
            before = lost()
            assert client.request("/health").status == 200
            assert eventually(lambda: log.read_text().endswith("\n"))
            assert lost() == before


# --- the process


def test_killed_while_it_is_busy_and_started_again() -> None:
    """On the same ports, TCP and UDP, which nobody has had the time to close."""

    def fixed(site: Site) -> Settings:
        made = settings(site)
        for one in made["listeners"]:
            one["bind"] = f"127.0.0.1:{free_port()}"
        return made

    with attacked(fixed) as target, contextlib.ExitStack() as stack:
        for kind in KINDS:
            stack.enter_context(crowd(kind, 8, target.addresses["edge"], target.ca))
        target.gateway.program.signal(signal.SIGKILL)
        assert target.gateway.program.wait() == -signal.SIGKILL
        target.gateway.restart()
        target.serves()
        assert h3.get(target.addresses["edge"], target.ca, "/health").status == 200


def test_it_is_one_process(target: Target) -> None:
    """There is no other one that could be killed, and leave it half alive."""
    children = Path(f"/proc/{target.gateway.program.pid}/task").glob("*/children")
    assert "".join(file.read_text() for file in children) == ""


def test_many_reloads_leave_nothing(target: Target, record_property: Callable[[str, object], None]) -> None:
    """With a listener and an upstream that come and go, and a connection that outlives each configuration."""
    first = current(target)
    second = json.loads(json.dumps(first))
    second["listeners"].append({**second["listeners"][0], "name": "extra"})
    second["upstreams"].append(upstream("another", "127.0.0.1:1"))

    def reloads(count: int) -> None:
        for number in range(count):
            with Http1.open(target.addresses["edge"], target.ca) as client:
                assert client.request("/").status == 200
                target.gateway.apply((second, first)[number % 2])
                assert client.request("/").status == 200
        eventually(lambda: active(target) == 0)

    with target.watched():
        reloads(10)
        eventually(lambda: target.gateway.metric("mitu_connections_active") == 0)
        held, running, memory = files(target), threads(target), target.pressure.resident()
        begun = time.monotonic()
        reloads(30)
        record_property("seconds for a reload", (time.monotonic() - begun) / 30)
        eventually(lambda: files(target) <= held + 2)
        # Python's pool of threads grows as it likes, to a few; a thread for each reload would be thirty.
        assert threads(target) < running + 10
        grown = target.pressure.resident() - memory
        record_property("MiB more by 30 reloads", grown / MIB)
        assert grown < 6 * MIB
