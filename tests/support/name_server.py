"""NSD, a name server that has zones of its own, which tests rewrite while it runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.query

from support.net import eventually, free_port
from support.process import Program
from support.programs import which

_HEAD = """$ORIGIN {zone}.
$TTL {ttl}
@ SOA ns.{zone}. admin.{zone}. {serial} 3600 600 86400 {negative}
@ NS ns
ns A {own}
"""
_SETTINGS = """
server:
    ip-address: {address}@{port}
    username: ""
    chroot: ""
    zonesdir: "{folder}"
    database: ""
    zonelistfile: "{folder}/zone.list"
    pidfile: "{folder}/nsd.pid"
    xfrdfile: "{folder}/xfrd.state"
    xfrdir: "{folder}"
    server-count: 1
    verbosity: 1
    minimal-responses: no
    rrl-ratelimit: 0
remote-control:
    control-enable: no
"""
_ZONE = 'zone:\n    name: "{zone}"\n    zonefile: "{zone}.zone"\n'


class NameServer:
    """Serves `zones`, which are empty until something is written to them; SERVFAIL until then."""

    def __init__(self, folder: Path, zones: tuple[str, ...], *, address: str = "127.0.0.1", port: int = 0) -> None:
        self.folder, self.host, self.port = folder, address, port or free_port()
        self._serials = dict.fromkeys(zones, 0)
        self._file = folder / "nsd.conf"
        settings = _SETTINGS.format(address=address, port=self.port, folder=folder)
        self._file.write_text(settings + "".join(_ZONE.format(zone=zone) for zone in zones))
        self.start()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        self.program = Program([which("nsd"), "-d", "-c", self._file], self.folder / "nsd.log")
        eventually(lambda: self.ask(next(iter(self._serials)), "SOA") is not None, 20)

    def stop(self) -> None:
        self.program.stop()

    def write(self, zone: str, records: str, *, ttl: int = 3600, negative: int = 3600) -> None:
        """Serve these records; done when it does. `ttl` and `negative` in seconds."""
        self._serials[zone] += 1
        serial = self._serials[zone]
        head = _HEAD.format(zone=zone, ttl=ttl, serial=serial, negative=negative, own=self.host)
        aside = self.folder / f"{zone}.new"
        aside.write_text(f"{head}{records}\n")
        aside.replace(self.folder / f"{zone}.zone")
        self.program.signal(signal.SIGHUP)
        eventually(lambda: f" {serial} 3600 600 " in str(self.ask(zone, "SOA")), 20)

    def ask(self, name: str, kind: str) -> dns.message.Message | None:
        """Its answer by UDP; None: it gives none."""
        try:
            return dns.query.udp(dns.message.make_query(name, kind), self.host, timeout=1, port=self.port)
        except dns.exception.Timeout:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
