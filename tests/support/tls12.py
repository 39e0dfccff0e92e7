"""A TLS 1.2 client that takes each step when it is told to (RFC 5246): ECDHE with X25519, AES-128-GCM."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import struct
from collections.abc import Callable
from typing import Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .client import Address
from .net import Dialled
from .raw_tls import (
    ALERT,
    CHANGE,
    CLIENT_KEY_EXCHANGE,
    EXTENDED_SECRET,
    SERVER_HELLO_DONE,
    Hello,
    Outcome,
    message,
    numbers,
    outcome,
    record,
    x25519_key,
)
from .tls13 import FINISHED, HANDSHAKE, X25519, vector


class Tls12(Dialled):
    """A connection. `shape`: makes its ClientHello of the usual one."""

    def __init__(self, address: Address, shape: Callable[[Hello], Hello] = lambda hello: hello) -> None:
        super().__init__(address)
        self._key = X25519PrivateKey.generate()
        self._shape = shape
        self._transcript = b""
        self._master = b""
        self._keys: tuple[AESGCM, AESGCM, bytes, bytes] | None = None
        self._sent: int | None = None
        self._received: int | None = None
        self.proof = b""

    @classmethod
    def open(cls, address: Address, shape: Callable[[Hello], Hello] = lambda hello: hello) -> Self:
        """With a whole handshake."""
        client = cls(address, shape)
        try:
            client.begin()
            client.exchange()
            client.change()
            client.finish()
        except BaseException:
            client.close()
            raise
        return client

    def hello(self) -> Hello:
        return self._shape(Hello(random=self._random).tls12())

    def begin(self) -> None:
        """ClientHello, and all that the server says to it."""
        self._random = os.urandom(32)
        self._say(self.hello().message())
        pending = b""
        while not pending.endswith(message(SERVER_HELLO_DONE, b"")):
            received = self.receive()
            if received is None or received[0] != HANDSHAKE:
                raise ConnectionError(f"in place of a handshake: {received}")
            pending += received[1]
        self._transcript += pending
        self._server_random = pending[6:38]
        # ServerKeyExchange: a named curve, its number, and the key with its length.
        at = pending.index(b"\3" + numbers(X25519) + b"\x20") + 4
        self._theirs = pending[at : at + 32]

    def exchange(self, public: bytes | None = None) -> None:
        """ClientKeyExchange: the key, or what stands in its place."""
        secret = self._key.exchange(X25519PublicKey.from_public_bytes(self._theirs))
        self._say(message(CLIENT_KEY_EXCHANGE, vector(x25519_key(self._key) if public is None else public, 1)))
        extended = EXTENDED_SECRET in dict(self.hello().listed)
        seed = hashlib.sha256(self._transcript).digest() if extended else self._random + self._server_random
        self._master = _prf(secret, b"extended master secret" if extended else b"master secret", seed, 48)
        block = _prf(self._master, b"key expansion", self._server_random + self._random, 40)
        self._keys = AESGCM(block[:16]), AESGCM(block[16:32]), block[32:36], block[36:40]

    def change(self) -> None:
        """ChangeCipherSpec; what is said from now on is encrypted."""
        self.raw(record(CHANGE, b"\1", 0x0303))
        self._sent = 0

    def finish(self, proof: bytes | None = None) -> None:
        """Finished, and the server's; ConnectionError where there is none."""
        digest = hashlib.sha256(self._transcript).digest()
        self.proof = _prf(self._master, b"client finished", digest, 12)
        self._say(message(FINISHED, self.proof if proof is None else proof))
        while (received := self.receive()) is not None:
            if received[0] == ALERT:
                raise ConnectionError(f"the alert {received[1][1]}")
            if received[0] == HANDSHAKE and received[1][0] == FINISHED:
                return
        raise ConnectionError("the server has ended the handshake")

    def raw(self, data: bytes) -> None:
        """Bytes as they are. That the server is gone shows when it is read from."""
        with contextlib.suppress(ConnectionError):
            self._tcp.sendall(data)

    def say(self, kind: int, data: bytes) -> None:
        """A record, encrypted once keys are in use."""
        if self._sent is None or self._keys is None:
            self.raw(record(kind, data, 0x0303))
            return
        key, _, salt, _ = self._keys
        number = self._sent.to_bytes(8)
        self._sent += 1
        known = number + struct.pack("!BHH", kind, 0x0303, len(data))
        self.raw(record(kind, number + key.encrypt(salt + number, data, known), 0x0303))

    def receive(self) -> tuple[int, bytes] | None:
        """Type and content of the next record; None at the end of the connection."""
        try:
            head = self._stream.read(5)
        except ConnectionError:
            return None
        if len(head) < 5:
            return None
        kind, _, length = struct.unpack("!BHH", head)
        content = self._stream.read(length)
        if kind == CHANGE:
            self._received = 0
        elif self._received is not None and self._keys is not None:
            _, key, _, salt = self._keys
            known = self._received.to_bytes(8) + struct.pack("!BHH", kind, 0x0303, length - 24)
            self._received += 1
            content = key.decrypt(salt + content[:8], content[8:], known)
        return kind, content

    def outcome(self, patience: float = 10) -> Outcome:
        """Until its end, an answer to a request, or for so many seconds."""
        self._tcp.settimeout(patience)
        return outcome(self.receive)

    def _say(self, said: bytes) -> None:
        self._transcript += said
        self.say(HANDSHAKE, said)


def _prf(secret: bytes, label: bytes, seed: bytes, length: int) -> bytes:
    seed, made, chained = label + seed, b"", label + seed
    while len(made) < length:
        chained = hmac.digest(secret, chained, "sha256")
        made += hmac.digest(secret, chained + seed, "sha256")
    return made[:length]
