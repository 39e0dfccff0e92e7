"""pydantic's errors in mitu's terms: code, place, what was found, what is allowed, the nearest match."""

from __future__ import annotations

import re
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mitu.config.base import Model
from mitu.config.diagnostic import Diagnostic, Loc, nearest
from mitu.config.model import Config
from mitu.config.prune import existing, plain_loc
from mitu.config.source import Document, is_secret
from mitu.config.types import shown

# What people coming from other proxies call things.
_SYNONYMS = {
    "address": ("bind", "endpoints"),
    "listen": ("bind",),
    "port": ("bind",),
    "ssl": ("tls",),
    "cert": ("certificate",),
    "certs": ("certificates",),
    "private_key": ("key",),
    "backends": ("upstreams",),
    "clusters": ("upstreams",),
    "backend": ("upstream",),
    "cluster": ("upstream",),
    "proxy_pass": ("upstream",),
    "servers": ("endpoints",),
    "alpn": ("protocols",),
    "ciphers": ("cipher_suites",),
    "curves": ("groups",),
    "threads": ("workers",),
    "prefix": ("path_prefix",),
    "regex": ("path_regex",),
    "lb_policy": ("balancer",),
    "return": ("respond",),
}
_KINDS = {
    "tuple": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping",
    "string": "text",
    "int": "a whole number",
    "bool": "true or false",
}


def translate(error: ValidationError, data: Any, document: Document | None) -> list[Diagnostic]:
    found = [_one(problem, data, document) for problem in error.errors(include_url=False)]
    # A field that is missing because its name is misspelt is one mistake, not two.
    meant = {(*one.loc[:-1], one.nearest) for one in found if one.code == "E012"}
    return [one for one in found if one.code != "E013" or one.loc not in meant]


def _one(problem: Any, data: Any, document: Document | None) -> Diagnostic:
    kind: str = problem["type"]
    at_key = problem["loc"][-1:] == ("[key]",) or kind == "extra_forbidden"
    loc = plain_loc(problem["loc"])
    if kind != "missing":
        loc = existing(data, loc)
    secret = is_secret(loc) or (document is not None and document.raw(loc) is not None)
    found = _found(problem["input"], loc, document) if kind not in ("missing", "extra_forbidden") else None
    code, message, rest = _told(problem, kind, loc, found)
    if secret and found is not None:
        message = message.replace(shown(problem["input"]), found)
    if document is None:
        return Diagnostic(code, message, loc, found=found, **rest)
    return document.diagnostic(code, message, loc, at_key=at_key, found=found, **rest)


def _found(value: Any, loc: Loc, document: Document | None) -> str:
    """What to show of a value: never a secret, and of a variable its name, not what it holds."""
    raw = document.raw(loc) if document is not None else None
    if raw is not None:
        return f"'{raw}'"
    return "a secret" if is_secret(loc) and isinstance(value, str | int | float) else shown(value)


def _told(problem: Any, kind: str, loc: Loc, found: str | None) -> tuple[str, str, dict[str, Any]]:
    """Code, message, and the rest of a diagnostic."""
    context = problem.get("ctx", {})
    if re.fullmatch(r"E\d{3}", kind):
        rest = {key: context[key] for key in ("nearest", "hint")}
        return kind, context["message"], {"allowed": tuple(context["allowed"]), **rest}
    if kind == "extra_forbidden":
        return _unknown_field(loc)
    if kind == "missing":
        return "E013", f"the field '{loc[-1]}' is missing", {"hint": _described(loc)}
    if kind == "literal_error":
        allowed = tuple(re.findall(r"'([^']*)'", context["expected"]))
        closest = nearest(problem["input"], allowed) if isinstance(problem["input"], str) else None
        return "E015", f"{found} is not one of the choices", {"allowed": allowed, "nearest": closest}
    expected = _KINDS.get(kind.split("_")[0], "another kind of value")
    return "E014", f"expected {expected}, found {found}", {}


def _unknown_field(loc: Loc) -> tuple[str, str, dict[str, Any]]:
    model = model_at(loc[:-1])
    known = tuple(model.model_fields) if model is not None else ()
    name = str(loc[-1])
    synonym = next((word for word in _SYNONYMS.get(name.lower(), ()) if word in known), None)
    return "E012", f"unknown field {shown(name)}", {"allowed": known, "nearest": synonym or nearest(name, known)}


def _described(loc: Loc) -> str | None:
    model = model_at(loc[:-1])
    field = model.model_fields.get(str(loc[-1])) if model is not None else None
    if field is None or field.description is None:
        return None
    text = field.description.rstrip(".")
    return f"{loc[-1]}: {text if text[1:2].isupper() else text[0].lower() + text[1:]}"


def model_at(loc: Loc) -> type[BaseModel] | None:
    """The model whose fields stand at `loc`."""
    current: Any = Config
    for part in loc:
        if isinstance(current, type) and issubclass(current, Model):
            field = current.model_fields.get(str(part))
            current = None if field is None else _bare(field.annotation)
        elif get_origin(current) is tuple:
            current = _bare(get_args(current)[0])
        elif get_origin(current) is dict:
            current = _bare(get_args(current)[1])
        else:
            return None
    return current if isinstance(current, type) and issubclass(current, Model) else None


def _bare(annotation: Any) -> Any:
    """An annotation without `Annotated` and `| None`."""
    if hasattr(annotation, "__metadata__"):
        return _bare(get_args(annotation)[0])
    inner = [one for one in get_args(annotation) if one is not type(None)]
    if type(None) in get_args(annotation) and len(inner) == 1:
        return _bare(inner[0])
    return annotation
