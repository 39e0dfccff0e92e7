"""A TLS 1.3 client that says what it is told to (RFC 8446): one suite, X25519, and no look at the certificate.

For what no library can be made to send. Everything that keys depend on is done by the book.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .client import Address, Http1
from .net import Dialled

HANDSHAKE, APPLICATION = 22, 23
CLIENT_HELLO, SERVER_HELLO, NEW_SESSION_TICKET, END_OF_EARLY_DATA, ENCRYPTED_EXTENSIONS = 1, 2, 4, 5, 8
FINISHED, MESSAGE_HASH = 20, 254
PRE_SHARED_KEY, EARLY_DATA = 41, 42
X25519 = 29
EMPTY = hashlib.sha256().digest()
#: The random of a ServerHello that asks for another ClientHello.
RETRY = hashlib.sha256(b"HelloRetryRequest").digest()


def vector(data: bytes, width: int = 2) -> bytes:
    """`data` with its length in front, in so many bytes."""
    return len(data).to_bytes(width) + data


def _message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + vector(body, 3)


def expand(secret: bytes, label: str, context: bytes, length: int = 32) -> bytes:
    info = length.to_bytes(2) + vector(b"tls13 " + label.encode(), 1) + vector(context, 1)
    return hmac.digest(secret, info + b"\1", "sha256")[:length]


def _early_secret(session: Session | None) -> bytes:
    return hmac.digest(bytes(32), bytes(32) if session is None else session.psk, "sha256")


class Keys:
    """Records of one direction."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._aead, self._iv = AESGCM(expand(secret, "key", b"", 16)), expand(secret, "iv", b"", 12)
        self._sequence = 0

    def _nonce(self) -> bytes:
        number = int.from_bytes(self._iv) ^ self._sequence
        self._sequence += 1
        return number.to_bytes(12)

    def seal(self, kind: int, data: bytes) -> bytes:
        head = struct.pack("!BHH", APPLICATION, 0x0303, len(data) + 17)
        return head + self._aead.encrypt(self._nonce(), data + bytes([kind]), head)

    def open(self, head: bytes, record: bytes) -> tuple[int, bytes]:
        plain = self._aead.decrypt(self._nonce(), record, head).rstrip(b"\0")
        return plain[-1], plain[:-1]


@dataclass(frozen=True)
class Session:
    """What a client resumes with."""

    ticket: bytes
    psk: bytes
    age_add: int
    early_data: int
    """How much of it the server takes, in bytes."""
    since: float

    def age(self) -> int:
        """As the client says it, in milliseconds."""
        return (round((time.monotonic() - self.since) * 1000) + self.age_add) % (1 << 32)

    @classmethod
    def read(cls, message: bytes, master: bytes) -> Session:
        """From the body of a NewSessionTicket."""
        age_add, nonce = int.from_bytes(message[4:8]), message[9 : 9 + message[8]]
        rest = message[9 + len(nonce) :]
        ticket, extensions = rest[2 : 2 + int.from_bytes(rest[:2])], rest[4 + int.from_bytes(rest[:2]) :]
        found = extensions.find(struct.pack("!HH", EARLY_DATA, 4))
        size = int.from_bytes(extensions[found + 4 : found + 8]) if found >= 0 else 0
        return cls(ticket, expand(master, "resumption", nonce), age_add, size, time.monotonic())


