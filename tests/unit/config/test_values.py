"""Scalars, variables, and what is shown of values."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mitu import ConfigError, parse_config
from mitu.config.diagnostic import format_loc, nearest
from mitu.config.interpolate import expand
from mitu.config.types import (
    Bind,
    DurationRange,
    EndpointAddress,
    HostPattern,
    IntRange,
    Network,
    Regex,
    SizeRange,
    format_duration,
    format_size,
    shown,
)

duration = TypeAdapter(Annotated[timedelta, DurationRange("1ms", "30d")])
size = TypeAdapter(Annotated[int, SizeRange("1B", "1024GiB")])


def accepts(kind: Any, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


@given(st.integers(1, 30 * 86_400_000))
def test_durations_read_back(milliseconds: int) -> None:
    value = timedelta(milliseconds=milliseconds)
    assert duration.validate_python(format_duration(value)) == value
    assert duration.validate_python(value) == value


@given(st.integers(1, 1 << 40))
def test_sizes_read_back(number: int) -> None:
    assert size.validate_python(format_size(number)) == number


@pytest.mark.parametrize(
    "text", ["", "10", 10, "s", "-1s", "1 s", "1e3s", "1.s", True, None, "1w", "\uff19s", "9" * 40 + "s"]
)
def test_no_durations(text: object) -> None:
    with pytest.raises(ValidationError):
        duration.validate_python(text)


@pytest.mark.parametrize("text", ["", "-1", "1.5MiB", "64kb", 1.0, True, None, "1 KiB", "\u0663B"])
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValidationError):
        size.validate_python(text)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Bind, ["127.0.0.1:0", "[::1]:443", ":443", "localhost:1", "[::]:65535"],
         ["a.b:1", "1.2.3.4", "::1:443", "[1.2.3.4:1", ":65536", ":", "[fe80::1%eth0]:1", "127.1:80", 443, "[]:1"]),
        (EndpointAddress, ["1.2.3.4:80", "a-b.c_d:1", "[::1]:8", "unix:/x", "localhost:9"],
         ["1.2.3.4:0", "a:b", "http://a:1", "unix:x", "unix:/" + "x" * 107, "a b:1", "-a:1", "1.2.3:4", ":80", ""]),
        (HostPattern, ["a", "A.b", "*.a.b", "1.2.3.4", "::1", "xn--bcher-kva.example"],
         ["*", "*.", "a.*", "a.", ".a", "a:1", "a/b", "", "*a.b", "a" * 64, "ü.de", "a..b"]),
        (Network, ["10.0.0.0/8", "1.2.3.4", "2001:db8::/32"], ["10.0.0.1/8", "x", "1.2.3.4/33", "", 1]),
        (Regex, ["a|b", r"\d+", r"(?i)x", r"\p{L}", "[[:alpha:]]", r"\\1", "(?<n>x)"],
         ["(", ")", "[", "*a", "(?=a)", "(?<!a)b", r"(a)\1", "x" * 5000]),
        (Annotated[int, IntRange(1, 9)], [1, 9, "5"], [0, 10, True, 1.5, "x", None, "1" * 100, 2.0]),
    ],
)  # fmt: skip
def test_accepted_and_refused(kind: Any, good: list[object], bad: list[object]) -> None:
    assert [value for value in good if not accepts(kind, value)] == []
    assert [value for value in bad if accepts(kind, value)] == []


def test_a_network_of_one_address_gets_its_prefix() -> None:
    assert TypeAdapter(Network).validate_python("192.0.2.1") == "192.0.2.1/32"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain $ sign", "plain $ sign"),
        ("$1 $x", "$1 $x"),
        ("${A}", "1"),
        ("<${A}${B:-two}>", "<1two>"),
        ("${E:-default}", "default"),
        ("${N:-}", ""),
        ("$${A}", "${A}"),
        ("$$$${A}", "$${A}"),
        ("$$${A}", "$1"),
    ],
)
def test_variables(text: str, expected: str) -> None:
    expanded = expand(text, {"A": "1", "E": ""})
    assert (expanded.text, expanded.problem) == (expected, None)


@pytest.mark.parametrize(
    ("text", "code"),
    [("${N}", "E010"), ("${E}", "E010"), ("${", "E011"), ("${1}", "E011"), ("${}", "E011"), ("${a b}", "E011")],
)
def test_variables_that_cannot_be_filled_in(text: str, code: str) -> None:
    problem = expand(text, {"E": ""}).problem
    assert problem is not None
    assert problem[0] == code


@given(st.text())
def test_what_is_shown_fits_on_a_line(text: str) -> None:
    told = shown(text)
    assert told.isprintable()
    assert len(told) <= 62
    told.encode()


def test_pem_is_never_shown() -> None:
    assert "MIIE" not in shown("-----BEGIN PRIVATE KEY-----\nMIIE")


def test_locations() -> None:
    assert format_loc(("listeners", 0, "protocols", 2, "relay")) == "listeners[0].protocols[2].relay"
    assert format_loc(("headers", "x y", 1)) == 'headers["x y"][1]'
    assert format_loc(("\ud800",)) == '["\\ud800"]'


def test_nearest() -> None:
    assert nearest("LEAST_REQUESTS", ("round_robin", "least_request")) == "least_request"
    assert nearest("cert", ("key", "certificate")) == "certificate"
    assert nearest("zzz", ("key", "certificate")) is None


def test_errors_of_a_configuration_built_in_code_have_no_place() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"listeners": [{"name": "a b"}]}, base=Path("/"))
    errors = caught.value.errors
    assert {one.path for one in errors} == {
        "listeners[0].name",
        "listeners[0].bind",
        "listeners[0].protocols",
        "listeners[0].tls",
    }
    assert all(one.file is None and one.line is None and one.source is None for one in errors)
