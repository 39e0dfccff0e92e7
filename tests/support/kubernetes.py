"""A Kubernetes API server, with an etcd of its own; without controllers, so that nothing happens but what tests do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from support.certificates import Authority
from support.etcd import Etcd
from support.go_servers import find
from support.net import eventually, free_port
from support.process import Program, output, run

ADMIN = "admin-token"
STRANGER = "stranger-token"
"""Whoever has it is known, and may do nothing."""
PROGRAMS = ("etcd", "kube-apiserver", "kubectl")


def missing() -> str | None:
    """What to say of the programs that have not been built; None when all have."""
    absent = [name for name in PROGRAMS if find(name) is None]
    return f"missing: {', '.join(absent)}; python -m support.go_servers etcd kube-apiserver" if absent else None


def endpoint(
    address: str,
    pod: str | None = None,
    *,
    ready: bool | None = True,
    serving: bool | None = None,
    terminating: bool | None = None,
    zone: str | None = None,
) -> dict[str, Any]:
    """As the EndpointSlice controller writes it."""
    said = {"ready": ready, "serving": serving, "terminating": terminating}
    return {
        "addresses": [address],
        "conditions": {name: value for name, value in said.items() if value is not None},
        **({"targetRef": {"kind": "Pod", "name": pod}} if pod else {}),
        **({"zone": zone} if zone else {}),
    }


def port(number: int, name: str = "", **more: object) -> dict[str, Any]:
    return {"port": number, "name": name, "protocol": "TCP", **more}


def endpoint_slice(
    name: str,
    endpoints: Sequence[dict[str, Any]],
    ports: Sequence[dict[str, Any]],
    *,
    service: str = "api",
    family: str = "IPv4",
    annotations: dict[str, str] | None = None,
    namespace: str = "shop",
) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "tests"}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations or {}},
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": list(ports),
    }


class Kubernetes:
    """Runs until the block ends; all it writes goes to `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = Authority(folder / "pki", "Test Kubernetes CA")
        self._serving = self.authority.issue("apiserver", ("127.0.0.1", "kubernetes.default.svc"))
        self.client = self.authority.issue("client", common_name="tests", client=True)
        self.port = free_port()
        self.server = f"https://127.0.0.1:{self.port}"
        self._write_accounts()
        self.kubeconfig = self.write_kubeconfig("admin", {"token": ADMIN})
        self._api: Program | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.etcd = stack.enter_context(Etcd(self.folder / "etcd"))
            stack.callback(self.kill)
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Again at the same port, with what its store has. Returns when it is ready."""
        pki = self.folder / "pki"
        self._api = Program(
            [
                find("kube-apiserver"),
                f"--etcd-servers={self.etcd.address}",
                "--bind-address=127.0.0.1",
                f"--secure-port={self.port}",
                f"--cert-dir={pki}",
                f"--tls-cert-file={self._serving.certificate}",
                f"--tls-private-key-file={self._serving.key}",
                f"--client-ca-file={self.authority.certificate}",
                "--authorization-mode=RBAC",
                f"--token-auth-file={self.folder / 'tokens.csv'}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={pki / 'accounts.key'}",
                f"--service-account-signing-key-file={pki / 'accounts.key'}",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--endpoint-reconciler-type=none",
                # A watch with an old version is answered from what it has seen since it started.
                "--watch-cache=true",
            ],
            self.folder / "apiserver.log",
        )
        eventually(self._ready, 90, 0.2)

    def kill(self) -> None:
        """The API server alone, as if its machine had lost power."""
        if self._api is not None:
            self._api.kill()

    def kubectl(self, *words: object, stdin: bytes = b"", check: bool = True) -> str:
        """What it prints; AssertionError when it fails, unless that is none of `check`'s business."""
        command = [*self._kubectl(), *words]
        return output(command, stdin=stdin) if check else run(command, stdin=stdin).stdout.decode()

    def apply(self, *manifests: dict[str, Any]) -> None:
        """As they stand: fields that were there and are not any more go away."""
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps(bundle).encode())

    def delete_slices(self, *names: str, namespace: str = "shop") -> None:
        self.kubectl("delete", "endpointslices", "-n", namespace, *names)

    def write_kubeconfig(self, name: str, user: dict[str, Any], **cluster: object) -> Path:
        """One with a single user; `cluster`: what is said of it besides, or instead."""
        reach = {"server": self.server, "certificate-authority": str(self.authority.certificate), **cluster}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "local", "cluster": reach}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "local", "user": name, "namespace": "shop"}}],
        }
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    def _kubectl(self) -> list[object]:
        cache = self.folder / "kubectl-cache"
        return [find("kubectl"), "--kubeconfig", self.kubeconfig, "--cache-dir", cache, "--request-timeout=20s"]

    def _ready(self) -> bool:
        assert self._api is not None
        if not self._api.alive():
            raise RuntimeError(f"the API server has ended:\n{self._api.log[-3000:]}")
        return run([*self._kubectl(), "get", "--raw", "/readyz"]).returncode == 0

    def _write_accounts(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.folder / "pki" / "accounts.key").write_bytes(pem)
        tokens = f"{ADMIN},admin,1,system:masters\n{STRANGER},stranger,2\n"
        (self.folder / "tokens.csv").write_text(tokens, encoding="utf-8")
