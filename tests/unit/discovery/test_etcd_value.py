"""Values in etcd: every form in which people write an instance down, and what is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitu.discovery.etcd_value import UnreadableError, instance
from mitu.discovery.instance import Health, Instance

A = "10.0.0.1:80"
SECRET = "hunter2"  # noqa: S105


def said(**fields: object) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"10.0.0.1:80", Instance("a", A)),
        (b" 10.0.0.1:80\n", Instance("a", A)),
        (b"[2001:db8::1]:80", Instance("a", "[2001:db8::1]:80")),
        (b"app.internal:80", Instance("a", "app.internal:80")),
        (said(address=A), Instance("a", A)),
        (said(host="10.0.0.1", port=80), Instance("a", A)),
        (said(host="10.0.0.1", port="80"), Instance("a", A)),
        (said(host="2001:db8::1", port=80), Instance("a", "[2001:db8::1]:80")),
        (said(host="[2001:db8::1]", port=80), Instance("a", "[2001:db8::1]:80")),
        (said(address=A, weight=0), Instance("a", A, weight=0)),
        (said(address=A, weight="12"), Instance("a", A, weight=12)),
        (said(address=A, weight=10**9), Instance("a", A, weight=1000)),
        (said(address=A, zone="eu-1", weight=None), Instance("a", A, zone="eu-1")),
        (said(address=A, protocols=["h2", "http/1.1"]), Instance("a", A, protocols=("h2", "http/1.1"))),
        (said(address=A, protocols="h2, mqtt"), Instance("a", A, protocols=("h2", "mqtt"))),
        (said(address=A, protocols=[]), Instance("a", A, protocols=())),
        (
            said(address=A, metadata={"alpn.supported": "h2", "version": 3}),
            Instance("a", A, protocols=("h2",), metadata={"alpn.supported": "h2", "version": "3"}),
        ),
        (said(address=A, status="Passing", reason="unheard"), Instance("a", A)),
        (said(address=A, status="critical"), Instance("a", A, health=Health.UNAVAILABLE, reason="critical")),
        (
            said(address=A, status="degraded", reason="x" * 999),
            Instance("a", A, health=Health.DEGRADED, reason="x" * 200),
        ),
        (said(Op=0, Addr=A, Metadata=None), Instance("a", A)),
        (said(Op=0, Addr=A, Metadata="anything"), Instance("a", A)),
        (
            said(Op=0, Addr=A, Metadata={"alpn-supported": "h2"}),
            Instance("a", A, protocols=("h2",), metadata={"alpn-supported": "h2"}),
        ),
    ],
)
def test_forms(value: bytes, expected: Instance) -> None:
    assert instance("a", value) == expected


@pytest.mark.parametrize("word", ["passing", "healthy", "warning", "degraded", "critical", "unavailable"])
def test_words_for_health(word: str) -> None:
    words = {"passing": "healthy", "warning": "degraded", "critical": "unavailable"}
    assert instance("a", said(address=A, status=word)).health.word == words.get(word, word)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "neither host:port nor a JSON object"),
        (SECRET.encode(), "neither host:port nor a JSON object"),
        (b"http://hunter2:80", "neither host:port nor a JSON object"),
        (b"unix:/run/hunter2", "neither host:port nor a JSON object"),
        (b"10.0.0.1:0", "neither host:port nor a JSON object"),
        (b"10.0.0.1:65536", "neither host:port nor a JSON object"),
        (b"[1]", "neither host:port nor a JSON object"),
        (b"\xff", "not UTF-8"),
        (b"x" * 65_537, "more than 65536 bytes"),
        (b'{"address": "hunter2', "not a JSON object"),
        (b'{"address": "10.0.0.1:80", "zone": "\\ud800"}', "not a JSON object"),
        (b'{"a": ' + b"[" * 60_000, "not a JSON object"),
        (b'{"weight": ' + b"9" * 60_000 + b"}", "not a JSON object"),
        (b"{}", "neither 'address' nor 'host' and 'port' in it"),
        (said(host=SECRET), "neither 'address' nor 'host' and 'port' in it"),
        (said(address=SECRET), "its address is not host:port"),
        (said(address=[SECRET]), "its address is not host:port"),
        (said(host=SECRET, port=SECRET), "its address is not host:port"),
        (said(host="10.0.0.1", port=1.5), "its address is not host:port"),
        (said(address=A, weight=1.5), "'weight' is not a whole number"),
        (said(address=A, weight=True), "'weight' is not a whole number"),
        (b'{"address": "10.0.0.1:80", "weight": Infinity}', "'weight' is not a whole number"),
        (said(address=A, status=SECRET), "'status' is none of passing"),
        (said(address=A, status=1), "'status' is not text"),
        (said(address=A, status="critical", reason=[SECRET]), "'reason' is not text"),
        (said(address=A, zone=1), "'zone' is not text"),
        (said(address=A, protocols=5), "'protocols' is not a list of names"),
        (said(address=A, protocols=[5]), "'protocols' is not a list of names"),
        (said(Op=1, Addr=A), "'Op' says that it is deleted"),
    ],
    ids=range(29),
)
def test_what_cannot_be_read(value: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError) as failure:
        instance("a", value)
    assert str(failure.value).startswith(reason)
    assert SECRET not in str(failure.value)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_fields = st.sampled_from(
    [
        "address",
        "Addr",
        "host",
        "port",
        "weight",
        "status",
        "reason",
        "zone",
        "protocols",
        "metadata",
        "Metadata",
        "Op",
    ]
)


@given(st.binary() | st.dictionaries(_fields, _json).map(lambda fields: json.dumps(fields).encode()))
def test_whatever_it_is_there_is_an_instance_or_a_reason(value: bytes) -> None:
    try:
        found = instance("a", value)
    except UnreadableError as error:
        assert str(error)
    else:
        assert 0 <= found.weight <= 1000
        assert all(isinstance(one, str) for pair in found.metadata.items() for one in pair)
