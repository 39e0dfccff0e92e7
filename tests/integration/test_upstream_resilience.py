"""Endpoints that fail in every way there is: found out, left alone, and taken back; and what clients see of it."""

from __future__ import annotations

import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from support.certificates import Authority, Pair
from support.client import Http1, Response, request
from support.failing import Endpoint, Way
from support.gateway import Gateway, Settings, configuration, listener, to_app, upstream
from support.net import eventually
from support.servers import Loop

from .conftest import Start

FAILED = "failed"
DETECTION: Settings = {"consecutive_failures": 3, "ejection": "4s", "max_ejection": "4s"}
TRY = {"try_timeout": "1s"}
"""Shorter than "slow" is, and longer than any endpoint that is well takes on a busy machine."""

Make = Callable[..., Endpoint]
Connect = Callable[[Gateway], "Client"]


@pytest.fixture
def endpoint(loop: Loop) -> Iterator[Make]:
    """Makes endpoints that end with the test."""
    made: list[Endpoint] = []

    def make(name: str, **options: Any) -> Endpoint:
        made.append(Endpoint(loop, name, **options))
        return made[-1]

    yield make
    for one in made:
        one.server.stop()


@pytest.fixture
def client(authority: Authority) -> Iterator[Connect]:
    """Makes clients whose connections end with the test."""
    made: list[Client] = []

    def make(gateway: Gateway) -> Client:
        made.append(Client(gateway, authority))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Client:
    """Requests one by one on one connection, as long as it lasts."""

    def __init__(self, gateway: Gateway, authority: Authority) -> None:
        self._address, self._ca = gateway.address(), authority.certificate
        self._open: Http1 | None = None

    def ask(self, method: str = "GET", **more: Any) -> Response:
        if self._open is None:
            self._open = Http1.open(self._address, self._ca, timeout=20)
        try:
            response = self._open.request("/", method=method, **more)
        except (OSError, EOFError):
            self.close()
            raise
        if response.header("connection") == "close":
            self.close()
        return response

    def outcome(self, method: str = "GET") -> str:
        """The name of the endpoint that answered, or that it failed."""
        try:
            response = self.ask(method)
        except (OSError, EOFError):
            return FAILED
        return response.body.decode() if response.status == 200 else FAILED

    def outcomes(self, count: int, method: str = "GET") -> Counter[str]:
        return Counter(self.outcome(method) for _ in range(count))

    def close(self) -> None:
        if self._open is not None:
            self._open.stream.close()
            self._open = None


def settings(edge: Pair, *endpoints: Endpoint, route: Settings | None = None, **more: Any) -> Settings:
    app = upstream("app", *(one.address for one in endpoints), **more)
    return configuration([listener(edge, routes=[to_app(**(route or {}))])], app)


def ejected(gateway: Gateway, endpoint: Endpoint) -> bool:
    return gateway.metric("mitu_upstream_ejected", endpoint=endpoint.address) == 1


@dataclass(frozen=True)
class Case:
    """A way to fail. `failures`: what clients see of it before it is found out, at most."""

    name: str
    begin: Callable[[Endpoint], None]
    end: Callable[[Endpoint], None]
    route: Settings
    retries: Settings
    failures: int = 0


def _behave(way: Way, delay: float = 0) -> Callable[[Endpoint], None]:
    def change(endpoint: Endpoint) -> None:
        endpoint.way, endpoint.delay = way, delay

    return change


def _well(endpoint: Endpoint) -> None:
    endpoint.way, endpoint.delay = "well", 0


CASES = [
    Case("refuse", Endpoint.refuse, Endpoint.listen, {}, {}),
    # Once a response has begun nothing can be done for its client.
    Case("reset mid-body", _behave("reset mid-body"), _well, {}, {}, failures=3),
    Case("hang", _behave("hang"), _well, TRY, {}),
    Case("slow", _behave("slow", 3), _well, TRY, {}),
    Case("503", _behave("503"), _well, {}, {"on": ["connect", "reset", 503]}),
    Case("half-close", _behave("half-close"), _well, {}, {}),
]


