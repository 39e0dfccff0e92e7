"""`openssl s_client`: another TLS implementation, one that shows what was negotiated and keeps sessions in files."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

from support.client import Address
from support.process import run

# The answer ends the connection, and with it s_client, once tickets have arrived.
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
WHOAMI = REQUEST.replace(b"/health", b"/whoami")


def command(address: Address, ca: Path, *flags: str | Path, name: str | None = "localhost") -> list[str]:
    host, port = address
    named = ["-noservername"] if name is None else ["-servername", name]
    base = ["openssl", "s_client", "-connect", f"{host}:{port}", *named, "-CAfile", str(ca)]
    return [*base, *map(str, flags)]


def negotiate(address: Address, ca: Path, *flags: str | Path, name: str | None = "localhost") -> str:
    """Handshake and nothing more: what s_client says of it."""
    done = run(command(address, ca, *flags, name=name), timeout=20)
    return (done.stdout + done.stderr).decode(errors="replace")


def s_client(
    address: Address, ca: Path, *flags: str | Path, name: str | None = "localhost", request: bytes = REQUEST
) -> subprocess.CompletedProcess[str]:
    """Handshake, one HTTP/1.1 request, and both output streams as one text in `stdout`."""
    words = [*command(address, ca, "-ign_eof", *flags, name=name)]
    done = run(words, stdin=request, timeout=20)
    text = (done.stdout + done.stderr).decode(errors="replace")
    return subprocess.CompletedProcess(words, done.returncode, text)


class Resuming:
    """s_client with a session file."""

    def __init__(self, ca: Path, folder: Path, *flags: str | Path) -> None:
        self.ca, self.session, self.flags = ca, folder / "session", flags

    def full(self, address: Address, *more: str | Path, request: bytes = WHOAMI) -> str:
        text = s_client(address, self.ca, *self.flags, *more, "-sess_out", self.session, request=request).stdout
        assert "New, TLS" in text, text
        return text

    def again(self, address: Address, *more: str | Path, name: str = "localhost") -> str:
        assert self.session.exists(), "no session was handed out"
        words = (*self.flags, *more, "-sess_in", self.session)
        return s_client(address, self.ca, *words, name=name, request=WHOAMI).stdout

    def resumes(self, address: Address, *more: str | Path, name: str = "localhost") -> bool:
        """Whether the session is taken; either way the request is answered."""
        text = self.again(address, *more, name=name)
        assert "HTTP/1.1 200" in text, text
        assert ("Reused, TLS" in text) != ("New, TLS" in text), text
        return "Reused, TLS" in text

    @property
    def ticket(self) -> bytes:
        (field,) = (field for field in decode_session(self.session.read_text()) if field[0] == _TICKET)
        return _content(_content(field))

    @ticket.setter
    def ticket(self, ticket: bytes) -> None:
        fields = [field for field in decode_session(self.session.read_text()) if field[0] != _TICKET]
        self.session.write_text(encode_session([*fields, _tagged(_TICKET, _tagged(0x04, ticket))]))


def told(transcript: str, header: str) -> str:
    """A header that the upstream got, from its description in the response."""
    body = transcript[transcript.index('{"method"') :]
    request, _ = json.JSONDecoder().raw_decode(body)
    values = [value for name, value in request["headers"] if name.lower() == header]
    assert len(values) == 1, values
    return str(values[0])


# `ticket [10]` of OpenSSL's SSL_SESSION_ASN1.
_TICKET = 0xAA


def decode_session(session: str) -> list[bytes]:
    """The fields of an OpenSSL session, each with its tag and length."""
    whole = base64.b64decode("".join(line for line in session.splitlines() if not line.startswith("-----")))
    rest, fields = _content(whole), []
    while rest:
        begin, length = _measure(rest)
        fields.append(rest[: begin + length])
        rest = rest[begin + length :]
    return fields


def encode_session(fields: list[bytes]) -> str:
    # Plain fields come first, then the tagged ones (0xA0 and up) in order.
    ordered = sorted(fields, key=lambda field: max(field[0], 0xA0))
    text = base64.encodebytes(_tagged(0x30, b"".join(ordered))).decode()
    return f"-----BEGIN SSL SESSION PARAMETERS-----\n{text}-----END SSL SESSION PARAMETERS-----\n"


def _measure(der: bytes) -> tuple[int, int]:
    """Where the content of a DER value begins, and its length."""
    if der[1] < 0x80:
        return 2, der[1]
    begin = 2 + (der[1] & 0x7F)
    return begin, int.from_bytes(der[2:begin])


def _content(der: bytes) -> bytes:
    begin, length = _measure(der)
    return der[begin : begin + length]


def _tagged(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else b"\x82" + size.to_bytes(2) if size > 0xFF else bytes([0x81, size])
    return bytes([tag]) + length + content
