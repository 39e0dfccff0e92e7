"""`mitu check`, `schema` and `explain` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

BAD = Path(__file__).parents[2] / "golden" / "bad"
SMALLEST = Path(__file__).parents[2] / "golden" / "good" / "smallest.yaml"


def mitu(*arguments: str | Path, folder: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from mitu.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": os.pathsep.join(sys.path), **environ}
    return subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The smallest configuration with certificates that are good today."""
    (tmp_path / "certs").mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
         "certs/edge.key", "-out", "certs/edge.crt", "-subj", "/CN=edge", "-addext", "subjectAltName=DNS:edge.test",
         "-days", "30"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "certs" / "edge.key").chmod(0o600)
    (tmp_path / "certs" / "ca.crt").write_bytes((tmp_path / "certs" / "edge.crt").read_bytes())
    (tmp_path / "mitu.yaml").write_bytes(SMALLEST.read_bytes())
    return tmp_path


def test_check_passes(folder: Path) -> None:
    done = mitu("check", "mitu.yaml", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 listener, 2 routes, 2 upstreams" in done.stdout


def test_check_fails_with_everything_at_once() -> None:
    done = mitu("check", BAD / "many-mistakes.yaml")
    assert done.returncode == 1
    assert done.stdout.count("error[") >= 8
    assert "\x1b[" not in done.stdout


@pytest.mark.parametrize("arguments", [("absent.yaml",), (), ("--no-such-option", "x"), ("mitu.conf",)])
def test_usage_and_what_cannot_be_checked(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "mitu.conf").write_text("", encoding="utf-8")
    assert mitu("check", *arguments, folder=tmp_path).returncode == 2


def test_json(folder: Path) -> None:
    done = mitu("check", "--json", BAD / "admin-short-token-is-masked.yaml", FORCE_COLOR="1")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["ok"] is False
    first = found["errors"][0]
    assert (first["code"], first["line"], first["column"], first["path"]) == ("E056", 1, 17, "admin.listen")
    assert "hunter2" not in done.stdout + done.stderr


def test_strict(folder: Path) -> None:
    (folder / "certs" / "edge.key").chmod(0o644)
    assert mitu("check", "mitu.yaml", folder=folder).returncode == 0
    done = mitu("check", "--strict", "mitu.yaml", folder=folder)
    assert done.returncode == 1
    assert "W006" in done.stdout


def test_resolved_is_yaml_without_secrets(folder: Path) -> None:
    config = folder / "mitu.yaml"
    text = "admin: {listen: '127.0.0.1:9901', token: '${API_TOKEN}'}\n" + config.read_text(encoding="utf-8")
    headers = "{Authorization: 'Bearer plain-words', X-Key: 'k-${API_TOKEN}'}"
    filters = f"\n        filters: [{{request_headers: {{set: {headers}}}}}]"
    text = text.replace("upstream: app", "upstream: app" + filters)
    secret = {"API_TOKEN": "sesame-sesame-sesame"}
    config.write_text(text, encoding="utf-8")
    done = mitu("check", "--resolved", "mitu.yaml", folder=folder, **secret)
    assert done.returncode == 0, done.stdout + done.stderr
    form = YAML(typ="safe").load(done.stdout)
    assert form["admin"]["token"] == {"value": "(redacted)"}
    changes = form["listeners"][0]["routes"][1]["filters"][0]["request_headers"]
    assert changes["set"] == {"authorization": "(redacted)", "x-key": "(redacted)"}
    assert "sesame" not in done.stdout
    as_json = mitu("check", "--resolved", "--json", "mitu.yaml", folder=folder, **secret)
    assert json.loads(as_json.stdout)["resolved"] == form


def test_syntax_errors_show_no_secrets(tmp_path: Path) -> None:
    (tmp_path / "mitu.yaml").write_text("admin: {token: 'hunter2}\n", encoding="utf-8")
    (tmp_path / "mitu.toml").write_text('admin.token = "hunter2" "\n', encoding="utf-8")
    (tmp_path / "mitu.json").write_text('{"admin": {"token": "hunter2" }]\n', encoding="utf-8")
    (tmp_path / "list.yaml").write_text("tickets:\n  secrets:  # new, old\n    - 'hunter2\n", encoding="utf-8")
    (tmp_path / "named.yaml").write_text("tickets:\n  secrets:\n  - {value: hunter2 ]\n", encoding="utf-8")
    (tmp_path / "list.toml").write_text('[tickets]\nsecrets = [\n  "hunter2" "b",\n]\n', encoding="utf-8")
    for name in ("mitu.yaml", "mitu.toml", "mitu.json", "list.yaml", "named.yaml", "list.toml"):
        done = mitu("check", name, folder=tmp_path)
        assert done.returncode == 1
        assert "hunter2" not in done.stdout + done.stderr


def test_colour_where_it_is_wanted() -> None:
    path = BAD / "unknown-field.yaml"
    assert "\x1b[" in mitu("check", path, FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "\x1b[3" not in mitu("check", path, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm-256color").stdout


def test_explain() -> None:
    done = mitu("explain", "e012")
    assert done.returncode == 0
    assert done.stdout.startswith("E012: unknown field\n")
    assert "To mend it" in done.stdout
    assert len(mitu("explain").stdout.splitlines()) > 60
    assert json.loads(mitu("explain", "E012", "--json").stdout)["code"] == "E012"
    unknown = mitu("explain", "EO12")
    assert unknown.returncode == 2
    assert "did you mean" in unknown.stderr


def test_schema_is_json() -> None:
    assert "listeners" in json.loads(mitu("schema").stdout)["properties"]


def test_unknown_command() -> None:
    done = mitu("chekc")
    assert done.returncode == 2
    assert "did you mean 'check'" in done.stderr


def test_starting_up_imports_little() -> None:
    heavy = "import sys, mitu.cli; print({'pydantic', 'cryptography', 'ruamel.yaml', 'aiohttp'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", heavy], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_dear_certificate_does_not_fail_the_check(folder: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "certs/edge.key", "-out",
         "certs/edge.crt", "-subj", "/CN=edge", "-addext", "subjectAltName=DNS:edge.test", "-days", "30"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    done = mitu("check", "mitu.yaml", folder=folder)
    assert done.returncode == 0
    assert "warning[W012]" in done.stdout
    assert "mitu crypto" in done.stdout