def follow(case: Case, gateway: Gateway, client: Client, endpoints: list[Endpoint]) -> None:
    """Through a failure of the last endpoint, from before to after."""
    failing, names = endpoints[-1], [one.name for one in endpoints]
    before = client.outcomes(30)
    assert before == dict.fromkeys(names, 10)

    case.begin(failing)
    until_ejected: Counter[str] = Counter()
    deadline = time.monotonic() + 30
    # One that lets nobody in is tried every two seconds.
    while not ejected(gateway, failing):
        until_ejected[client.outcome()] += 1
        assert time.monotonic() < deadline, (until_ejected, gateway.metrics())
    assert until_ejected[FAILED] <= case.failures, until_ejected
    assert until_ejected[failing.name] == 0

    after = client.outcomes(30)
    if ejected(gateway, failing) and gateway.metric("mitu_upstream_ejections_total") == 1:
        assert after.keys() == set(names[:-1]) and min(after.values()) >= 5, after

    case.end(failing)
    deadline = time.monotonic() + 30
    recovery: Counter[str] = Counter()
    while ejected(gateway, failing):
        recovery[client.outcome()] += 1
        assert time.monotonic() < deadline, gateway.metrics()
        time.sleep(0.02)
    assert recovery[FAILED] == 0, recovery
    assert client.outcomes(30) == dict.fromkeys(names, 10)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_endpoints_that_fail(gateway: Start, edge: Pair, endpoint: Make, client: Connect, case: Case) -> None:
    endpoints = [endpoint(name) for name in ("a", "b", "c")]
    more = {"outlier_detection": DETECTION, "retries": case.retries}
    running = gateway(settings(edge, *endpoints, route=case.route, **more))
    follow(case, running, client(running), endpoints)


def server_tls(pair: Pair, *alpn: str) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pair.certificate, pair.key)
    if alpn:
        made.set_alpn_protocols(list(alpn))
    return made


def test_an_endpoint_with_bad_tls(
    gateway: Start, edge: Pair, authority: Authority, endpoint: Make, client: Connect, tmp_path: Any
) -> None:
    good = server_tls(edge)
    bad = server_tls(Authority(tmp_path, "Nobody's CA").issue("edge", ("127.0.0.1",)))
    case = Case("bad TLS", lambda one: one.listen(bad), lambda one: one.listen(good), {}, {})
    endpoints = [endpoint(name, tls=good) for name in ("a", "b", "c")]
    tls = {"ca": str(authority.certificate)}
    running = gateway(settings(edge, *endpoints, tls=tls, outlier_detection=DETECTION))
    follow(case, running, client(running), endpoints)
    assert running.metric("mitu_upstream_connect_errors_total", reason="tls_failed") >= 3


def test_an_endpoint_with_another_protocol(
    gateway: Start, edge: Pair, authority: Authority, endpoint: Make, client: Connect
) -> None:
    good, bad = server_tls(edge, "h2"), server_tls(edge)
    case = Case("wrong ALPN", lambda one: one.listen(bad), lambda one: one.listen(good), {}, {})
    endpoints = [endpoint(name, tls=good) for name in ("a", "b", "c")]
    tls = {"ca": str(authority.certificate)}
    running = gateway(settings(edge, *endpoints, tls=tls, protocol="h2", outlier_detection=DETECTION))
    follow(case, running, client(running), endpoints)
    assert running.metric("mitu_upstream_connect_errors_total", reason="protocol_mismatch") >= 3


