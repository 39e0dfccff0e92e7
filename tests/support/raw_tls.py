"""TLS as no library says it: ClientHellos of any shape, records of any kind, and what a server answers to them."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .client import Address
from .tls13 import CLIENT_HELLO, FINISHED, HANDSHAKE, SERVER_HELLO, X25519, Keys, Tls13, expand, vector

CHANGE, ALERT, HEARTBEAT = 20, 21, 24
HELLO_REQUEST, KEY_UPDATE, SERVER_HELLO_DONE, CLIENT_KEY_EXCHANGE = 0, 24, 14, 16
WARNING, FATAL = 1, 2

CLOSE_NOTIFY, UNEXPECTED_MESSAGE, BAD_RECORD_MAC, RECORD_OVERFLOW, HANDSHAKE_FAILURE = 0, 10, 20, 22, 40
ILLEGAL_PARAMETER, DECODE_ERROR, DECRYPT_ERROR, PROTOCOL_VERSION, INAPPROPRIATE_FALLBACK = 47, 50, 51, 70, 86
USER_CANCELED, NO_RENEGOTIATION, MISSING_EXTENSION, UNRECOGNIZED_NAME, NO_APPLICATION_PROTOCOL = 90, 100, 109, 112, 120

SERVER_NAME, STATUS_REQUEST, GROUPS, POINT_FORMATS, SIGNATURES, ALPN, PADDING = 0, 5, 10, 11, 13, 16, 21
EXTENDED_SECRET, TICKET, PRE_SHARED_KEY, EARLY_DATA, VERSIONS, MODES = 23, 35, 41, 42, 43, 45
KEY_SHARE, RENEGOTIATION = 51, 0xFF01

AES_128_GCM, ECDSA_AES_128_GCM, RSA_AES_128_GCM = 0x1301, 0xC02B, 0xC02F
FALLBACK_SCSV, EMPTY_RENEGOTIATION_SCSV = 0x5600, 0x00FF
P256, HYBRID = 23, 0x11EC
#: What nobody knows, and everybody has to skip (RFC 8701).
GREASE = (0x0A0A, 0x1A1A, 0xCACA, 0xFAFA)

REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def numbers(*values: int) -> bytes:
    """Each in two bytes."""
    return struct.pack(f"!{len(values)}H", *values)


def record(kind: int, data: bytes, version: int = 0x0301) -> bytes:
    return struct.pack("!BH", kind, version) + vector(data)


def records(data: bytes, piece: int, kind: int = HANDSHAKE) -> bytes:
    """`data` in records that hold so many bytes each."""
    return b"".join(record(kind, data[start : start + piece]) for start in range(0, len(data), piece))


def message(kind: int, body: bytes) -> bytes:
    """A handshake message."""
    return bytes([kind]) + vector(body, 3)


def alert(description: int, level: int = FATAL) -> bytes:
    return record(ALERT, bytes([level, description]))


def server_names(name: bytes, kind: int = 0) -> bytes:
    return vector(bytes([kind]) + vector(name))


def protocols(*names: bytes) -> bytes:
    """What ALPN carries."""
    return vector(b"".join(vector(name, 1) for name in names))


def share(group: int, key: bytes) -> bytes:
    return numbers(group) + vector(key)


def x25519_key(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


Extension = tuple[int, bytes]


def usual(key: bytes) -> tuple[Extension, ...]:
    """The extensions of a client that speaks TLS 1.3 and 1.2, with this X25519 key."""
    return (
        (SERVER_NAME, server_names(b"localhost")),
        (STATUS_REQUEST, b"\1\0\0\0\0"),
        (GROUPS, vector(numbers(X25519, P256))),
        (POINT_FORMATS, vector(b"\0", 1)),
        (SIGNATURES, vector(numbers(0x0403, 0x0804, 0x0805, 0x0401))),
        (ALPN, protocols(b"http/1.1")),
        (EXTENDED_SECRET, b""),
        (TICKET, b""),
        (VERSIONS, vector(numbers(0x0304, 0x0303), 1)),
        (MODES, vector(b"\1", 1)),
        (KEY_SHARE, vector(share(X25519, key))),
    )


@dataclass(frozen=True)
class Hello:
    """A ClientHello, each field as it goes out. The key is a good one, whose private half nobody has."""

    extensions: tuple[Extension, ...] | bytes = usual(b"\x09" + bytes(31))
    """Bytes stand for the whole block, without its length."""
    version: int = 0x0303
    random: bytes = b"\x5a" * 32
    session: bytes = b"\xa5" * 32
    suites: bytes = numbers(AES_128_GCM, ECDSA_AES_128_GCM, RSA_AES_128_GCM)
    compression: bytes = b"\0"

    @property
    def listed(self) -> tuple[Extension, ...]:
        assert isinstance(self.extensions, tuple)
        return self.extensions

    def body(self) -> bytes:
        fixed = numbers(self.version) + self.random + vector(self.session, 1)
        fixed += vector(self.suites) + vector(self.compression, 1)
        block = self.extensions if isinstance(self.extensions, bytes) else blocks(self.extensions)
        return fixed + vector(block)

    def message(self) -> bytes:
        return message(CLIENT_HELLO, self.body())

    def wire(self, piece: int = 16_384) -> bytes:
        """In records."""
        return records(self.message(), piece)

    def content(self, kind: int) -> bytes:
        return dict(self.listed)[kind]

    def put(self, kind: int, data: bytes) -> Self:
        """With this extension, in its place if it is there and else at the end."""
        if kind not in dict(self.listed):
            return replace(self, extensions=(*self.listed, (kind, data)))
        kept = ((known, data if known == kind else content) for known, content in self.listed)
        return replace(self, extensions=tuple(kept))

    def drop(self, *kinds: int) -> Self:
        return replace(self, extensions=tuple(one for one in self.listed if one[0] not in kinds))

    def add(self, *extensions: Extension) -> Self:
        """At the end, whatever is there already."""
        return replace(self, extensions=(*self.listed, *extensions))

    def tls12(self) -> Self:
        """From before TLS 1.3."""
        hello = self.drop(VERSIONS, MODES, KEY_SHARE)
        return replace(hello, suites=numbers(ECDSA_AES_128_GCM, RSA_AES_128_GCM), session=b"")


def blocks(extensions: Iterable[Extension]) -> bytes:
    return b"".join(numbers(kind) + vector(data) for kind, data in extensions)


@dataclass
class Reply:
    """All that a server has sent in the clear. `ended`: and it has closed the connection."""

    records: list[tuple[int, bytes]] = field(default_factory=list)
    ended: bool = False

    @property
    def alert(self) -> int | None:
        """The description of the last alert in the clear."""
        told = [data[1] for kind, data in self.records if kind == ALERT and len(data) == 2]
        return told[-1] if told else None

    @property
    def hello(self) -> bytes | None:
        """The body of the first ServerHello, or of what asks for another ClientHello."""
        said = b"".join(data for kind, data in self.records if kind == HANDSHAKE)
        return said[4 : 4 + int.from_bytes(said[1:4])] if said[:1] == bytes([SERVER_HELLO]) else None

    @property
    def version(self) -> int:
        """That of the ServerHello."""
        chosen = self.extension(VERSIONS)
        assert self.hello is not None
        return int.from_bytes(self.hello[:2] if chosen is None else chosen)

    @property
    def compression(self) -> int:
        return self._behind_session()[2]

    def extension(self, kind: int) -> bytes | None:
        return dict(self.extensions()).get(kind)

    def extensions(self) -> Iterator[Extension]:
        """Those of the ServerHello."""
        rest = self._behind_session()[5:]
        while rest:
            kind, length = struct.unpack("!HH", rest[:4])
            yield kind, rest[4 : 4 + length]
            rest = rest[4 + length :]

    def _behind_session(self) -> bytes:
        assert self.hello is not None
        return self.hello[35 + self.hello[34] :]


def exchange(address: Address, *pieces: bytes, finish: bool = False, pause: float = 0.0) -> Reply:
    """Sends the pieces, one by one, and reads until a ServerHello has come, or the end, or nothing for ten seconds.

    `finish`: the client's side ends behind the last piece.
    """
    with socket.create_connection(address, timeout=10) as tcp:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A server may have refused before it had all.
        with contextlib.suppress(OSError):
            for piece in pieces:
                tcp.sendall(piece)
                time.sleep(pause)
            if finish:
                tcp.shutdown(socket.SHUT_WR)
        return read(tcp)


def read(tcp: socket.socket) -> Reply:
    """Records in the clear, until a ServerHello, the end of the connection, or the socket's timeout."""
    reply, wire = Reply(), b""
    while reply.hello is None:
        try:
            piece = tcp.recv(65536)
        except TimeoutError:
            break
        except ConnectionError:
            piece = b""
        if not piece:
            reply.ended = True
            break
        wire += piece
        while len(wire) >= 5 and len(wire) >= (end := 5 + int.from_bytes(wire[3:5])):
            reply.records.append((wire[0], wire[5:end]))
            wire = wire[end:]
    return reply


