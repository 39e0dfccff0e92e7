"""HTTP/2 (RFC 9113): one request on a connection of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from mitu.discovery.check.connection import CheckError, Stream

Headers = Sequence[tuple[str, str]]

_MOST_BODY = 4096
"""Bytes. It is less than a stream's first window, so that no window has to be opened further."""
_MOST_READ = 262144
"""Bytes of the whole connection: a peer that sends nothing but pings is not answered forever."""
_PIECE = 16384
_FRAME_HEAD, _FRAME_TYPE, _SETTINGS = 9, 3, 4


@dataclass(slots=True)
class Answer:
    """An answer, as far as it has come."""

    status: int = 0
    fields: dict[bytes, bytes] = field(default_factory=dict)
    """Headers and trailers."""
    body: bytes = b""
    ended: bool = False

    def enough(self, whole: bool) -> bool:
        return self.ended or (not whole and self.status > 0)


async def get(stream: Stream, headers: Headers) -> int:
    """The status of the answer to a request without a body; the answer's own is left where it is. CheckError."""
    answer = await _exchange(stream, headers, None)
    return answer.status


async def call(stream: Stream, headers: Headers, body: bytes) -> Answer:
    """The whole answer. CheckError, also when its body is longer than 4 KiB."""
    return await _exchange(stream, headers, body)


async def _exchange(stream: Stream, headers: Headers, body: bytes | None) -> Answer:
    connection = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    connection.local_settings = Settings(initial_values={SettingCodes.ENABLE_PUSH: 0})
    try:
        connection.initiate_connection()
        connection.send_headers(1, headers, end_stream=body is None)
        if body is not None:
            connection.send_data(1, body, end_stream=True)
    except H2Error as error:
        raise CheckError(f"cannot be asked over HTTP/2: {error}") from error
    stream.writer.write(connection.data_to_send())
    # What begins otherwise would be taken for a frame, most likely of megabytes, and waited for.
    piece = await stream.reader.readexactly(_FRAME_HEAD)
    if piece[_FRAME_TYPE] != _SETTINGS:
        raise CheckError("not HTTP/2")
    answer = Answer()
    left = _MOST_READ
    while True:
        for event in _received(connection, piece):
            _take(answer, event)
            # What else has come with it does not count, not even the connection's end.
            if answer.enough(body is not None):
                connection.close_connection()
                stream.writer.write(connection.data_to_send())
                return answer
        stream.writer.write(connection.data_to_send())
        piece = await stream.reader.read(_PIECE)
        left -= len(piece)
        if not piece or left < 0:
            raise CheckError("its answer is too long" if piece else "closed without an answer")


def _received(connection: H2Connection, piece: bytes) -> list[Event]:
    try:
        return connection.receive_data(piece)
    except Exception as error:  # the library's own accidents on odd input are the input's fault too
        raise CheckError("not HTTP/2") from error


def _take(answer: Answer, event: Event) -> None:
    if isinstance(event, ResponseReceived | TrailersReceived):
        answer.fields.update((bytes(name), bytes(value)) for name, value in event.headers or ())
        answer.status = _status(answer.fields)
    elif isinstance(event, DataReceived):
        answer.body += event.data or b""
        if len(answer.body) > _MOST_BODY:
            raise CheckError("its answer is too long")
    elif isinstance(event, StreamEnded):
        answer.ended = True
    elif isinstance(event, StreamReset):
        raise CheckError(f"stream reset: {_name(event.error_code)}")
    elif isinstance(event, ConnectionTerminated):
        raise CheckError(f"connection ended: {_name(event.error_code)}")


def _status(fields: dict[bytes, bytes]) -> int:
    text = fields.get(b":status", b"")
    if len(text) != 3 or not text.isdigit():
        raise CheckError("not HTTP/2")
    return int(text)


def _name(code: int | None) -> str:
    try:
        return ErrorCodes(code or 0).name.lower().replace("_", " ")
    except ValueError:
        return f"error {code}"
