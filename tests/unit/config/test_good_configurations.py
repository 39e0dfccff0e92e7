"""Good configurations: what they compile to, and that their resolved form says the same."""

from __future__ import annotations

import io
import json
from datetime import datetime
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mitu.cli.check import to_yaml
from mitu.config import compile_runtime, load_config, parse_config, python_handlers, resolved
from mitu.config.checker import inspect

GOOD = Path(__file__).parents[2] / "golden" / "good"
CASES = sorted(
    path for path in GOOD.iterdir() if path.suffix in (".yaml", ".toml", ".json") and path.stem.count(".") == 0
)


@pytest.fixture
def here(certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the certificates in it, as root on a machine that has IPv6."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "certs").symlink_to(certs)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.has_dualstack_ipv6", lambda: True)
    return tmp_path


def runtime(path: Path) -> str:
    config = load_config(path, environ={})
    sockets = {name: f"/run/{at}.sock" for at, name in enumerate(python_handlers(config))}
    return compile_runtime(config, sockets).runtime


@pytest.mark.parametrize("path", CASES, ids=lambda path: str(path.name))
def test_runtime(path: Path, here: Path, update: bool) -> None:
    copy = here / path.name
    copy.write_bytes(path.read_bytes())
    text = runtime(copy).replace(str(here), "$FOLDER") + "\n"
    golden = path.with_name(f"{path.name}.runtime.json")
    if update:
        golden.write_text(text, encoding="utf-8")
    assert json.loads(text) == json.loads(golden.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: str(path.name))
def test_resolved_form_says_the_same(path: Path, here: Path, update: bool) -> None:
    copy = here / path.name
    copy.write_bytes(path.read_bytes())
    form = to_yaml(resolved(load_config(copy, environ={})))
    golden = path.with_name(f"{path.name}.resolved.txt")
    if update:
        golden.write_text(form.replace(str(here), "$FOLDER"), encoding="utf-8")
    assert form.replace(str(here), "$FOLDER") == golden.read_text(encoding="utf-8")
    again = here / "again.yaml"
    again.write_text(form, encoding="utf-8")
    assert runtime(again) == runtime(copy)


@pytest.mark.parametrize("path", CASES, ids=lambda path: str(path.name))
def test_nothing_is_found(path: Path, here: Path, now: datetime) -> None:
    (here / path.name).write_bytes(path.read_bytes())
    found = inspect(path.name, environ={}, now=now).report
    assert found.errors == ()
    # In tls.toml the twin takes part under one name of its own only.
    assert {one.code for one in found.warnings} <= {"W009", "W007"}


@pytest.mark.parametrize("path", CASES, ids=lambda path: str(path.name))
def test_data_plane_takes_it(path: Path, here: Path) -> None:
    native = pytest.importorskip("mitu._native", reason="the data plane is not built: maturin develop")
    (here / path.name).write_bytes(path.read_bytes())
    config = load_config(path.name, environ={})
    compiled = compile_runtime(config, dict.fromkeys(python_handlers(config), "/run/handler.sock"))
    native.validate(compiled.runtime, compiled.secrets)


def test_all_three_formats_and_code_agree(here: Path) -> None:
    data = YAML(typ="safe").load((GOOD / "smallest.yaml").read_text(encoding="utf-8"))
    (here / "a.json").write_text(json.dumps(data), encoding="utf-8")
    (here / "a.yaml").write_bytes((GOOD / "smallest.yaml").read_bytes())
    from_json, from_yaml, from_code = load_config("a.json"), load_config("a.yaml"), parse_config(data)
    assert from_json == from_yaml == from_code
    assert hash(from_json) == hash(from_yaml)


def test_files_to_watch(here: Path) -> None:
    (here / "mitu.json").write_bytes((GOOD / "handler.json").read_bytes())
    config = load_config("mitu.json", environ={})
    compiled = compile_runtime(config, {"json:loads": "/run/x.sock"})
    names = {"mitu.json", "certs/edge.crt", "certs/edge.key", "certs/token", "certs/ticket", "certs/old-ticket"}
    assert compiled.files == {here / name for name in names}
    assert compiled.secrets["ticket:0"] == b"\xff" + bytes(range(32))
    pem = [secret for name, secret in compiled.secrets.items() if not name.startswith("ticket:")]
    assert all(b"-----BEGIN" in secret for secret in pem)
    assert "PRIVATE KEY" not in compiled.runtime


def test_a_handler_without_a_socket_is_a_mistake_of_the_caller(here: Path) -> None:
    (here / "mitu.json").write_bytes((GOOD / "handler.json").read_bytes())
    with pytest.raises(ValueError, match="json:loads"):
        compile_runtime(load_config("mitu.json", environ={}), {})


def test_yaml_output_is_read_back() -> None:
    value = {"a": ["yes", "1.2", "", "- x", None, 1, True, "ü\n#"], "b": {"c": {}}}
    assert YAML(typ="safe").load(io.StringIO(to_yaml(value))) == value
