"""Credentials from a program that a kubeconfig names, as cloud providers have one.

https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import Field

from mitu.discovery.kubernetes_objects import Part, parse
from mitu.discovery.provider import ProviderError

VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
SECONDS = 30.0
"""How long it may take. Some ask their cloud."""
LARGEST = 1 << 20
"""Bytes of its answer."""
_BEFORE = timedelta(seconds=30)
"""A credential is not used for longer than until this much before it expires."""


class Variable(Part):
    name: str
    value: str


class Exec(Part):
    """`exec` of a kubeconfig's user."""

    command: str
    args: tuple[str, ...] | None = None
    env: tuple[Variable, ...] | None = None
    api_version: str = Field(alias="apiVersion")
    install_hint: str | None = Field(default=None, alias="installHint")
    wants_cluster: bool = Field(default=False, alias="provideClusterInfo")
    interactive: str | None = Field(default=None, alias="interactiveMode")


class Credential(Part):
    """What the program prints as `status`."""

    expires: datetime | None = Field(default=None, alias="expirationTimestamp")
    token: str | None = Field(default=None, repr=False)
    certificate: str | None = Field(default=None, alias="clientCertificateData")
    key: str | None = Field(default=None, alias="clientKeyData", repr=False)

    def holds(self) -> bool:
        if self.expires is None:
            return True
        expires = self.expires if self.expires.tzinfo else self.expires.replace(tzinfo=UTC)
        return datetime.now(UTC) < expires - _BEFORE


class _Answer(Part):
    api_version: str = Field(alias="apiVersion")
    status: Credential


@dataclass(frozen=True)
class Plugin:
    """A program, with the folder of the kubeconfig that names it, and the cluster that it may ask about."""

    exec: Exec
    folder: Path
    cluster: dict[str, Any]

    async def run(self) -> Credential:
        """What the program answers. ProviderError when it fails, prints something else, or takes too long."""
        name = self.exec.command
        if self.exec.api_version not in VERSIONS:
            raise ProviderError(f"the credential plugin '{name}' wants an 'apiVersion' that is none of {VERSIONS}")
        if self.exec.interactive == "Always":
            raise ProviderError(f"the credential plugin '{name}' asks a person, and there is none")
        try:
            async with asyncio.timeout(SECONDS):
                output = await self._output()
        except TimeoutError as error:
            raise ProviderError(f"the credential plugin '{name}' took longer than {SECONDS:g} s") from error
        except (OSError, ValueError) as error:
            hint = f"; {self.exec.install_hint[:200]}" if self.exec.install_hint else ""
            reason = getattr(error, "strerror", None) or error
            raise ProviderError(f"cannot run the credential plugin '{name}': {reason}{hint}") from error
        answer = parse(_Answer, output, f"what the credential plugin '{name}' printed")
        if answer.api_version != self.exec.api_version:
            raise ProviderError(f"the credential plugin '{name}' answered with another 'apiVersion' than it was asked")
        given = answer.status
        if (given.certificate is None) != (given.key is None) or not (given.token or given.certificate):
            raise ProviderError(f"the credential plugin '{name}' gave neither a token nor a certificate with its key")
        return given

    async def _output(self) -> bytes:
        # With a folder in it, it is looked for beside the kubeconfig; else in PATH.
        command = str(self.folder / self.exec.command) if "/" in self.exec.command else self.exec.command
        process = await asyncio.create_subprocess_exec(
            command,
            *(self.exec.args or ()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            # Nobody knows what it says there, so it is not for a log.
            stderr=asyncio.subprocess.DEVNULL,
            env={
                **os.environ,
                **{one.name: one.value for one in self.exec.env or ()},
                "KUBERNETES_EXEC_INFO": json.dumps(self._asked()),
            },
        )
        try:
            assert process.stdout is not None
            output = b""
            while chunk := await process.stdout.read(1 << 16):
                output += chunk
                if len(output) > LARGEST:
                    raise ProviderError(f"the credential plugin '{self.exec.command}' printed too much")
            code = await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if code != 0:
            message = f"the credential plugin '{self.exec.command}' ended with exit code {code}"
            raise ProviderError(f"{message}; run it by hand to see why")
        return output

    def _asked(self) -> dict[str, Any]:
        cluster = {"cluster": self.cluster} if self.exec.wants_cluster else {}
        return {
            "apiVersion": self.exec.api_version,
            "kind": "ExecCredential",
            "spec": {**cluster, "interactive": False},
        }
