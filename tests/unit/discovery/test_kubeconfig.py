"""Which API server is asked, and as whom: kubeconfigs, service accounts of pods, and credential plugins."""

from __future__ import annotations

import base64
import json
import os
import ssl
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mitu.config.discovery import KubernetesProvider
from mitu.discovery import exec_credential, kubeconfig
from mitu.discovery.kubeconfig import find
from mitu.discovery.kubernetes_access import Access
from mitu.discovery.kubernetes_api import Api
from mitu.discovery.provider import ProviderError
from support.certificates import Authority, Pair

SERVER = "https://10.0.0.1:6443"
V1 = "client.authentication.k8s.io/v1"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster but the test's."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kubeconfig, "SERVICE_ACCOUNT", tmp_path / "serviceaccount")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def client(authority: Authority) -> Pair:
    return authority.issue("client", common_name="mitu", client=True)


def document(user: Any = None, cluster: Any = None, **context: str) -> dict[str, Any]:
    return {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": SERVER, **(cluster or {})}}],
        "users": [{"name": "u", "user": {} if user is None else user}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", **context}}],
    }


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read(path: Path, **settings: object) -> Access:
    return find(KubernetesProvider.model_validate({"kubeconfig": str(path), **settings}))


def bearer(access: Access) -> str | None:
    return access.token


def data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_as_people_write_it(tmp_path: Path, authority: Authority) -> None:
    text = f"""
apiVersion: v1
kind: Config
current-context: production
preferences: {{}}
clusters:
- name: eu
  cluster:
    server: https://10.0.0.1:6443/k8s/eu/
    certificate-authority-data: {data(authority.certificate)}
    tls-server-name: kubernetes.default.svc
contexts:
- {{name: production, context: {{cluster: eu, user: mitu, namespace: shop}}}}
- {{name: other, context: {{cluster: eu, user: someone}}}}
users:
- {{name: mitu, user: {{token: secret}}}}
- {{name: someone, user: {{token: other}}}}
"""
    path = write(tmp_path / "config", text)
    found = read(path)
    assert (found.server, found.namespace, found.token) == ("https://10.0.0.1:6443/k8s/eu", "shop", "secret")
    assert found.server_name == "kubernetes.default.svc"
    assert found.ca == authority.certificate.read_bytes()
    assert found.tls().verify_mode == ssl.CERT_REQUIRED
    assert len(found.tls().get_ca_certs()) == 1
    assert (read(path, context="other").token, read(path, context="other").namespace) == ("other", None)
    assert "secret" not in repr(found)


def test_files_are_beside_the_kubeconfig(tmp_path: Path, authority: Authority, client: Pair) -> None:
    for name, source in (("ca", authority.certificate), ("crt", client.certificate), ("key", client.key)):
        write(tmp_path / "pki" / name, source.read_text())
    write(tmp_path / "token", "first\n")
    user = {"client-certificate": "pki/crt", "client-key": "pki/key", "tokenFile": "token", "token": "unused"}
    path = write(tmp_path / "config", document(user, {"certificate-authority": "pki/ca"}))
    found = read(path)
    assert found.ca == authority.certificate.read_bytes()
    assert (found.certificate, found.key) == (client.certificate.read_bytes(), client.key.read_bytes())
    assert bearer(found) == "first"
    found.tls()
    write(tmp_path / "token", "second")
    assert bearer(read(path)) == "second"


def test_data_go_before_files(tmp_path: Path, authority: Authority, client: Pair) -> None:
    user = {
        "client-certificate": "absent",
        "client-certificate-data": data(client.certificate),
        "client-key": "absent",
        "client-key-data": data(client.key),
    }
    cluster = {"certificate-authority": "absent", "certificate-authority-data": data(authority.certificate)}
    found = read(write(tmp_path / "config", document(user, cluster)))
    assert (found.ca, found.key) == (authority.certificate.read_bytes(), client.key.read_bytes())
    found.tls()


def test_no_verification(tmp_path: Path) -> None:
    tls = read(write(tmp_path / "config", document(cluster={"insecure-skip-tls-verify": True}))).tls()
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_NONE, False)


def test_without_tls_nothing_secret_is_sent(tmp_path: Path) -> None:
    found = read(write(tmp_path / "config", document({"token": "secret"}, {"server": "http://127.0.0.1:8001"})))
    assert (found.server, found.token) == ("http://127.0.0.1:8001", None)


