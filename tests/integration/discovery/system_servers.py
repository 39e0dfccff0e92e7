"""`unshare -rnm python -m integration.discovery.system_servers FOLDER`: what short names lead to, as JSON.

In a network of its own, where the name server has the port that a resolv.conf cannot change.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import struct
import sys
from pathlib import Path

from mitu.config.discovery import Discover, DnsProvider
from mitu.discovery.dns import Dns
from mitu.discovery.provider import ProviderError
from support.name_server import NameServer

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SERVICES = ("api", "pay.money", "_http._tcp.api", "www.other.test", "nowhere")


async def look(service: str) -> list[str] | str:
    watch = Dns(DnsProvider()).watch(Discover(provider="dns", service=service, port="8080"))
    try:
        return [one.address for one in (await anext(watch)).instances]
    except ProviderError as error:
        return str(error)
    finally:
        await watch.aclose()


def main() -> None:
    with socket.socket() as any_:
        fcntl.ioctl(any_, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
    with NameServer(Path(sys.argv[1]), ("cluster.test", "other.test"), port=53) as server:
        server.write(
            "cluster.test",
            "api.shop.svc A 10.0.0.1\napi.shop.svc A 10.0.0.2\npay.money.svc A 10.0.0.3\n"
            "_http._tcp.api.shop.svc SRV 0 1 80 api.shop.svc",
        )
        server.write("other.test", "www A 10.0.0.4")
        told = {service: asyncio.run(look(service)) for service in SERVICES}
    # The system's, by a mount.
    (Path(sys.argv[1]) / "resolv.conf").write_text("")
    print(json.dumps(told | {"no servers": asyncio.run(look("api"))}))


if __name__ == "__main__":
    main()
