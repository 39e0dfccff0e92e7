"""The check `mqtt`, of mosquitto; and of servers that answer what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from integration.conftest import Serve
from mitu.discovery.checks import Check, Verdict
from support.certificates import Authority, Pair
from support.net import eventually, free_port, wait_for_port
from support.process import Program
from support.programs import which
from support.servers import Reader, Writer

from .checked_servers import settings, trusting

GOOD = Verdict(True)


@dataclass(frozen=True)
class Broker:
    program: Program
    plain: str
    secure: str
    closed: str
    """Where only known users are let in."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, edge: Pair) -> Iterator[Broker]:
    program = which("mosquitto")
    if program is None:
        pytest.skip("mosquitto is missing: apt-get install mosquitto")
    folder = tmp_path_factory.mktemp("mosquitto")
    plain, secure, closed = (free_port() for _ in range(3))
    file = folder / "mosquitto.conf"
    file.write_text(
        "per_listener_settings true\npersistence false\nlog_type all\nuser root\n"
        f"listener {plain} 127.0.0.1\nallow_anonymous true\n"
        f"listener {secure} 127.0.0.1\nallow_anonymous true\ncertfile {edge.certificate}\nkeyfile {edge.key}\n"
        f"listener {closed} 127.0.0.1\nallow_anonymous false\n"
    )
    with Program([program, "-c", file], folder / "log") as running:
        for port in (plain, secure, closed):
            wait_for_port(port)
        yield Broker(running, *(f"127.0.0.1:{port}" for port in (plain, secure, closed)))


@pytest.mark.needs("mosquitto")
class TestMosquitto:
    async def test_a_session_begins_and_ends_in_order(self, broker: Broker) -> None:
        before = broker.program.log.count(" disconnected.")
        assert await Check(settings("mqtt")).run(broker.plain) == GOOD
        assert eventually(lambda: broker.program.log.count(" disconnected.") == before + 1), broker.program.log
        (*_, line) = [line for line in broker.program.log.splitlines() if "New client connected" in line]
        assert "as mitu" in line
        assert "(p2, c1, k60)" in line, "MQTT 3.1.1, a clean session"

    async def test_each_check_is_a_client_of_its_own(self, broker: Broker) -> None:
        check = Check(settings("mqtt"))
        for _ in range(5):
            assert await check.run(broker.plain) == GOOD
        lines = [line for line in broker.program.log.splitlines() if "New client connected" in line][-5:]
        assert len({line.partition(" as ")[2].split()[0] for line in lines}) == 5

    async def test_over_tls(self, broker: Broker, authority: Authority) -> None:
        assert await Check(settings("mqtt"), tls=trusting(authority)).run(broker.secure) == GOOD
        assert not (await Check(settings("mqtt")).run(broker.secure)).good

    async def test_one_that_wants_credentials_works(self, broker: Broker) -> None:
        assert await Check(settings("mqtt")).run(broker.closed) == Verdict(True, "not authorized")


ANSWERS = {
    b"\x20\x02\x00\x00": Verdict(True),
    b"\x20\x02\x00\x01": Verdict(False, "refused: unacceptable protocol version"),
    b"\x20\x02\x00\x02": Verdict(False, "refused: identifier rejected"),
    b"\x20\x02\x00\x03": Verdict(False, "refused: server unavailable"),
    b"\x20\x02\x00\x04": Verdict(True, "bad user name or password"),
    b"\x20\x02\x00\x88": Verdict(False, "refused: return code 136"),
    b"\x20\x03\x00\x00\x00": Verdict(False, "not MQTT 3.1.1"),
    b"HTTP/1.1 400 Bad Request\r\n\r\n": Verdict(False, "not MQTT 3.1.1"),
    b"\x20\x02\x00": Verdict(False, "closed within its answer"),
    b"": Verdict(False, "closed without an answer"),
    bytes(10 << 20): Verdict(False, "not MQTT 3.1.1"),
}


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.items(), ids=range(len(ANSWERS)))
async def test_answers(serve: Serve, answer: bytes, expected: Verdict) -> None:
    async def say(reader: Reader, writer: Writer) -> None:
        await reader.readexactly(2 + 10 + 22)
        writer.write(answer)
        await writer.drain()

    assert await Check(settings("mqtt")).run(serve(say).endpoint) == expected
