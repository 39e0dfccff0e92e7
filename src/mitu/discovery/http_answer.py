"""What comes from a registry over HTTP: a body that is not too long, or what went wrong, in a few words."""

from __future__ import annotations

import os
import ssl

import aiohttp

from mitu.discovery.instance import printable
from mitu.discovery.provider import ProviderError


def reason(error: Exception) -> str:
    """aiohttp wraps what went wrong in words that repeat the address; this is what is inside."""
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection broke in the middle of the answer"
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return printable(f"its certificate is refused: {cause.verify_message.lower()}")
    # Negative ones are of name resolution, and TLS has numbers of its own.
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno and cause.errno > 0:
        return os.strerror(cause.errno).lower()
    return printable(str(cause)) or type(cause).__name__


async def read_body(response: aiohttp.ClientResponse, limit: int, too_long: str) -> bytearray:
    """All of it. ProviderError, in the words of `too_long`, when that is more than `limit` bytes."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > limit:
            raise ProviderError(too_long)
    return data
