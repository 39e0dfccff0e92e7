"""Real servers that are checked: nginx and `openssl s_server`, each a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mitu.config.discovery import HealthCheck
from mitu.config.tls import UpstreamTls
from support.certificates import Authority, Pair
from support.net import free_port, wait_for_port
from support.process import Program
from support.programs import WANTED, which

BIG = 10 << 20


class Nginx:
    """nginx with a port for each way of being spoken to."""

    def __init__(self, folder: Path, pair: Pair) -> None:
        # Short, since the path of a Unix socket may be 107 bytes long at most.
        self.socket = folder / "n"
        self.h1, self.h2, self.tls, self.tls_h1, self.proxied = (free_port() for _ in range(5))
        (folder / "big").write_bytes(bytes(BIG))
        file = folder / "nginx.conf"
        file.write_text(self._configuration(folder, pair))
        self.command = (which("nginx"), "-c", file, "-p", folder)

    def wait(self) -> None:
        for port in (self.h1, self.h2, self.tls, self.tls_h1, self.proxied):
            wait_for_port(port)

    def _configuration(self, folder: Path, pair: Pair) -> str:
        temporary = "".join(
            f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return f"""
            {"user root;" if os.geteuid() == 0 else ""}
            daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log;
            events {{}}
            http {{
              access_log off; {temporary}
              server {{
                listen 127.0.0.1:{self.h1};
                listen unix:{self.socket};
                listen 127.0.0.1:{self.h2} http2;
                listen 127.0.0.1:{self.tls} ssl http2;
                listen 127.0.0.1:{self.tls_h1} ssl;
                listen 127.0.0.1:{self.proxied} proxy_protocol;
                ssl_certificate {pair.certificate}; ssl_certificate_key {pair.key};
                root {folder};
                location / {{ return 200 "fine"; }}
                location /empty {{ return 204; }}
                location /broken {{ return 503; }}
                location /moved {{ return 302 /broken; }}
                location /big {{ }}
                location /query {{ if ($args = "deep=1&wide=2") {{ return 204; }} return 400; }}
                location /host {{ if ($http_host = "app.test") {{ return 204; }} return 421; }}
                location /agent {{ if ($http_user_agent = "mitu-health-check") {{ return 204; }} return 403; }}
              }}
            }}
        """


@contextlib.contextmanager
def running_nginx(pair: Pair) -> Iterator[Nginx]:
    """nginx, until the block ends. The test is skipped where there is none."""
    if which("nginx") is None:
        pytest.skip(f"nginx is missing: {WANTED['nginx'].advice}")
    with tempfile.TemporaryDirectory(prefix="mitu-") as folder:
        nginx = Nginx(Path(folder), pair)
        with Program(nginx.command, Path(folder) / "log"):
            nginx.wait()
            yield nginx


@contextlib.contextmanager
def s_server(folder: Path, pair: Pair, *flags: object) -> Iterator[str]:
    """`openssl s_server` with this certificate; its address."""
    port = free_port()
    command = ["openssl", "s_server", "-www", "-accept", f"127.0.0.1:{port}"]
    with Program([*command, "-cert", pair.certificate, "-key", pair.key, *flags], folder / "s_server.log"):
        wait_for_port(port)
        yield f"127.0.0.1:{port}"


def trusting(authority: Authority, name: str | None = None, identity: Pair | None = None) -> UpstreamTls:
    """TLS that verifies against `authority`."""
    files = {"certificate": str(identity.certificate), "key": str(identity.key)} if identity else {}
    return UpstreamTls.model_validate({"ca": str(authority.certificate), "server_name": name, **files})


def settings(kind: str, **more: object) -> HealthCheck:
    """As a configuration has them; 10 s for a check, so that none fails because the machine is busy."""
    return HealthCheck.model_validate({"kind": kind, "timeout": "10s", **more})


def sockets() -> int:
    """How many sockets this process has open."""
    links = []
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(file.readlink()))
    return sum(link.startswith("socket:") for link in links)


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open none within the block, whichever it closes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def soon(what: Callable[[], bool], timeout: float = 20) -> None:  # noqa: ASYNC109 - a deadline of the test
    """Until `what` is true, while the loop goes on. AssertionError when it is late."""
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        await asyncio.sleep(0.01)
