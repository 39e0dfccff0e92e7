"""`mitu crypto`: what the cryptography costs on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import track
from rich.table import Table
from rich.text import Text

from mitu.cli.output import console, fail, print_json
from mitu.cli.remote import AsJson

if TYPE_CHECKING:
    from mitu.crypto import Cost, Frequency

_TITLES = {
    "ecdsa_p256_sign": "P-256 sign",
    "ecdsa_p256_verify": "P-256 verify",
    "ecdsa_p384_sign": "P-384 sign",
    "ecdsa_p384_verify": "P-384 verify",
    "rsa_2048_sign": "RSA-2048 sign",
    "rsa_2048_verify": "RSA-2048 verify",
    "x25519": "X25519",
    "ecdh_p256": "P-256 ECDH",
    "ecdh_p384": "P-384 ECDH",
    "ml_kem_768": "ML-KEM-768",
    "x25519_ml_kem_768": "X25519MLKEM768",
    "aes_128_gcm": "AES-128-GCM",
    "aes_256_gcm": "AES-256-GCM",
    "chacha20_poly1305": "ChaCha20-Poly1305",
    "sha256": "SHA-256",
    "sha384": "SHA-384",
}


def command(
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.001, max=60, help="How long each of the operations is timed.")
    ] = 0.1,
    provider: Annotated[
        str | None, typer.Option("--provider", help="Which library, as in tls.provider; the build's AWS-LC by itself.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time the cryptography of a handshake and of its records on this CPU, here and now.

    Exit code 0: it was timed; 2: it could not be.
    """
    try:
        from mitu import crypto
    except ImportError as error:
        fail(f"the data plane is missing: {error}", as_json=as_json)
    from mitu._native import NativeError

    known = crypto.providers()
    name = next(iter(known)) if provider is None else provider
    if name not in known:
        fail(f"this build has no provider '{name}', but {' and '.join(known)}", as_json=as_json)
    told = console(stderr=True)
    try:
        costs = list(
            track(
                crypto.measure(name, seconds),
                "timing",
                total=len(crypto.operations(name)),
                console=told,
                transient=True,
                disable=not told.is_terminal,
            )
        )
    except NativeError as error:
        fail(str(error), as_json=as_json)
    # Read last, when the CPU has been busy for a while.
    clock = crypto.frequency()
    if as_json:
        print_json(_as_json(name, costs, clock, seconds))
    else:
        _show(name, costs, clock, seconds)


def _as_json(name: str, costs: list[Cost], clock: Frequency | None, seconds: float) -> dict[str, Any]:
    from mitu import crypto

    cycles = _goal_cycles(costs, clock)
    return {
        "provider": {"name": name, "versions": dict(sorted(crypto.providers()[name].items()))},
        "cpu": {
            "model": crypto.cpu_model(),
            "mhz": None if clock is None else clock.mhz,
            "mhz_source": None if clock is None else clock.source,
            "features": [
                {"name": one.name, "found": one.found, "used_for": list(one.used_for)} for one in crypto.features(name)
            ],
        },
        "seconds_each": seconds,
        "operations": [
            {
                "name": one.name,
                "median_us": one.median,
                "fastest_us": one.fastest,
                "cycles": one.cycles(clock),
                "bytes": one.size,
                "gigabytes_per_second": one.gigabytes_per_second,
            }
            for one in costs
        ],
        "handshakes": [
            {"certificate": one.certificate, "key_exchange": one.key_exchange, "per_second_per_core": one.per_second}
            for one in crypto.handshakes(costs)
        ],
        "p384_sign_goal": {
            "cycles": cycles,
            "at_most": crypto.P384_SIGN_GOAL,
            "met": None if cycles is None else cycles <= crypto.P384_SIGN_GOAL,
        },
    }


def _show(name: str, costs: list[Cost], clock: Frequency | None, seconds: float) -> None:
    from mitu import crypto

    out = console()
    made_of = ", ".join(f"{crate} {version}" for crate, version in sorted(crypto.providers()[name].items()))
    out.print(Text.assemble((name, "bold"), f"  {made_of}"))
    out.print(Text(crypto.cpu_model()))
    at = "clock unknown" if clock is None else f"{clock.mhz:,.0f} MHz by {clock.source}"
    out.print(Text(f"{at}\n"))

    table = _table("instructions", "used for", numbers=0)
    absent = []
    for feature in crypto.features(name):
        if feature.found:
            table.add_row(feature.name, Text("; ".join(feature.used_for) or "nothing here", style=""))
        else:
            absent.append(feature.name)
    out.print(table)
    out.print(Text(f"not on this CPU: {', '.join(absent) or 'none that matters'}\n"))

    table = _table("public key", "µs", "cycles")
    for cost in costs:
        if cost.size is None:
            table.add_row(_TITLES[cost.name], f"{cost.median:,.1f}", _number(cost.cycles(clock)))
    out.print(table)
    out.print()

    table = _table("bulk", "bytes", "µs", "cycles", "GB/s")
    for cost in costs:
        if cost.size is not None:
            speed = f"{cost.gigabytes_per_second:.2f}"
            title = _TITLES[cost.name.rpartition("_")[0]]
            table.add_row(title, f"{cost.size:,}", f"{cost.median:,.2f}", _number(cost.cycles(clock)), speed)
    out.print(table)
    out.print()

    table = _table("certificate", "key exchange", "full handshakes/s per core, at most", numbers=1)
    for bound in crypto.handshakes(costs):
        table.add_row(bound.certificate, bound.key_exchange, f"{bound.per_second:,.0f}")
    out.print(table)
    out.print()
    out.print(Text(f"P-384 sign, at most {crypto.P384_SIGN_GOAL:,} cycles: {_verdict(costs, clock)}"))
    basis = f"µs: median of batches of 1 ms, {seconds:g} s for each operation; "
    basis += "cycles: unknown, since the clock is" if clock is None else "cycles: the fastest batch at the clock above"
    out.print(Text(basis, style="dim"))


def _table(*titles: str, numbers: int | None = None) -> Table:
    """The last `numbers` columns, or all but the first, hold numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    first = len(titles) - (len(titles) - 1 if numbers is None else numbers)
    for at, title in enumerate(titles):
        table.add_column(title, justify="right" if at >= first else "left")
    return table


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _goal_cycles(costs: list[Cost], clock: Frequency | None) -> int | None:
    return next(one.cycles(clock) for one in costs if one.name == "ecdsa_p384_sign")


def _verdict(costs: list[Cost], clock: Frequency | None) -> str:
    from mitu.crypto import P384_SIGN_GOAL

    cycles = _goal_cycles(costs, clock)
    if cycles is None:
        return "unknown"
    return f"{'met' if cycles <= P384_SIGN_GOAL else 'not met'}, {cycles:,}"
