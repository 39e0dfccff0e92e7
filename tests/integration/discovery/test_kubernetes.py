"""EndpointSlices of a real API server: what comes, changes and goes, who may see it, and what outages leave."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mitu.config.discovery import Discover, KubernetesProvider
from mitu.discovery import kubeconfig, kubernetes
from mitu.discovery.instance import Health, Instance
from mitu.discovery.kubernetes import Kubernetes as Provider
from mitu.discovery.provider import ProviderError
from support.kubernetes import ADMIN, STRANGER, Kubernetes, endpoint, endpoint_slice, missing, port
from support.markdown import ROOT, Page
from support.net import eventually

from .kubernetes_watch import SOON, watching

_numbers = itertools.count()
HTTP = [port(8080, "http")]
SLICES = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    if (absent := missing()) is not None:
        pytest.skip(absent)
    with Kubernetes(tmp_path_factory.mktemp("kubernetes")) as started:
        for namespace in ("shop", "edge"):
            started.kubectl("create", "namespace", namespace)
        yield started


@pytest.fixture
def service() -> str:
    """One that no other test has used."""
    return f"api-{next(_numbers)}"


async def test_slices_come_change_and_go(cluster: Kubernetes, service: str) -> None:
    async with watching(f"shop/{service}", "http", kubeconfig=cluster.kubeconfig) as watch:
        assert await watch.next() == {}
        one, two = endpoint("10.0.0.1", "one", zone="eu-1a"), endpoint("10.0.0.2", "two")
        cluster.apply(endpoint_slice(f"{service}-a", [one], HTTP, service=service))
        assert await watch.next() == {"one": Instance("one", "10.0.0.1:8080", zone="eu-1a")}
        cluster.apply(endpoint_slice(f"{service}-a", [one, two], HTTP, service=service))
        assert (await watch.next()).keys() == {"one", "two"}
        # Of another service, and of the same in another namespace.
        cluster.apply(endpoint_slice(f"{service}-other", [endpoint("10.0.9.1")], HTTP, service="other"))
        cluster.apply(endpoint_slice(f"{service}-a", [endpoint("10.0.9.2")], HTTP, service=service, namespace="edge"))
        cluster.apply(endpoint_slice(f"{service}-a", [two], [port(9090, "http")], service=service))
        assert await watch.next() == {"two": Instance("two", "10.0.0.2:9090")}
        cluster.delete_slices(f"{service}-a")
        assert await watch.next() == {}


async def test_conditions(cluster: Kubernetes, service: str) -> None:
    async with watching(f"shop/{service}", kubeconfig=cluster.kubeconfig) as watch:
        assert await watch.next() == {}
        for said, health, reason in (
            ({"ready": None}, Health.HEALTHY, ""),
            ({"ready": False, "serving": False}, Health.UNAVAILABLE, "not ready"),
            ({"ready": False, "serving": True, "terminating": True}, Health.DEGRADED, "terminating"),
            ({"ready": False, "serving": False, "terminating": True}, Health.UNAVAILABLE, "terminating"),
            ({"ready": True, "serving": True, "terminating": False}, Health.HEALTHY, ""),
        ):
            one = {**endpoint("10.0.0.1", "pod"), "conditions": {k: v for k, v in said.items() if v is not None}}
            cluster.apply(endpoint_slice(service, [one], HTTP, service=service))
            assert await watch.next() == {"pod": Instance("pod", "10.0.0.1:8080", health=health, reason=reason)}


async def test_several_slices(cluster: Kubernetes, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pages, of two families, with one pod that is in three of them."""
    monkeypatch.setattr(kubernetes, "PAGE", 2)
    both = endpoint("10.0.1.1", "both", zone="eu-1a")
    cluster.apply(
        *(endpoint_slice(f"{service}-{n}", [endpoint(f"10.0.0.{n}")], HTTP, service=service) for n in range(1, 6)),
        endpoint_slice(f"{service}-v4", [both], HTTP, service=service),
        endpoint_slice(
            f"{service}-v4-moved", [both, endpoint("10.0.1.2", "new", zone="eu-1b")], HTTP, service=service
        ),
        endpoint_slice(
            f"{service}-v6",
            [endpoint("2001:db8::1", "both"), endpoint("2001:db8::2", "six")],
            [port(8080, "http", appProtocol="kubernetes.io/h2c")],
            service=service,
            family="IPv6",
        ),
    )
    async with watching(f"shop/{service}", kubeconfig=cluster.kubeconfig) as watch:
        known = await watch.next()
        assert {name: one.address for name, one in known.items()} == {
            **{f"10.0.0.{n}:8080": f"10.0.0.{n}:8080" for n in range(1, 6)},
            "both": "10.0.1.1:8080",
            "new": "10.0.1.2:8080",
            "six": "[2001:db8::2]:8080",
        }
        assert (known["both"].zone, known["new"].zone, known["six"].zone) == ("eu-1a", "eu-1b", None)
        assert (known["six"].protocols, known["both"].protocols) == (("h2",), None)
        # One of two slices with a pod goes, and the pod stays.
        cluster.delete_slices(f"{service}-v4")
        assert (await watch.next())["both"].address == "10.0.1.1:8080"
        cluster.delete_slices(f"{service}-v4-moved")
        assert (await watch.until(lambda known: "new" not in known))["both"].address == "[2001:db8::1]:8080"


