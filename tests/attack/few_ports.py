"""`unshare -rn python -m attack.few_ports`: what a gateway does that has no ports left for an upstream, as JSON.

In a network of its own, where connections to one address can have so many ports.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
from collections import Counter
from pathlib import Path

from support.gateway import Settings, configuration, health, listener, to_app, upstream
from support.h2 import Http2
from support.net import eventually
from support.servers import Reader, Writer, http_head, http_response
from support.target import Site, attacked

PORTS, REQUESTS = 30, 50
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


async def app(reader: Reader, writer: Writer) -> None:
    """Answers nothing but `/`."""
    while (head := await http_head(reader)) is not None:
        if head[0].startswith("GET / "):
            writer.write(http_response("200 OK", b"ok"))
            await writer.drain()


def settings(site: Site) -> Settings:
    pair = site.authority.issue("edge", ("localhost",))
    return configuration([listener(pair, routes=[health(), to_app()])], upstream("app", site.serve(app).endpoint))


def main() -> None:
    with socket.socket() as any_:
        fcntl.ioctl(any_, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
    with attacked(settings) as target:
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"50000 {50_000 + PORTS - 1}")
        with Http2.open(target.addresses["edge"], target.ca) as client:
            waiting = [client.send("/never") for _ in range(REQUESTS)]
            refused = REQUESTS - PORTS
            while sum(client.answers[number].ended for number in waiting) < refused:
                client.read()
            found = Counter(client.answers[number].status for number in waiting if client.answers[number].ended)
            meanwhile = client.get("/health").status
            errors = target.gateway.metric("mitu_upstream_connect_errors_total", reason="connect_failed")
        with Http2.open(target.addresses["edge"], target.ca) as client:
            # Ports of connections that have just ended may be kept for a while.
            eventually(lambda: client.get("/").status == 200, 20, 0.2)
    print(json.dumps({"refused": dict(found), "meanwhile": meanwhile, "errors": errors}))


if __name__ == "__main__":
    main()
