"""Health checks `tcp`, `tls` and `http`, of nginx and OpenSSL; and of servers that send what those never do."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from integration.conftest import Serve
from mitu.config.tls import UpstreamTls
from mitu.discovery.check.connection import NotCheckedError
from mitu.discovery.checks import Check, Protocol, Verdict
from mitu.discovery.provider import ProviderError
from support.certificates import Authority, Pair
from support.net import free_port
from support.servers import Reader, Server, Writer, http_head, http_response

from .checked_servers import BIG, Nginx, no_more_files, running_nginx, s_server, settings, sockets, soon, trusting

GOOD = Verdict(True)


def bad(reason: str) -> Verdict:
    return Verdict(False, reason)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """A check leaves no task behind, however it ends."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}


@pytest.fixture(scope="module")
def nginx(edge: Pair) -> Iterator[Nginx]:
    with running_nginx(edge) as nginx:
        yield nginx


class TestTcp:
    async def test_a_server(self, nginx: Nginx) -> None:
        for address in (f"127.0.0.1:{nginx.h1}", f"localhost:{nginx.h1}", f"unix:{nginx.socket}"):
            assert await Check(settings("tcp")).run(address) == GOOD

    async def test_v6(self) -> None:
        if not socket.has_dualstack_ipv6():
            pytest.skip("this machine has no IPv6")
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            address = f"[::1]:{server.getsockname()[1]}"
            assert await Check(settings("tcp")).run(address) == GOOD
        assert await Check(settings("tcp")).run(address) == bad("connection refused")

    async def test_nobody_listens(self, tmp_path: Path) -> None:
        check = Check(settings("tcp"))
        assert await check.run(f"127.0.0.1:{free_port()}") == bad("connection refused")
        assert await check.run(f"unix:{tmp_path}/none") == bad("no such file or directory")

    async def test_a_name_that_is_none(self) -> None:
        verdict = await Check(settings("tcp")).run("nothing.invalid:80")
        assert not verdict.good
        assert "name" in verdict.reason

    @pytest.mark.parametrize("address", ["", "host", ":80", "host:99999", "a\nb:80", "unix:", f"{'x' * 300}:80"])
    async def test_what_is_no_address(self, address: str) -> None:
        verdict = await Check(settings("tcp")).run(address)
        assert not verdict.good
        assert verdict.reason.isprintable()
        assert 0 < len(verdict.reason) <= 120

    async def test_a_queue_that_is_full(self) -> None:
        with socket.socket(socket.AF_UNIX) as deaf, tempfile.TemporaryDirectory() as folder:
            deaf.bind(f"{folder}/s")
            deaf.listen(0)
            check = Check(settings("tcp"))
            with socket.socket(socket.AF_UNIX) as first:
                first.connect(f"{folder}/s")
                assert await check.run(f"unix:{folder}/s") == bad("its queue of connections is full")

    async def test_no_files_left_says_nothing_of_the_instance(self, nginx: Nginx) -> None:
        check = Check(settings("tcp"))
        with no_more_files(), pytest.raises(NotCheckedError, match="too many open files"):
            await check.run(f"127.0.0.1:{nginx.h1}")
        assert await check.run(f"127.0.0.1:{nginx.h1}") == GOOD


