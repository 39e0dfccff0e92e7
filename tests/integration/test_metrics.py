"""`/metrics` as Prometheus reads it: well-formed, well-named, and true."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator, Sequence

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from support.certificates import Authority, Pair
from support.client import Http1, connect, context
from support.gateway import Gateway, Settings, configuration, health, listener, parse, to_app, upstream
from support.h2 import Http2
from support.net import eventually, free_port
from support.servers import Server, echo

from .conftest import Serve, Start

STAGES = ("accept_wait", "client_hello", "select", "gate", "crypto", "client_flight", "total")
HANDSHAKE = "mitu_tls_handshake_duration_seconds"


@pytest.fixture(scope="module")
def other(authority: Authority) -> Pair:
    return authority.issue("metrics-other", ("other.test",), key="p384")


@pytest.fixture
def running(gateway: Start, edge: Pair, edge_rsa: Pair, other: Pair, app: Server, serve: Serve) -> Gateway:
    protocols = ["h2", "http/1.1", {"alpn": "echo", "relay": "echo"}]
    settings = configuration(
        [listener([edge, edge_rsa, other], protocols=protocols, routes=[health(), to_app()])],
        upstream("app", app.endpoint),
        upstream("echo", serve(echo).endpoint),
    )
    return gateway(settings)


def families(gateway: Gateway) -> Iterator[Metric]:
    return iter(text_string_to_metric_families(gateway.metrics()))


def handshake(
    gateway: Gateway,
    ca: Authority,
    offered: Sequence[str] | None,
    *,
    name: str = "localhost",
    version: ssl.TLSVersion | None = None,
    ciphers: str | None = None,
) -> None:
    tls = context(ca.certificate, offered, version=version)
    if ciphers is not None:
        tls.set_ciphers(ciphers)
    connect(gateway.address(), tls, name=name).close()


def exercise(gateway: Gateway, authority: Authority) -> None:
    """Something of everything, the failures included."""
    ca = authority.certificate
    with Http1.open(gateway.address(), ca) as client:
        assert client.request("/health").status == 200
        assert client.request("/else", method="POST", body=b"x" * 100).status == 200
        assert client.request("/health", headers=[("Host", "twice")]).status == 400
    with Http2.open(gateway.address(), ca) as h2:
        assert h2.get("/health").status == 200
    with connect(gateway.address(), context(ca, ["echo"])) as relay:
        relay.sendall(b"hello")
        assert Http1(relay).exactly(5) == b"hello"
    with contextlib.suppress(ssl.SSLError):
        handshake(gateway, authority, ["spdy/3.1"])


def test_it_is_what_prometheus_expects(running: Gateway, authority: Authority) -> None:
    exercise(running, authority)
    running.admin("/reload", "POST")
    text = running.metrics()
    assert text.endswith("\n")
    names = []
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert re.fullmatch(r"mitu_[a-z][a-z0-9_]*", family.name)
        names.append(family.name)
        for sample in family.samples:
            assert all(re.fullmatch(r"[a-z][a-z_]*", label) for label in sample.labels), sample
            assert "\n" not in "".join(sample.labels.values())
    assert len(names) == len(set(names))
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        assert name.endswith("_total") == (kind == "counter"), name
        assert name.endswith("_seconds") or kind != "histogram", name
    helped = set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE))
    typed = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert helped == typed
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series)), "a series is there twice"


def test_histograms_add_up(running: Gateway, authority: Authority) -> None:
    exercise(running, authority)
    found = 0
    for family in families(running):
        if family.type != "histogram":
            continue
        buckets: dict[tuple[tuple[str, str], ...], list[float]] = {}
        counts = {}
        for sample in family.samples:
            labels = tuple(sorted(item for item in sample.labels.items() if item[0] != "le"))
            if sample.name.endswith("_bucket"):
                buckets.setdefault(labels, []).append(sample.value)
            elif sample.name.endswith("_count"):
                counts[labels] = sample.value
        for labels, values in buckets.items():
            assert values == sorted(values)
            assert values[-1] == counts[labels]
            found += 1
    assert found > 10


def count(gateway: Gateway, **labels: str) -> float:
    return gateway.metric(f"{HANDSHAKE}_count", listener="edge", **labels)


def test_each_stage_of_a_handshake_is_timed(running: Gateway, authority: Authority) -> None:
    with Http1.open(running.address(), authority.certificate) as client:
        client.request("/health")
    kind = {
        "alpn": "http/1.1", "version": "TLSv1.3", "resumed": "false", "key_type": "ecdsa-p256", "site": "localhost",
    }  # fmt: skip
    seconds = {stage: running.metric(f"{HANDSHAKE}_sum", stage=stage, **kind) for stage in STAGES}
    assert [count(running, stage=stage, **kind) for stage in STAGES] == [1] * len(STAGES)
    assert all(0 <= one < 10 for one in seconds.values())
    assert seconds["crypto"] > 0
    assert seconds["total"] >= sum(seconds[stage] for stage in STAGES[:-1]) * 0.99
    # And nothing was counted elsewhere.
    assert count(running) == len(STAGES)


def test_handshakes_are_told_apart(running: Gateway, authority: Authority) -> None:
    """By protocol, version, key type, the set of server names, and whether they resumed."""
    two, three = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    handshake(running, authority, ["h2"], version=three)
    handshake(running, authority, ["echo"], version=three)
    handshake(running, authority, ["http/1.1"], version=two, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    handshake(running, authority, ["http/1.1"], version=two, ciphers="ECDHE-RSA-AES128-GCM-SHA256")
    handshake(running, authority, ["h2"], name="other.test")
    total = {"stage": "total"}
    assert eventually(lambda: count(running, **total) == 5)
    local = {"site": "localhost", **total}
    assert count(running, alpn="h2", version="TLSv1.3", key_type="ecdsa-p256", **local) == 1
    assert count(running, alpn="echo", version="TLSv1.3", key_type="ecdsa-p256", **local) == 1
    assert count(running, alpn="http/1.1", version="TLSv1.2", key_type="ecdsa-p256", **local) == 1
    assert count(running, alpn="http/1.1", version="TLSv1.2", key_type="rsa", **local) == 1
    assert count(running, alpn="h2", key_type="ecdsa-p384", site="other.test", **total) == 1
    assert count(running, resumed="true") == 0


def test_resumed_handshakes_are_told_apart(running: Gateway, authority: Authority) -> None:
    tls = context(authority.certificate, version=ssl.TLSVersion.TLSv1_3)
    with connect(running.address(), tls) as first:
        assert Http1(first).request("/health").status == 200
        session = first.session
    tcp = socket.create_connection(running.address(), timeout=10)
    with tls.wrap_socket(tcp, server_hostname="localhost", session=session) as second:
        assert second.session_reused
        assert Http1(second).request("/health").status == 200
    for resumed in ("false", "true"):
        assert count(running, stage="total", resumed=resumed) == 1
        assert count(running, stage="crypto", resumed=resumed) == 1


def decisions(gateway: Gateway, offered: str, chosen: str) -> float:
    return gateway.metric("mitu_alpn_decisions_total", listener="edge", offered=offered, chosen=chosen)


def test_what_was_offered_and_what_was_chosen(running: Gateway, authority: Authority) -> None:
    for _ in range(3):
        handshake(running, authority, ["http/1.1", "h2"])
    handshake(running, authority, ["private/7", "http/1.1"])
    handshake(running, authority, None)
    for _ in range(2):
        with pytest.raises(ssl.SSLError):
            handshake(running, authority, ["private/8", "private/7"])
    # The order that a client offers in makes no difference to what is counted.
    handshake(running, authority, ["h2", "http/1.1"])
    assert eventually(lambda: decisions(running, "h2,http/1.1", "h2") == 4)
    assert decisions(running, "http/1.1,other", "http/1.1") == 1
    assert decisions(running, "absent", "http/1.1") == 1
    assert decisions(running, "other", "refused") == 2
    assert running.metric("mitu_alpn_decisions_total") == 8
    failures = running.metric("mitu_tls_handshake_failures_total", listener="edge", reason="no_application_protocol")
    assert failures == 2


def test_the_cache_of_decisions(running: Gateway, authority: Authority) -> None:
    def result(kind: str) -> float:
        return running.metric("mitu_alpn_cache_total", listener="edge", result=kind)

    for offered in (["h2"], ["h2"], ["h2"], ["http/1.1"], ["http/1.1"], ["h2", "http/1.1"]):
        handshake(running, authority, offered)
    assert eventually(lambda: result("hit") + result("miss") == 6)
    assert (result("miss"), result("hit")) == (3, 3)


def test_requests_and_connections(running: Gateway, authority: Authority, app: Server) -> None:
    exercise(running, authority)
    edge = {"listener": "edge"}
    assert eventually(lambda: running.metric("mitu_connections_active", **edge) == 0)
    assert running.metric("mitu_connections_accepted_total", **edge) == 4
    found = parse(running.metrics())
    statuses = {
        (labels["route"], labels["protocol"], labels["status"]): value
        for labels, value in found["mitu_http_requests_total"]
    }
    assert statuses["/health", "h1", "200"] == 1
    assert statuses["/health", "h2", "200"] == 1
    assert sum(value for (_, _, status), value in statuses.items() if status == "400") == 1
    assert sum(statuses.values()) == 4
    errors = {(labels["side"], labels["reason"]): value for labels, value in found["mitu_http_errors_total"]}
    assert errors == {("downstream", "bad_host"): 1}
    assert running.metric("mitu_http_body_bytes_total", direction="received", **edge) == 100
    assert running.metric("mitu_relay_bytes_total", alpn="echo", direction="sent", **edge) == 5
    assert running.metric("mitu_relay_bytes_total", alpn="echo", direction="received", **edge) == 5
    endpoint = {"upstream": "app", "endpoint": app.endpoint}
    assert running.metric("mitu_upstream_connects_total", **endpoint) == 1
    assert running.metric("mitu_upstream_requests_active", **endpoint) == 0


def test_no_client_can_make_a_series(running: Gateway, authority: Authority) -> None:
    """Names that clients choose freely never become labels: their number is bounded by the configuration."""
    ca = authority.certificate
    for number in range(40):
        with contextlib.suppress(ssl.SSLError):
            handshake(running, authority, [f"made-up/{number}", "http/1.1"], name="localhost")
        tls = context(ca)
        tls.check_hostname = False
        with Http1(connect(running.address(), tls, name=f"made-up-{number}.test")) as client:
            client.request(f"/made-up/{number}", method="MADEUP", host=f"made-up-{number}.test")
    text = running.metrics()
    assert "made-up" not in text.lower()
    assert "MADEUP" not in text
    assert decisions(running, "http/1.1,other", "http/1.1") == 40


def test_reloads_are_counted(running: Gateway, edge: Pair) -> None:
    def results() -> tuple[float, float, float]:
        kinds = (running.metric("mitu_config_reloads_total", result=result) for result in ("success", "failure"))
        return (*kinds, running.metric("mitu_config_last_reload_successful"))  # type: ignore[return-value]

    stamp = "mitu_config_last_reload_success_timestamp_seconds"
    assert results() == (0, 0, 1)
    before = running.metric(stamp)
    assert before == pytest.approx(running.status()["config"]["loaded_at"], abs=0.01)
    running.admin("/reload", "POST")
    assert results() == (1, 0, 1)
    after = running.metric(stamp)
    assert after > before
    bad: Settings = configuration([listener(edge, routes=[to_app()])])
    running.write(bad)
    running.admin("/reload", "POST")
    assert results()[1:] >= (1, 0)
    assert running.metric(stamp) == after


def test_a_listener_that_is_gone_keeps_its_counters(gateway: Start, authority: Authority, edge: Pair) -> None:
    """A counter that vanished and came back would look like a restart."""
    second = listener(edge, name="second", routes=[health()], bind=f"127.0.0.1:{free_port()}")
    running = gateway(configuration([listener(edge, routes=[health()]), second]), flags=["--no-watch"])
    for _ in range(2):
        connect(running.address("second"), context(authority.certificate)).close()
    assert eventually(lambda: running.metric("mitu_connections_accepted_total", listener="second") == 2)
    running.apply(configuration([listener(edge, routes=[health()])]))
    assert running.metric("mitu_connections_accepted_total", listener="second") == 2
