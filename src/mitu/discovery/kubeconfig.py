"""Where a Kubernetes API server is, and as whom it is asked: a pod's service account, or a kubeconfig.

All files are read anew each time, since tokens and certificates rotate. The format is that of client-go's
`tools/clientcmd/api/v1`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from yarl import URL

from mitu.config.discovery import KubernetesProvider
from mitu.discovery.exec_credential import Exec, Plugin
from mitu.discovery.kubernetes_access import Access, bearer
from mitu.discovery.kubernetes_objects import Part, parse
from mitu.discovery.provider import ProviderError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LARGEST = 4 << 20
"""Bytes of a kubeconfig, or of a file that it names."""

_UNSUPPORTED = ("proxy-url", "auth-provider", "username", "password", "as", "as-uid", "as-groups", "as-user-extra")
"""To leave these out of account would be to ask somebody else, or as somebody else."""


class _Entry(Part):
    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"))


class Cluster(_Entry):
    server: str
    tls_server_name: str | None = None
    insecure_skip_tls_verify: bool = False
    certificate_authority: str | None = None
    certificate_authority_data: str | None = None


class User(_Entry):
    client_certificate: str | None = None
    client_certificate_data: str | None = None
    client_key: str | None = None
    client_key_data: str | None = None
    token: str | None = None
    token_file: str | None = Field(default=None, alias="tokenFile")
    exec: Exec | None = None


class Context(_Entry):
    cluster: str
    user: str = ""
    namespace: str | None = None


E = TypeVar("E", bound=_Entry)


def find(settings: KubernetesProvider) -> Access:
    """As the settings say. ProviderError when there is nothing, or it cannot be used."""
    if settings.kubeconfig is not None:
        return _from_files([settings.kubeconfig], settings.context)
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if host and port and settings.context is None:
        return _in_cluster(host, port)
    named = os.environ.get("KUBECONFIG")
    try:
        paths = (
            [Path(path) for path in named.split(os.pathsep) if path] if named else [Path.home() / ".kube" / "config"]
        )
    except RuntimeError as error:
        raise ProviderError("this user has no home for a kubeconfig; name a file with 'kubeconfig'") from error
    there = [path for path in paths if _exists(path)]
    if not there:
        missing = f"there is no kubeconfig at {', '.join(map(str, paths))}"
        raise ProviderError(f"{missing}, and no service account of a pod; name a file with 'kubeconfig'")
    return _from_files(there, settings.context)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # It is where nobody may look, which reading it will say.
        return True


def _in_cluster(host: str, port: str) -> Access:
    namespace = SERVICE_ACCOUNT / "namespace"
    return Access(
        server=_server(f"https://{f'[{host}]' if ':' in host else host}:{port}"),
        namespace=_text(namespace).strip() if namespace.exists() else None,
        ca=_read(SERVICE_ACCOUNT / "ca.crt"),
        token=bearer(_text(SERVICE_ACCOUNT / "token")),
    )


def _from_files(paths: Iterable[Path], wanted: str | None) -> Access:
    """Of several files, the first that has an entry has the last word on it."""
    known: dict[tuple[str, str], tuple[object, Path]] = {}
    current: object = wanted
    for path in paths:
        document = _document(path)
        current = current or document.get("current-context")
        for kind in ("cluster", "user", "context"):
            entries = document.get(f"{kind}s")
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and isinstance(name := entry.get("name"), str):
                    known.setdefault((kind, name), (entry.get(kind), path.parent))
    if not isinstance(current, str) or not current:
        raise ProviderError("the kubeconfig has no 'current-context'; name one with 'context'")
    context, _ = _entry(Context, known, "context", current)
    cluster, folder = _entry(Cluster, known, "cluster", context.cluster)
    access = Access(
        server=_server(cluster.server),
        namespace=context.namespace or None,
        server_name=cluster.tls_server_name or None,
        verify=not cluster.insecure_skip_tls_verify,
        ca=_pem(cluster.certificate_authority_data, cluster.certificate_authority, folder),
    )
    # As client-go has it: where others can read along, nobody's credentials are sent.
    if not context.user or not access.server.startswith("https:"):
        return access
    return _as_user(access, *_entry(User, known, "user", context.user))


def _as_user(access: Access, user: User, folder: Path) -> Access:
    certificate = _pem(user.client_certificate_data, user.client_certificate, folder)
    key = _pem(user.client_key_data, user.client_key, folder)
    if (certificate is None) != (key is None):
        raise ProviderError("the kubeconfig's user has only one of client certificate and key")
    token = _text(folder / user.token_file) if user.token_file else user.token
    if user.exec is not None and not token and certificate is None:
        return replace(access, plugin=Plugin(user.exec, folder, _told(access)))
    return replace(access, certificate=certificate, key=key, token=bearer(token) if token else None)


def _told(access: Access) -> dict[str, Any]:
    """The cluster, as credential plugins are told of it."""
    return {
        "server": access.server,
        **({"tls-server-name": access.server_name} if access.server_name else {}),
        **({} if access.verify else {"insecure-skip-tls-verify": True}),
        **({"certificate-authority-data": base64.b64encode(access.ca).decode()} if access.ca else {}),
    }


def _entry(model: type[E], known: dict[tuple[str, str], tuple[object, Path]], kind: str, name: str) -> tuple[E, Path]:
    found, folder = known.get((kind, name), (None, None))
    if folder is None:
        names = [other for that, other in known if that == kind]
        raise ProviderError(f"the kubeconfig has no {kind} '{name}', only {', '.join(names[:10]) or 'none at all'}")
    for key in _UNSUPPORTED:
        if isinstance(found, dict) and found.get(key):
            raise ProviderError(
                f"the kubeconfig's {kind} '{name}' has '{key}', which is not supported; a user may have token,"
                " tokenFile, client-certificate and client-key (or -data), or exec"
            )
    return parse(model, found, f"the kubeconfig's {kind} '{name}'"), folder


def _document(path: Path) -> dict[str, Any]:
    try:
        document = YAML(typ="safe", pure=True).load(_read(path))
    except (YAMLError, ValueError, RecursionError) as error:
        # What it says itself shows the line, which may be a token.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ProviderError(f"the kubeconfig {path}{where} is no YAML") from None
    if not isinstance(document, dict):
        raise ProviderError(f"the kubeconfig {path} is no mapping")
    return document


def _server(text: str) -> str:
    try:
        url = URL(text)
        good = url.scheme in ("http", "https") and url.host and url.port and not url.query_string and not url.fragment
    except ValueError:
        good = None
    if not good or "@" in text:
        raise ProviderError("the kubeconfig's 'server' is no URL such as https://host:port, without a user in it")
    return text.rstrip("/")


def _pem(data: str | None, path: str | None, folder: Path) -> bytes | None:
    """Written down in base64, which goes before the file."""
    if not data:
        return _read(folder / path) if path else None
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except ValueError as error:
        raise ProviderError("the kubeconfig has a certificate or key that is not in base64") from error


def _text(path: Path) -> str:
    return _read(path).decode(errors="replace")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).lower()
        raise ProviderError(f"cannot read {path}: {reason}") from error
    if len(data) > LARGEST:
        raise ProviderError(f"{path} is larger than {LARGEST >> 20} MiB")
    return data
