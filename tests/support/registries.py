"""Consul, etcd and Kubernetes as one and the same to tests: instances that come, get worse, recover and go."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import pytest

from mitu.discovery.instance import Health
from mitu.discovery.kubernetes import GRACE, WATCH_SECONDS
from support.consul import Consul
from support.etcd import Etcd, key
from support.gateway import Settings
from support.kubernetes import ADMIN, Kubernetes, endpoint, endpoint_slice, missing, port
from support.net import eventually

SERVICE = "api"


class Server(Protocol):
    """What runs, until the block ends."""

    port: int

    def kill(self) -> None: ...

    def __enter__(self) -> object: ...

    def __exit__(self, *exception: object) -> None: ...


S = TypeVar("S", bound=Server)


class Registry(ABC, Generic[S]):
    """A real server, until the block ends, in which one service has its instances."""

    host = "127.0.0.1"
    """Where instances have to be."""
    silence: float
    """Seconds after which a gateway has noticed that nothing comes through to it any more."""

    def __init__(self, server: S) -> None:
        self._server = server

    @property
    def port(self) -> int:
        return self._server.port

    @abstractmethod
    def put(
        self, id: str, number: int, protocols: Sequence[str], health: Health = Health.HEALTHY, note: str = ""
    ) -> None:
        """Write the instance that listens at the port `number`, in place of what was there. `note`: why it is not
        well, where the registry has room for that."""

    @abstractmethod
    def remove(self, *ids: str) -> None:
        """Whether they are there or not."""

    def reason(self, note: str) -> str:
        """What becomes of a note on an instance that is unavailable."""
        return note

    @abstractmethod
    def provider(self, port: int | None = None) -> Settings:
        """What a gateway has to be told of it. `port`: it is to go there instead, on the same host."""

    def discover(self, provider: str) -> Settings:
        """The service, for a gateway in which the registry is called `provider`."""
        return {"provider": provider, "service": SERVICE}

    def kill(self) -> None:
        """Of what was written nothing is lost."""
        self._server.kill()

    @abstractmethod
    def restart(self) -> None:
        """Returns once it answers."""

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.__exit__(*exception)


class InConsul(Registry[Consul]):
    _STATUS = ("passing", "warning", "critical")
    _WAIT = 5
    # Consul takes a sixteenth longer than it is asked to wait, and has a margin beyond that.
    silence = _WAIT * 17 / 16 + 15

    def __init__(self, folder: Path) -> None:
        super().__init__(Consul(folder, keep=True))
        self._written: dict[str, tuple[int, Sequence[str]]] = {}

    def put(
        self, id: str, number: int, protocols: Sequence[str], health: Health = Health.HEALTHY, note: str = ""
    ) -> None:
        if self._written.get(id) != (number, protocols):
            self._server.register(SERVICE, id, number, meta={"alpn_supported": ",".join(protocols)})
            self._written[id] = number, protocols
        self._server.update(f"service:{id}", self._STATUS[health], note)
        # The agent has it now; what all are told of it, its catalogue, has it a moment later.
        wanted = number, ",".join(protocols), self._STATUS[health]
        eventually(lambda: self._catalogue().get(id) == wanted)

    def _catalogue(self) -> dict[str, tuple[int, str, str]]:
        return {
            service["ID"]: (service["Port"], service["Meta"]["alpn_supported"], check["Status"])
            for one in self._server.get(f"/v1/health/service/{SERVICE}")
            for service in (one["Service"],)
            for check in one["Checks"]
            if check["CheckID"] == f"service:{service['ID']}"
        }

    def remove(self, *ids: str) -> None:
        for id in self._written.keys() & set(ids):
            self._server.deregister(id)
            del self._written[id]
        eventually(lambda: self._catalogue().keys().isdisjoint(ids))

    def provider(self, port: int | None = None) -> Settings:
        return {"consul": {"address": f"http://127.0.0.1:{port or self.port}", "wait": f"{self._WAIT}s"}}

    def restart(self) -> None:
        self._server.restart()


class InEtcd(Registry[Etcd]):
    # A watch is silent for so long, and then whoever is asked does not answer.
    silence = 15 * 1.2 + 5

    def __init__(self, folder: Path) -> None:
        super().__init__(Etcd(folder))

    def put(
        self, id: str, number: int, protocols: Sequence[str], health: Health = Health.HEALTHY, note: str = ""
    ) -> None:
        value = {"address": f"{self.host}:{number}", "protocols": protocols, "status": health.word, "reason": note}
        self._server.put(key(SERVICE, id), value)

    def remove(self, *ids: str) -> None:
        for id in ids:
            self._server.delete(key(SERVICE, id))

    def provider(self, port: int | None = None) -> Settings:
        return {"etcd": {"addresses": [f"http://127.0.0.1:{port or self.port}"]}}

    def restart(self) -> None:
        self._server.restart()


class InKubernetes(Registry[Kubernetes]):
    """Each instance has a slice of its own, since protocols are an annotation of the whole slice."""

    _CONDITIONS: tuple[dict[str, Any], ...] = (
        {"ready": True},
        {"ready": False, "serving": True, "terminating": True},
        {"ready": False, "serving": False},
    )
    silence = WATCH_SECONDS + GRACE

    def __init__(self, folder: Path) -> None:
        if (absent := missing()) is not None:
            pytest.skip(absent)
        self.host = _outside()
        super().__init__(Kubernetes(folder))

    def put(
        self, id: str, number: int, protocols: Sequence[str], health: Health = Health.HEALTHY, note: str = ""
    ) -> None:
        said = {"mitu.dev/alpn-supported": ",".join(protocols)}
        pod = endpoint(self.host, id, **self._CONDITIONS[health])
        self._server.apply(endpoint_slice(id, [pod], [port(number, "http")], service=SERVICE, annotations=said))

    def remove(self, *ids: str) -> None:
        self._server.delete_slices("--ignore-not-found", *ids)

    def reason(self, note: str) -> str:
        return "not ready"

    def provider(self, port: int | None = None) -> Settings:
        number = port or self.port
        reach = {"server": f"https://127.0.0.1:{number}", "tls-server-name": "kubernetes.default.svc"}
        kubeconfig = self._server.write_kubeconfig(f"gateway-{number}", {"token": ADMIN}, **reach)
        return {"kubernetes": {"kubeconfig": str(kubeconfig)}}

    def discover(self, provider: str) -> Settings:
        return {"provider": provider, "service": f"shop/{SERVICE}", "port": "http"}

    def restart(self) -> None:
        self._server.start()

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._server.kubectl("create", "namespace", "shop")
        except BaseException:
            self.__exit__()
            raise
        return self


AnyRegistry = Registry[Any]
REGISTRIES: dict[str, Callable[[Path], AnyRegistry]] = {"consul": InConsul, "etcd": InEtcd, "kubernetes": InKubernetes}


def _outside() -> str:
    """An address of this machine by which others know it: an API server takes no loopback address into a slice."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Of TEST-NET-1. Nothing is sent: the kernel only looks for a way there.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback's")
        host: str = probe.getsockname()[0]
    if host.startswith("127."):
        pytest.skip("this machine has no address but loopback's")
    return host
