"""What the cryptography costs on this machine: every operation of a handshake and of its records, timed now."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mitu import _native

_CPUINFO = Path("/proc/cpuinfo")
_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")

P384_SIGN_GOAL = 380_000
"""Cycles of one P-384 signature that are to be reached, at most."""
_SIGNATURES = {"P-256": "ecdsa_p256_sign", "P-384": "ecdsa_p384_sign", "RSA-2048": "rsa_2048_sign"}
_EXCHANGES = {"X25519": "x25519", "X25519MLKEM768": "x25519_ml_kem_768"}


@dataclass(frozen=True, slots=True)
class Feature:
    """An extension of the instruction set. `used_for`: by the provider, here."""

    name: str
    found: bool
    used_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Frequency:
    """What the kernel says of the CPU's clock. In virtual machines it is that of the time-stamp counter."""

    mhz: float
    source: str


@dataclass(frozen=True, slots=True)
class Cost:
    """One operation. `median` and `fastest`: microseconds for one call, over batches; `size`: the bytes that it works
    through, None for public-key operations."""

    name: str
    median: float
    fastest: float
    size: int | None

    @property
    def gigabytes_per_second(self) -> float | None:
        return None if self.size is None else self.size / self.median / 1e3

    def cycles(self, frequency: Frequency | None) -> int | None:
        """Of the fastest batch, so of the code and not of what ran beside it; None at an unknown frequency."""
        return None if frequency is None else round(self.fastest * frequency.mhz)


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Full handshakes per second that one core could make if it did nothing else than key exchange and signature."""

    certificate: str
    key_exchange: str
    per_second: float


def providers() -> dict[str, dict[str, str]]:
    """What this build has, AWS-LC first, with the versions of the crates that each comes in."""
    return dict(_native.crypto_providers())


def operations(provider: str) -> list[str]:
    """The names of what `measure` times, in this order."""
    return [name for name, _ in _native.crypto_operations(provider)]


def measure(provider: str, seconds: float) -> Iterator[Cost]:
    """Time every operation of `provider` for `seconds` each."""
    for name, size in _native.crypto_operations(provider):
        yield Cost(name, *_native.time_crypto(provider, name, seconds), size)


def handshakes(costs: list[Cost]) -> list[Handshakes]:
    """The upper bound for each kind of certificate and key exchange, from the medians."""
    took = {one.name: one.median for one in costs}
    return [
        Handshakes(certificate, exchange, 1e6 / (took[signature] + took[agreement]))
        for certificate, signature in _SIGNATURES.items()
        for exchange, agreement in _EXCHANGES.items()
    ]


def features(provider: str) -> list[Feature]:
    """Every extension that cryptography could use on this architecture, with what `provider` does with it."""
    return [Feature(name, found, tuple(used_for)) for name, found, used_for in _native.cpu_features(provider)]


def frequency() -> Frequency | None:
    """The clock of the first CPU, now; None where the kernel does not tell."""
    with suppress(OSError, ValueError):
        return Frequency(int(_CPUFREQ.read_text()) / 1e3, str(_CPUFREQ))
    mhz = _cpuinfo("cpu MHz")
    return None if mhz is None else Frequency(float(mhz), f"{_CPUINFO} (cpu MHz)")


def cpu_model() -> str:
    """As the kernel calls it; the architecture where it does not tell."""
    return _cpuinfo("model name") or platform.machine()


def _cpuinfo(name: str) -> str | None:
    with suppress(OSError):
        found = re.search(rf"^{name}\s*: (.+)$", _CPUINFO.read_text(), re.M)
        return None if found is None else found[1]
    return None