class Refused(ConnectionError):  # noqa: N818
    """The server has ended the handshake. `alert`: what it said of that."""

    def __init__(self, alert: int | None) -> None:
        super().__init__(f"refused with the alert {alert}")
        self.alert = alert


class Shaped(Tls13):
    """A TLS 1.3 connection whose ClientHellos are shaped by the test; `Refused` where there is none.

    `reshape`: the second ClientHello, where the first has no key and another is asked for. `between`: sent as it is
    before the client's Finished; `behind`: in the same segment as the first ClientHello.
    """

    def __init__(
        self,
        address: Address,
        shape: Callable[[Hello], Hello] = lambda hello: hello,
        *,
        reshape: Callable[[Hello], Hello] | None = None,
        between: bytes = b"",
        behind: bytes = b"",
        piece: int = 16_384,
    ) -> None:
        self._shapes = [shape] if reshape is None else [shape, reshape]
        self._between, self._behind = between, behind
        self._shaken = False
        super().__init__(address, [], again=None if reshape is None else [], piece=piece)
        self._shaken = True

    def _hello(self, alpn: Sequence[str], *, with_key: bool) -> None:
        hello = Hello(usual(x25519_key(self._key)), random=self._random, session=self._session)
        if not with_key:
            hello = hello.put(KEY_SHARE, vector(b""))
        said = self._shapes.pop(0)(hello).message()
        self._transcript += said
        self.raw(records(said, self._piece) + self._behind)
        self._behind = b""

    def _next(self, wanted: int) -> bytes:
        body = super()._next(wanted)
        if wanted == FINISHED:
            self.raw(self._between)
        return body

    def _record(self) -> tuple[int, bytes] | None:
        received = super()._record()
        if not self._shaken:
            if received is None:
                raise Refused(None)
            if received[0] == ALERT:
                assert super()._record() is None, "the connection goes on behind an alert"
                raise Refused(received[1][1])
        elif received is not None and (received[0], received[1][:1]) == (HANDSHAKE, bytes([KEY_UPDATE])):
            assert self._reading is not None
            self._reading = _updated(self._reading)
        return received

    def raw(self, data: bytes) -> None:
        """Bytes as they are. That the server is gone shows when it is read from."""
        with contextlib.suppress(ConnectionError):
            self._tcp.sendall(data)

    def sealed(self, kind: int, data: bytes, padding: int = 0) -> bytes:
        """A record of this connection, of this inner type, with so many zeros behind it."""
        content = data + bytes([kind]) + bytes(padding)
        return self._writing.seal(content[-1], content[:-1])

    def say(self, kind: int, data: bytes, padding: int = 0) -> None:
        self.raw(self.sealed(kind, data, padding))

    def update_key(self, *, answer: bool, behind: int = 0) -> None:
        """A KeyUpdate, which asks for one in return or not; the bytes that are `behind` have been said already."""
        self.say(HANDSHAKE, message(KEY_UPDATE, bytes([answer]))[behind:])
        self._writing = _updated(self._writing)

    def outcome(self, patience: float = 10) -> Outcome:
        """Until its end, an answer to a request, or for so many seconds."""
        self._tcp.settimeout(patience)
        return outcome(self._record)


def _updated(keys: Keys) -> Keys:
    return Keys(expand(keys.secret, "traffic upd", b""))


@dataclass
class Outcome:
    """What came back on an encrypted connection: an answer to a request, an alert, its end."""

    answered: bool = False
    alert: int | None = None
    ended: bool = False
    handshake: bytes = b""
    """Messages that came after the handshake."""


def outcome(receive: Callable[[], tuple[int, bytes] | None]) -> Outcome:
    found = Outcome()
    while not found.answered:
        try:
            received = receive()
        except TimeoutError:
            return found
        except ConnectionError:
            received = None
        if received is None:
            found.ended = True
            return found
        kind, data = received
        if kind == ALERT:
            found.alert = data[1]
        elif kind == HANDSHAKE:
            found.handshake += data
        elif b"200 OK" in data:
            found.answered = True
    return found