def test_what_changes_something_is_not_sent_twice(gateway: Start, edge: Pair, endpoint: Make, client: Connect) -> None:
    well, failing = endpoint("a"), endpoint("b")
    failing.way = "half-close"
    running = gateway(settings(edge, well, failing, route=TRY, outlier_detection=False))
    asker = client(running)
    assert asker.outcomes(10, "POST") == {"a": 5, FAILED: 5}
    failing.way = "hang"
    assert asker.outcomes(4, "POST") == {"a": 2, FAILED: 2}
    assert well.requests.count("POST") == 7 and failing.requests.count("POST") == 7
    # What never got there can be sent to the other.
    failing.refuse()
    assert asker.outcomes(10, "POST") == {"a": 10}


def test_detection_can_be_turned_off(gateway: Start, edge: Pair, endpoint: Make, client: Connect) -> None:
    endpoints = endpoint("a"), endpoint("b")
    endpoints[1].way = "503"
    running = gateway(settings(edge, *endpoints, outlier_detection=False))
    assert client(running).outcomes(40) == {"a": 20, FAILED: 20}
    assert running.metric("mitu_upstream_ejections_total") == 0


def test_one_whose_answers_end_with_their_clients_comes_back(
    gateway: Start, edge: Pair, authority: Authority, endpoint: Make, client: Connect
) -> None:
    """Events, watches, long polls: no response of theirs is ever whole."""
    a, b = endpoints = endpoint("a"), endpoint("b")
    b.way = "503"
    detection = {"consecutive_failures": 1, "ejection": "300ms"}
    running = gateway(settings(edge, *endpoints, outlier_detection=detection))
    asker = client(running)
    eventually(lambda: asker.outcome() == FAILED and ejected(running, b), 30)
    a.way = b.way = "stream"

    def well_again() -> bool:
        with Http1.open(running.address(), authority.certificate) as watching:
            watching.send(request("/"))
            assert watching.head().status == 200
            next(watching.chunks())
        return not ejected(running, b)

    eventually(well_again, 20)


def test_clients_that_are_slow_with_a_body_have_nobody_ejected(
    gateway: Start, edge: Pair, authority: Authority, endpoint: Make
) -> None:
    endpoints = endpoint("a"), endpoint("b")
    for one in endpoints:
        one.delay = 2.5
    detection = {"consecutive_failures": 1}
    running = gateway(settings(edge, *endpoints, outlier_detection=detection, route={"timeout": "3s"}))
    for _ in range(2):
        with Http1.open(running.address(), authority.certificate) as slow:
            slow.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n1")
            # Enough that the endpoint is late for the route, and well before that itself is.
            time.sleep(1)
            slow.send(b"2")
            assert slow.response().status == 504
    assert running.metric("mitu_upstream_response_errors_total", reason="response_timeout") == 2
    assert running.metric("mitu_upstream_ejections_total") == 0


def test_the_last_one_is_never_left_alone(gateway: Start, edge: Pair, endpoint: Make, client: Connect) -> None:
    only = endpoint("a")
    only.way = "503"
    running = gateway(settings(edge, only, outlier_detection={"max_ejected": "100%", "consecutive_failures": 1}))
    asker = client(running)
    assert asker.outcomes(10) == {FAILED: 10}
    only.way = "well"
    assert asker.outcomes(10) == {"a": 10}


def test_a_dead_upstream_gets_no_storm(gateway: Start, edge: Pair, endpoint: Make, client: Connect) -> None:
    endpoints = [endpoint(name) for name in ("a", "b")]
    for one in endpoints:
        one.way = "503"
    retries = {"attempts": 2, "budget": "20%", "min_per_second": 1, "on": [503]}
    running = gateway(settings(edge, *endpoints, retries=retries, outlier_detection=False))
    asker = client(running)
    begun = time.monotonic()
    assert asker.outcomes(300) == {FAILED: 300}
    seconds = time.monotonic() - begun
    tries = sum(len(one.requests) for one in endpoints)
    # Ten of them were there at the beginning, and one more comes with each second.
    assert 300 + 30 <= tries <= 300 + 60 + 11 + seconds, (tries, seconds)
    assert running.metric("mitu_upstream_retries_total", reason="status") == tries - 300
    assert running.metric("mitu_upstream_retries_refused_total", upstream="app") > 100


