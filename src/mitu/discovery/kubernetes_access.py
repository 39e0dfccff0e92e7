"""An API server, whoever asks it, and the TLS in between."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field, replace

from mitu.discovery.exec_credential import Credential, Plugin
from mitu.discovery.provider import ProviderError


@dataclass(frozen=True, slots=True)
class Access:
    """Certificates and keys are PEM."""

    server: str
    """Its URL, without a slash at its end."""
    namespace: str | None = None
    """Of whatever does not name its own."""
    server_name: str | None = None
    """What its certificate must be for; its host when None."""
    verify: bool = True
    ca: bytes | None = None
    """None: the system's authorities."""
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    plugin: Plugin | None = None
    """The program that gives a token or a certificate, where neither is here."""

    def issued(self, given: Credential) -> Access:
        """With what its plugin has given."""
        return replace(
            self,
            token=bearer(given.token) if given.token else None,
            certificate=given.certificate.encode() if given.certificate else None,
            key=given.key.encode() if given.key else None,
        )

    def tls(self) -> ssl.SSLContext:
        """A client's TLS. ProviderError when a certificate or key is none."""
        # Not Python's default: since 3.13 it refuses certificates without key identifiers, which many clusters have.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if not self.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            elif self.ca is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(cadata=self.ca.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError) as error:
            raise ProviderError("the certificate of the API server's authority is none in PEM") from error
        if self.certificate is None or self.key is None:
            return context
        try:
            # OpenSSL reads them from files only: from one in memory, so that no key comes to lie on a disk.
            with os.fdopen(os.memfd_create("mitu-kubernetes"), "wb") as file:
                file.write(self.certificate + b"\n" + self.key)
                file.flush()
                # An empty password, since it would else ask for one at the terminal.
                context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ProviderError(
                "the client certificate and its key are no pair in PEM, or the key is encrypted"
            ) from error
        return context


def bearer(text: str) -> str:
    """A token as a header may hold it. ProviderError when it is none, such as the whole of another file."""
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ProviderError("the token for the API server is none")
    return token
