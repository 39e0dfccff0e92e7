"""From a file to a `Config`: read, fill in the environment, build the models, report every error at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mitu.config.diagnostic import Diagnostic, Loc, Report
from mitu.config.interpolate import expand
from mitu.config.model import Config
from mitu.config.prune import prune
from mitu.config.source import MAX_BYTES, Document, Mark, Node, SourceError, secret_name
from mitu.config.translate import translate
from mitu.config.validate import validate
from mitu.errors import ConfigError

FORMATS = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}


def load_config(path: str | Path, *, environ: Mapping[str, str] | None = None) -> Config:
    """Read a YAML, TOML or JSON file.

    Relative paths in it start from its folder. ConfigError when anything in the file is wrong; whether the files that
    it names are good is for `check` and `compile_runtime` to find.
    """
    config, diagnostics = read_config(path, environ=environ)
    report = Report.of(diagnostics)
    if config is None or not report.ok:
        raise ConfigError(report)
    return config


def parse_config(data: Mapping[str, Any], *, base: Path | None = None) -> Config:
    """Build a configuration from plain values. `base`: where relative paths start, else the working directory."""
    config, diagnostics = _build(dict(data), base or Path.cwd(), None)
    report = Report.of(diagnostics)
    if config is None or not report.ok:
        raise ConfigError(report)
    return config


def read_config(
    path: str | Path, *, environ: Mapping[str, str] | None = None
) -> tuple[Config | None, list[Diagnostic]]:
    """The configuration, if there is one without errors in its shape, and everything that was found."""
    file = Path(path)
    try:
        document, problems = read_document(file, os.environ if environ is None else environ)
    except SourceError as problem:
        return None, [_syntax(file, problem)]
    config, diagnostics = _build(document.data, document.file.absolute().parent, document)
    # What a variable without a value leads to is no mistake of its own.
    unset = {one.loc for one in problems}
    rest = [one for one in diagnostics if not any(one.loc[: len(loc)] == loc for loc in unset)]
    return (None if problems else config), [*problems, *rest]


def read_document(file: Path, environ: Mapping[str, str]) -> tuple[Document, list[Diagnostic]]:
    """The file's tree, with the environment filled in, and what was wrong with its variables."""
    text = _read_text(file)
    root = _reader(file)(text)
    if root.value is None:
        raise SourceError("E008", "the file is empty", 1, 1, "start with 'listeners:'")
    if not isinstance(root.value, dict):
        raise SourceError("E008", "the file must hold a mapping", root.mark.line, root.mark.column)
    filler = _Filler(environ)
    data = filler.plain(root, ())
    document = Document(file, text, root, data, tuple(filler.redactions))
    return document, [
        # Of a value that is not there, the key shows the place.
        document.diagnostic(code, told, loc, at_key=code == "E014", hint=hint)
        for loc, code, told, hint in filler.problems
    ]


def _read_text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SourceError("E001", f"cannot read the configuration: {reason[:1].lower()}{reason[1:]}") from error
    if len(raw) > MAX_BYTES:
        raise SourceError("E002", f"the file is larger than {MAX_BYTES >> 20} MiB")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SourceError("E003", "the file is not UTF-8 text", line) from error


def _reader(file: Path) -> Callable[[str], Node]:
    kind = FORMATS.get(file.suffix.lower())
    if kind == "yaml":
        from mitu.config.read_yaml import read_yaml as read
    elif kind == "toml":
        from mitu.config.read_toml import read_toml as read
    elif kind == "json":
        from mitu.config.read_json import read_json as read
    else:
        hint = f"name it *{', *'.join(FORMATS)}"
        raise SourceError("E009", f"cannot tell the format of a file that ends in '{file.suffix}'", hint=hint)
    return read


class _Filler:
    """The tree as plain values, with `${ENV}` filled in."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[tuple[Loc, str, str, str | None]] = []
        self.redactions: list[tuple[str, str]] = []

    def plain(self, node: Node, loc: Loc) -> Any:
        if isinstance(node.value, dict):
            for key in node.value:
                _refuse_halves(key, node.keys[key])
                if node.value[key].value is None:
                    hint = "leave the field out for its default"
                    self.problems.append(((*loc, key), "E014", "expected a value, found nothing", hint))
            return {key: self.plain(child, (*loc, key)) for key, child in node.value.items()}
        if isinstance(node.value, list):
            return [self.plain(child, (*loc, at)) for at, child in enumerate(node.value)]
        if not isinstance(node.value, str):
            return node.value
        _refuse_halves(node.value, node.mark)
        expanded = expand(node.value, self.environ)
        if expanded.problem is not None:
            self.problems.append((loc, *expanded.problem))
        if expanded.used:
            node.raw, node.filled = node.value, expanded.text
            self.redactions += [(value, name) for name, value in expanded.used if value and secret_name(name)]
        return expanded.text


def _refuse_halves(text: str, mark: Mark) -> None:
    r"""JSON and YAML can write half a character (`"\ud800"`), which no output could show and no header could carry."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise SourceError("E003", "half a character (a lone surrogate) in text", mark.line, mark.column)


def _build(data: Any, base: Path, document: Document | None) -> tuple[Config | None, list[Diagnostic]]:
    """Models and cross checks. What has errors is cut out, so that the rest is checked all the same."""
    context = {"base": base}
    try:
        config = Config.model_validate(data, context=context)
    except ValidationError as error:
        diagnostics = translate(error, data, document)
    else:
        config._document = document
        return config, validate(config)
    cut = prune(data, context)
    if cut is not None:
        cut.config._document = document
        diagnostics += validate(cut.config, cut)
    return None, diagnostics


def _syntax(file: Path, problem: SourceError) -> Diagnostic:
    source = None
    if problem.line is not None:
        source = _masked_line(file, problem.line)
    return Diagnostic(
        problem.code, problem.message, (), file, problem.line, problem.column, source=source, hint=problem.hint
    )


def _masked_line(file: Path, number: int) -> str | None:
    """A line of a file that could not be parsed; without a tree every word after a secret's name is masked, and what
    stands in a list below it."""
    import re

    try:
        lines = file.read_bytes()[: MAX_BYTES + 1].decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    if not 1 <= number <= len(lines):
        return None
    name = r"(?:token|secret|password|passphrase|authorization|cookie)[\w-]*[\"']?\s*[:=]\s*"
    line = re.sub(rf"({name})\S.*", r"\1***", lines[number - 1], flags=re.I)
    named = re.compile(r"\s*[\w.\"'-]*\w[\"']?\s*[:=]")
    heading = next((one for one in reversed(lines[: number - 1]) if named.match(one)), "")
    listed = re.match(r"\s*-", line) or not named.match(line)
    if listed and re.search(rf"{name}\[?\s*(?:#.*)?$", heading, re.I):
        return re.sub(r"[^\s-].*", "***", line, count=1)
    return line
