"""HPACK (RFC 7541): decodes what any peer writes, and encodes whatever a test wants written, legal or not."""

from __future__ import annotations

Field = tuple[bytes, bytes]

# Appendix B: the code is canonical, so the symbols of each length say it all. 256 is the end of the string.
_SYMBOLS: dict[int, bytes] = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: bytes.fromhex("808283a2b8c2e0e2"),
    21: bytes.fromhex("99a1a7acb0b1b3d1d8d9e3e5e6"),
    22: bytes.fromhex("818485868892 9a9ca0a3a4a9aaadb2b5b9babbbdbec4c6e4e8e9"),
    23: bytes.fromhex("0187898a8b8c8d8f93959697989b9d9ea5a6a8aeafb4b6b7bcbfc5e7ef"),
    24: bytes.fromhex("098e9091949fabced7e1eced"),
    25: bytes.fromhex("c7cfeaeb"),
    26: bytes.fromhex("c0c1c8c9cacdd2d5dadbeef0f2f3ff"),
    27: bytes.fromhex("cbccd3d4d6dddedff1f4f5f6f7f8fafbfcfdfe"),
    28: bytes.fromhex("02030405060708 0b0c0e0f101112131415 1718191a1b1c1d1e1f7fdcf9"),
    30: b"\n\r\x16",
}


def _codes() -> dict[int, str]:
    codes, code, before = {}, 0, 0
    for length, symbols in _SYMBOLS.items():
        code <<= length - before
        before = length
        for symbol in symbols:
            codes[symbol] = f"{code:0{length}b}"
            code += 1
    return codes


_CODES = _codes()
_DECODED = {code: symbol for symbol, code in _CODES.items()}

# Appendix A.
_STATIC: tuple[Field, ...] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    *((b":status", status) for status in (b"200", b"204", b"206", b"304", b"400", b"404", b"500")),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            b"accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control"
            b" content-disposition content-encoding content-language content-length content-location content-range"
            b" content-type cookie date etag expect expires from host if-match if-modified-since if-none-match"
            b" if-range if-unmodified-since last-modified link location max-forwards proxy-authenticate"
            b" proxy-authorization range referer refresh retry-after server set-cookie strict-transport-security"
            b" transfer-encoding user-agent vary via www-authenticate"
        ).split()
    ),
)
assert len(_STATIC) == 61


class HpackError(Exception):
    """The header block is not HPACK."""


class Decoder:
    """One direction of a connection."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = self._size = limit
        self._dynamic: list[Field] = []

    def decode(self, block: bytes) -> list[Field]:
        """The fields of one whole block, in order. HpackError when it is malformed."""
        fields, at = [], 0
        try:
            while at < len(block):
                first = block[at]
                if first & 0x80:
                    index, at = _integer(block, at, 7)
                    fields.append(self._entry(index))
                elif first & 0xE0 == 0x20:
                    self._size, at = _integer(block, at, 5)
                    if self._size > self._limit:
                        raise HpackError("a table larger than was allowed")
                    self._evict()
                else:
                    indexed = bool(first & 0x40)
                    index, at = _integer(block, at, 6 if indexed else 4)
                    if index:
                        name = self._entry(index)[0]
                    else:
                        name, at = _string(block, at)
                    value, at = _string(block, at)
                    fields.append((name, value))
                    if indexed:
                        self._dynamic.insert(0, (name, value))
                        self._evict()
        except IndexError as error:
            raise HpackError("cut short") from error
        return fields

    def _entry(self, index: int) -> Field:
        if index == 0:
            raise HpackError("index 0")
        table = _STATIC if index <= len(_STATIC) else self._dynamic
        at = index - 1 if index <= len(_STATIC) else index - 1 - len(_STATIC)
        if at >= len(table):
            raise HpackError(f"index {index} beyond the table")
        return table[at]

    def _evict(self) -> None:
        while sum(len(name) + len(value) + 32 for name, value in self._dynamic) > self._size:
            self._dynamic.pop()


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    shift = 0
    while value >= most:
        byte, at = block[at], at + 1
        value += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
        if shift > 28:
            raise HpackError("an integer without end")
    return value, at


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    coded = bool(block[at] & 0x80)
    length, at = _integer(block, at, 7)
    text = block[at : at + length]
    if len(text) < length:
        raise HpackError("cut short")
    return (_huffman_decoded(text) if coded else text), at + length


def _huffman_decoded(coded: bytes) -> bytes:
    text, code = bytearray(), ""
    for bit in "".join(f"{byte:08b}" for byte in coded):
        code += bit
        if code in _DECODED:
            text.append(_DECODED[code])
            code = ""
    if len(code) > 7 or "0" in code:
        raise HpackError("bad padding")
    return bytes(text)


def integer(value: int, bits: int, pattern: int = 0) -> bytes:
    """`value` with a prefix of so many bits, under the bits of `pattern`."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([pattern | value])
    coded = bytearray([pattern | most])
    value -= most
    while value >= 0x80:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*coded, value])


def string(text: bytes, *, huffman: bool = False) -> bytes:
    if not huffman:
        return integer(len(text), 7) + text
    bits = "".join(_CODES[byte] for byte in text)
    bits += "1" * (-len(bits) % 8)
    coded = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return integer(len(coded), 7, 0x80) + coded


def literal(name: bytes, value: bytes, *, huffman: bool = False, indexed: bool = False) -> bytes:
    """A literal field with a literal name. `indexed`: it goes into the peer's dynamic table."""
    return (b"\x40" if indexed else b"\x00") + string(name, huffman=huffman) + string(value, huffman=huffman)


def block(fields: list[Field] | tuple[Field, ...]) -> bytes:
    """All of them as plain literals: nothing is checked, and nothing is changed."""
    return b"".join(literal(name, value) for name, value in fields)
