"""etcd as a test's registry: real servers, each on ports of its own, asked over their JSON gateway."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from mitu.config.discovery import Discover, EtcdProvider
from mitu.discovery import etcd
from mitu.discovery.instance import Instance, Snapshot
from support import go_servers
from support.certificates import Authority, Pair
from support.net import eventually, free_port
from support.process import Program


class EtcdError(OSError):
    """What etcd has answered in place of what was asked."""


class Etcd:
    """A server with its data in `folder`, until the block ends.

    `peers`: the ports that a cluster's members have for each other, by name; without it the server is alone.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "alone",
        peers: Mapping[str, int] | None = None,
        tls: tuple[Pair, Authority] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        found = go_servers.find("etcd")
        if found is None:
            pytest.skip("etcd is missing: PYTHONPATH=tests python -m support.go_servers etcd")
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        members = {one: f"http://127.0.0.1:{port}" for one, port in (peers or {name: free_port()}).items()}
        scheme = "http" if tls is None else "https"
        self.address = f"{scheme}://127.0.0.1:{self.port}"
        self._context = None if tls is None else ssl.create_default_context(cafile=tls[1].certificate)
        self._token = ""
        self._log = folder / "log"
        self._command = [
            found,
            f"--name={name}",
            f"--data-dir={folder / 'data'}",
            f"--listen-client-urls={self.address}",
            f"--advertise-client-urls={self.address}",
            f"--listen-peer-urls={members[name]}",
            f"--initial-advertise-peer-urls={members[name]}",
            f"--initial-cluster={','.join(f'{one}={url}' for one, url in members.items())}",
            "--unsafe-no-fsync",
            "--bcrypt-cost=4",
            "--log-level=warn",
            *([] if tls is None else [f"--cert-file={tls[0].certificate}", f"--key-file={tls[0].key}"]),
            *flags,
        ]
        self.program = Program(self._command, self._log)

    def ready(self) -> Self:
        """Once it answers, which a member does when it knows a leader."""

        def answers() -> bool:
            if not self.program.alive():
                raise RuntimeError(f"etcd has ended:\n{self.program.log}")
            return bool(self.ask("kv/range", {"key": _encoded("ready")}))

        eventually(answers, 60)
        return self

    def kill(self) -> None:
        """SIGKILL; the data stay."""
        self.program.kill()

    def restart(self) -> None:
        """With the data that it had, once it has ended."""
        self.program = Program(self._command, self._log)
        self.ready()

    def put(self, key: str, value: str | bytes | Mapping[str, object], lease: int = 0) -> None:
        """A mapping becomes JSON."""
        written = value if isinstance(value, str | bytes) else json.dumps(value)
        self.ask("kv/put", {"key": _encoded(key), "value": _encoded(written), "lease": str(lease)})

    def delete(self, key: str) -> None:
        self.ask("kv/deleterange", {"key": _encoded(key)})

    def at_once(self, puts: Mapping[str, str], deletes: Sequence[str] = ()) -> None:
        """All of it in one transaction."""
        written = [{"request_put": {"key": _encoded(key), "value": _encoded(value)}} for key, value in puts.items()]
        gone = [{"request_delete_range": {"key": _encoded(key)}} for key in deletes]
        self.ask("kv/txn", {"success": [*written, *gone]})

    def lease_grant(self, ttl: int) -> int:
        """A lease of `ttl` seconds."""
        return int(self.ask("lease/grant", {"TTL": str(ttl)})["ID"])

    def keepalive(self, lease: int) -> None:
        self.ask("lease/keepalive", {"ID": str(lease)})

    async def watchers(self, count: int) -> None:
        """Once it has that many."""
        await asyncio.to_thread(eventually, lambda: self.metric("etcd_debugging_mvcc_watcher_total") == count, 30)

    def metric(self, name: str) -> float:
        """`name`: with its labels, as it is written."""
        lines = self._request("GET", "/metrics").decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    def revision(self) -> int:
        return int(self.ask("kv/range", {"key": _encoded("revision")})["header"]["revision"])

    def compact(self) -> None:
        """Forget all history up to now."""
        self.ask("kv/compaction", {"revision": str(self.revision()), "physical": True})

    def enable_auth(self, password: str) -> None:
        """From now on, only `root` may do anything, and this object is root."""
        self.ask("auth/user/add", {"name": "root", "password": password})
        self.ask("auth/role/add", {"name": "root"})
        self.ask("auth/user/grant", {"user": "root", "role": "root"})
        self._demand_users(password)

    def renew_auth(self, password: str) -> None:
        """Nobody is asked who they are for a moment, and no token is any good from then on. `password`: root's."""
        self.ask("auth/disable", {})
        self._demand_users(password)

    def _demand_users(self, password: str) -> None:
        self.ask("auth/enable", {})
        self._token = str(self.ask("auth/authenticate", {"name": "root", "password": password})["token"])

    def add_reader(self, name: str, password: str, prefix: str) -> None:
        """A user who may read what begins with `prefix`, and nothing else."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        permission = {"permType": "READ", "key": _encoded(prefix), "range_end": _encoded(end)}
        self.ask("auth/user/add", {"name": name, "password": password})
        self.ask("auth/role/add", {"name": name})
        self.ask("auth/role/grant", {"name": name, "perm": permission})
        self.ask("auth/user/grant", {"user": name, "role": name})

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """EtcdError when it refuses; OSError when nobody answers."""
        answer: dict[str, Any] = json.loads(self._request("POST", f"/v3/{path}", json.dumps(body)))
        return answer

    def _request(self, method: str, path: str, body: str | None = None) -> bytes:
        if self._context is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        else:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=self._context)
        try:
            connection.request(method, path, body, {"Authorization": self._token} if self._token else {})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise EtcdError(f"{path}: {answer.decode(errors='replace')}")
        return answer

    def __enter__(self) -> Self:
        try:
            return self.ready()
        except BaseException:
            self.program.stop()
            raise

    def __exit__(self, *exception: object) -> None:
        # A frozen one would not hear the first signal.
        self.program.kill()


class Watched:
    """A service as the provider under test has it."""

    def __init__(self, watch: AsyncGenerator[Snapshot]) -> None:
        self._watch = watch

    async def next(self, within: float = 30) -> dict[str, Instance]:
        """What is yielded next, by identifier. TimeoutError when that takes more than `within` seconds."""
        async with asyncio.timeout(within):
            snapshot = await anext(self._watch)
        return {one.id: one for one in snapshot.instances}


def key(service: str, instance: str) -> str:
    return f"/mitu/services/{service}/{instance}"


def configured(*servers: Etcd, **settings: object) -> EtcdProvider:
    return EtcdProvider.model_validate({"addresses": [server.address for server in servers], **settings})


def provider(*servers: Etcd, silence: float = 600, timeout: float = 10, **settings: object) -> etcd.Etcd:
    """So patient that whatever comes in time has come from the watch."""
    return etcd.Etcd(configured(*servers, **settings), silence=silence, timeout=timeout)


@asynccontextmanager
async def watched(asked: etcd.Etcd, service: str) -> AsyncGenerator[Watched]:
    async with aclosing(asked.watch(Discover(provider="etcd", service=service))) as watch:
        yield Watched(watch)
    await asked.close()


def _encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()
