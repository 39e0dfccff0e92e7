"""That the verdict on smuggling can be a bad one: the strict reader refuses, and what lets things through fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from attack.case import SMUGGLED, Case, Expect, Read, Row, chunks, forwarded, head, length
from attack.conftest import UPSTREAMS, Way
from attack.downstream import DOWNSTREAMS, Answer, Downstream, Outcome
from attack.test_smuggling import try_out
from attack.verdict import PASSED, discrepancies
from support.recording import Recording
from support.strict_http import Field, MalformedError, Message, from_h2, read_request

GOOD = (
    head(length(5)) + b"hello",
    head(b"Transfer-Encoding: chunked") + chunks(b"hel", b"lo"),
    head(b"Transfer-Encoding: chunked") + b"0\r\nx-sum: 7\r\n\r\n",
    head(b"Connection: upgrade", b"Upgrade: websocket", method=b"GET"),
    head(method=b"OPTIONS", target=b"*"),
)
INCOMPLETE = (
    b"POST / HT",
    b"POST / HTTP/1.1\r",
    head(length(6)) + b"hello",
    head(b"Transfer-Encoding: chunked") + b"5\r\nhel",
    head(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n",
    head(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\nx-sum: 7\r\n",
)
MALFORMED = (
    b"POST  / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST / HTTP/1.0\r\nHost: localhost\r\n\r\n",
    b"POST / HTTP/1.1\nHost: localhost\n\n",
    b"POST / HTTP/1.1\n",
    head(b"X-A: b\nX-C: d"),
    head(b"X-A: b\rX-C: d"),
    head(b"X-A: b", b" c"),
    head(b"X-A : b"),
    head(b"X-A: \x00"),
    head(b"X-A"),
    head(host=None),
    head(b"Host: localhost"),
    head(target=b"/a b"),
    head(target=b"http://localhost/"),
    head(length(0), b"Transfer-Encoding: chunked") + chunks(),
    head(length(0), length(0)),
    head(b"Content-Length: +5") + b"hello",
    head(b"Content-Length: 5, 5") + b"hello",
    head(b"Transfer-Encoding: Chunked") + chunks(),
    head(b"Transfer-Encoding: chunked, identity") + chunks(),
    head(b"Keep-Alive: timeout=5"),
    head(b"Connection: x-secret"),
    head(b"Upgrade: websocket"),
    head(b"Transfer-Encoding: chunked") + b"5;a\r\nhello\r\n0\r\n\r\n",
    head(b"Transfer-Encoding: chunked") + b"5\nhello\r\n0\r\n\r\n",
    head(b"Transfer-Encoding: chunked") + b"0x5\r\nhello\r\n0\r\n\r\n",
    head(b"Transfer-Encoding: chunked") + b"5\r\nhelloXX0\r\n\r\n",
    head(b"Transfer-Encoding: chunked") + b"5\r\nhello0\r\n\r\n",
    head(b"Transfer-Encoding: chunked") + b"0\r\nContent-Length: 5\r\n\r\n",
    head(b"Transfer-Encoding: chunked") + b"0\r\nx-sum: 7\n\n",
)
H2 = ((b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/"))
MALFORMED_H2: tuple[tuple[Field, ...], ...] = (
    H2[:3],
    (*H2, H2[0]),
    (*H2[:3], (b"x-a", b"b"), H2[3]),
    (*H2, (b"X-A", b"b")),
    (*H2, (b"x-a:", b"b")),
    (*H2, (b"x-a", b"b\r\nx-c: d")),
    (*H2, (b"x-a", b" b")),
    (*H2, (b"transfer-encoding", b"chunked")),
    (*H2, (b"connection", b"close")),
    (*H2, (b"te", b"gzip")),
    (*H2, (b"content-length", b"4")),
    (*H2, (b"host", b"other.test")),
    (*H2[:3], (b":path", b"/ HTTP/1.1")),
)


@pytest.mark.parametrize("wire", GOOD)
def test_the_strict_reader_takes_what_is_good(wire: bytes) -> None:
    for end in range(len(wire)):
        assert read_request(wire[:end]) is None, "a part of it is not it"
    found = read_request(wire + SMUGGLED)
    assert found is not None
    assert found[1] == len(wire)


@pytest.mark.parametrize("wire", INCOMPLETE)
def test_the_strict_reader_waits_for_the_rest(wire: bytes) -> None:
    assert read_request(wire) is None


@pytest.mark.parametrize("wire", MALFORMED)
def test_the_strict_reader_refuses(wire: bytes) -> None:
    with pytest.raises(MalformedError):
        read_request(wire)


@pytest.mark.parametrize("fields", MALFORMED_H2)
def test_the_strict_reader_refuses_h2(fields: tuple[Field, ...]) -> None:
    assert from_h2((*H2, (b"content-length", b"5")), b"hello", ()).body == b"hello"
    with pytest.raises(MalformedError):
        from_h2(fields, b"hello", ())


def first_refused(downstream: Downstream) -> list[Case]:
    """Of each class, the first case that must be refused."""
    return list({case.kind: case for case in reversed(downstream.cases) if case.expect.must == "refuse"}.values())


# A relay needs an upstream that speaks the same. There is none for h3, which cannot be relayed; its cases are h2's.
RELAYED = [downstream for downstream in DOWNSTREAMS if downstream.name in UPSTREAMS]


@pytest.mark.parametrize("downstream", RELAYED, ids=lambda downstream: downstream.name)
def test_a_relay_is_found_out(ways: dict[str, Way], downstream: Downstream) -> None:
    """What passes the bytes on as they are fails every class that has something to refuse."""
    way = ways[downstream.name]
    for case in first_refused(downstream):
        found, _ = try_out(way, way.relayed, downstream, case, patience=0.2)
        # It adds no header either, which alone would give it away.
        assert [line for line in found if not line.startswith("a request that the gateway's rules")], case


MARKER, VICTIM = b"/marker", b"/victim"
CASE = Case("verdict", Row("a POST", head(length(5)) + b"hello", forwarded(b"hello")))
REFUSED = Case("verdict", Row("a bad one", b"", Expect("refuse")))
CLOSED = Case("verdict", Row("a closing one", b"", forwarded(b"hello", after="closed")))
SECRET = Case("verdict", Row("a secret", b"", forwarded(b"hello", absent=(b"x-secret",))))


def message(read: Read, *headers: Field) -> Message:
    return Message(read.method, read.target, read.authority, (PASSED, *headers), read.body)


POST = message(Read(b"hello"))
LAST = (message(Read(method=b"GET", target=MARKER)), message(Read(method=b"GET", target=VICTIM)))
SEEN = Outcome([Answer(200, b"POST / 5")], Answer(200, b"GET /marker 0"))
REFUSAL = Outcome([Answer(400)], ended=True)


def recorded(*messages: Message, malformed: Sequence[str] = (), waiting: Sequence[str] = ()) -> Recording:
    return Recording(list(messages), list(malformed), [], list(waiting), b"", [])


def judged(case: Case, outcome: Outcome, recording: Recording) -> list[str]:
    return list(discrepancies(case, outcome, recording, MARKER, VICTIM))


def test_the_verdict_on_what_is_right() -> None:
    assert not judged(CASE, SEEN, recorded(POST, *LAST))
    assert not judged(REFUSED, REFUSAL, recorded(LAST[1]))
    assert not judged(CLOSED, replace(SEEN, marker=None, ended=True), recorded(POST, LAST[1]))


@pytest.mark.parametrize(
    ("case", "outcome", "recording"),
    [
        (CASE, SEEN, recorded(message(Read(b"hell")), *LAST)),
        (CASE, SEEN, recorded(message(Read(b"hello", target=b"/x")), *LAST)),
        (CASE, SEEN, recorded(message(Read(b"hello", authority=b"other.test")), *LAST)),
        (CASE, SEEN, recorded(POST, POST, *LAST)),
        (CASE, SEEN, recorded(POST, LAST[0])),
        (CASE, SEEN, recorded(POST, LAST[1])),
        (CASE, SEEN, recorded(replace(POST, headers=()), *LAST)),
        (CASE, SEEN, recorded(POST, *LAST, malformed=["both"])),
        (CASE, SEEN, recorded(POST, *LAST, waiting=["GET"])),
        (CASE, REFUSAL, recorded(LAST[1])),
        (CASE, Outcome(silent=True), recorded(LAST[1])),
        (CASE, replace(SEEN, answers=[Answer(200, b"GET /victim 0")]), recorded(POST, *LAST)),
        (CASE, replace(SEEN, marker=Answer(200, b"POST / 5")), recorded(POST, *LAST)),
        (CASE, replace(SEEN, marker=Answer(400)), recorded(POST, LAST[1])),
        (CASE, replace(SEEN, marker=Answer(400), ended=True), recorded(POST, LAST[1])),
        (REFUSED, SEEN, recorded(POST, *LAST)),
        (REFUSED, REFUSAL, recorded(message(Read(method=b"GET", target=b"/smuggled/")), LAST[1])),
        (REFUSED, Outcome(silent=True), recorded(LAST[1])),
        (REFUSED, Outcome([Answer(502)], ended=True), recorded(LAST[1])),
        (CLOSED, SEEN, recorded(POST, *LAST)),
        (SECRET, SEEN, recorded(message(Read(b"hello"), (b"x-secret", b"1")), *LAST)),
    ],
)
def test_the_verdict_on_what_is_wrong(case: Case, outcome: Outcome, recording: Recording) -> None:
    assert judged(case, outcome, recording)