async def test_ports_and_protocols(cluster: Kubernetes, service: str) -> None:
    ports = [port(8080, "http"), port(8443, "https"), port(9000, "rpc", appProtocol="grpc")]
    cluster.apply(endpoint_slice(service, [endpoint("10.0.0.1", "pod")], ports, service=service))
    for wanted, address, spoken in (
        ("https", "10.0.0.1:8443", None),
        ("8080", "10.0.0.1:8080", None),
        ("rpc", "10.0.0.1:9000", ("h2",)),
    ):
        async with watching(f"shop/{service}", wanted, kubeconfig=cluster.kubeconfig) as watch:
            assert await watch.next() == {"pod": Instance("pod", address, protocols=spoken)}
    for unclear, words in ((None, "say with 'port' which one is meant"), ("web", "it has no TCP port 'web'")):
        async with watching(f"shop/{service}", unclear, kubeconfig=cluster.kubeconfig) as watch:
            with pytest.raises(ProviderError, match=words) as caught:
                await watch.next()
            assert "it has http (8080), https (8443), rpc (9000)" in str(caught.value)
    said = {"mitu.dev/alpn-supported": "h2,http/1.1"}
    cluster.apply(endpoint_slice(service, [endpoint("10.0.0.1", "pod")], ports[2:], service=service, annotations=said))
    async with watching(f"shop/{service}", kubeconfig=cluster.kubeconfig) as watch:
        assert (await watch.next())["pod"].protocols == ("h2", "http/1.1")


