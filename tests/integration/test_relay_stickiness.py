"""MQTT devices that come back to the broker that has their session, by what their CONNECT says."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.certificates import Authority, Pair
from support.client import Http1, connect, context
from support.gateway import Gateway, Settings, configuration, listener, upstream
from support.mqtt import Session, length
from support.net import eventually, free_port, wait_for_port
from support.process import Program, output
from support.servers import Loop, echo

from .conftest import Serve, Start

STICKY = {"balancer": {"hash": "mqtt_client_id"}}
DEVICES = [f"device-{number:02}" for number in range(30)]


@dataclass
class Broker:
    """A real one of its own, which knows its name: it is what is retained under `broker`."""

    name: str
    port: int
    folder: Path
    program: Program

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @classmethod
    def start(cls, name: str, folder: Path, port: int) -> Broker:
        executable = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        assert executable is not None
        file = folder / f"{name}.conf"
        file.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\n")
        broker = cls(name, port, folder, Program([executable, "-c", file], folder / f"{name}.log"))
        wait_for_port(port)
        broker.publish("broker", name, "-r")
        return broker

    def publish(self, topic: str, message: str, *flags: str) -> None:
        output(["mosquitto_pub", "-h", "127.0.0.1", "-p", self.port, "-q", "1", "-t", topic, "-m", message, *flags])


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[list[Broker]]:
    started = [Broker.start(name, tmp_path, free_port()) for name in ("one", "two", "three")]
    yield started
    for broker in started:
        broker.program.stop()


def relaying(edge: Pair, *endpoints: str, **settings: object) -> Settings:
    protocols = [{"alpn": "mqtt", "relay": "broker"}]
    one = listener(edge, protocols=protocols, no_alpn="refuse", **settings)
    return configuration([one], upstream("broker", *endpoints, **STICKY))


def broker_of(gateway: Gateway, ca: Path, device: str | None, version: str = "mqttv311") -> str:
    """The name of the broker that a real client is relayed to, which connects and leaves."""
    to = ("-h", "localhost", "-p", gateway.address()[1], "--cafile", ca, "--tls-alpn", "mqtt")
    who = () if device is None else ("-i", device)
    return output(["mosquitto_sub", *to, *who, "-V", version, "-t", "broker", "-C", "1", "-W", "10"]).strip()


def brokers_of(gateway: Gateway, ca: Path, version: str = "mqttv311") -> dict[str, str]:
    """The same for all devices."""
    with ThreadPoolExecutor(6) as pool:
        return dict(zip(DEVICES, pool.map(lambda one: broker_of(gateway, ca, one, version), DEVICES), strict=True))


@pytest.mark.needs("mosquitto")
@pytest.mark.needs("mosquitto_pub")
class TestBrokers:
    def test_devices_come_back_to_their_broker(
        self, gateway: Start, authority: Authority, edge: Pair, brokers: list[Broker]
    ) -> None:
        """Whichever version of MQTT they speak, and whatever was relayed between."""
        running = gateway(relaying(edge, *(broker.endpoint for broker in brokers)))
        ca = authority.certificate
        versions = ("mqttv31", "mqttv311", "mqttv5")
        found = [brokers_of(running, ca, version) for version in versions]
        assert found[0] == found[1] == found[2]
        assert set(found[0].values()) == {"one", "two", "three"}
        # Without a name of their own they are told apart by their address, which is one here.
        assert len({broker_of(running, ca, None, version) for version in versions[1:] for _ in range(4)}) == 1

    def test_a_session_is_found_again(
        self, gateway: Start, authority: Authority, edge: Pair, brokers: list[Broker], clients: Loop
    ) -> None:
        running = gateway(relaying(edge, *(broker.endpoint for broker in brokers)))
        address, tls = running.address(), context(authority.certificate, ["mqtt"])
        for device in DEVICES[:6]:
            session = clients.run(Session.open(address, tls, device, clean=False))
            assert not session.is_present
            clients.run(session.subscribe(f"to/{device}"))
            clients.run(session.close())
        for broker in brokers:
            for device in DEVICES[:6]:
                broker.publish(f"to/{device}", f"kept by {broker.name}")
        for device in DEVICES[:6]:
            session = clients.run(Session.open(address, tls, device, clean=False))
            assert session.is_present
            topic, message = clients.run(session.inbox.get())
            assert (topic, message[:8]) == (f"to/{device}", b"kept by ")
            clients.run(session.close())

    def test_a_broker_that_is_down_is_stood_in_for(
        self, gateway: Start, authority: Authority, edge: Pair, brokers: list[Broker], tmp_path: Path
    ) -> None:
        """Always by the same one for a device, and devices of other brokers stay where they are."""
        running = gateway(relaying(edge, *(broker.endpoint for broker in brokers)))
        ca = authority.certificate
        before = brokers_of(running, ca)
        brokers[0].program.stop()
        without = brokers_of(running, ca)
        assert without == brokers_of(running, ca)
        assert "one" not in without.values()
        assert all(without[device] == broker for device, broker in before.items() if broker != "one")
        brokers[0] = Broker.start("one", tmp_path, brokers[0].port)
        assert eventually(lambda: brokers_of(running, ca) == before, 60)


def packet(client: bytes, *, properties: bytes | None = None) -> bytes:
    """A CONNECT, of MQTT 5 where there are properties."""
    version = 4 if properties is None else 5
    body = b"\0\4MQTT" + struct.pack("!BBH", version, 0b10, 60)
    if properties is not None:
        body += length(len(properties)) + properties
    body += struct.pack("!H", len(client)) + client
    return b"\x10" + length(len(body)) + body


def test_every_byte_is_passed_on_as_it_came(gateway: Start, authority: Authority, edge: Pair, serve: Serve) -> None:
    mirrors = [serve(echo), serve(echo)]
    running = gateway(relaying(edge, *(mirror.endpoint for mirror in mirrors)))
    properties = b"\x26\0\1a\x0f\xa0" + b"v" * 4000
    behind = os.urandom(100_000)
    for sent in (packet(b"device") + behind, packet(b"d" * 300, properties=properties) + behind, packet(b"")):
        with connect(running.address(), context(authority.certificate, ["mqtt"])) as stream:
            # In pieces at first: the identifier may come late.
            for at in range(24):
                stream.sendall(sent[at : at + 1])
            stream.sendall(sent[24:])
            assert Http1(stream).exactly(len(sent)) == sent
    assert sum(mirror.accepted for mirror in mirrors) == 3


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "not_mqtt"),
        (b"\xc0\0", "not_mqtt"),
        (b"\x10\x0c\0\4MQTT\x04\x02\0\x3c\0\x08device-1", "not_mqtt"),
        (packet(b"device", properties=b"p" * 20_000), "not_mqtt"),
        (packet(b"device")[:10], "mqtt_timeout"),
        (b"", "mqtt_timeout"),
    ],
)
def test_what_is_no_connect_reaches_no_broker(
    gateway: Start, authority: Authority, edge: Pair, serve: Serve, sent: bytes, reason: str
) -> None:
    broker = serve(echo)
    running = gateway(relaying(edge, broker.endpoint, timeouts={"handshake": "1s"}))
    with connect(running.address(), context(authority.certificate, ["mqtt"])) as stream:
        stream.sendall(sent)
        assert Http1(stream).closed()
    assert eventually(lambda: running.metric("mitu_relay_ends_total", alpn="mqtt", reason=reason) == 1)
    assert broker.accepted == 0
    # And one that goes away before it has said anything is waited for no longer.
    connect(running.address(), context(authority.certificate, ["mqtt"])).close()
    assert eventually(lambda: running.metric("mitu_connections_active") == 0)
    assert broker.accepted == 0


def test_what_comes_as_one_packet_is_not_waited_behind(
    gateway: Start, authority: Authority, edge: Pair, serve: Serve
) -> None:
    """A broker that is silent until it has heard more gets what has come so far."""
    broker = serve(echo)
    running = gateway(relaying(edge, broker.endpoint))
    whole = packet(b"device") + b"\xc0\0"
    with connect(running.address(), context(authority.certificate, ["mqtt"])) as stream:
        stream.sendall(whole[:-1])
        assert Http1(stream).exactly(len(whole) - 1) == whole[:-1]
        stream.sendall(whole[-1:])
        assert Http1(stream).exactly(1) == whole[-1:]
