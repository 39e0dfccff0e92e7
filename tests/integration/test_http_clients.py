"""HTTP clients that people use, each against the same gateway with a real upstream behind it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from support.build import CLIENTS, go_client
from support.certificates import Authority, Pair
from support.gateway import Gateway, configuration, health, listener, to_app, upstream
from support.process import output, run
from support.servers import Server

from .conftest import Start

PAGE = """<!doctype html><title>mitu</title><p id="protocol"></p>
<script>document.getElementById("protocol").textContent =
  "negotiated " + performance.getEntriesByType("navigation")[0].nextHopProtocol;</script>"""


@pytest.fixture(scope="module")
def gateway(shared_gateway: Start, edge: Pair, app: Server) -> Gateway:
    page = {"match": {"path": "/page"}, "respond": {"content_type": "text/html", "body": PAGE}}
    settings = listener(edge, routes=[health(), page, to_app()])
    return shared_gateway(configuration([settings], upstream("app", app.endpoint)))


def url(gateway: Gateway, path: str) -> str:
    return f"https://localhost:{gateway.address()[1]}{path}"


@pytest.mark.needs("curl")
@pytest.mark.parametrize(("flag", "version"), [("--http1.1", "1.1"), ("--http2", "2")])
def test_curl(gateway: Gateway, authority: Authority, flag: str, version: str) -> None:
    curl = ["curl", "-sS", flag, "--cacert", authority.certificate, "-w", "\n%{http_version} %{http_code}"]
    assert output([*curl, url(gateway, "/health")]) == f'{{"ok":true}}\n{version} 200'
    body, _, told = output([*curl, "-d", "a=1&b=2", url(gateway, "/form?q=%20x")]).rpartition("\n")
    seen = json.loads(body)
    assert told == f"{version} 200"
    assert (seen["method"], seen["target"], seen["body"]) == ("POST", "/form?q=%20x", "a=1&b=2")


@pytest.mark.needs("curl")
@pytest.mark.parametrize("flag", ["--http1.1", "--http2"])
def test_curl_uploads_a_file(gateway: Gateway, authority: Authority, tmp_path: Path, flag: str) -> None:
    content = bytes(range(256)) * 20_000
    file = tmp_path / "upload"
    file.write_bytes(content)
    curl = ["curl", "-sS", flag, "--cacert", authority.certificate, "-T", file, url(gateway, "/upload")]
    seen = json.loads(output(curl))
    assert (seen["method"], seen["length"]) == ("PUT", len(content))
    assert seen["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.needs("h2load")
@pytest.mark.parametrize("path", ["/health", "/app"])
@pytest.mark.parametrize("flags", [(), ("--h1",)])
def test_h2load(gateway: Gateway, flags: tuple[str, ...], path: str) -> None:
    count = 4000 if path == "/health" else 1500
    report = output(["h2load", *flags, f"-n{count}", "-c20", "-m8", url(gateway, path)])
    found = re.search(r"requests: (\d+) total, .* (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", report)
    assert found is not None, report
    assert [int(number) for number in found.groups()] == [count, count, count, 0, 0], report
    assert f"Application protocol: {'http/1.1' if flags else 'h2'}" in report


@pytest.mark.needs("wrk")
def test_wrk(gateway: Gateway) -> None:
    report = output(["wrk", "-t2", "-c40", "-d3s", "--latency", url(gateway, "/health")])
    done = re.search(r"(\d+) requests in", report)
    assert done is not None, report
    assert int(done[1]) > 1000, report
    assert "Socket errors" not in report, report
    assert "Non-2xx" not in report, report


@pytest.mark.needs("go")
@pytest.mark.parametrize(("protocol", "proto", "alpn"), [("h1", "HTTP/1.1", "http/1.1"), ("h2", "HTTP/2.0", "h2")])
def test_go(gateway: Gateway, authority: Authority, protocol: str, proto: str, alpn: str) -> None:
    client = [go_client(), "-ca", authority.certificate, "-protocol", protocol]
    report = json.loads(output([*client, "-n", "300", "-concurrency", "8", url(gateway, "/health")]))
    assert (report["succeeded"], report["failures"]) == (300, [])
    assert (report["protocols"], report["negotiated"]) == ({proto: 300}, {alpn: 300})
    assert report["body"] == '{"ok":true}'
    report = json.loads(output([*client, "-method", "DELETE", url(gateway, "/thing?id=1")]))
    seen = json.loads(report["body"])
    assert (seen["method"], seen["target"]) == ("DELETE", "/thing?id=1")


@pytest.mark.needs("go")
@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_go_resumes(gateway: Gateway, authority: Authority, protocol: str) -> None:
    client = [go_client(), "-ca", authority.certificate, "-protocol", protocol, "-close"]
    report = json.loads(output([*client, "-n", "20", url(gateway, "/health")]))
    assert (report["succeeded"], report["failures"]) == (20, [])
    assert report["resumed"] >= 18


@pytest.mark.needs("node")
def test_node(gateway: Gateway, authority: Authority) -> None:
    host, port = "localhost", gateway.address()[1]
    report = json.loads(output(["node", CLIENTS / "node" / "client.js", host, str(port), authority.certificate]))
    assert (report["alpn"], report["protocol"]) == ("h2", "TLSv1.3")
    assert report["health"]["body"] == '{"ok":true}'
    uploaded = json.loads(report["uploaded"]["body"])
    assert (uploaded["length"], uploaded["sha256"]) == (3 << 20, report["sha256"])
    assert len(report["many"]) == 100
    for number, answer in enumerate(report["many"]):
        seen = json.loads(answer["body"])
        assert (answer["status"], seen["target"]) == (200, f"/many/{number}?x={number}")
        assert ["x-number", str(number)] in [[name.lower(), value] for name, value in seen["headers"]]


@pytest.mark.needs("chromium")
def test_chromium_loads_a_page_over_h2(gateway: Gateway, edge: Pair, tmp_path: Path) -> None:
    program = shutil.which("chromium")
    assert program is not None
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    still = ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
    profile = [f"--user-data-dir={tmp_path}/profile", f"--ignore-certificate-errors-spki-list={edge.spki}"]
    # A page that has not finished by then is dumped as it is, and lacks what the script writes.
    done = run([program, *quiet, *still, *profile, "--timeout=20000", "--dump-dom", url(gateway, "/page")], timeout=60)
    assert "negotiated h2</p>" in done.stdout.decode(), done.stderr.decode()