@pytest.mark.needs("openssl")
class TestTls:
    async def run(self, address: str, tls: UpstreamTls | None) -> Verdict:
        return await Check(settings("tls"), tls=tls).run(address)

    async def test_a_good_one(self, nginx: Nginx, authority: Authority) -> None:
        for address in (f"127.0.0.1:{nginx.tls}", f"localhost:{nginx.tls}"):
            assert await self.run(address, trusting(authority)) == GOOD

    async def test_a_name_that_the_certificate_has_not(self, nginx: Nginx, authority: Authority) -> None:
        address = f"127.0.0.1:{nginx.tls}"
        assert await self.run(address, trusting(authority, "edge.test")) == GOOD
        text = "handshake failed: Hostname mismatch, certificate is not valid for 'other.test'."
        assert await self.run(address, trusting(authority, "other.test")) == bad(text)

    async def test_an_authority_that_is_not_trusted(self, nginx: Nginx, tmp_path: Path) -> None:
        address = f"127.0.0.1:{nginx.tls}"
        reason = "handshake failed: unable to get local issuer certificate"
        assert await self.run(address, trusting(Authority(tmp_path))) == bad(reason)
        assert await self.run(address, None) == bad(reason), "without settings the system's authorities count"
        assert await self.run(address, UpstreamTls(verify=False)) == GOOD

    async def test_one_that_has_expired(self, authority: Authority, tmp_path: Path) -> None:
        expired = authority.issue("expired", ("127.0.0.1",), valid_for=timedelta(minutes=-1))
        with s_server(tmp_path, expired) as address:
            reason = "handshake failed: certificate has expired"
            assert await self.run(address, trusting(authority)) == bad(reason)

    async def test_a_server_that_wants_a_certificate(self, edge: Pair, authority: Authority, tmp_path: Path) -> None:
        wants = ("-Verify", 1, "-verify_return_error", "-CAfile", authority.certificate, "-tls1_2")
        with s_server(tmp_path, edge, *wants) as address:
            verdict = await self.run(address, trusting(authority))
            assert not verdict.good
            assert verdict.reason.startswith("handshake failed: ")
            gateway = authority.issue("gateway", client=True, common_name="gateway")
            assert await self.run(address, trusting(authority, identity=gateway)) == GOOD

    async def test_a_server_without_tls(self, nginx: Nginx) -> None:
        reason = "handshake failed: wrong version number"
        assert await self.run(f"127.0.0.1:{nginx.h1}", UpstreamTls(verify=False)) == bad(reason)

    async def test_a_unix_socket_has_no_name_of_its_own(self, nginx: Nginx, authority: Authority) -> None:
        address = f"unix:{nginx.socket}"
        assert await self.run(address, trusting(authority)) == bad("TLS to a Unix socket needs a server_name")
        wrong = bad("handshake failed: wrong version number")
        assert await self.run(address, trusting(authority, "edge.test")) == wrong

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ProviderError, match="cannot load its TLS files"):
            Check(settings("tls"), tls=UpstreamTls.model_validate({"ca": str(tmp_path / "none.pem")}))


class TestHttp:
    @pytest.fixture(params=["h1", "h1 auto", "unix", "h2", "tls", "tls auto", "tls_h1", "tls_h1 auto"])
    def way(
        self, request: pytest.FixtureRequest, nginx: Nginx, authority: Authority
    ) -> tuple[str, UpstreamTls | None, Protocol]:
        """Address, TLS and protocol, for each way of asking."""
        port, _, auto = request.param.partition(" ")
        if port == "unix":
            return f"unix:{nginx.socket}", None, "http/1.1"
        protocol: Protocol = "auto" if auto else "h2" if port in ("h2", "tls") else "http/1.1"
        tls = trusting(authority) if port.startswith("tls") else None
        return f"127.0.0.1:{getattr(nginx, port)}", tls, protocol

    async def test_every_way(self, way: tuple[str, UpstreamTls | None, Protocol]) -> None:
        address, tls, protocol = way

        async def ask(path: str, **more: object) -> Verdict:
            made = Check(settings("http", path=path, **more), tls=tls, protocol=protocol)
            return await made.run(address)

        assert await ask("/") == GOOD
        assert await ask("/query?deep=1&wide=2") == GOOD
        assert await ask("/empty") == GOOD
        assert await ask("/empty", status=[200, 202]) == bad("status 204")
        assert await ask("/broken") == bad("status 503")
        assert await ask("/broken", status=[503]) == GOOD
        assert await ask("/moved") == GOOD, "a redirect is not followed"
        assert await ask("/moved", status=[200]) == bad("status 302")
        assert await ask("/host") == bad("status 421")
        assert await ask("/host", host="app.test") == GOOD
        assert await ask("/agent") == GOOD
        assert await ask("/big") == GOOD

    async def test_a_protocol_that_the_server_does_not_speak(self, nginx: Nginx, authority: Authority) -> None:
        check = Check(settings("http"), protocol="h2")
        assert await check.run(f"127.0.0.1:{nginx.h1}") == bad("not HTTP/2")
        assert await Check(settings("http")).run(f"127.0.0.1:{nginx.h2}") == bad("not HTTP/1.1")
        check = Check(settings("http"), tls=trusting(authority), protocol="h2")
        reason = "handshake failed: tlsv1 alert no application protocol"
        assert await check.run(f"127.0.0.1:{nginx.tls_h1}") == bad(reason)

    async def test_h2_has_to_be_chosen(self, edge: Pair, authority: Authority, tmp_path: Path) -> None:
        with s_server(tmp_path, edge) as address:
            check = Check(settings("http"), tls=trusting(authority), protocol="h2")
            assert await check.run(address) == bad("does not choose h2 by ALPN")
            for protocol in ("http/1.1", "auto"):
                assert await Check(settings("http"), tls=trusting(authority), protocol=protocol).run(address) == GOOD

    async def test_a_server_behind_the_proxy_protocol(self, nginx: Nginx) -> None:
        address = f"127.0.0.1:{nginx.proxied}"
        assert await Check(settings("http", path="/agent"), proxy_protocol=True).run(address) == GOOD
        assert await Check(settings("http", path="/agent")).run(address) == bad("closed without an answer")

    async def test_what_is_asked(self, serve: Serve) -> None:
        heads: list[tuple[str, dict[str, str]]] = []

        async def record(reader: Reader, writer: Writer) -> None:
            head = await http_head(reader)
            assert head is not None
            heads.append((head[0], dict(head[1])))
            writer.write(http_response("200 OK"))

        server: Server = serve(record)
        assert await Check(settings("http", path="/up?x=1")).run(server.endpoint) == GOOD
        assert await Check(settings("http", host="app.test")).run(server.endpoint) == GOOD
        fields = {"User-Agent": "mitu-health-check", "Accept": "*/*", "Connection": "close"}
        assert heads == [
            ("GET /up?x=1 HTTP/1.1", {"Host": server.endpoint, **fields}),
            ("GET / HTTP/1.1", {"Host": "app.test", **fields}),
        ]


