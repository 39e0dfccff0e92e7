"""What is left of a configuration when everything that a model refuses is cut out.

The cross checks run on the rest, so that one typing error does not hide all other errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mitu.config.diagnostic import Loc, Part
from mitu.config.model import Config

_ROUNDS = 20
# What stands in for a missing field, so that the mapping around it is checked all the same.
_STAND_INS: dict[str, Any] = {
    "name": "missing",
    "bind": "127.0.0.1:0",
    "protocols": [],
    "tls": {"certificates": []},
    "certificates": [],
    "endpoints": [],
}


@dataclass(frozen=True)
class Cut:
    """The rest of a configuration. Locations in `removed` and from `original` are those of the file."""

    config: Config
    data: Any
    removed: frozenset[Loc]

    def original(self, loc: Loc) -> Loc:
        """Where in the file a location of `config` stands."""
        return _original(self.data, self.removed, loc)

    def complete(self, loc: Loc) -> bool:
        """Whether nothing was cut out at, below or around `loc` (in the file's terms)."""
        return not any(one[: len(loc)] == loc[: len(one)] for one in self.removed)


def prune(data: Any, context: Mapping[str, Any]) -> Cut | None:
    """Cut until the models accept the rest; None when nothing worth checking remains."""
    removed: set[Loc] = set()
    added: dict[Loc, Any] = {}
    if "listeners" not in data:
        data = {**data, "listeners": []}
        removed.add(("listeners", 0))
    for _ in range(_ROUNDS):
        try:
            config = Config.model_validate(_without(data, removed, added, ()), context=dict(context))
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_context=False, include_input=False):
                loc = _original(data, frozenset(removed), plain_loc(problem["loc"]))
                if problem["type"] == "missing" and loc[-1] in _STAND_INS and loc not in added:
                    stand_in = _STAND_INS[str(loc[-1])]
                    added[loc] = f"missing-{len(added)}" if loc[-1] == "name" else stand_in
                    removed.add(loc)
                    continue
                loc = existing(data, loc)
                if not loc:
                    return None
                removed.add(loc)
        else:
            return Cut(config, data, frozenset(removed))
    return None


def plain_loc(loc: Loc) -> Loc:
    """A location of pydantic's without its mark for a mapping's key."""
    return loc[:-1] if loc and loc[-1] == "[key]" else loc


def existing(data: Any, loc: Loc) -> Loc:
    """As much of `loc` as there is in `data`."""
    for depth, part in enumerate(loc):
        if not _has(data, part):
            return loc[:depth]
        data = data[part]
    return loc


def _has(data: Any, part: Part) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)


def _without(data: Any, removed: set[Loc], added: dict[Loc, Any], loc: Loc) -> Any:
    if isinstance(data, dict):
        kept = {key: one for key, one in data.items() if (*loc, key) not in removed}
        rest = {key: _without(one, removed, added, (*loc, key)) for key, one in kept.items()}
        return rest | {str(one[-1]): value for one, value in added.items() if one[:-1] == loc}
    if isinstance(data, list | tuple):
        indices = [at for at in range(len(data)) if (*loc, at) not in removed]
        return [_without(data[at], removed, added, (*loc, at)) for at in indices]
    return data


def _original(data: Any, removed: frozenset[Loc], loc: Loc) -> Loc:
    found: Loc = ()
    for depth, part in enumerate(loc):
        if isinstance(data, list | tuple) and isinstance(part, int):
            kept = [at for at in range(len(data)) if (*found, at) not in removed]
            part = kept[part] if part < len(kept) else part
        if not _has(data, part):
            return (*found, *loc[depth:])
        found = (*found, part)
        data = data[part]
    return found
