"""The documentation says what is so: snippets work, links lead somewhere, and what is named in the code is there."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from pydantic import BaseModel
from ruamel.yaml import YAML
from typer.core import TyperGroup

import mitu
from mitu.cli import COMMANDS, app
from mitu.config.catalogue import catalogue
from mitu.config.listeners import Limits, ProxyProtocol, Timeouts
from mitu.config.model import Admin, Config, Logging, Runtime, Tickets
from mitu.config.routes import RouteLimits
from mitu.config.tls import ListenerTls, UpstreamTls
from mitu.config.upstreams import UpstreamTimeouts
from mitu.handlers import load
from support.certificates import Authority
from support.markdown import ROOT, Block, Page, pages

PAGES = pages()
INTERNALS = [page for page in PAGES if page.path.parent.name == "internals"]
BY_NAME = {str(page): page for page in PAGES}
YAML_BLOCKS = [block for page in PAGES for block in page.blocks("yaml")]
PYTHON_BLOCKS = [block for page in PAGES for block in page.blocks("python")]
SHELL_BLOCKS = [block for page in PAGES for block in page.blocks("sh")]
FILES = re.compile(r"[\w./-]+\.(?:rs|py|toml|pyi|md|yaml|json)")

# Where a page may leave the beginning of a path out.
BASES = ("", "crates/mitu-proxy/src", "src/mitu", "tests/integration")

# What a snippet stands in that is only a part.
BASE: dict[str, Any] = {
    "listeners": [
        {
            "name": "edge",
            "bind": "127.0.0.1:8470",
            "protocols": ["h2", "http/1.1"],
            "tls": {"certificates": [{"certificate": "certs/edge.crt", "key": "certs/edge.key"}]},
            "routes": [{"respond": {"body": "ok"}}],
        }
    ],
    "upstreams": [
        {"name": "app", "endpoints": ["127.0.0.1:8490"]},
        {"name": "broker", "endpoints": ["127.0.0.1:1883"]},
    ],
}


def whole(block: Block) -> dict[str, Any]:
    """The configuration that a snippet is, or is a part of."""
    data: dict[str, Any] = YAML(typ="safe").load(block.text)
    base = copy.deepcopy(BASE)
    if block.text.startswith("# in a listener:\n"):
        base["listeners"][0] |= data
        return base
    assert set(data) <= set(Config.model_fields), f"{block}: begin with '# in a listener:', or with a top-level key"
    return data if "listeners" in data else base | data


def provide(data: Any, folder: Path, authority: Authority) -> None:
    """Make the files that a configuration names, below `folder`."""
    if isinstance(data, list):
        for one in data:
            provide(one, folder, authority)
    if not isinstance(data, dict):
        return
    if isinstance(data.get("certificate"), str):
        stem = Path(data["certificate"]).stem
        plain = stem.removesuffix("-rsa")
        names = tuple(data.get("names") or (f"{plain}.example", "localhost"))
        pair = authority.issue(stem, names, key="p256" if stem == plain else "rsa")
        assert (pair.certificate, pair.key) == (folder / data["certificate"], folder / data["key"])
    for key in ("ca", "client_ca", "file"):
        if isinstance(data.get(key), str):
            path = folder / data[key]
            path.write_bytes(authority.certificate.read_bytes() if key != "file" else b"0123456789abcdef" * 4)
            path.chmod(0o600)
    for one in data.values():
        provide(one, folder, authority)


def modules(page: Path, folder: Path) -> None:
    """Put the Python files of a page into `folder`."""
    for block in PYTHON_BLOCKS:
        if block.page == page and block.name:
            (folder / block.name).write_text(block.text, encoding="utf-8")


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=str)
def test_configurations_pass_the_check(block: Block, tmp_path: Path) -> None:
    data = whole(block)
    provide(data, tmp_path, Authority(tmp_path / "certs"))
    modules(block.page, tmp_path)
    file = tmp_path / "mitu.yaml"
    text = block.text if "listeners" in YAML(typ="safe").load(block.text) else json.dumps(data)
    file.write_text(text.replace("/var/log/mitu/", f"{tmp_path}/"), encoding="utf-8")
    report = mitu.check(file, environ={})
    assert report.errors == (), "\n".join(map(str, report.errors))
    if text == block.text:
        assert report.warnings == (), "\n".join(map(str, report.warnings))


def test_the_smallest_configuration_is_the_one_promised() -> None:
    promised = (ROOT / "tests" / "golden" / "good" / "smallest.yaml").read_text(encoding="utf-8")
    for name in ("README.md", "docs/guide/configuration.md"):
        assert YAML(typ="safe").load(promised) in [whole(block) for block in BY_NAME[name].blocks("yaml")], name


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=str)
def test_python_uses_what_there_is(block: Block) -> None:
    compile(block.text, str(block), "exec")
    assert set(re.findall(r"\bmitu\.([A-Za-z]\w*)", block.text.replace("mitu.yaml", ""))) <= set(mitu.__all__)


@pytest.mark.parametrize(
    ("name", "told"), [("embedded.py", "reloaded: True\nstopped\n"), ("checking.py", "['edge']\n")]
)
def test_programs_run(name: str, told: str, tmp_path: Path) -> None:
    page = BY_NAME["docs/guide/python-api.md"]
    provide(BASE, tmp_path, Authority(tmp_path / "certs"))
    modules(page.path, tmp_path)
    (tmp_path / "mitu.yaml").write_text(json.dumps(BASE | {"upstreams": []}), encoding="utf-8")
    done = subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(told), done.stdout


def test_the_handler_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules(BY_NAME["docs/guide/handlers.md"].path, tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert load("counter:serve", tmp_path).__name__ == "serve"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links():
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.path.parent / target).resolve() if target else page.path
        assert path.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in Page(path, path.read_text(encoding="utf-8")).anchors(), f"{page}: {link}"


def find(path: str) -> Path | None:
    """The file or folder that a page means by `path`."""
    crate = re.sub(r"^(mitu-\w+)/", r"crates/\1/src/", path)
    candidates = [ROOT / base / path for base in BASES] + [ROOT / crate]
    return next((one for one in candidates if one.exists()), None)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_that_are_named_exist(page: Page) -> None:
    for code, _ in page.code():
        path = code.split(" ")[0]
        if "/" in path and re.match(r"(src|crates|tests|docs|benchmarks|tools|examples|changelog\.d)/", path):
            assert find(path) is not None, f"{page}: {path}"
        elif page in INTERNALS and re.fullmatch(FILES, code):
            assert find(code) is not None, f"{page}: {code}"


def defined(name: str, file: Path) -> bool:
    """Whether `file` defines a function or constant, and its type where one stands in front."""
    text = file.read_text(encoding="utf-8")
    *owner, last = re.split(r"::|\.", name)
    kinds = rf"\b(?:fn|def|class|struct|enum|const|static) {re.escape(last)}\b|^{re.escape(last)}\b.* = "
    return re.search(kinds, text, re.M) is not None and all(re.search(rf"\b{one}\b", text) for one in owner)


@pytest.mark.parametrize("page", [*INTERNALS, BY_NAME["docs/security.md"]], ids=str)
def test_functions_that_are_named_are_in_their_file(page: Page) -> None:
    """A function or constant belongs to the file named last before it, or right behind it with `in` or `of`."""
    file, checked = None, 0
    for code, after in page.code():
        if re.fullmatch(FILES, code):
            file = find(code)
        # The kernel's own constants are in no file here.
        name = re.fullmatch(r"([\w.:]+)\(\)|((?!SO_|TCP_)_?[A-Z][A-Z0-9_]{3,})", code)
        if name is None:
            continue
        behind = re.match(r"\s+(?:in|of)\s+`([^`]+)`", after)
        place = find(behind[1]) if behind else file
        assert place is not None, f"{page}: {code} without a file"
        assert defined(name[1] or name[2], place), f"{page}: {code} is not in {place.relative_to(ROOT)}"
        checked += 1
    assert checked or page.path.name == "README.md", f"{page} names no function"


@pytest.mark.parametrize("page", [page for page in PAGES if page.path.parent.name == "adr"], ids=str)
def test_functions_in_decisions_are_in_their_file(page: Page) -> None:
    for name, path in re.findall(r"`([\w.]+)(?:\(\))?` in\s+`([^`]+\.(?:rs|py))`", page.prose):
        place = find(path)
        assert place is not None and defined(name, place), f"{page}: {name} in {path}"


def test_metrics_are_named_and_explained() -> None:
    package = ROOT / "src" / "mitu"
    own = [package / "gateway.py", package / "discovery" / "report.py"]
    sources = [*(ROOT / "crates" / "mitu-telemetry" / "src").rglob("*.rs"), *own]
    text = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    metric = r"\bmitu_(?:tls|alpn|http|upstream|connections|relay|access_log|config|discovery)_\w+"
    there = set(re.findall(metric, text))
    explained = set(re.findall(metric, BY_NAME["docs/guide/observability.md"].text))
    assert explained == there
    for page in PAGES:
        assert set(re.findall(metric, page.text)) <= there, page


def test_reasons_are_explained() -> None:
    text = (ROOT / "crates" / "mitu-telemetry" / "src" / "http" / "reason.rs").read_text(encoding="utf-8")
    there = set(re.findall(r'=> "(\w+)", \w+;', text))
    assert len(there) > 20
    section = BY_NAME["docs/guide/observability.md"].text.partition("## Reasons")[2].partition("Handshakes that fail")
    assert set(re.findall(r"`([a-z0-9_]+)`", section[0])) & there == there
    words = (ROOT / "crates" / "mitu-tls" / "src" / "handshake" / "reason.rs").read_text(encoding="utf-8")
    failures = set(re.findall(r'=> "(\w+)";', words))
    assert len(failures) > 15
    assert failures <= set(re.findall(r"`(\w+)`", section[2]))


ROOTS: dict[str, tuple[type[BaseModel], ...]] = {
    "runtime": (Runtime,),
    "tickets": (Tickets,),
    "admin": (Admin,),
    "logging": (Logging,),
    "limits": (Limits, RouteLimits),
    "timeouts": (Timeouts, UpstreamTimeouts),
    "tls": (ListenerTls, UpstreamTls),
    "proxy_protocol": (ProxyProtocol,),
}


def is_option(model: Any, names: list[str]) -> bool:
    for name in names:
        fields = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}
        if name not in fields:
            return False
        kind = fields[name].annotation
        model = next((one for one in (kind, *get_args(kind)) if isinstance(one, type)), None)
    return True


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_options_that_are_named_exist(page: Page) -> None:
    for code, _ in page.code():
        match = re.match(rf"({'|'.join(ROOTS)})\.([a-z0-9_.]+)(?=:|$)", code)
        if match is not None and not re.search(r"\.(sock|lock|md|rs|py|yaml)$", code):
            names = match[2].split(".")
            assert any(is_option(model, names) for model in ROOTS[match[1]]), f"{page}: {code}"


def test_error_codes_that_are_named_exist() -> None:
    for page in PAGES:
        assert set(re.findall(r"\b[EW]0\d\d\b", page.text)) <= set(catalogue()), page


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_commands_that_are_named_exist(block: Block) -> None:
    text = re.sub(r"\\\n", " ", re.sub(r" #.*", "", block.text))
    tasks = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"^make ([a-z-]+)", text, re.M)) <= set(tasks)
    group = typer.main.get_command(app)
    for name, rest in re.findall(r"^(?:[A-Z_]+=\S+ )*mitu (\w[\w-]*)([^\n|&>]*)", text, re.M):
        assert name in COMMANDS, f"{block}: mitu {name}"
        command = group.get_command(typer.Context(group), name)  # type: ignore[attr-defined]
        if isinstance(command, TyperGroup):
            below = rest.split()[0]
            assert below in command.commands, f"{block}: mitu {name} {below}"
            command = command.commands[below]
        options = {one for parameter in command.params for one in (*parameter.opts, *parameter.secondary_opts)}
        assert set(re.findall(r"(?<=\s)--?[a-z][\w-]*", rest)) <= options, f"{block}: mitu {name}{rest}"


def test_commands_in_the_text_exist() -> None:
    tasks = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for page in PAGES:
        for code, _ in page.code():
            if match := re.match(r"mitu ([a-z]+)\b(?! TLS)", code):
                assert match[1] in COMMANDS, f"{page}: {code}"
            if match := re.match(r"make ([a-z-]+)", code):
                assert match[1] in tasks, f"{page}: {code}"
            if match := re.match(r"python -m (benchmarks[.\w]*|mitu[.\w]+)", code):
                module = ROOT / ("src" if match[1].startswith("mitu") else "") / match[1].replace(".", "/")
                assert module.is_dir() or module.with_suffix(".py").is_file(), f"{page}: {code}"


def test_the_reference_is_what_the_models_say(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "mitu.config.reference", tmp_path], check=True, timeout=60)
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").iterdir()}
    assert kept == made, "run: make docs"