ANSWERS = {
    b"": "closed without an answer",
    b"HTTP/1.1 200": "closed within its answer",
    b"HTTP/1.1 200 OK\r\nContent-Len": "closed within its answer",
    b"SSH-2.0-OpenSSH_9.2\r\n": "not HTTP/1.1",
    b"HTTP/2 200 OK\r\n\r\n": "not HTTP/1.1",
    b"HTTP/1.1 99999 OK\r\n\r\n": "not HTTP/1.1",
    b"HTTP/1.1 200OK\r\n\r\n": "not HTTP/1.1",
    b"HTTP/1.1 200 " + bytes(BIG): "its answer is too long",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000: "its answer is too long",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000: "its answer is too long",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n": "status 101",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n": "",
    b"HTTP/1.0 204\n\n": "",
    b"HTTP/1.1 200 OK\r\n\r\n" + bytes(BIG): "",
}


class TestOddServers:
    @pytest.mark.parametrize(("answer", "reason"), ANSWERS.items(), ids=range(len(ANSWERS)))
    async def test_answers(self, serve: Serve, answer: bytes, reason: str) -> None:
        async def say(reader: Reader, writer: Writer) -> None:
            await http_head(reader)
            writer.write(answer)
            await writer.drain()

        assert await Check(settings("http")).run(serve(say).endpoint) == Verdict(not reason, reason)

    @pytest.mark.parametrize("kind", ["http", "grpc", "mqtt"])
    async def test_one_that_closes_at_once(self, serve: Serve, kind: str) -> None:
        async def close(reader: Reader, writer: Writer) -> None:
            writer.transport.abort()

        address = serve(close).endpoint
        seen = {(await Check(settings(kind)).run(address)).reason for _ in range(10)}
        assert seen <= {"closed without an answer", "connection reset by peer", "broken pipe", "connection closed"}
        assert await Check(settings("tcp")).run(address) == GOOD

    async def test_one_that_closes_within_the_handshake(self, serve: Serve) -> None:
        async def close(reader: Reader, writer: Writer) -> None:
            await reader.read(1)

        verdict = await Check(settings("tls")).run(serve(close).endpoint)
        assert verdict.reason.startswith("handshake failed: connection "), verdict

    @pytest.mark.parametrize("kind", ["tls", "http", "grpc", "mqtt"])
    async def test_one_that_never_answers(self, serve: Serve, kind: str) -> None:
        async def listen(reader: Reader, writer: Writer) -> None:
            while await reader.read(65536):
                pass

        server: Server = serve(listen)
        before = sockets()
        begun = time.monotonic()
        verdict = await Check(settings(kind, timeout="500ms")).run(server.endpoint)
        stage = "handshake" if kind == "tls" else "answer"
        assert verdict == bad(f"no {stage} within 0.5 s")
        assert time.monotonic() - begun < 5
        await soon(lambda: server.open == 0 and sockets() == before)

    @pytest.mark.parametrize("kind", ["tls", "http"])
    async def test_cancelling_closes_the_connection(self, serve: Serve, kind: str) -> None:
        async def listen(reader: Reader, writer: Writer) -> None:
            while await reader.read(65536):
                pass

        server: Server = serve(listen)
        before = sockets()
        task = asyncio.create_task(Check(settings(kind)).run(server.endpoint))
        await soon(lambda: server.open == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await soon(lambda: server.open == 0 and sockets() == before)

    async def test_one_whose_network_is_gone(self) -> None:
        # TEST-NET-1: no such host is on any network, so a packet is lost or a router says so.
        verdict = await Check(settings("tcp", timeout="100ms")).run("192.0.2.1:9")
        assert not verdict.good
        assert verdict.reason