def test_the_environment_names_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are one; an entry is the first file's that has it, and files are beside the one that names them."""
    first = {"users": [{"name": "u", "user": {"tokenFile": "token"}}]}
    write(tmp_path / "one" / "config", first)
    write(tmp_path / "one" / "token", "one")
    write(tmp_path / "two" / "config", document({"token": "two"}))
    files = [tmp_path / "one" / "config", tmp_path / "absent", tmp_path / "two" / "config"]
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(map(str, files)))
    found = find(KubernetesProvider())
    assert (found.server, found.token) == (SERVER, "one")


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        ("home", RuntimeError("no home"), "this user has no home for a kubeconfig"),
        ("exists", PermissionError(13, "Permission denied"), r"cannot read .*/home/\.kube/config: no such file"),
    ],
)
def test_a_home_that_is_none_or_closed(
    monkeypatch: pytest.MonkeyPatch, method: str, error: Exception, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(ProviderError, match=words):
        find(KubernetesProvider())


def test_at_home(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=r"there is no kubeconfig at .*home/\.kube/config, and no service account"):
        find(KubernetesProvider())
    write(tmp_path / "home" / ".kube" / "config", document({"token": "home"}))
    assert bearer(find(KubernetesProvider())) == "home"


@pytest.mark.parametrize(("host", "server"), [("10.96.0.1", "10.96.0.1"), ("fd00::1", "[fd00::1]")])
def test_in_a_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Authority, host: str, server: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setenv("KUBECONFIG", str(write(tmp_path / "config", document({"token": "file"}))))
    account = tmp_path / "serviceaccount"
    with pytest.raises(ProviderError, match=r"cannot read .*ca\.crt: no such file"):
        find(KubernetesProvider())
    write(account / "ca.crt", authority.certificate.read_text())
    write(account / "namespace", "edge")
    write(account / "token", "first")
    found = find(KubernetesProvider())
    assert (found.server, found.namespace, found.token) == (f"https://{server}:443", "edge", "first")
    write(account / "token", "rotated\n")
    assert bearer(find(KubernetesProvider())) == "rotated"
    # Whoever names a kubeconfig, or a context of one, means it.
    assert bearer(find(KubernetesProvider(context="here"))) == "file"
    assert bearer(read(tmp_path / "config")) == "file"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "no YAML"),
        ("a: 1\nusers: {token: 'hunter2\n", "line 3 is no YAML"),
        ("- hunter2", "no mapping"),
        ("{" * 500, "no YAML"),
        ("{}", "no 'current-context'"),
        ({"current-context": 7}, "no 'current-context'"),
        ({"current-context": "gone"}, "no context 'gone', only none at all"),
        ({**document(), "clusters": None}, "no cluster 'c', only none at all"),
        ({**document(), "users": {"u": {}}}, "no user 'u'"),
        ({**document(), "clusters": [{"name": "other"}, "hunter2"]}, "no cluster 'c', only other"),
        ({**document(), "clusters": [{"name": "c"}]}, "the kubeconfig's cluster 'c' is malformed: input should be"),
        (document(cluster={"server": 7}), "cluster 'c' is malformed: server: input should be a valid string"),
        (document(cluster={"server": "10.0.0.1:6443"}), "'server' is no URL such as https://host:port"),
        (document(cluster={"server": "https://u:hunter2@10.0.0.1"}), "without a user in it"),
        (document(cluster={"server": "https://10.0.0.1:hunter2"}), "is no URL"),
        (
            document(cluster={"proxy-url": "http://hunter2"}),
            "has 'proxy-url', which is not supported; a user may have",
        ),
        (document(cluster={"certificate-authority": "absent"}), "absent: no such file or directory"),
        (document({"auth-provider": {"name": "gcp"}}), "has 'auth-provider', which is not supported"),
        (document({"username": "u", "password": "hunter2"}), "has 'username', which is not supported"),
        (document({"as": "root", "token": "hunter2"}), "has 'as', which is not supported"),
        (document({"token": 12345}), "user 'u' is malformed: token: input should be a valid string"),
        (document({"token": "hunter2\nX-Header: 1"}), "the token for the API server is none"),
        (document({"tokenFile": "absent"}), "absent: no such file"),
        (document({"client-key-data": "hunter2!"}), "not in base64"),
        (document({"client-key-data": "aHVudGVyMg=="}), "only one of client certificate and key"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(ProviderError) as caught:
        read(write(tmp_path / "config", content))
    assert words in str(caught.value)
    chain: list[BaseException | None] = [caught.value]
    while chain[-1] is not None:
        assert "hunter2" not in str(chain[-1])
        chain.append(chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__))


def test_bounds(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=r"cannot read .*config: no such file"):
        read(tmp_path / "config")
    with pytest.raises(ProviderError, match="is larger than 4 MiB"):
        read(write(tmp_path / "config", " " * (4 << 20) + "{}"))
    # A name that is billions of itself.
    levels = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12))
    with pytest.raises(ProviderError, match="no context 'here', only none"):
        read(write(tmp_path / "bomb", f"x0: &x0 x\n{levels}current-context: here\ncontexts: [{{name: *x11}}]\n"))