async def test_a_watch_is_begun_again_where_it_ended(
    cluster: Kubernetes, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not listed anew, or what has not changed would be told twice."""
    monkeypatch.setattr(kubernetes, "WATCH_SECONDS", 2.0)
    async with watching(f"shop/{service}", kubeconfig=cluster.kubeconfig) as watch:
        assert await watch.next() == {}
        before = _requests(cluster)
        asked = asyncio.ensure_future(watch.next())
        await asyncio.sleep(0)
        await asyncio.to_thread(eventually, lambda: _requests(cluster)["WATCH"] >= before["WATCH"] + 2, SOON, 0.3)
        assert not asked.done()
        assert _requests(cluster)["LIST"] == before["LIST"]
        cluster.apply(endpoint_slice(service, [endpoint("10.0.0.1", "pod")], HTTP, service=service))
        assert (await asked).keys() == {"pod"}


def _requests(cluster: Kubernetes) -> dict[str, int]:
    """For slices, by verb; watches once they have ended."""
    counts = {"LIST": 0, "WATCH": 0}
    for line in cluster.kubectl("get", "--raw", "/metrics").splitlines():
        if line.startswith("apiserver_request_total{") and 'resource="endpointslices"' in line:
            for verb in counts:
                if f'verb="{verb}"' in line:
                    counts[verb] += int(float(line.rsplit(" ", 1)[1]))
    return counts


async def test_a_pod_with_the_role_in_the_documentation(
    cluster: Kubernetes, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First without the right to list, then without the right to watch, then with both."""
    cluster.apply(endpoint_slice(service, [endpoint("10.0.0.1", "pod")], HTTP, service=service))
    cluster.kubectl("create", "serviceaccount", "mitu", "-n", "edge")
    (tmp_path / "token").write_text(cluster.kubectl("create", "token", "mitu", "-n", "edge"))
    (tmp_path / "ca.crt").write_bytes(cluster.authority.certificate.read_bytes())
    (tmp_path / "namespace").write_text("edge")
    monkeypatch.setattr(kubeconfig, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))

    page = ROOT / "docs" / "guide" / "discovery-kubernetes.md"
    (block,) = Page(page, page.read_text(encoding="utf-8")).blocks("yml")
    role, binding = YAML(typ="safe").load_all(block.text)
    half = {**role, "rules": [{**role["rules"][0], "verbs": ["list"]}]}
    told = await _refused(f"shop/{service}", "cannot list")
    assert 'cannot list resource "endpointslices"' in told
    assert "its Role wants 'list' and 'watch' on 'endpointslices'" in told

    cluster.apply(half, binding)
    told = await _refused(f"shop/{service}", "cannot watch")
    assert 'cannot watch resource "endpointslices"' in told

    cluster.apply(role)
    await _allowed(cluster, "watch", "system:serviceaccount:edge:mitu")
    async with watching(f"shop/{service}") as watch:
        assert (await watch.next()).keys() == {"pod"}
        cluster.delete_slices(service)
        assert await watch.next() == {}

    # It expires, and is written anew, while nothing else changes.
    (tmp_path / "token").write_text("expired")
    assert "does not accept the credentials" in await _refused(f"shop/{service}", "cannot list")
    (tmp_path / "token").write_text(cluster.kubectl("create", "token", "mitu", "-n", "edge"))
    async with watching(f"shop/{service}") as watch:
        assert await watch.next() == {}


async def _allowed(cluster: Kubernetes, verb: str, user: str) -> None:
    """Returns once `user` may do that to slices: what has been granted is known a moment later."""
    asked = ["auth", "can-i", verb, "endpointslices.discovery.k8s.io", "-n", "shop", "--as", user]
    await asyncio.to_thread(eventually, lambda: cluster.kubectl(*asked, check=False).startswith("yes"), SOON)


async def _refused(service: str, words: str, kubeconfig: Path | None = None) -> str:
    """What the provider says, once it says `words`."""
    told = ""
    async with asyncio.timeout(SOON):
        while words not in told:
            async with watching(service, kubeconfig=kubeconfig) as watch:
                with pytest.raises(ProviderError) as caught:
                    await watch.next()
                    await watch.next()
            told = str(caught.value)
    print(told)
    return told


async def test_who_is_known_and_may_nothing(cluster: Kubernetes) -> None:
    stranger = cluster.write_kubeconfig("stranger", {"token": STRANGER})
    told = await _refused("shop/api", "403", stranger)
    assert 'User "stranger" cannot list' in told
    # What has no namespace has the context's.
    assert 'in the namespace "shop"' in await _refused("api", "403", stranger)
    assert STRANGER not in told


