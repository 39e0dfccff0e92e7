"""`mitu crypto`: every figure measured in the run that prints it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from support.gateway import MITU
from support.process import output, run

LOCK = Path(__file__).resolve().parents[2] / "Cargo.lock"
POSITIVE: dict[str, Any] = {"type": "number", "exclusiveMinimum": 0}
MAYBE: dict[str, Any] = {"type": ["number", "null"], "exclusiveMinimum": 0}


def shape(**properties: Any) -> dict[str, Any]:
    """An object with exactly these."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
SCHEMA = shape(
    provider=shape(name=TEXT, versions={"type": "object", "additionalProperties": TEXT}),
    cpu=shape(
        model=TEXT,
        mhz=MAYBE,
        mhz_source={"type": ["string", "null"]},
        features=listed(shape(name=TEXT, found={"type": "boolean"}, used_for={"type": "array", "items": TEXT})),
    ),
    seconds_each=POSITIVE,
    operations=listed(
        shape(
            name=TEXT,
            median_us=POSITIVE,
            fastest_us=POSITIVE,
            cycles=MAYBE,
            bytes=MAYBE,
            gigabytes_per_second=MAYBE,
        )
    ),
    handshakes=listed(shape(certificate=TEXT, key_exchange=TEXT, per_second_per_core=POSITIVE)),
    p384_sign_goal=shape(cycles=MAYBE, at_most=POSITIVE, met={"type": ["boolean", "null"]}),
)


CRATES = {
    "aws-lc": {"aws-lc-rs", "aws-lc-sys", "rustls"},
    "boringssl": {"boring-rustls-provider", "boring-sys", "rustls"},
}


def measure(provider: str) -> dict[str, Any]:
    command = [*MITU, "crypto", "--json", "--seconds", "0.02", "--provider", provider]
    report: dict[str, Any] = json.loads(output(command))
    return report


@pytest.fixture(scope="module")
def measured(provider: str) -> dict[str, Any]:
    return measure(provider)


@pytest.fixture(scope="module")
def operations(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in measured["operations"]}


def test_the_shape(measured: dict[str, Any]) -> None:
    jsonschema.validate(measured, SCHEMA)


def test_the_versions_are_those_that_are_linked(measured: dict[str, Any], provider: str) -> None:
    lock = LOCK.read_text(encoding="utf-8")
    assert measured["provider"]["name"] == provider
    assert set(measured["provider"]["versions"]) == CRATES[provider]
    for crate, version in measured["provider"]["versions"].items():
        assert f'name = "{crate}"\nversion = "{version}"\n' in lock


def test_the_features_are_those_that_the_kernel_tells(measured: dict[str, Any]) -> None:
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    line = re.search(r"^(?:flags|Features)\s*: (.*)$", cpuinfo, re.M)
    if line is None:
        pytest.skip("the kernel tells nothing of the CPU's features")
    known = set(line[1].split())
    # Where the kernel has another name for it.
    names = {"sha": "sha_ni", "neon": "asimd", "avx512vbmi2": "avx512_vbmi2"}
    for feature in measured["cpu"]["features"]:
        assert feature["found"] == (names.get(feature["name"], feature["name"]) in known), feature
        assert feature["found"] or not feature["used_for"]


def test_dearer_operations_take_longer(operations: dict[str, dict[str, Any]], provider: str) -> None:
    assert all(one["fastest_us"] <= one["median_us"] for one in operations.values())
    took = {name: float(one["fastest_us"]) for name, one in operations.items()}
    pairs = [
        ("ecdsa_p256_sign", "ecdsa_p384_sign"),
        ("ecdsa_p256_sign", "rsa_2048_sign"),
        ("rsa_2048_verify", "rsa_2048_sign"),
        ("ecdh_p256", "ecdh_p384"),
        ("x25519", "x25519_ml_kem_768"),
        *((name, name.removesuffix("_64") + "_16k") for name in took if name.endswith("_64")),
    ]

    def wrong() -> list[tuple[str, str]]:
        return [(cheap, dear) for cheap, dear in pairs if not took[cheap] < took[dear]]

    # All batches of one operation can be disturbed by what runs beside it. The fastest of several runs is as much a
    # measure of the code, and an order that is wrong stays so.
    for _ in range(9):
        if not wrong():
            break
        for one in measure(provider)["operations"]:
            took[one["name"]] = min(took[one["name"]], one["fastest_us"])
    assert not wrong(), took


def test_what_follows_from_it(measured: dict[str, Any], operations: dict[str, dict[str, Any]]) -> None:
    mhz = measured["cpu"]["mhz"]
    for one in operations.values():
        assert one["cycles"] == (None if mhz is None else round(one["fastest_us"] * mhz))
        speed = None if one["bytes"] is None else one["bytes"] / one["median_us"] / 1e3
        assert one["gigabytes_per_second"] == speed
    bounds = {(one["certificate"], one["key_exchange"]): one["per_second_per_core"] for one in measured["handshakes"]}
    assert len(bounds) == 6
    together = operations["x25519"]["median_us"] + operations["ecdsa_p384_sign"]["median_us"]
    assert bounds["P-384", "X25519"] == pytest.approx(1e6 / together)
    goal = measured["p384_sign_goal"]
    assert goal["cycles"] == operations["ecdsa_p384_sign"]["cycles"]
    assert goal["met"] is (None if mhz is None else goal["cycles"] <= goal["at_most"])


def test_text() -> None:
    done = run([*MITU, "crypto", "--seconds", "0.001"])
    assert (done.returncode, done.stderr) == (0, b"")
    text = " ".join(done.stdout.decode().split())
    for title in ("aws-lc-sys", "P-384 verify", "X25519MLKEM768", "ChaCha20-Poly1305 16,384", "SHA-384 64"):
        assert title in text
    assert "P-384 sign, at most 380,000 cycles: " in text
    assert "µs: median of batches" in text
    assert "\x1b[" not in text


def test_a_provider_that_is_not_there() -> None:
    done = run([*MITU, "crypto", "--provider", "aws-lc-fips"])
    assert (done.returncode, done.stdout) == (2, b"")
    assert "this build has no provider 'aws-lc-fips', but aws-lc and boringssl" in " ".join(
        done.stderr.decode().split()
    )


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--seconds", "nan"], ["--quik"]])
def test_wrong_usage(arguments: list[str]) -> None:
    done = run([*MITU, "crypto", *arguments])
    assert (done.returncode, done.stdout) == (2, b"")