def encrypted(key: Path) -> bytes:
    return load_pem_private_key(key.read_bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_certificates_that_are_none(authority: Authority, client: Pair) -> None:
    good = Access(SERVER, certificate=client.certificate.read_bytes(), key=client.key.read_bytes())
    good.tls()
    other = authority.issue("other")
    for key in (b"", b"junk", encrypted(client.key), other.key.read_bytes()):
        with pytest.raises(ProviderError, match="no pair in PEM, or the key is encrypted"):
            Access(SERVER, certificate=good.certificate, key=key).tls()
    for ca in (b"", b"junk", b"\xff\x00", client.key.read_bytes()):
        with pytest.raises(ProviderError, match="authority is none in PEM"):
            Access(SERVER, ca=ca).tls()


class Plugin:
    """A credential plugin that counts its runs, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.command = folder / "plugin"

    def answers(self, status: dict[str, object]) -> None:
        self.does(f"print({json.dumps({'apiVersion': V1, 'kind': 'ExecCredential', 'status': status})!r})")

    def does(self, code: str) -> None:
        head = f"#!{sys.executable}\nimport os, sys, time\nopen({str(self.runs)!r}, 'a').write('x')\n"
        write(self.command, head + code).chmod(0o700)

    def api(self, **more: object) -> Api:
        asked = {"command": str(self.command), "apiVersion": V1, "interactiveMode": "Never", **more}
        path = write(self.folder / "config", document({"exec": asked}))
        return Api(KubernetesProvider.model_validate({"kubeconfig": str(path)}))

    @property
    def count(self) -> int:
        return len(self.runs.read_text()) if self.runs.exists() else 0


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path)


async def test_a_plugin_runs_again_when_its_credential_is_about_to_expire(plugin: Plugin) -> None:
    api = plugin.api()
    plugin.answers({"token": "first"})
    assert [(await api.access()).token for _ in range(3)] == ["first"] * 3
    assert plugin.count == 1
    soon = (datetime.now(UTC) + timedelta(seconds=20)).strftime("%Y-%m-%dT%H:%M:%SZ")
    plugin.answers({"token": "second", "expirationTimestamp": soon})
    api = plugin.api()
    assert [(await api.access()).token for _ in range(2)] == ["second"] * 2
    assert plugin.count == 3
    later = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    plugin.answers({"token": "third", "expirationTimestamp": later})
    assert [(await api.access()).token for _ in range(2)] == ["third"] * 2
    assert plugin.count == 4


async def test_a_plugin_gives_a_certificate(plugin: Plugin, client: Pair) -> None:
    plugin.answers({"clientCertificateData": client.certificate.read_text(), "clientKeyData": client.key.read_text()})
    found = await plugin.api().access()
    assert (found.token, found.key) == (None, client.key.read_bytes())
    found.tls()


async def test_what_a_plugin_is_told(plugin: Plugin) -> None:
    plugin.does(
        "import json\n"
        "asked = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "assert asked['kind'] == 'ExecCredential' and asked['spec']['interactive'] is False\n"
        "assert sys.stdin.read() == '' and sys.argv[1:] == ['get-token']\n"
        "token = asked['spec']['cluster']['server'].removeprefix('https://') + '-' + os.environ['PROFILE']\n"
        "print(json.dumps({'apiVersion': asked['apiVersion'], 'status': {'token': token}}))\n"
    )
    env = [{"name": "PROFILE", "value": "edge"}]
    api = plugin.api(command="./plugin", args=["get-token"], env=env, provideClusterInfo=True)
    assert bearer(await api.access()) == "10.0.0.1:6443-edge"


@pytest.mark.parametrize(
    ("code", "more", "words"),
    [
        ("sys.exit('hunter2')", {}, "ended with exit code 1; run it by hand to see why"),
        ("print('hunter2')", {}, "printed is malformed: invalid json"),
        ("print('{}')", {}, "printed is malformed: apiVersion: field required"),
        (f"""print('{{"apiVersion": "{V1}", "status": {{}}}}')""", {}, "gave neither a token nor a certificate"),
        ("""print('{"apiVersion": "v0", "status": {"token": "hunter2"}}')""", {}, "another 'apiVersion'"),
        ("print('x' * (2 << 20))", {}, "printed too much"),
        ("time.sleep(60)", {}, "took longer than 1 s"),
        ("", {"apiVersion": "client.authentication.k8s.io/v1alpha1"}, "wants an 'apiVersion' that is none of"),
        ("", {"interactiveMode": "Always"}, "asks a person, and there is none"),
        ("", {"command": "no-such-plugin", "installHint": "get it"}, "No such file or directory; get it"),
        ("", {"command": "/", "installHint": "get it"}, "Permission denied; get it"),
        ("", {"args": ["\0"]}, "cannot run the credential plugin"),
    ],
)
async def test_a_plugin_that_fails(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch, code: str, more: dict[str, object], words: str
) -> None:
    if "sleep" in code:
        monkeypatch.setattr(exec_credential, "SECONDS", 1.0)
    plugin.does(code)
    begun = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        await plugin.api(**more).access()
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert time.monotonic() - begun < 45