class Tls13(Dialled):
    """A connection. `alpn`: what its first ClientHello offers; `again`: its second, where the first sends no key.

    `piece`: the most bytes of a ClientHello in one record, each of which is sent by itself. `session`: resumed, with
    `early` sent at once. `finish`: whether the client ends its handshake; else `finish()` does.
    """

    def __init__(
        self,
        address: Address,
        alpn: Sequence[str],
        *,
        again: Sequence[str] | None = None,
        piece: int = 16_384,
        session: Session | None = None,
        early: bytes = b"",
        finish: bool = True,
    ) -> None:
        super().__init__(address)
        self._resumed, self._early = session, early
        self.first_flight = b""
        """What was sent before anything came."""
        self.took_early = False
        """Whether the server has said that it takes the early data."""
        self.sessions: list[Session] = []
        """To resume with, as they come."""
        self._key = X25519PrivateKey.generate()
        self._random, self._session = os.urandom(32), os.urandom(32)
        self._transcript, self._piece = b"", piece
        self._reading: Keys | None = None
        self._pending, self._plain = b"", b""
        self.http1 = Http1(cast("socket.socket", self))
        """Reads responses from it."""
        try:
            self._handshake(alpn, again)
            if finish:
                self.finish()
        except BaseException:
            self.close()
            raise

    def send(self, data: bytes) -> None:
        self._tcp.sendall(self._writing.seal(APPLICATION, data))

    def read(self) -> bytes:
        """The next application data; nothing at the end of the connection, however it ends."""
        while (record := self._record()) is not None:
            if record[0] == APPLICATION:
                return record[1]
            if record[0] == HANDSHAKE and record[1][0] == NEW_SESSION_TICKET:
                self.sessions.append(Session.read(record[1][4:], self._resumption))
        return b""

    def recv(self, size: int) -> bytes:
        """The same as a socket does it."""
        self._plain = self._plain or self.read()
        piece, self._plain = self._plain[:size], self._plain[size:]
        return piece

    def _handshake(self, alpn: Sequence[str], again: Sequence[str] | None) -> None:
        self._hello(alpn, with_key=again is None)
        server = self._next(SERVER_HELLO)
        if again is not None:
            assert server[2:34] == RETRY
            retry = _message(SERVER_HELLO, server)
            first = self._transcript.removesuffix(retry)
            self._transcript = _message(MESSAGE_HASH, hashlib.sha256(first).digest()) + retry
            self._hello(again, with_key=True)
            server = self._next(SERVER_HELLO)
        # Its one key share is the last of the extensions that matter: group, length, key.
        share = server.index(struct.pack("!HH", X25519, 32)) + 4
        shared = self._key.exchange(X25519PublicKey.from_public_bytes(server[share : share + 32]))
        resumes = self._resumed if struct.pack("!HHH", PRE_SHARED_KEY, 2, 0) in server else None
        secret = hmac.digest(expand(_early_secret(resumes), "derived", EMPTY), shared, "sha256")
        self._ours, self._reading = (Keys(expand(secret, f"{side} hs traffic", self._hash())) for side in "cs")
        self.took_early = struct.pack("!HH", EARLY_DATA, 0) in self._next(ENCRYPTED_EXTENSIONS)
        self._next(FINISHED)
        self._master = hmac.digest(expand(secret, "derived", EMPTY), bytes(32), "sha256")
        self._writing, self._reading = (
            Keys(expand(self._master, f"{side} ap traffic", self._hash())) for side in "cs"
        )

    def finish(self, proof: bytes | None = None) -> None:
        """End the handshake. `proof`: in place of the right one."""
        if self.took_early:
            message = _message(END_OF_EARLY_DATA, b"")
            self._transcript += message
            self._tcp.sendall(self._sending_early.seal(HANDSHAKE, message))
        right = hmac.digest(expand(self._ours.secret, "finished", b""), self._hash(), "sha256")
        message = _message(FINISHED, proof or right)
        self._transcript += message
        self._tcp.sendall(self._ours.seal(HANDSHAKE, message))
        self._resumption = expand(self._master, "res master", self._hash())

    def send_early(self, data: bytes) -> None:
        """More early data."""
        self._tcp.sendall(self._sending_early.seal(APPLICATION, data))

    def _hello(self, alpn: Sequence[str], *, with_key: bool) -> None:
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        share = struct.pack("!H", X25519) + vector(public) if with_key else b""
        extensions = {
            0: vector(b"\0" + vector(b"localhost")),
            10: vector(struct.pack("!H", X25519)),
            13: vector(struct.pack("!3H", 0x0403, 0x0804, 0x0805)),
            43: vector(struct.pack("!H", 0x0304), 1),
            45: vector(b"\1", 1),
            51: vector(share),
        }
        if alpn:
            extensions[16] = vector(b"".join(vector(name.encode(), 1) for name in alpn))
        if self._resumed is not None:
            if self._early:
                extensions[EARLY_DATA] = b""
            identity = vector(self._resumed.ticket) + self._resumed.age().to_bytes(4)
            extensions[PRE_SHARED_KEY] = vector(identity) + vector(vector(bytes(32), 1))
        body = b"\3\3" + self._random + vector(self._session, 1) + vector(b"\x13\x01") + b"\1\0"
        body += vector(b"".join(struct.pack("!H", kind) + vector(data) for kind, data in extensions.items()))
        message = _message(CLIENT_HELLO, body)
        if self._resumed is not None:
            early = _early_secret(self._resumed)
            # Over all that comes before the binders.
            before = hashlib.sha256(self._transcript + message[: -2 - 1 - 32]).digest()
            key = expand(expand(early, "res binder", EMPTY), "finished", b"")
            message = message[:-32] + hmac.digest(key, before, "sha256")
        self._transcript += message
        flight = b""
        for start in range(0, len(message), self._piece):
            part = struct.pack("!BH", HANDSHAKE, 0x0301) + vector(message[start : start + self._piece])
            self._tcp.sendall(part)
            flight += part
        if self._early:
            self._sending_early = Keys(expand(_early_secret(self._resumed), "c e traffic", self._hash()))
            sealed = self._sending_early.seal(APPLICATION, self._early)
            self._tcp.sendall(sealed)
            flight += sealed
        self.first_flight += flight

    def _hash(self) -> bytes:
        return hashlib.sha256(self._transcript).digest()

    def _next(self, wanted: int) -> bytes:
        """The body of the next handshake message of this kind; those before it count in the transcript as well."""
        while True:
            while len(self._pending) < 4 or len(self._pending) < 4 + int.from_bytes(self._pending[1:4]):
                if (record := self._record()) is None:
                    raise ConnectionError("the server has ended the handshake")
                if record[0] == HANDSHAKE:
                    self._pending += record[1]
            end = 4 + int.from_bytes(self._pending[1:4])
            message, self._pending = self._pending[:end], self._pending[end:]
            self._transcript += message
            if message[0] == wanted:
                return message[4:]

    def _record(self) -> tuple[int, bytes] | None:
        """Type and content of the next record; None at the end of the connection."""
        try:
            head = self._stream.read(5)
        except ConnectionResetError:
            return None
        if len(head) < 5:
            return None
        kind, _, length = struct.unpack("!BHH", head)
        record = self._stream.read(length)
        return self._reading.open(head, record) if kind == APPLICATION and self._reading else (kind, record)
