"""MQTT 3.1.1: a session that begins and ends at once."""

from __future__ import annotations

import secrets
import struct

from mitu.discovery.check.connection import CheckError, Stream

ALPN = "mqtt"
_CLEAN_SESSION = 0x02
_KEEP_ALIVE = 60
_DISCONNECT = b"\xe0\x00"
_ACCEPTED = 0
_REFUSED = {
    1: "unacceptable protocol version",
    2: "identifier rejected",
    3: "server unavailable",
}
_UNAUTHORIZED = {4: "bad user name or password", 5: "not authorized"}


async def session(stream: Stream) -> str:
    """Begins a session without credentials, and ends it. A remark on it, mostly none. CheckError.

    A broker that wants credentials (return codes 4 and 5) is good: it has read the CONNECT and looked the client up,
    and a check has no credentials to show. That its authenticator takes nobody at all looks the same from here.
    """
    # What every broker has to take: 1 to 23 letters and digits (MQTT-3.1.3-5). Random, since a second session with
    # the same name would end the first, of another gateway.
    client = b"mitu" + secrets.token_hex(8).encode()
    variable = struct.pack("!H4sBBH", 4, b"MQTT", 4, _CLEAN_SESSION, _KEEP_ALIVE)
    payload = struct.pack("!H", len(client)) + client
    stream.writer.write(bytes([0x10, len(variable) + len(payload)]) + variable + payload)
    head = await stream.reader.readexactly(2)
    if head != b"\x20\x02":
        raise CheckError("not MQTT 3.1.1")
    _, code = await stream.reader.readexactly(2)
    if code in _UNAUTHORIZED:
        return _UNAUTHORIZED[code]
    if code != _ACCEPTED:
        raise CheckError(f"refused: {_REFUSED.get(code, f'return code {code}')}")
    stream.writer.write(_DISCONNECT)
    return ""
