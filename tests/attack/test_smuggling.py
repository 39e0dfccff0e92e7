"""Request smuggling: whatever a client sends, the upstream sees whole requests that mean the same, or none.

The tables of cases are in `h1_framing`, `h1_chunks`, `h1_heads`, `fields` and `h2_frames`; what may become of a case
is in `case`, and how that is judged in `verdict`. Each case goes over each downstream protocol that can say it, to
each upstream protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from attack.case import Case
from attack.conftest import TALLY, UPSTREAMS, Way
from attack.downstream import DOWNSTREAMS, PATIENCE, Downstream
from attack.verdict import discrepancies
from support.client import Address


def try_out(
    way: Way, address: Address, downstream: Downstream, case: Case, patience: float = PATIENCE
) -> tuple[list[str], list[str]]:
    """What is wrong with the case, if anything, and the evidence."""
    number = next(way.numbers)
    marker, victim = b"/marker/%d" % number, b"/victim/%d" % number
    outcome = downstream.talk(address, way.ca, case, marker, patience)
    seen = way.victim.ask(victim)
    recording = way.recorder.look(patience)
    found = list(discrepancies(case, outcome, recording, marker, victim))
    if seen != f"GET {victim.decode()} 0":
        found.append(f"another client got the answer to {seen!r}")
    evidence = [f"sent: {case.row.sent!r}", f"then: {case.row.late!r}", f"outcome: {outcome}"]
    return found, [*evidence, *(f"at the upstream: {line}" for line in recording.wire)]


def every() -> Iterator[object]:
    for downstream in DOWNSTREAMS:
        for protocol in UPSTREAMS:
            for case in downstream.cases:
                # HTTP/2 is read by a library; what it lets through, HTTP/3 does not.
                known = case.row.known if downstream.name == "h2" else ""
                marks = [pytest.mark.xfail(strict=True, reason=known)] if known else []
                name = f"{downstream.name}-to-{protocol}, {case.name}"
                yield pytest.param(downstream, protocol, case, id=name, marks=marks)


@pytest.mark.parametrize(("downstream", "protocol", "case"), list(every()))
def test_smuggling(
    ways: dict[str, Way], pytestconfig: pytest.Config, downstream: Downstream, protocol: str, case: Case
) -> None:
    way = ways[protocol]
    pair = f"{downstream.name} to {protocol}"
    found, evidence = try_out(way, way.address, downstream, case)
    pytestconfig.stash[TALLY].note(pair, wrong=bool(found), known=bool(case.row.known) and downstream.name == "h2")
    assert not found, "\n".join(["", *found, *evidence])


@pytest.mark.parametrize("downstream", DOWNSTREAMS, ids=lambda downstream: downstream.name)
def test_names_are_unique(downstream: Downstream) -> None:
    """Two cases under one name would be one that nobody can ask for."""
    twice = [name for name, count in Counter(case.name for case in downstream.cases).items() if count > 1]
    assert not twice
