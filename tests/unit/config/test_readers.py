"""The readers: values, positions, and bounds of each format."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitu.config.load import load_config, read_config
from mitu.config.read_json import read_json
from mitu.config.read_toml import read_toml
from mitu.config.read_yaml import read_yaml
from mitu.config.source import MAX_BYTES, Node, SourceError

YAML = """\
first: [1, 'two', {three: 3.5}]
"second key": |
  several
  lines
third:
  - ~
  - true
  - 010
  - yes
  - 2026-01-01
"""
JSON = '{\n  "first": [1, "two", {"three": 3.5}],\n  "x": {"y": "\\u00fc\\ud83d\\ude00"}\n}\n'
TOML = """\
title = "t"   # a comment with [brackets]
[a.b]
c = [1, # one
  2,
  { d = "x" }]
"quoted key".sub = '''
many
lines'''
[[list]]
n = 1
[[list.inner]]
m = 2
[[list]]
n = 3
[list.table]
t = 1979-05-27
"""


def plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value


def at(node: Node, *loc: str | int) -> tuple[int, int]:
    for part in loc:
        node = node.value[part]
    return node.mark.line, node.mark.column


def problem(read: Any, text: str) -> SourceError:
    with pytest.raises(SourceError) as caught:
        read(text)
    return caught.value


def test_yaml_values_follow_the_core_schema() -> None:
    assert plain(read_yaml(YAML)) == {
        "first": [1, "two", {"three": 3.5}],
        "second key": "several\nlines\n",
        "third": [None, True, 10, "yes", "2026-01-01"],
    }


def test_yaml_positions() -> None:
    root = read_yaml(YAML)
    assert at(root, "first", 1) == (1, 12)
    assert at(root, "first", 2, "three") == (1, 27)
    assert at(root, "third", 3) == (9, 5)
    assert (root.keys["third"].line, root.keys["third"].column) == (5, 1)


def test_yaml_merge_keys_and_aliases() -> None:
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: {<<: [*b, {z: 4}], z: 5}\n"
    assert plain(read_yaml(text)) == {
        "base": {"x": 1, "y": 2},
        "one": {"x": 1, "y": 3},
        "two": {"x": 1, "y": 2, "z": 5},
    }
    assert problem(read_yaml, "a: {<<: 1}").code == "E003"


def test_yaml_aliases_are_bounded_in_depth() -> None:
    chain = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200))
    assert problem(read_yaml, chain).code == "E005"


def test_yaml_that_refers_to_itself() -> None:
    assert problem(read_yaml, "a: &a [*a]").code == "E006"


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "%YAML 9.9\n---\n", "a: 'x", "\x00", "- a\nb: c", "&a", "a: *b"])
def test_yaml_refuses(text: str) -> None:
    if text == "&a":
        assert read_yaml(text).value is None
        return
    assert problem(read_yaml, text).code in ("E003", "E006")


def test_json_values_and_positions() -> None:
    root = read_json(JSON)
    assert plain(root) == json.loads(JSON)
    assert at(root, "first", 1) == (2, 16)
    assert at(root, "first", 2, "three") == (2, 33)
    assert root.keys["x"].line == 3


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**15), 10**15)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_json_reads_what_python_writes(value: Any) -> None:
    for indent in (None, 2):
        assert plain(read_json(json.dumps(value, indent=indent, ensure_ascii=indent is None))) == value


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1,]", '{"a":}', "{a:1}", "01", "1.", "nul", '"\n"', '"\\x"', "[1] 2", "NaN", "-", "[1 2]", '{"a" 1}'],
)
def test_json_refuses(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        if text == "NaN":
            raise json.JSONDecodeError("Python takes it, RFC 8259 does not", text, 0)
        json.loads(text)
    assert problem(read_json, text).code == "E003"


def test_json_depth() -> None:
    assert problem(read_json, "[" * 100_000).code == "E005"


def test_toml_values_and_positions() -> None:
    root = read_toml(TOML)
    assert plain(root)["list"][1] == {"n": 3, "table": {"t": "1979-05-27"}}
    assert plain(root)["a"] == tomllib.loads(TOML)["a"]
    assert at(root, "title") == (1, 9)
    assert at(root, "a", "b", "c", 1) == (4, 3)
    assert at(root, "a", "b", "c", 2, "d") == (5, 9)
    assert at(root, "a", "b", "quoted key", "sub") == (6, 20)
    assert at(root, "list", 0, "n") == (10, 5)
    assert at(root, "list", 0, "inner", 0, "m") == (12, 5)
    assert at(root, "list", 1, "n") == (14, 5)
    assert at(root, "list", 1, "table", "t") == (16, 5)
    assert at(root, "list", 1) == (13, 1)


@pytest.mark.parametrize("text", ["a = ", "a = [1, 2", "[a", "a = 1\na = 2", "[a]\n[a]", "= 1", 'a = "\n"'])
def test_toml_refuses(text: str) -> None:
    assert problem(read_toml, text).code in ("E003", "E004")


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "{a=" * 5000, ".".join("a" * 500) + " = 1"])
def test_toml_depth(text: str) -> None:
    assert problem(read_toml, text).code == "E005"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("absent.yaml", None, "E001"),
        ("large.yaml", b"#" * (MAX_BYTES + 1), "E002"),
        ("latin.yaml", "a: ü".encode("latin-1"), "E003"),
        ("mitu.conf", b"listeners: []", "E009"),
        ("none.yaml", b"", "E008"),
        ("half.json", b'{"a": "\\ud800"}', "E003"),
        ("half.yaml", b'"\\ud800": 1', "E003"),
        ("many.json", b"[" + b"1," * 200_000 + b"1]", "E006"),
        ("many.toml", b"a = [" + b"1," * 200_000 + b"1]", "E006"),
        ("many.yaml", b"a: [" + b"1," * 200_000 + b"1]", "E006"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, code: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    config, found = read_config(file)
    assert config is None
    assert [one.code for one in found] == [code]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert [one.code for one in read_config(tmp_path / "..")[1]] == ["E001"]


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "mitu.yaml"
    file.write_bytes(b"\xef\xbb\xbflisteners: []\r\nbogus: 1\r\n")
    config, found = read_config(file)
    assert config is None
    assert [(one.code, one.line, one.source) for one in found if one.code == "E012"] == [("E012", 2, "bogus: 1")]


def test_load_says_everything_at_once(tmp_path: Path) -> None:
    from mitu import ConfigError

    file = tmp_path / "mitu.yaml"
    file.write_text("listeners: 1\nupstreams: 2\nrest: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert [one.code for one in caught.value.errors] == ["E014", "E014", "E012"]
    assert str(caught.value).count("\n") == 2
