"""The verdict on a case: the same for all, from what the client saw and what reached the upstream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attack.case import OWN_ADDRESS, Case, Expect, Read
from attack.downstream import Outcome
from support.recording import Recording
from support.strict_http import Message

PASSED = (b"x-passed", b"by the gateway")
"""What the gateway sets on each request: one without it came past its rules, inside another."""


def discrepancies(case: Case, outcome: Outcome, recording: Recording, marker: bytes, victim: bytes) -> Iterator[str]:
    """What is wrong. `marker`: the target of the request behind the case; `victim`: of another client's, sent last."""
    expect = case.expect
    messages = list(recording.messages)
    if not messages or not _is(messages.pop(), Read(method=b"GET", target=victim)):
        yield "another client's request did not arrive last, as itself"
        messages = list(recording.messages)
    if outcome.marker is not None and outcome.marker.seen is not None:
        if not messages or not _is(messages.pop(), Read(method=b"GET", target=marker)):
            yield "the next request on the connection did not arrive as itself"
            messages = list(recording.messages)
        elif outcome.marker.seen != b"GET %b 0" % marker:
            yield f"the next request on the connection got the answer to {outcome.marker.seen!r}"
    yield from _upstream(recording, messages, expect)
    yield from _client(outcome, expect, len(messages), recording.tunnelled)


def _upstream(recording: Recording, messages: Sequence[Message], expect: Expect) -> Iterator[str]:
    yield from (f"malformed at the upstream: {error}" for error in recording.malformed)
    yield from (f"the upstream still waits for the rest of {rest}" for rest in recording.waiting)
    for message in recording.messages:
        if b"smuggled" in message.target:
            yield f"a smuggled request: {message.method!r} {message.target!r}"
        if [value for name, value in message.headers if name == PASSED[0]] != [PASSED[1]]:
            yield f"a request that the gateway's rules have not seen: {message.target!r}"
        if any(b"smuggled" in name for name, _ in (*message.headers, *message.trailers)):
            yield "a smuggled header"
    for message, read in zip(messages, expect.reads, strict=False):
        if not _is(message, read):
            yield f"the upstream saw {message}, not {read}"
    if len(messages) > len(expect.reads):
        yield f"{len(messages)} requests arrived, not {len(expect.reads)}"
    if recording.incomplete and not expect.may_refuse:
        yield f"incomplete: {recording.incomplete}"
    for message in messages[:1]:
        found = {name for name, _ in (*message.headers, *message.trailers)}
        yield from (f"{name!r} was passed on" for name in expect.absent if name in found)
        trailed = {name for name, _ in message.trailers}
        yield from (f"{name!r} was passed on in the trailers" for name in expect.untrailed if name in trailed)
        yield from (f"{field} was not passed on" for field in expect.present if field not in message.headers)


def _client(outcome: Outcome, expect: Expect, arrived: int, tunnelled: bytes) -> Iterator[str]:
    answers = outcome.answers
    # CONNECT is answered with 200, and nothing that an upstream would have seen of it.
    accepted = {101} if not expect.declined else {200}
    switched = any(answer.status in accepted and answer.seen is None for answer in answers)
    if switched:
        if tunnelled != expect.tunnelled or not tunnelled:
            yield f"behind the switch came {tunnelled!r}"
        arrived = len(expect.reads)
    for answer, read in zip(answers, expect.reads, strict=False):
        if answer.seen is not None and answer.seen.split(b" ")[:2] != [read.method, read.target]:
            yield f"the answer to {answer.seen!r} came for {read}"
    refused = any(answer.refused for answer in answers) or (outcome.ended and len(answers) < max(1, len(expect.reads)))
    cut_off = len(answers) < len(expect.reads) and not switched
    if outcome.silent and expect.must != "cut":
        yield "neither answered nor refused"
    match expect.must:
        case "forward":
            if arrived < len(expect.reads) or refused or cut_off:
                yield "a good request was refused"
        case "refuse":
            if not refused:
                yield "not refused"
        case "either" if arrived < len(expect.reads):
            if not refused:
                yield "neither forwarded nor refused"
        case "own":
            if not answers or answers[0].status not in (200, 301, 302, 308) or answers[0].seen is not None:
                yield "the gateway did not answer it"
    declined = {502} if expect.declined else set()
    if any(answer.status >= 500 and not answer.refused and answer.status not in declined for answer in answers):
        yield "the upstream, or the way to it, failed"
    marker = outcome.marker
    if marker is None:
        return
    if expect.after == "closed" and arrived == len(expect.reads) and not refused:
        yield "the connection went on"
    if marker.seen is None and not (marker.refused and (expect.after == "refused" or refused)):
        yield f"the next request on the connection got {marker}"
    if expect.after == "refused" and marker.seen is not None and not refused:
        yield "bytes that are no request were passed over"


def _is(message: Message, read: Read) -> bool:
    authority = message.authority.lower()
    named = authority.startswith(OWN_ADDRESS) if read.authority == OWN_ADDRESS else authority == read.authority.lower()
    return named and (message.method, message.target, message.body) == (read.method, read.target, read.body)
