# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent is to do: a JSON file that role hypervisor writes, or options for one region."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._io.region import group_id, user_id
from ._model.errors import InputError
from ._model.region_spec import RegionSpec, check_socket, parse_mode, parse_vectors

RUN_FOLDER = "/run/tcp_sm"
CONFIG = "/etc/tcp_sm/agent.json"
CONTROL = f"{RUN_FOLDER}/agent.sock"
# The agent must not wait for long; it tries again.
LOCK_SECONDS = 1

# `removing` is the role's: regions whose files are still there, and are served no more.
_TOP = {"regions", "control", "metrics", "removing"}
_REGION = {
    *("name", "path", "size", "host", "owner", "group", "mode", "allocate", "automatic"),
    *("chunks", "parts", "socket", "socket_owner", "socket_group", "socket_mode", "vectors"),
}


@dataclass(frozen=True)
class Access:
    """Owner and permissions of a file; -1: as it is."""

    mode: int = 0o600
    uid: int = -1
    gid: int = -1


@dataclass(frozen=True)
class Serving:
    """One region and the socket that it is served on.

    `spec` says how to make it where it is missing, as after a reboot of the host; without one it
    has to be there. `vectors`: eventfds of each machine.
    """

    name: str
    path: str
    socket: str
    vectors: int = 1
    socket_access: Access = Access()
    spec: RegionSpec | None = None
    access: Access = Access()

    @property
    def note(self) -> str:
        """Where the numbers of the doorbells are kept; see doorbells.py."""
        return f"{self.socket}.doorbells"


@dataclass(frozen=True)
class Config:
    """Everything. Empty `control` and `metrics`: none."""

    regions: tuple[Serving, ...]
    control: str = ""
    metrics: str = ""


def read_config(path: str) -> Config:
    """From a file. Raises InputError that names what is wrong."""
    try:
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
    except OSError as error:
        raise InputError(
            f"Cannot read the configuration {path}: {error.strerror}. Apply the role "
            "colocated.tcp_sm.hypervisor to write it."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"Cannot read the configuration {path}: it is no JSON ({error}). Restore it from a "
            "backup; or delete it and apply the role colocated.tcp_sm.hypervisor, which then knows "
            "of no region but those of its variables."
        ) from error
    try:
        return parse_config(raw)
    except (InputError, ValueError) as error:  # ValueError: half of a surrogate pair, say
        raise InputError(f"Configuration {path}: {error}") from error


def parse_config(raw: Any) -> Config:
    """From plain data. Raises InputError that names what is wrong."""
    _check_keys(raw, _TOP, "the configuration")
    regions = tuple(_parse_serving(one) for one in _items(raw, "regions"))
    for what in ("name", "path", "socket"):
        values = [getattr(one, what) for one in regions]
        for value in values:
            if values.count(value) > 1:
                raise InputError(f"regions: two have the {what} {value}")
    return Config(regions, _path(raw, "control", CONTROL), _path(raw, "metrics", ""))


def _parse_serving(raw: Any) -> Serving:
    _check_keys(raw, _REGION, "regions")
    spec = RegionSpec.parse({**raw, "lock_timeout": LOCK_SECONDS})
    try:
        return Serving(
            spec.name,
            spec.path,
            check_socket(str(raw.get("socket") or f"{RUN_FOLDER}/{spec.name}.sock")),
            parse_vectors(raw.get("vectors", 1)),
            _access(raw, "socket_"),
            spec,
            _access(raw, ""),
        )
    except InputError as error:
        raise InputError(f"region {spec.name}: {error}") from None


def _access(raw: Mapping[str, Any], prefix: str) -> Access:
    """Permissions from `mode`, `owner` and `group`, each with the prefix."""
    mode = raw.get(f"{prefix}mode")
    bits = Access.mode if mode is None else parse_mode(mode, f"{prefix}mode")
    owner, group = (str(raw.get(f"{prefix}{kind}") or "") for kind in ("owner", "group"))
    return Access(bits, user_id(owner), group_id(group))


def _path(raw: Mapping[str, Any], key: str, default: str) -> str:
    path = str(raw.get(key, default) or "")
    if path and (not path.startswith("/") or "\0" in path):
        raise InputError(f"{key}: {path!r} must be absolute, or empty for none")
    return path


def _check_keys(raw: Any, known: set[str], what: str) -> None:
    if not isinstance(raw, Mapping):
        raise InputError(f"{what}: needs a dictionary, not {raw!r}")
    if extra := sorted(set(raw) - known):
        raise InputError(f"{what}: unknown {', '.join(extra)}")


def _items(raw: Mapping[str, Any], key: str) -> list[Any]:
    items = raw.get(key) or []
    if not isinstance(items, list):
        raise InputError(f"{key}: needs a list")
    return items