def test_tries_can_have_a_time_of_their_own(gateway: Start, edge: Pair, endpoint: Make, client: Connect) -> None:
    slow, well = endpoint("a"), endpoint("b")
    slow.way, slow.delay = "slow", 30
    route = {"timeout": "10s", "try_timeout": "1s"}
    running = gateway(settings(edge, slow, well, route=route, outlier_detection=False))
    asker = client(running)
    begun = time.monotonic()
    assert asker.outcomes(6) == {"b": 6}
    assert time.monotonic() - begun >= 2.9
    assert running.metric("mitu_upstream_retries_total", endpoint=slow.address, reason="timeout") == 3
    # Where there is no safe try left, it is 504 before the route's time.
    assert {asker.ask("POST").status for _ in range(2)} == {200, 504}


def test_hedged_requests(gateway: Start, edge: Pair, endpoint: Make, client: Connect) -> None:
    slow, fast = endpoint("slow"), endpoint("fast")
    slow.way = "held"
    running = gateway(settings(edge, slow, fast, hedge_after="500ms"))
    asker = client(running)
    assert asker.outcomes(8) == {"fast": 8}
    assert running.metric("mitu_upstream_retries_total", reason="hedge") == 4
    # The one that was not needed any more is not waited for.
    eventually(lambda: running.metric("mitu_upstream_requests_active") == 0)
    # What changes something is not hedged.
    slow.way, slow.delay = "slow", 1.5
    assert asker.outcomes(4, "DELETE") == {"slow": 2, "fast": 2}


def together(
    gateway: Gateway, authority: Authority, count: int, meanwhile: Callable[[], object] = bool
) -> list[Response]:
    """So many requests at once, each on a connection of its own. `meanwhile`: done before they have to be answered."""
    ready = threading.Barrier(count)

    def one(_: int) -> Response:
        with Http1.open(gateway.address(), authority.certificate, timeout=30) as client:
            ready.wait()
            return client.request("/")

    with ThreadPoolExecutor(count) as pool:
        responses = pool.map(one, range(count))
        meanwhile()
        return list(responses)


def until(what: Callable[[], bool], *endpoints: Endpoint) -> Callable[[], None]:
    """Has the endpoints answer when that is so; or when it has not become so in time."""

    def wait() -> None:
        try:
            eventually(what, 20)
        finally:
            for one in endpoints:
                one.way = "well"

    return wait


def busy(edge: Pair, workers: int, *endpoints: Endpoint, **more: Any) -> Settings:
    return settings(edge, *endpoints, **more) | {"runtime": {"workers": workers}}


def test_requests_have_a_limit(
    gateway: Start, edge: Pair, authority: Authority, endpoint: Make, client: Connect
) -> None:
    endpoints = [endpoint(name) for name in ("a", "b")]
    for one in endpoints:
        one.way = "held"
    running = gateway(busy(edge, 2, *endpoints, limits={"requests": 3}))

    def all_are_there() -> bool:
        refused = running.metric("mitu_upstream_overflows_total")
        return sum(one.busy for one in endpoints) + refused == 10

    responses = together(running, authority, 10, until(all_are_there, *endpoints))
    served = [one for one in responses if one.status == 200]
    refused = [one for one in responses if one.status == 503]
    assert (len(served), len(refused)) == (6, 4)
    assert all(one.body == b"503 Service Unavailable: overflow\n" for one in refused)
    assert all(one.header("retry-after") == "1" for one in refused)
    assert [one.most_busy for one in endpoints] == [3, 3]
    assert running.metric("mitu_upstream_overflows_total", upstream="app", limit="requests") == 4
    # What a request came to is counted once its response is written.
    assert eventually(lambda: running.metric("mitu_http_errors_total", reason="overflow") == 4)
    # It was the load, and no failure.
    assert running.metric("mitu_upstream_response_errors_total") == 0
    assert client(running).outcomes(4) == {"a": 2, "b": 2}


