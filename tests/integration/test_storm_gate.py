"""The gate in front of handshakes: whom it limits, whom it sheds, and who does not notice."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest

from support.bench import bench, url
from support.certificates import Authority, Pair
from support.gateway import Gateway, Settings, configuration, health, listener
from support.net import eventually

from .conftest import Start

FAILURES = "mitu_tls_handshake_failures_total"
CPU_BOUND = {"runtime": {"workers": 1}}


def start(gateway: Start, edge: Pair, **handshakes: object) -> Gateway:
    return gateway(settings(edge, **handshakes))


def settings(edge: Pair, **handshakes: object) -> Settings:
    return configuration([listener(edge, routes=[health()])], handshakes=handshakes, **CPU_BOUND)


@pytest.fixture
def trust(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.certificate))


def connects(gateway: Gateway, trust: ssl.SSLContext, source: str = "127.0.0.1", name: str = "localhost") -> bool:
    """Whether a handshake from `source` is finished; false: it was reset."""
    # Wrapped before it is connected, since one that is reset while it is wrapped is left open.
    with trust.wrap_socket(socket.socket(), server_hostname=name) as client:
        client.settimeout(30)
        client.bind((source, 0))
        try:
            client.connect(gateway.address())
        except (ConnectionResetError, BrokenPipeError):
            return False
        return True


def test_a_source_has_its_rate(gateway: Start, edge: Pair, trust: ssl.SSLContext) -> None:
    one = start(gateway, edge, source_rate={"per_second": 1, "burst": 3}, ipv4_prefix=16)
    # A slow machine may take long enough for another token.
    assert [connects(one, trust) for _ in range(3)] == [True] * 3
    refused = sum(not connects(one, trust) for _ in range(20))
    assert refused >= 15
    assert not connects(one, trust, "127.0.200.1") or not connects(one, trust, "127.0.200.1")
    assert connects(one, trust, "127.9.0.1")
    eventually(lambda: one.metric(FAILURES, reason="rate_limited") >= refused)
    # Without the limit, at once.
    one.apply(settings(edge))
    assert all(connects(one, trust) for _ in range(10))


def test_a_server_name_has_its_rate(gateway: Start, edge: Pair, trust: ssl.SSLContext) -> None:
    one = start(gateway, edge, server_name_rate={"per_second": 1, "burst": 2})
    assert [connects(one, trust, name="localhost") for _ in range(2)] == [True] * 2
    assert sum(not connects(one, trust, name="localhost") for _ in range(20)) >= 15
    assert connects(one, trust, name="edge.test")


def test_who_would_wait_for_too_long_is_reset_and_others_are_served(
    gateway: Start, edge: Pair, trust: ssl.SSLContext
) -> None:
    """A flood from one network, more than `patience` has time for, and a client from another."""
    one = start(gateway, edge, patience="20ms")
    flood = threading.Thread(
        target=bench, args=("handshake", url(one), "--duration", "4s", "-c", 400, "--sources", "127.1.0.0/30")
    )
    flood.start()
    try:
        eventually(lambda: one.metric(FAILURES, reason="shed") > 0)
        # Its begin is in the log, and how it stands in the status.
        eventually(lambda: "handshake storm:" in one.program.log)
        assert one.status()["handshakes"]["shed"] > 0
        # Its share is one of two networks; on a machine that stalls for longer than the patience it may have bad luck.
        served = sum(connects(one, trust, "127.9.0.1") for _ in range(10))
    finally:
        flood.join()
    assert served >= 5
    # Quiet again: nobody waits, nobody is shed.
    eventually(lambda: one.metric("mitu_tls_handshakes_waiting") == 0)
    eventually(lambda: "the handshake storm is over" in one.program.log)
    before = one.metric(FAILURES, reason="shed")
    assert one.status()["handshakes"] == {"waiting": 0, "shed": before}
    assert f"{before:.0f} shed since the start" in one.mitu("status").stdout
    assert all(connects(one, trust) for _ in range(10))
    assert one.metric(FAILURES, reason="shed") == before


def test_a_full_queue_sheds_too(gateway: Start, edge: Pair) -> None:
    one = start(gateway, edge, queue=4)
    outcome = bench("handshake", url(one), "--duration", "3s", "-c", 200)["outcome"]
    assert outcome["completed"] > 0
    assert one.metric(FAILURES, reason="shed") > 0
