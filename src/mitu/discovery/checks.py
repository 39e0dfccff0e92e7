"""One health check of one instance: connect to it as the data plane does, ask, and judge the answer."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Literal

from mitu.config.discovery import HealthCheck
from mitu.config.tls import UpstreamTls
from mitu.discovery.check import grpc, http1, http2, mqtt
from mitu.discovery.check.connection import PROXY_LOCAL, CheckError, Stream, connect, host_of, talk
from mitu.discovery.provider import tls_context

AGENT = "mitu-health-check"

Protocol = Literal["http/1.1", "h2", "auto"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check found."""

    good: bool
    reason: str = ""
    """Why it is not good, or a remark on what is: one short line."""


class Check:
    """How the instances of one upstream are checked.

    The constructor reads the files of `tls`; ProviderError when it cannot. `tls` None is plain text, except for a
    check of kind `tls`, which needs no settings to make a handshake (with TLS 1.3 it is over before the server has
    looked at a client's certificate, so that a refusal of that goes unseen). `protocol`: what the upstream speaks,
    which is what `http` asks in. `proxy_protocol`: begin with a PROXY v2 header, as the upstream's connections do.
    """

    def __init__(
        self,
        settings: HealthCheck,
        *,
        tls: UpstreamTls | None = None,
        protocol: Protocol = "http/1.1",
        proxy_protocol: bool = False,
    ) -> None:
        self._settings, self._protocol = settings, protocol
        self._seconds = settings.timeout.total_seconds()
        self._server_name = tls.server_name if tls else None
        self._preamble = PROXY_LOCAL if proxy_protocol else b""
        self._tls: ssl.SSLContext | None = None
        if settings.kind == "tls" or (tls is not None and settings.kind != "tcp"):
            self._tls = tls_context(tls)
            offered = self._offered()
            if offered:
                self._tls.set_alpn_protocols(offered)

    async def run(self, address: str) -> Verdict:
        """Check the instance at `address` (`host:port`, `[v6]:port` or `unix:/path`), within the settings' timeout.

        NotCheckedError when this process has no files or memory left to connect with. Never fails otherwise, and
        leaves nothing open.
        """
        stage = "connection"
        try:
            async with asyncio.timeout(self._seconds):
                opened = await connect(address, self._preamble)
                stage = "answer" if self._tls is None else "handshake"
                async with talk(opened, self._tls, self._server_name or host_of(address)) as stream:
                    stage = "answer"
                    return Verdict(True, await self._ask(stream, address))
        except TimeoutError:
            return Verdict(False, f"no {stage} within {self._seconds:g} s")
        except CheckError as error:
            return Verdict(False, str(error))

    def _offered(self) -> list[str]:
        """What is offered by ALPN: what the data plane would. For `tls` nothing, since any protocol may follow."""
        kind = self._settings.kind
        if kind == "http" and self._protocol != "h2":
            return ["h2", "http/1.1"] if self._protocol == "auto" else ["http/1.1"]
        return {"http": ["h2"], "grpc": ["h2"], "mqtt": [mqtt.ALPN]}.get(kind, [])

    async def _ask(self, stream: Stream, address: str) -> str:
        kind = self._settings.kind
        if kind == "mqtt":
            return await mqtt.session(stream)
        scheme = "http" if self._tls is None else "https"
        authority = "localhost" if address.startswith("unix:") else address
        if kind == "grpc":
            self._must_speak_h2(stream)
            await grpc.serving(stream, scheme, authority, self._settings.service, self._seconds, AGENT)
        elif kind == "http":
            await self._http(stream, scheme, self._settings.host or authority)
        return ""

    async def _http(self, stream: Stream, scheme: str, host: str) -> None:
        path = self._settings.path
        if self._protocol == "h2":
            self._must_speak_h2(stream)
        if self._protocol == "h2" or stream.alpn == "h2":
            headers = ((":method", "GET"), (":scheme", scheme), (":authority", host), (":path", path))
            status = await http2.get(stream, (*headers, ("accept", "*/*"), ("user-agent", AGENT)))
        else:
            status = await http1.get(stream, host, path, AGENT)
        if status not in (self._settings.status or range(200, 400)):
            raise CheckError(f"status {status}")

    def _must_speak_h2(self, stream: Stream) -> None:
        """In the clear by prior knowledge; over TLS it has to be chosen."""
        if self._tls is not None and stream.alpn != "h2":
            raise CheckError("does not choose h2 by ALPN")
