"""A Consul server for tests: services and checks, maintenance, tokens; and the server killed and begun anew."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode

import pytest

from support.certificates import Pair
from support.go_servers import find
from support.net import eventually, free_port
from support.process import Program

Json = Mapping[str, Any]
Body = Json | Sequence[Json]

TTL_CHECK: Json = {"TTL": "1h", "Status": "passing"}
"""Passes until it is told otherwise; its identifier is `service:ID`."""


class Consul:
    """One agent that is its own only server, with its files in `folder`. Where no Consul is built the test is skipped.

    `keep`: registrations outlive `kill` and `restart`, for seconds more at each start. `acl`: without a token nobody
    may do anything, and with `management` everything. `tls`: it serves HTTPS too.
    """

    def __init__(self, folder: Path, *, keep: bool = False, acl: bool = False, tls: Pair | None = None) -> None:
        found = find("consul")
        if found is None:
            pytest.skip("consul is missing: PYTHONPATH=tests python -m support.go_servers consul")
        self.node = f"node-{uuid.uuid4().hex[:12]}"
        self.management = str(uuid.uuid4()) if acl else None
        self.port = free_port()
        self.https_port = free_port() if tls else -1
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "agent.json"
        file.write_text(json.dumps(self._settings(folder / "data" if keep else None, tls)), encoding="utf-8")
        self._log = folder / "consul.log"
        self._command = [found, "agent", *([] if keep else ["-dev"]), "-config-file", file]
        self.program = Program(self._command, self._log)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def https_url(self) -> str:
        return f"https://127.0.0.1:{self.https_port}"

    def _settings(self, data: Path | None, tls: Pair | None) -> Json:
        settings: dict[str, Any] = {
            "node_name": self.node,
            "bind_addr": "127.0.0.1",
            "connect": {"enabled": False},
            "disable_update_check": True,
            "log_level": "warn",
            "ports": {
                "http": self.port,
                "https": self.https_port,
                "server": free_port(),
                "serf_lan": free_port(),
                **dict.fromkeys(("dns", "grpc", "serf_wan"), -1),
            },
        }
        if data is not None:
            fast = {"raft_multiplier": 1}
            settings |= {"server": True, "bootstrap_expect": 1, "data_dir": str(data), "performance": fast}
        if self.management:
            tokens = {"initial_management": self.management, "agent": self.management}
            settings["acl"] = {"enabled": True, "default_policy": "deny", "tokens": tokens}
        if tls:
            settings["tls"] = {"https": {"cert_file": str(tls.certificate), "key_file": str(tls.key)}}
        return settings

    def ready(self, timeout: float = 60) -> Self:
        """Once there is a leader, and the node is in its catalogue: whatever is registered now is found."""

        def found() -> bool:
            if not self.program.alive():
                raise RuntimeError(f"consul has ended:\n{self.program.log}")
            return bool(self.get(f"/v1/health/node/{self.node}"))

        eventually(found, timeout)
        return self

    def kill(self) -> None:
        """SIGKILL: nobody is told anything."""
        self.program.kill()

    def restart(self) -> Self:
        """On the same ports; with `keep`, what was registered is there."""
        self.program.stop()
        self.program = Program(self._command, self._log)
        return self.ready()

    def register(
        self,
        service: str,
        id: str,
        port: int,
        *,
        address: str = "127.0.0.1",
        tags: Sequence[str] = (),
        meta: Json | None = None,
        checks: Sequence[Json] = (TTL_CHECK,),
        weights: Json | None = None,
    ) -> None:
        """AssertionError, with the answer, when Consul refuses it."""
        body: dict[str, Any] = {"Name": service, "ID": id, "Port": port, "Address": address, "Tags": list(tags)}
        body |= {"Meta": dict(meta or {}), "Checks": [dict(check) for check in checks]}
        self.put("/v1/agent/service/register", body | ({"Weights": dict(weights)} if weights else {}))

    def deregister(self, id: str) -> None:
        self.put(f"/v1/agent/service/deregister/{quote(id, safe='')}")

    def passing(self, id: str, note: str = "") -> None:
        """Of the instance `id`'s first TTL check, as `warning` and `critical`."""
        self.update(f"service:{id}", "passing", note)

    def warning(self, id: str, note: str = "") -> None:
        self.update(f"service:{id}", "warning", note)

    def critical(self, id: str, note: str = "") -> None:
        self.update(f"service:{id}", "critical", note)

    def update(self, check: str, status: str, note: str = "") -> None:
        """Any TTL check, by its identifier."""
        self.put(f"/v1/agent/check/update/{quote(check, safe='')}", {"Status": status, "Output": note})

    def maintenance(self, id: str | None, on: bool, reason: str = "") -> None:
        """Of an instance; None: of the node."""
        of = "maintenance" if id is None else f"service/maintenance/{quote(id, safe='')}"
        self.put(f"/v1/agent/{of}?{urlencode({'enable': str(on).lower(), 'reason': reason})}")

    def token(self, rules: str) -> str:
        """A new token that may do what `rules`, in HCL, say."""
        policy = self.put("/v1/acl/policy", {"Name": uuid.uuid4().hex, "Rules": rules})
        return str(self.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})["SecretID"])

    def get(self, path: str) -> Any:
        """The JSON at `path`; AssertionError, with the answer, for anything but a 200."""
        return self._done("GET", path, None)

    def put(self, path: str, body: Body | None = None) -> Any:
        return self._done("PUT", path, body)

    def request(self, method: str, path: str, body: Body | None = None) -> tuple[int, bytes]:
        """Status and answer, whatever they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            headers = {"X-Consul-Token": self.management} if self.management else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _done(self, method: str, path: str, body: Body | None) -> Any:
        status, answer = self.request(method, path, body)
        assert status == 200, f"{method} {path}: {status} {answer.decode(errors='replace')}"
        return json.loads(answer) if answer else None

    def __enter__(self) -> Self:
        try:
            return self.ready()
        except BaseException:
            self.program.kill()
            raise

    def __exit__(self, *exception: object) -> None:
        self.program.stop()
