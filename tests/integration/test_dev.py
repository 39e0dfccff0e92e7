"""`mitu dev` as a newcomer runs it: real clients, real certificate stores, and how it ends."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Pair
from support.client import Http1, connect, context
from support.gateway import MITU
from support.net import eventually, free_port
from support.process import Program, output, run
from support.servers import Reader, Server, Writer, mirror

from .conftest import Serve

Start = Callable[..., "Dev"]


class Dev:
    """`mitu dev` on a free port, and what it says once it serves."""

    def __init__(self, folder: Path, *options: str, json_line: bool = True, **environment: str) -> None:
        self.folder = folder
        environment = {"XDG_DATA_HOME": str(folder / "data"), "COLUMNS": "100", **environment}
        port = () if "--port" in options else ("--port", "0")
        said = ("--json",) if json_line else ()
        command = [*MITU, "dev", *port, *said, *options]
        self.program = Program(command, folder / f"dev-{time.monotonic_ns()}.log", environment=environment)

    @property
    def facts(self) -> dict[str, Any]:
        def first_line() -> str:
            assert self.program.alive() or self.program.log, self.program.log
            line, end, _ = self.program.log.partition("\n")
            return line if end else ""

        found: dict[str, Any] = json.loads(eventually(first_line, 30))
        return found

    @property
    def ca(self) -> Path:
        eventually(lambda: self.program.log, 30)
        return self.folder / "data" / "mitu" / "dev" / "ca.crt"

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.facts["address"].rpartition(":")
        return host.strip("[]"), int(port)

    def curl(self, *options: str, path: str = "", name: str = "localhost") -> str:
        url = f"https://{name}:{self.address[1]}/{path}"
        return output(["curl", "-sS", "--cacert", self.ca, *options, url])

    def text(self) -> str:
        """All of what it says to people."""
        eventually(lambda: "Ctrl-C ends it" in self.program.log, 30)
        return self.program.log


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Start]:
    started: list[Dev] = []

    def start(*options: str, **settings: Any) -> Dev:
        started.append(Dev(tmp_path, *options, **settings))
        return started[-1]

    yield start
    for one in started:
        one.program.stop()
        print(f"--- {shlex.join(one.program.command)}\n{one.program.log}")


def refused(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Exit code and words of a `mitu dev` that does not come to serve."""
    environment = {**os.environ, "XDG_DATA_HOME": str(folder / "data"), "COLUMNS": "200", **environment}
    command = [*MITU, "dev", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    return done.returncode, done.stdout + done.stderr


class TestThePage:
    @pytest.mark.needs("curl")
    @pytest.mark.parametrize(("flag", "protocol"), [("--http1.1", "http/1.1"), ("--http2", "h2")])
    def test_it_tells_what_was_negotiated(self, dev: Start, flag: str, protocol: str) -> None:
        gateway = dev()
        for number in (1, 2):
            page = gateway.curl(flag)
            assert f"protocol    {protocol} (ALPN)" in page
            assert "TLS         1.3, TLS_" in page
            assert "new session" in page
            assert f"connection  number {number} from 127.0.0.1:" in page
        seen = json.loads(gateway.curl(flag, "-H", "Accept: application/json", path="x?y=1"))
        assert (seen["method"], seen["path"], seen["connection"]["alpn"]) == ("GET", "/x?y=1", protocol)
        html = gateway.curl(flag, "-H", "Accept: text/html", path="?a&b")
        assert html.startswith("<!doctype html>")
        assert f"<td>{protocol} (ALPN)</td>" in html
        assert "<td>GET /?a&amp;b for localhost:" in html

    def test_a_resumed_session(self, dev: Start) -> None:
        gateway = dev()
        tls = context(gateway.ca)
        with connect(gateway.address, tls) as stream:
            assert b"new session" in Http1(stream).request("/").body
            session = stream.session
        tcp = socket.create_connection(gateway.address, timeout=10)
        with tls.wrap_socket(tcp, server_hostname="localhost", session=session) as stream:
            assert b"resumed session" in Http1(stream).request("/").body

    def test_several_requests_at_once_are_not_taken_for_each_other(self, dev: Start) -> None:
        gateway = dev()
        with (
            connect(gateway.address, context(gateway.ca)) as first,
            connect(gateway.address, context(gateway.ca)) as one,
        ):
            for client, number in ((Http1(first), 1), (Http1(one), 1), (Http1(first), 2), (Http1(one), 2)):
                port = client.stream.getsockname()[1]
                assert f"from 127.0.0.1:{port}, request {number}\n" in client.request("/").body.decode()


class TestWhatIsServed:
    @pytest.mark.needs("curl")
    def test_the_command_that_it_prints_works(self, dev: Start) -> None:
        text = dev(json_line=False).text()
        command = next(line for line in text.splitlines() if "try it" in line).split("try it", 1)[1].strip()
        assert command.startswith("curl --cacert ")
        assert output(["sh", "-c", f"{command} -sS"]).startswith("It works")
        assert "mitu dev --trust" in text

    @pytest.mark.needs("curl")
    def test_names(self, dev: Start) -> None:
        gateway = dev("--name", "app.localhost", "--name", "*.Shop.test")
        assert gateway.facts["names"] == ["localhost", "127.0.0.1", "::1", "app.localhost", "*.shop.test"]
        port = gateway.address[1]
        for name in ("localhost", "127.0.0.1", "app.localhost", "a.shop.test"):
            assert gateway.curl("--resolve", f"{name}:{port}:127.0.0.1", name=name).startswith("It works"), name
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(gateway.address, context(gateway.ca), name="other.test")
        assert gateway.facts["urls"] == [f"https://localhost:{port}/", f"https://app.localhost:{port}/"]

    @pytest.mark.needs("curl")
    def test_an_upstream(self, dev: Start, app: Server) -> None:
        gateway = dev("--to", str(app.port))
        for flag in ("--http1.1", "--http2"):
            seen = json.loads(gateway.curl(flag, "-d", "a=1", path="form?x=1"))
            assert (seen["method"], seen["target"], seen["body"]) == ("POST", "/form?x=1", "a=1")
            assert ["x-forwarded-proto", "https"] in seen["headers"]
        assert gateway.facts["to"] == f"http://localhost:{app.port}"

    @pytest.mark.needs("curl")
    def test_an_upstream_that_comes_later(self, dev: Start, serve: Serve) -> None:
        port = free_port()
        gateway = dev("--to", f"http://127.0.0.1:{port}/", json_line=False)
        assert f"nothing listens at http://127.0.0.1:{port} yet" in gateway.text()
        url = next(word for word in gateway.text().split() if word.startswith("https://"))
        curl = ["curl", "-sS", "--cacert", gateway.ca, url]
        assert output(curl) == "502 Bad Gateway: connect_refused\n"
        serve(mirror, port=port)
        assert json.loads(output(curl))["target"] == "/"

    @pytest.mark.needs("curl")
    def test_an_upstream_that_signed_for_itself(self, dev: Start, serve: Serve, edge: Pair) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(edge.certificate, edge.key)
        gateway = dev("--to", f"https://127.0.0.1:{serve(mirror, tls=tls).port}")
        assert json.loads(gateway.curl(path="secret"))["target"] == "/secret"

    def test_the_access_log(self, dev: Start) -> None:
        gateway = dev("--log")
        with Http1.open(gateway.address, gateway.ca) as client:
            assert client.request("/logged").status == 200
        line = eventually(lambda: gateway.program.log.partition("\n")[2])
        assert (json.loads(line)["path"], json.loads(line)["status"]) == ("/logged", 200)


class TestHowItEnds:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it(self, dev: Start, number: signal.Signals) -> None:
        gateway = dev()
        with Http1.open(gateway.address, gateway.ca) as client:
            assert client.request("/").status == 200
            gateway.program.signal(number)
            assert gateway.program.wait() == 0
            assert client.closed()
        assert "Traceback" not in gateway.program.log

    def test_a_request_without_end_does_not_hold_it_up(self, dev: Start, serve: Serve) -> None:
        async def endless(reader: Reader, writer: Writer) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await reader.read()

        gateway = dev("--to", f"127.0.0.1:{serve(endless).port}")
        with Http1.open(gateway.address, gateway.ca) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.head().status == 200
            gateway.program.signal(signal.SIGINT)
            assert gateway.program.wait() == 0

    def test_a_taken_port(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            code, text = refused(tmp_path, "--port", str(port))
        assert code == 1
        assert f"cannot bind 127.0.0.1:{port}" in text
        assert f"mitu dev --port {port + 1}" in text
        assert "Traceback" not in text

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--name", "example.com"), "may be somebody's public name"),
            (("--to", "ftp://x"), "is not HTTP"),
            (("--bind", "example.test"), "takes an IP address"),
            (("--port", "70000"), "less than or equal to 65535"),
            (("--trust", "--untrust"), "exclude each other"),
            (("--no-such-option",), "No such option"),
        ],
    )
    def test_wrong_usage(self, tmp_path: Path, options: tuple[str, ...], told: str) -> None:
        code, text = refused(tmp_path, *options)
        assert code == 2
        assert told in text

    def test_where_no_authority_can_be_kept(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        code, text = refused(tmp_path, XDG_DATA_HOME=str(tmp_path / "file"))
        assert code == 1
        assert "set XDG_DATA_HOME" in text

    def test_an_address_of_another_machine(self, tmp_path: Path) -> None:
        code, text = refused(tmp_path, "--bind", "192.0.2.1")
        assert code == 1
        assert "'ip addr' lists them" in text


class TestGrowingOut:
    @pytest.mark.parametrize("upstream", [False, True])
    def test_the_configuration_that_it_prints(self, tmp_path: Path, app: Server, upstream: bool) -> None:
        to = ["--to", f"127.0.0.1:{app.port}"] if upstream else []
        code, text = refused(tmp_path, "--name", "app.test", *to, "--port", "0", "--print-config")
        assert code == 0
        file = tmp_path / "mitu.yaml"
        file.write_text(text, encoding="utf-8")
        done = run([*MITU, "check", "--strict", file])
        assert done.returncode == 0, done.stdout
        # As root it would take the machine's own admin socket.
        file.write_text(f"admin: {{socket: admin.sock}}\n{text}", encoding="utf-8")
        with Program([*MITU, "run", "mitu.yaml"], tmp_path / "run.log") as program:
            status = [*MITU, "status", "--json", "--socket", tmp_path / "admin.sock"]
            eventually(lambda: run(status).returncode == 0 or not program.alive(), 30, 0.3)
            host, _, port = json.loads(output(status))["listeners"][0]["address"].rpartition(":")
            ca = tmp_path / "data" / "mitu" / "dev" / "ca.crt"
            with connect((host, int(port)), context(ca), name="app.test") as stream:
                body = Http1(stream).request("/grown").body.decode()
            assert (json.loads(body)["target"] == "/grown") if upstream else body.startswith("It works")

    @pytest.mark.needs("curl")
    def test_it_names_the_options_that_lead_there(self, dev: Start, app: Server) -> None:
        gateway = dev("--to", str(app.port), "--name", "app.test", json_line=False)
        line = next(line for line in gateway.text().splitlines() if "grow out" in line)
        told = shlex.split(line.split("grow out", 1)[1].partition(">")[0])
        port = (
            next(word for word in gateway.text().split() if word.startswith("https://")).rstrip("/").rpartition(":")[2]
        )
        to = f"http://localhost:{app.port}"
        assert told == ["mitu", "dev", "--to", to, "--name", "app.test", "--port", port, "--print-config"]


def test_colours_where_they_are_wanted(dev: Start) -> None:
    coloured = dev(json_line=False, FORCE_COLOR="1", TERM="xterm-256color").text()
    plain = dev(json_line=False, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm-256color").text()
    assert "\x1b[1;32m" in coloured
    assert "32m" not in plain
    assert "\x1b[" not in dev(json_line=False).text()


@pytest.mark.parametrize(("typed", "offered"), [("mitu de", "dev"), ("mitu dev --pri", "--print-config")])
def test_the_shell_completes_it(typed: str, offered: str) -> None:
    environment = {
        **os.environ,
        "_MITU_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'mitu'; from mitu.cli import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == [offered], done.stderr


class TestTrust:
    """On a copy of the system's store, mounted over it for the commands of one test, and in a home of its own."""

    @pytest.fixture
    def inside(self, tmp_path: Path) -> list[str]:
        """What runs a command where the stores may be changed."""
        anchors, certificates = Path("/usr/local/share/ca-certificates"), Path("/etc/ssl/certs")
        if shutil.which("update-ca-certificates", path="/usr/sbin:/sbin") is None or not anchors.is_dir():
            pytest.skip("update-ca-certificates is missing: apt-get install ca-certificates")
        if shutil.which("unshare") is None or run(["unshare", "--map-root-user", "--mount", "true"]).returncode != 0:
            pytest.skip("mount namespaces cannot be had here: the kernel or the container forbids them")
        copies = {tmp_path / "anchors": anchors, tmp_path / "certificates": certificates}
        for copy, original in copies.items():
            shutil.copytree(original, copy, symlinks=True)
        mounts = " && ".join(f"mount --bind {copy} {original}" for copy, original in copies.items())
        settings = ["env", f"HOME={tmp_path}/home", f"XDG_DATA_HOME={tmp_path}/data"]
        return ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *settings]

    @pytest.fixture
    def databases(self, tmp_path: Path) -> list[Path]:
        """Those of a Chromium and a Firefox."""
        if shutil.which("certutil") is None:
            pytest.skip("certutil is missing: apt-get install libnss3-tools")
        found = [tmp_path / "home" / ".pki" / "nssdb", tmp_path / "home" / ".mozilla" / "firefox" / "a.default"]
        for folder in found:
            folder.mkdir(parents=True)
            output(["certutil", "-d", f"sql:{folder}", "-N", "--empty-password"])
        return found

    @pytest.mark.needs("curl")
    def test_every_store_takes_it_and_gives_it_back(
        self, inside: list[str], databases: list[Path], tmp_path: Path
    ) -> None:
        dev = [*inside, *MITU, "dev"]
        told = output([*dev, "--trust"])
        assert told.count("trusts it now") == 3, told
        assert output([*dev, "--trust"]).count("trusted it already") == 3
        with Program([*dev, "--port", "0", "--json"], tmp_path / "dev.log") as program:
            facts = json.loads(eventually(lambda: program.log.partition("\n")[0], 30))
            assert facts["trusted"]
            assert output([*inside, "curl", "-sS", facts["url"]]).startswith("It works")
        for folder in databases:
            assert "mitu dev CA" in output(["certutil", "-d", f"sql:{folder}", "-L"])
        outcome = json.loads(output([*dev, "--untrust", "--json"]))
        assert [one["changed"] for one in outcome["stores"]] == [True, True, True]
        assert output([*dev, "--untrust"]).count("did not trust it") == 3
        for folder in databases:
            assert "mitu dev CA" not in output(["certutil", "-d", f"sql:{folder}", "-L"])
        with Program([*dev, "--port", "0", "--json"], tmp_path / "dev-later.log") as program:
            facts = json.loads(eventually(lambda: program.log.partition("\n")[0], 30))
            assert not facts["trusted"]
            assert b"unable to get local issuer" in run([*inside, "curl", "-sS", facts["url"]]).stderr

    @pytest.mark.needs("chromium")
    def test_chromium_loads_the_page_without_a_warning(
        self, inside: list[str], databases: list[Path], tmp_path: Path
    ) -> None:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
        chromium = [
            *inside,
            "chromium",
            *flags,
            "--timeout=20000",
            f"--user-data-dir={tmp_path}/profile",
            "--dump-dom",
        ]
        dev = [*inside, *MITU, "dev"]
        with Program([*dev, "--port", "0", "--json"], tmp_path / "dev.log") as program:
            url = json.loads(eventually(lambda: program.log.partition("\n")[0], 30))["url"]
            assert b"It works" not in run([*chromium, url], timeout=60).stdout
            output([*dev, "--trust"])
            page = run([*chromium, url], timeout=60).stdout.decode()
        assert "It works over HTTPS." in page
        assert "h2 (ALPN)" in page

    def test_without_the_right_to_it_the_commands_are_told(self, tmp_path: Path) -> None:
        # In a user namespace root is nobody, and still has its files.
        become = ["unshare", "--user"] if os.geteuid() == 0 else []
        if become and run([*become, "true"]).returncode != 0:
            pytest.skip("user namespaces cannot be had here: the kernel or the container forbids them")
        # Nor is certutil there, for the database of a Chromium.
        database = tmp_path / ".pki" / "nssdb" / "cert9.db"
        database.parent.mkdir(parents=True)
        database.write_bytes(b"")
        settings = ["env", "PATH=/nowhere", f"HOME={tmp_path}", f"XDG_DATA_HOME={tmp_path}/data", "COLUMNS=300"]
        done = run([*become, *settings, *MITU, "dev", "--trust"])
        text = (done.stdout + done.stderr).decode()
        assert done.returncode == 1, text
        assert "Chromium: get certutil" in text
        if shutil.which("update-ca-certificates", path="/usr/sbin:/sbin"):
            assert "only root can change it" in text
            assert (
                f"by hand: sudo install -m 0644 {tmp_path}/data/mitu/dev/ca.crt /usr/local/share/ca-certificates/"
                in text
            )
            assert "&& sudo /usr/sbin/update-ca-certificates" in text
        else:
            assert "only root can change it" in text or "not one that can be changed from here" in text
