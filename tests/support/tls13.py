"""A TLS 1.3 client that says what it is told to (RFC 8446): one suite, X25519, and no look at the certificate.

For what no library can be made to send. Everything that keys depend on is done by the book.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .client import Address
from .net import Dialled

HANDSHAKE, APPLICATION = 22, 23
CLIENT_HELLO, SERVER_HELLO, FINISHED, MESSAGE_HASH = 1, 2, 20, 254
X25519 = 29
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


class Tls13(Dialled):
    """A connection. `alpn`: what its first ClientHello offers; `again`: its second, where the first sends no key.

    `piece`: the most bytes of a ClientHello in one record, each of which is sent by itself.
    """

    def __init__(
        self, address: Address, alpn: Sequence[str], *, again: Sequence[str] | None = None, piece: int = 16_384
    ) -> None:
        super().__init__(address)
        self._key = X25519PrivateKey.generate()
        self._random, self._session = os.urandom(32), os.urandom(32)
        self._transcript, self._piece = b"", piece
        self._reading: Keys | None = None
        self._pending = b""
        try:
            self._handshake(alpn, again)
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
        return b""

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
        nothing, empty = bytes(32), hashlib.sha256().digest()
        early = hmac.digest(nothing, nothing, "sha256")
        secret = hmac.digest(expand(early, "derived", empty), shared, "sha256")
        ours, self._reading = (Keys(expand(secret, f"{side} hs traffic", self._hash())) for side in "cs")
        self._next(FINISHED)
        master = hmac.digest(expand(secret, "derived", empty), nothing, "sha256")
        self._writing, self._reading = (Keys(expand(master, f"{side} ap traffic", self._hash())) for side in "cs")
        proof = hmac.digest(expand(ours.secret, "finished", b""), self._hash(), "sha256")
        self._tcp.sendall(ours.seal(HANDSHAKE, _message(FINISHED, proof)))

    def _hello(self, alpn: Sequence[str], *, with_key: bool) -> None:
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        share = struct.pack("!H", X25519) + vector(public) if with_key else b""
        extensions = {
            0: vector(b"\0" + vector(b"localhost")),
            10: vector(struct.pack("!H", X25519)),
            13: vector(struct.pack("!3H", 0x0403, 0x0804, 0x0805)),
            43: vector(struct.pack("!H", 0x0304), 1),
            51: vector(share),
        }
        if alpn:
            extensions[16] = vector(b"".join(vector(name.encode(), 1) for name in alpn))
        body = b"\3\3" + self._random + vector(self._session, 1) + vector(b"\x13\x01") + b"\1\0"
        body += vector(b"".join(struct.pack("!H", kind) + vector(data) for kind, data in extensions.items()))
        message = _message(CLIENT_HELLO, body)
        self._transcript += message
        for start in range(0, len(message), self._piece):
            part = message[start : start + self._piece]
            self._tcp.sendall(struct.pack("!BH", HANDSHAKE, 0x0301) + vector(part))

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