async def test_kinds_of_credentials(cluster: Kubernetes, service: str, tmp_path: Path) -> None:
    """Each gets in, as far as its user may."""
    cluster.kubectl("create", "role", "slices", "-n", "shop", "--verb=list,watch", "--resource=endpointslices")
    cluster.kubectl("create", "rolebinding", "slices", "-n", "shop", "--role=slices", "--user=tests")
    await _allowed(cluster, "list", "tests")
    pair = cluster.client
    plugin = tmp_path / "plugin"
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "status": {"token": ADMIN}}
    plugin.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
    plugin.chmod(0o700)
    (tmp_path / "token").write_text(ADMIN)
    asked = {"command": str(plugin), "apiVersion": answer["apiVersion"], "interactiveMode": "Never"}
    cluster.apply(endpoint_slice(service, [endpoint("10.0.0.1", "pod")], HTTP, service=service))
    users: list[tuple[str, dict[str, object], dict[str, object]]] = [
        ("certificate", {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}, {}),
        ("file", {"tokenFile": str(tmp_path / "token")}, {}),
        ("plugin", {"exec": asked}, {}),
        ("named", {"token": ADMIN}, {"tls-server-name": "kubernetes.default.svc"}),
        ("unverified", {"token": ADMIN}, {"certificate-authority": None, "insecure-skip-tls-verify": True}),
    ]
    for name, user, reach in users:
        kubeconfig = cluster.write_kubeconfig(name, user, **reach)
        async with watching(service, kubeconfig=kubeconfig) as watch:
            assert (await watch.next()).keys() == {"pod"}, name
    misnamed = cluster.write_kubeconfig("misnamed", {"token": ADMIN}, **{"tls-server-name": "other.example"})
    await _refused(service, "hostname mismatch, certificate is not valid for 'other.example'", misnamed)
    distrusted = cluster.write_kubeconfig("distrusted", {"token": ADMIN}, **{"certificate-authority": None})
    await _refused(service, "unable to get local issuer certificate", distrusted)


async def test_a_plugin_whose_token_is_refused_is_asked_anew(cluster: Kubernetes, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    answer = '{"apiVersion": "client.authentication.k8s.io/v1", "status": {"token": "%s"}}'
    plugin.write_text(f"#!/bin/sh\nprintf '{answer}' \"$(cat {tmp_path}/token)\"\n")
    plugin.chmod(0o700)
    asked = {"command": str(plugin), "apiVersion": "client.authentication.k8s.io/v1"}
    path = cluster.write_kubeconfig("revoked", {"exec": asked})
    provider = Provider(KubernetesProvider(kubeconfig=path))
    discover = Discover(provider="kubernetes", service="shop/nobody")
    (tmp_path / "token").write_text("revoked")
    with pytest.raises(ProviderError, match="does not accept the credentials") as caught:
        await anext(provider.watch(discover))
    assert "revoked" not in str(caught.value)
    (tmp_path / "token").write_text(ADMIN)
    async with aclosing(provider.watch(discover)) as snapshots:
        assert (await anext(snapshots)).instances == ()


async def test_an_api_server_that_dies_comes_back_and_has_forgotten(cluster: Kubernetes, service: str) -> None:
    def write(address: str) -> None:
        cluster.apply(endpoint_slice(service, [endpoint(address, "pod")], HTTP, service=service))

    write("10.0.0.1")
    async with (
        watching(f"shop/{service}", kubeconfig=cluster.kubeconfig) as watch,
        watching(f"shop/{service}", kubeconfig=cluster.kubeconfig) as held_up,
    ):
        assert (await watch.next())["pod"].address == "10.0.0.1:8080"
        # This one has listed, and not yet begun to watch.
        assert (await held_up.next())["pod"].address == "10.0.0.1:8080"
        old = json.loads(cluster.kubectl("get", "--raw", SLICES))["metadata"]["resourceVersion"]
        asked = asyncio.ensure_future(watch.next())
        write("10.0.0.2")
        assert (await asked)["pod"].address == "10.0.0.2:8080"

        asked = asyncio.ensure_future(watch.next())
        await asyncio.sleep(0)
        cluster.kill()
        with pytest.raises(ProviderError) as caught:
            await asked
        print(caught.value)
        await _refused(f"shop/{service}", "connection refused", cluster.kubeconfig)

        cluster.etcd.compact()
        await asyncio.to_thread(cluster.start)
        write("10.0.0.3")
        told = cluster.kubectl("get", "--raw", f"{SLICES}?watch=1&timeoutSeconds=1&resourceVersion={old}")
        print(told)
        assert '"code":410' in told, "it has forgotten nothing"
        # The very next state is the one of now.
        assert (await held_up.next())["pod"].address == "10.0.0.3:8080"
        asked = asyncio.ensure_future(held_up.next())
        write("10.0.0.4")
        assert (await asked)["pod"].address == "10.0.0.4:8080"
        async with watching(f"shop/{service}", kubeconfig=cluster.kubeconfig) as again:
            assert (await again.next())["pod"].address == "10.0.0.4:8080"
