# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was applied, written down by the roles so that a reboot can bring it back.

JSON: a dictionary with the options of module bpf_object, and `maps`: a list of dictionaries with
the options of bpf_map, where the `name` of a map of that object stands in place of its path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .spec import MapSpec, ObjectSpec, escape

OBJECT_KEYS = {
    "name",
    "path",
    "sha256",
    "state",
    "bpffs",
    "attach",
    "max_entries",
    "replace_maps",
    "lock_timeout",
}
MAP_KEYS = {"name", "state", "entries", "lock_timeout"}


@dataclass(frozen=True)
class Declaration:
    """One object and the entries of its maps, which are written before anything attaches."""

    object: ObjectSpec
    maps: tuple[MapSpec, ...]


def parse_declaration(text: str, source: str) -> Declaration:
    """From JSON read at `source`; InputError says what is wrong with it."""
    try:
        raw = json.loads(text)
        return _parse(raw)
    except ValueError as error:
        raise InputError(f"{source} is not valid JSON: {error}. {AGAIN}") from error
    except InputError as error:
        raise InputError(f"{source}: {error}. {AGAIN}") from error


AGAIN = "Apply the role (colocated.tcp_sm.container or guest) again to write it anew."


def _parse(raw: Any) -> Declaration:
    if not isinstance(raw, Mapping):
        raise InputError("it is not a dictionary")
    _only(raw, OBJECT_KEYS | {"maps"}, "the declaration")
    spec = ObjectSpec.parse(raw)
    maps = raw.get("maps") or []
    if not isinstance(maps, list):
        raise InputError("maps is not a list")
    return Declaration(
        spec, tuple(_parse_map(item, spec, f"maps[{index}]") for index, item in enumerate(maps))
    )


def _parse_map(raw: Any, spec: ObjectSpec, at: str) -> MapSpec:
    if not isinstance(raw, Mapping) or not raw.get("name"):
        raise InputError(f"{at}: needs the name of a map")
    _only(raw, MAP_KEYS, at)
    path = os.path.join(spec.bpffs, spec.name, "maps", escape(str(raw["name"])))
    return MapSpec.parse({"lock_timeout": spec.lock_timeout, **raw, "path": path})


def _only(raw: Mapping[str, Any], known: set[str], at: str) -> None:
    extra = sorted(set(raw) - known)
    if extra:
        raise InputError(f"{at}: unknown {', '.join(extra)}; known are {', '.join(sorted(known))}")
