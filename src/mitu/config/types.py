"""The scalars of the configuration: parsed from what people write, refused with a code and a hint."""

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from mitu.config.diagnostic import nearest as nearest_word

DURATION_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
SIZE_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ROUTE_NAME = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("-._~ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_MEDIA_TYPE = re.compile(r"[a-z]+/(?:[!#$&^_.+\w-]*\*[!#$&^_.+\w-]*|[!#$&^_.+\w-]+)", re.ASCII | re.IGNORECASE)
_HANDLER = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
# What Python and Rust's regex crate refuse alike; the data plane has the last word on everything else.
_REGEX_ERRORS = ("missing )", "unbalanced parenthesis", "unterminated character set", "nothing to repeat")
_REGEX_UNSUPPORTED = re.compile(r"\(\?(=|!|<=|<!|>|P=|\()|(?<!\\)(?:\\\\)*\\[1-9]")


def fail(
    code: str,
    message: str,
    *,
    allowed: Iterable[str] = (),
    nearest: str | None = None,
    hint: str | None = None,
) -> NoReturn:
    """Refuse the value under validation with a code of the catalogue."""
    context: dict[str, Any] = {"message": message, "allowed": tuple(allowed), "nearest": nearest, "hint": hint}
    raise PydanticCustomError(cast("Any", code), "{message}", context)


def shown(value: object, limit: int = 60) -> str:
    """`value` as an error may show it: short, on one line, and never the inside of a container."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    text = str(value)
    if "-----BEGIN" in text:
        return "a PEM document"
    text = text.encode("unicode_escape", "backslashreplace").decode("ascii") if not text.isprintable() else text
    return f"'{text}'" if len(text) <= limit else f"'{text[: limit - 1]}…'"


def text_of(value: object) -> str:
    if not isinstance(value, str):
        hint = "put it in quotes" if isinstance(value, int | float) else None
        fail("E014", f"expected text, found {shown(value)}", hint=hint)
    if any("\ud800" <= char <= "\udfff" for char in value):
        fail("E014", f"{shown(value)} holds half a character (a lone surrogate)")
    return value


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
            return int(value)
        fail("E014", f"expected a whole number, found {shown(value)}")
    return value


def _boolean(value: object) -> bool:
    if isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    if not isinstance(value, bool):
        fail("E014", f"expected true or false, found {shown(value)}", allowed=("true", "false"))
    return value


@dataclass(frozen=True)
class IntRange:
    """A whole number; digits in a string are accepted too, since `${ENV}` always gives a string."""

    ge: int
    le: int

    def parse(self, value: object) -> int:
        parsed = _integer(value)
        if not self.ge <= parsed <= self.le:
            fail("E016", f"{shown(parsed)} is out of range", allowed=(f"{self.ge} to {self.le}",))
        return parsed

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self.parse, core_schema.int_schema(ge=self.ge, le=self.le)
        )


Bool = Annotated[bool, BeforeValidator(_boolean, json_schema_input_type=bool)]
Text = Annotated[str, BeforeValidator(text_of)]


def format_duration(value: timedelta) -> str:
    milliseconds = round(value / timedelta(milliseconds=1))
    for unit in ("h", "m", "s"):
        if milliseconds and milliseconds % DURATION_UNITS[unit] == 0:
            return f"{milliseconds // DURATION_UNITS[unit]}{unit}"
    return f"{milliseconds}ms"


@dataclass(frozen=True)
class DurationRange:
    """A length of time between `low` and `high`, written `500ms`, `10s`, `5m`, `1h`; a timedelta from code."""

    low: str
    high: str

    def parse(self, value: object) -> timedelta:
        parsed = value if isinstance(value, timedelta) else _timedelta(value)
        if not _timedelta(self.low) <= parsed <= _timedelta(self.high):
            fail("E016", f"{format_duration(parsed)} is out of range", allowed=(f"{self.low} to {self.high}",))
        return parsed

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        serializer = core_schema.plain_serializer_function_ser_schema(format_duration)
        return core_schema.no_info_plain_validator_function(self.parse, serialization=serializer)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$", "examples": ["500ms", "10s"]}


def _timedelta(value: object) -> timedelta:
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)", value) if isinstance(value, str) else None
    if match is None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        hint = f"write {value}s or {value}ms" if number else None
        fail("E017", f"{shown(value)} is not a duration", allowed=("500ms", "10s", "5m", "1h"), hint=hint)
    return timedelta(milliseconds=float(match[1]) * DURATION_UNITS[match[2]])


def format_size(value: int) -> str | int:
    for unit in ("GiB", "MiB", "KiB"):
        if value and value % SIZE_UNITS[unit] == 0:
            return f"{value // SIZE_UNITS[unit]}{unit}"
    return value


@dataclass(frozen=True)
class SizeRange:
    """A number of bytes between `low` and `high`, written as a whole number or as `64KiB`, `1MiB`, `1GiB`."""

    low: str
    high: str

    def parse(self, value: object) -> int:
        parsed = _bytes(value)
        if not _bytes(self.low) <= parsed <= _bytes(self.high):
            fail("E016", f"{shown(value)} is out of range", allowed=(f"{self.low} to {self.high}",))
        return parsed

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        serializer = core_schema.plain_serializer_function_ser_schema(format_size)
        return core_schema.no_info_plain_validator_function(self.parse, serialization=serializer)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        number = {"type": "integer", "minimum": _bytes(self.low), "maximum": _bytes(self.high)}
        return {"anyOf": [number, {"type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB)?$"}], "examples": ["64KiB"]}


def _bytes(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"([0-9]{1,15})(GiB|MiB|KiB|B)?", value) if isinstance(value, str) else None
    if match is None:
        decimal = re.fullmatch(r"([0-9]+) ?([kmg])i?b?", str(value), re.IGNORECASE)
        closest = f"{decimal[1]}{decimal[2].upper()}iB" if decimal else None
        fail("E018", f"{shown(value)} is not a size", allowed=("a number of bytes", "64KiB", "1MiB"), nearest=closest)
    return int(match[1]) * SIZE_UNITS[match[2] or "B"]


def format_share(value: float) -> str:
    return f"{value * 100:g}%"


def _parse_share(value: object) -> float:
    if isinstance(value, float):
        return value
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%", value) if isinstance(value, str) else None
    if match is None:
        fail("E014", f"expected a share, found {shown(value)}", allowed=("85%",))
    return float(match[1]) / 100


def _share(value: object) -> float:
    parsed = _parse_share(value)
    if not 0 < parsed <= 1:
        fail("E016", f"{format_share(parsed)} is out of range", allowed=("0.001% to 100%",))
    return parsed


def _share_or_nothing(value: object) -> float:
    parsed = _parse_share(value)
    if not 0 <= parsed <= 1:
        fail("E016", f"{format_share(parsed)} is out of range", allowed=("0% to 100%",))
    return parsed


def _name(value: object) -> str:
    text = text_of(value)
    if not _NAME.fullmatch(text):
        fail("E021", f"{shown(text)} is not a name", allowed=("1 to 63 letters, digits, '-', '_' and '.'",))
    return text


def _route_name(value: object) -> str:
    text = text_of(value)
    if not _ROUTE_NAME.fullmatch(text):
        fail("E021", f"{shown(text)} is not a name", allowed=("1 to 128 printable ASCII characters",))
    return text


def _alpn(value: object) -> str:
    text = text_of(value)
    if not 1 <= len(text) <= 255 or not all("!" <= char <= "~" for char in text):
        allowed = ("1 to 255 printable ASCII characters without spaces",)
        fail("E025", f"{shown(text)} is not an ALPN protocol name", allowed=allowed)
    return text


def split_host_port(text: str) -> tuple[str, int] | None:
    """`host:port`, `[v6]:port` and `:port` in their parts (the brackets dropped); None for anything else."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([^\[\]:/\s]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        return None
    if match[1] is not None:
        return (match[1], int(match[3])) if ip_address(match[1]) is not None else None
    return match[2], int(match[3])


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _bind(value: object) -> str:
    text = text_of(value)
    allowed = ("host:port", "[v6]:port", ":port")
    parts = split_host_port(text)
    if parts is None:
        hint = "add a port, as in ':8443'" if ":" not in text else "the port is a number from 0 to 65535"
        fail("E019", f"{shown(text)} is not an address to listen on", allowed=allowed, hint=hint)
    if parts[0] not in ("", "localhost") and ip_address(parts[0]) is None:
        hint = "a listener binds an IP address; ':port' binds all of them"
        fail("E019", f"{shown(parts[0])} is not an IP address", allowed=allowed, hint=hint)
    return text


def _endpoint(value: object) -> str:
    text = text_of(value)
    allowed = ("host:port", "[v6]:port", "unix:/path")
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path or len(path.encode()) > 107:
            fail("E019", f"{shown(text)} is not a Unix socket's address", allowed=("unix:/path of at most 107 bytes",))
        return text
    if "://" in text:
        scheme = "leave the scheme out; TLS to the upstream is its 'tls' setting"
        fail("E019", f"{shown(text)} is not an endpoint's address", allowed=allowed, hint=scheme)
    parts = split_host_port(text)
    if parts is None or not parts[0] or parts[1] == 0:
        hint = "add a port" if re.fullmatch(r"[^:/\s]+", text) else None
        fail("E019", f"{shown(text)} is not an endpoint's address", allowed=allowed, hint=hint)
    if ip_address(parts[0]) is None and (re.fullmatch(r"[0-9.]+", parts[0]) or not is_host_name(parts[0].lower())):
        fail("E019", f"{shown(parts[0])} is neither an IP address nor a host name", allowed=allowed)
    return text


def _socket_name(value: object) -> str:
    text = text_of(value)
    if text.startswith("unix:"):
        fail("E019", f"{shown(text)} is not a server's address", allowed=("host:port", "[v6]:port"))
    return _endpoint(text)


def _http_url(value: object) -> str:
    text = text_of(value)
    allowed = ("http://host:port", "https://host:port")
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("http", "https"):
        hint = f"write http://{text}" if not separator else None
        fail("E019", f"{shown(text)} is not the URL of a server", allowed=allowed, hint=hint)
    address = rest.rstrip("/")
    if re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:/?#@\s]+)(:[0-9]{1,5})?", address) is None:
        hint = "a password has a setting of its own" if "@" in rest else "leave path and query out"
        fail("E019", f"{shown(text)} is not the URL of a server", allowed=allowed, hint=hint)
    return f"{scheme}://{address}"


def is_host_name(text: str) -> bool:
    """A lower-case host name (RFC 1123, with the underscore that people do use), without a trailing dot."""
    return len(text) <= 253 and all(_LABEL.fullmatch(label) for label in text.split("."))


def _host_pattern(value: object) -> str:
    text = text_of(value).lower()
    allowed = ("example.com", "*.example.com", "an IP address")
    if ip_address(text.strip("[]")) is not None:
        return text.strip("[]")
    if not is_host_name(text.removeprefix("*.")) or text.removeprefix("*.") == "":
        fail("E026", f"{shown(value)} is not a host name or wildcard", allowed=allowed, hint=_host_hint(text))
    return text


def _host_hint(text: str) -> str | None:
    if not text.isascii():
        try:
            return f"write it in its ASCII form: '{text.encode('idna').decode()}'"
        except UnicodeError:
            return "write it in its ASCII (punycode) form"
    if re.fullmatch(r"[^:]+:[0-9]+", text):
        return "leave the port out: a host is matched on every port"
    if "*" in text:
        return "a wildcard stands for one whole label in front, as in '*.example.com'"
    return "leave the trailing dot out" if text.endswith(".") else None


def _network(value: object) -> str:
    text = text_of(value)
    allowed = ("10.0.0.0/8", "2001:db8::/32", "an IP address")
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        network = str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        fail("E020", f"{shown(text)} is not a network", allowed=allowed)
    fail("E020", f"{shown(text)} has bits set beyond its prefix", nearest=network)


def _header_name(value: object) -> str:
    text = text_of(value)
    if not _TOKEN.fullmatch(text) or len(text) > 256:
        hint = "pseudo-headers have settings of their own" if text.startswith(":") else None
        fail("E024", f"{shown(text)} is not a header name (RFC 9110 §5.1)", hint=hint)
    return text


def _header_value(value: object) -> str:
    text = text_of(value)
    if any(char in text for char in "\r\n\0") or not all(" " <= char <= "~" or char == "\t" for char in text):
        fail("E024", "a header's value holds characters that are not printable ASCII")
    return text


def _media_type(value: object) -> str:
    text = text_of(value)
    if not _MEDIA_TYPE.fullmatch(text):
        allowed = ("text/html", "text/*", "application/*+json")
        hint = "parameters such as charset are not looked at" if ";" in text else None
        fail("E086", f"{shown(text)} is not a media type", allowed=allowed, hint=hint)
    return text.lower()


def _method(value: object) -> str:
    text = text_of(value)
    if text.upper() in METHODS and text != text.upper():
        fail("E029", f"{shown(text)} is not a method", nearest=text.upper(), hint="methods are upper case")
    if not _TOKEN.fullmatch(text) or len(text) > 32:
        fail("E029", f"{shown(text)} is not a method", allowed=METHODS)
    return text


def _url_path(value: object) -> str:
    text = text_of(value)
    if not text.startswith("/"):
        fail("E027", f"{shown(text)} is not a path", hint="a path starts with '/'")
    if any(not "!" <= char <= "~" for char in text):
        fail("E027", f"{shown(text)} holds a character that no request path has", hint="percent-encode it")
    return text


def _match_path(value: object) -> str:
    text = _url_path(value)
    if "?" in text or "#" in text:
        fail("E027", f"{shown(text)} can never match", hint="a route is matched by path alone, without the query")
    if re.search(r"/\.\.?(/|$)", text) or any(chr(int(code, 16)) in _UNRESERVED for code in _ESCAPE.findall(text)):
        hint = "paths are matched without '.' and '..' segments and needless escapes (RFC 3986 §6.2.2)"
        fail("E027", f"{shown(text)} can never match", hint=hint)
    return text


def _regex(value: object) -> str:
    text = text_of(value)
    if len(text) > 4096:
        fail("E028", "a regular expression of more than 4096 characters")
    if _REGEX_UNSUPPORTED.search(text):
        hint = "matching takes linear time here, which look-around and back-references do not allow"
        fail("E028", f"{shown(text)} uses look-around or a back-reference", hint=hint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        if str(error).startswith(_REGEX_ERRORS):
            fail("E028", f"{shown(text)} is not a regular expression: {error}")
    return text


def _handler(value: object) -> str:
    text = text_of(value)
    if not _HANDLER.fullmatch(text):
        fail("E051", f"{shown(text)} does not name a Python function", allowed=("module:function",))
    return text


def _path(value: object, info: ValidationInfo) -> Path:
    text = str(value) if isinstance(value, Path) else text_of(value)
    if not text or "\0" in text:
        fail("E023", "a path is empty or holds a NUL character")
    base = info.context.get("base") if isinstance(info.context, dict) else None
    return (base or Path.cwd()) / text


def _schema(**schema: Any) -> WithJsonSchema:
    return WithJsonSchema({"type": "string"} | schema)


Name = Annotated[str, BeforeValidator(_name), _schema(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
RouteName = Annotated[str, BeforeValidator(_route_name), _schema(minLength=1, maxLength=128)]
Alpn = Annotated[str, BeforeValidator(_alpn), _schema(minLength=1, maxLength=255)]
Bind = Annotated[str, BeforeValidator(_bind), _schema(examples=["127.0.0.1:8443", "[::1]:8443", ":8443"])]
EndpointAddress = Annotated[
    str, BeforeValidator(_endpoint), _schema(examples=["127.0.0.1:8080", "unix:/run/app.sock"])
]
SocketName = Annotated[str, BeforeValidator(_socket_name), _schema(examples=["10.0.0.53:53"])]
HttpUrl = Annotated[str, BeforeValidator(_http_url), _schema(format="uri", examples=["http://127.0.0.1:8500"])]
_SHARE = (
    PlainSerializer(format_share, return_type=str),
    _schema(pattern=r"^[0-9]{1,3}(\.[0-9]{1,3})?%$", examples=["85%"]),
)
Share = Annotated[float, BeforeValidator(_share, json_schema_input_type=str), *_SHARE]
ShareOrNothing = Annotated[float, BeforeValidator(_share_or_nothing, json_schema_input_type=str), *_SHARE]
HostPattern = Annotated[str, BeforeValidator(_host_pattern), _schema(examples=["example.com", "*.example.com"])]
Network = Annotated[str, BeforeValidator(_network), _schema(examples=["10.0.0.0/8"])]
HeaderName = Annotated[str, BeforeValidator(_header_name), AfterValidator(str.lower), _schema()]
HeaderValue = Annotated[str, BeforeValidator(_header_value), _schema()]
MediaType = Annotated[str, BeforeValidator(_media_type), _schema(examples=["text/*", "application/*+json"])]
Method = Annotated[str, BeforeValidator(_method), _schema(examples=list(METHODS))]
UrlPath = Annotated[str, BeforeValidator(_url_path), _schema(pattern="^/")]
MatchPath = Annotated[str, BeforeValidator(_match_path), _schema(pattern="^/")]
Regex = Annotated[str, BeforeValidator(_regex), _schema(format="regex")]
Handler = Annotated[str, BeforeValidator(_handler), _schema(examples=["my_module:serve"])]
ConfigPath = Annotated[Path, BeforeValidator(_path), _schema(format="path")]


def one_of(word: object, known: Iterable[str], code: str, what: str, aliases: dict[str, str] | None = None) -> str:
    """`word` if it is known; otherwise an error with the nearest known one."""
    names = tuple(known)
    text = text_of(word)
    if text not in names:
        closest = (aliases or {}).get(text.lower()) or nearest_word(text, names)
        fail(code, f"unknown {what} {shown(text)}", allowed=names, nearest=closest)
    return text