def test_connections_have_a_limit_and_are_waited_for(
    gateway: Start, edge: Pair, authority: Authority, endpoint: Make
) -> None:
    only = endpoint("a")
    only.delay = 0.1
    running = gateway(busy(edge, 2, only, limits={"connections": 2, "pending": 30}))
    responses = together(running, authority, 30)
    assert [one.status for one in responses] == [200] * 30
    assert (only.most_busy, only.server.accepted) == (2, 2), "no connection is kept from those that wait"
    assert running.metric("mitu_upstream_requests_pending") == 0
    # And none is lost.
    assert [one.status for one in together(running, authority, 10)] == [200] * 10
    assert only.server.accepted == 2


def test_those_that_wait_have_a_limit_too(gateway: Start, edge: Pair, authority: Authority, endpoint: Make) -> None:
    only = endpoint("a")
    only.way = "held"
    running = gateway(busy(edge, 2, only, limits={"connections": 1, "pending": 2}))

    def all_are_there() -> bool:
        waiting = running.metric("mitu_upstream_requests_pending")
        return only.busy + waiting + running.metric("mitu_upstream_overflows_total") == 8

    statuses = Counter(one.status for one in together(running, authority, 8, until(all_are_there, only)))
    assert statuses == {200: 3, 503: 5}
    assert running.metric("mitu_upstream_overflows_total", limit="connections") == 5


def test_nobody_waits_longer_than_the_route_allows(
    gateway: Start, edge: Pair, authority: Authority, endpoint: Make
) -> None:
    only = endpoint("a")
    only.way = "held"
    app = upstream("app", only.address, limits={"connections": 1})
    routes = [to_app(match={"path": "/long"}, timeout="30s"), to_app(timeout="500ms")]
    running = gateway(configuration([listener(edge, routes=routes)], app))
    with Http1.open(running.address(), authority.certificate, timeout=30) as first:
        first.send(request("/long"))
        eventually(lambda: only.busy == 1)
        begun = time.monotonic()
        responses = together(running, authority, 4)
        # The connection is taken all the while: it is their own time that has ended.
        assert 0.4 < time.monotonic() - begun < 10
        assert {(one.status, one.body) for one in responses} == {(503, b"503 Service Unavailable: overflow\n")}
        assert running.metric("mitu_upstream_overflows_total", limit="connections") == 4
        only.way = "well"
        assert first.response().status == 200
    # It was none of its failures.
    assert running.metric("mitu_upstream_response_errors_total") == 0


def test_a_new_endpoint_starts_slowly(gateway: Start, edge: Pair, endpoint: Make, client: Connect) -> None:
    first, second = endpoint("old"), endpoint("new")
    running = gateway(settings(edge, first, slow_start="8s"))
    asker = client(running)
    assert asker.outcomes(10) == {"old": 10}
    running.apply(settings(edge, first, second, slow_start="8s"))
    asker.close()
    # Of its half it gets a tenth at first, and all in the end.
    begun = time.monotonic()
    early = asker.outcomes(200)
    if time.monotonic() - begun < 2:
        assert early["new"] < 60, early
    assert early[FAILED] == 0
    eventually(lambda: time.monotonic() - begun > 8.5, timeout=20)
    asker.outcomes(10)
    assert asker.outcomes(100) == {"old": 50, "new": 50}


def test_all_are_new_at_the_start(gateway: Start, edge: Pair, endpoint: Make, client: Connect) -> None:
    endpoints = [endpoint(name) for name in ("a", "b")]
    running = gateway(settings(edge, *endpoints, slow_start="1h"))
    assert client(running).outcomes(40) == {"a": 20, "b": 20}
