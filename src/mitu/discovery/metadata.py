"""Which protocols an instance says it speaks, in whatever spelling its registry allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

KEYS = ("alpn.supported", "alpn_supported", "alpn-supported", "mitu.dev/alpn-supported")
"""Consul refuses a dot in keys of `Meta`; Kubernetes wants a prefix on annotations."""


_LONGEST = 255
_MOST = 64


def protocols(metadata: Mapping[str, str], tags: Iterable[str] = ()) -> tuple[str, ...] | None:
    """ALPN names, in the order in which they are listed, each once; None: nothing is said.

    A tag says it as `alpn.supported=h2,http/1.1`. Metadata goes before tags; within each, the first of `KEYS`.
    """
    said = [metadata[key] for key in KEYS if key in metadata]
    listed = list(tags)
    said += [tag.removeprefix(f"{key}=") for key in KEYS for tag in listed if tag.startswith(f"{key}=")]
    return parse(said[0]) if said else None


def parse(text: str) -> tuple[str, ...]:
    """A list of ALPN names, by commas or spaces. Names that no ClientHello can hold are left out."""
    names = dict.fromkeys(text.replace(",", " ").split())
    return tuple(name for name in names if len(name.encode()) <= _LONGEST)[:_MOST]


def weight(text: str | int | None, default: int = 1) -> int:
    """A weight from 0 to 1000; `default` where `text` is none."""
    try:
        return min(max(int(text), 0), 1000) if text is not None else default
    except ValueError:
        return default
