"""Which protocols a TLS server speaks: nginx, HAProxy and OpenSSL say it each in their way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from integration.conftest import Serve
from mitu.config.tls import UpstreamTls
from mitu.discovery.probe import Probe
from mitu.discovery.provider import ProviderError
from support.certificates import Authority, Pair
from support.net import free_port, wait_for_port
from support.process import Program
from support.programs import which
from support.servers import Reader, Writer

from .checked_servers import Nginx, running_nginx, s_server, trusting

NAMES = ("mqtt", "h2", "http/1.1", "acme/1")
SECONDS = 20


@pytest.fixture(scope="module")
def nginx(edge: Pair) -> Iterator[Nginx]:
    with running_nginx(edge) as nginx:
        yield nginx


class TestServers:
    async def test_nginx(self, nginx: Nginx, authority: Authority) -> None:
        tls = trusting(authority)
        assert await Probe(tls, NAMES, SECONDS).ask(f"127.0.0.1:{nginx.tls}") == ("h2", "http/1.1")
        assert await Probe(tls, NAMES, SECONDS).ask(f"127.0.0.1:{nginx.tls_h1}") == ("http/1.1",)
        assert await Probe(tls, ("acme/1", "mqtt"), SECONDS).ask(f"127.0.0.1:{nginx.tls}") == ()

    @pytest.mark.needs("haproxy")
    @pytest.mark.parametrize("proxied", [False, True])
    async def test_haproxy(self, edge: Pair, authority: Authority, tmp_path: Path, proxied: bool) -> None:
        program = which("haproxy")
        assert program is not None
        pair = tmp_path / "pair.pem"
        pair.write_bytes(edge.certificate.read_bytes() + edge.key.read_bytes())
        port = free_port()
        file = tmp_path / "haproxy.cfg"
        bind = f"127.0.0.1:{port} ssl crt {pair} alpn h2,mqtt,http/1.1{' accept-proxy' if proxied else ''}"
        file.write_text(
            "global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 5s\n"
            f"  timeout server 5s\nfrontend edge\n  bind {bind}\n"
        )
        with Program([program, "-db", "-f", file], tmp_path / "log"):
            wait_for_port(port)
            found = await Probe(trusting(authority), NAMES, SECONDS, proxy_protocol=proxied).ask(f"127.0.0.1:{port}")
        assert found == ("mqtt", "h2", "http/1.1")

    @pytest.mark.needs("openssl")
    @pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
    async def test_openssl(self, edge: Pair, authority: Authority, tmp_path: Path, version: str) -> None:
        with s_server(tmp_path, edge, version, "-alpn", "acme/1,h2,spdy/3") as address:
            assert await Probe(trusting(authority), NAMES, SECONDS).ask(address) == ("h2", "acme/1")

    @pytest.mark.needs("openssl")
    async def test_a_server_that_ignores_alpn(self, edge: Pair, authority: Authority, tmp_path: Path) -> None:
        with s_server(tmp_path, edge) as address:
            assert await Probe(trusting(authority), NAMES, SECONDS).ask(address) == ()

    @pytest.mark.needs("openssl")
    async def test_names_that_are_not_asked_for(self, edge: Pair, authority: Authority, tmp_path: Path) -> None:
        with s_server(tmp_path, edge, "-alpn", "h3,h2") as address:
            tls = trusting(authority)
            assert await Probe(tls, ("h3", "h2", "h2"), SECONDS).ask(address) == ("h2",), (
                "h3 is not found out over TCP"
            )
            assert await Probe(tls, ("h3",), SECONDS).ask(address) == ()
            assert await Probe(tls, (), SECONDS).ask(address) == ()


class TestTrouble:
    @pytest.mark.needs("openssl")
    async def test_a_certificate_that_does_not_verify(self, authority: Authority, tmp_path: Path) -> None:
        expired = authority.issue("expired", ("127.0.0.1",), valid_for=timedelta(minutes=-1))
        with s_server(tmp_path, expired, "-alpn", "h2") as address:
            with pytest.raises(ProviderError, match="handshake failed: certificate has expired"):
                await Probe(trusting(authority), NAMES, SECONDS).ask(address)
            assert await Probe(UpstreamTls(verify=False), NAMES, SECONDS).ask(address) == ("h2",)

    async def test_a_server_without_tls(self, nginx: Nginx) -> None:
        with pytest.raises(ProviderError, match="handshake failed: wrong version number"):
            await Probe(UpstreamTls(verify=False), NAMES, SECONDS).ask(f"127.0.0.1:{nginx.h1}")

    async def test_nobody_listens(self) -> None:
        port = free_port()
        with pytest.raises(ProviderError, match=f"cannot probe 127.0.0.1:{port}: connection refused"):
            await Probe(UpstreamTls(), NAMES, SECONDS).ask(f"127.0.0.1:{port}")

    async def test_one_that_never_answers(self, serve: Serve) -> None:
        async def listen(reader: Reader, writer: Writer) -> None:
            while await reader.read(65536):
                pass

        with pytest.raises(ProviderError, match=r"not done within 0\.2 s"):
            await Probe(UpstreamTls(verify=False), NAMES, 0.2).ask(serve(listen).endpoint)

    async def test_one_that_hangs_up(self, serve: Serve) -> None:
        async def close(reader: Reader, writer: Writer) -> None:
            await reader.read(1)

        with pytest.raises(ProviderError, match="handshake failed: connection "):
            await Probe(UpstreamTls(verify=False), NAMES, SECONDS).ask(serve(close).endpoint)

    async def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        tls = UpstreamTls.model_validate({"ca": str(tmp_path / "none.pem")})
        with pytest.raises(ProviderError, match="cannot load its TLS files"):
            await Probe(tls, NAMES, SECONDS).ask("127.0.0.1:1")
