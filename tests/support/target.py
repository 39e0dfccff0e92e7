"""A gateway to be attacked, and what every attack has to leave: a process that serves others, and its memory."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.certificates import Authority
from support.client import Address, Http1
from support.gateway import Gateway, Settings
from support.pressure import Pressure
from support.servers import Handler, Loop, Server

GROWTH = 16 << 20
"""Bytes of memory that one attack may take at most."""


@dataclass
class Target:
    gateway: Gateway
    authority: Authority
    addresses: dict[str, Address]
    pressure: Pressure

    @property
    def ca(self) -> Path:
        return self.authority.certificate

    def serves(self, name: str = "edge") -> None:
        """A client as it should be is served."""
        with Http1.open(self.addresses[name], self.ca) as client:
            assert client.request("/health").status == 200

    @contextlib.contextmanager
    def watched(self, growth: int = GROWTH) -> Iterator[None]:
        """What is done within takes so many bytes at most, makes nothing panic, and leaves a gateway that serves."""
        self.pressure.forget_peak()
        before = self.pressure.resident()
        yield
        self.serves()
        assert self.pressure.peak() - before < growth
        log = self.gateway.program.log
        assert "panicked" not in log, log
        assert "Traceback" not in log, log


@dataclass
class Site:
    """Where a gateway is made: its certificates, and the upstreams behind it."""

    folder: Path
    authority: Authority
    loop: Loop

    def serve(self, handler: Handler, **options: Any) -> Server:
        return Server(self.loop, handler, **options)


@contextlib.contextmanager
def site() -> Iterator[Site]:
    # Short, since the path of a Unix socket may be 107 bytes long at most.
    folder = Path(tempfile.mkdtemp(prefix="mitu-"))
    loop = Loop()
    try:
        yield Site(folder, Authority(folder / "certificates"), loop)
    finally:
        loop.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def attacked(
    settings: Callable[[Site], Settings],
    *,
    wrapper: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> Iterator[Target]:
    """A gateway that runs from what `settings` makes; its log is shown when a test fails."""
    with site() as here:
        configured = settings(here)
        (here.folder / "gateway").mkdir()
        gateway = Gateway(
            here.folder / "gateway", configured, wrapper=wrapper, environment=environment, flags=["--no-watch"]
        )
        try:
            gateway.ready()
            addresses = {name: gateway.address(name) for name in gateway.addresses()}
            yield Target(gateway, here.authority, addresses, Pressure(gateway.program.pid))
        finally:
            gateway.program.stop()
            print(gateway.program.log[-20_000:])
