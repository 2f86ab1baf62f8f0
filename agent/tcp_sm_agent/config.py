# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent is to do: a JSON file that role hypervisor writes, or options for one region."""

from __future__ import annotations

import grp
import json
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._model.errors import InputError
from ._model.region_spec import ChunkSpec, RegionSpec

RUN_FOLDER = "/run/tcp_sm"
CONFIG = "/etc/tcp_sm/agent.json"
CONTROL = f"{RUN_FOLDER}/agent.sock"
VECTORS_MAX = 8
# The agent must not wait for long; it tries again.
LOCK_SECONDS = 1

_TOP = {"regions", "control", "metrics"}
_REGION = {
    *("name", "path", "size", "host", "owner", "group", "mode", "allocate", "automatic"),
    *("chunks", "socket", "socket_owner", "socket_group", "socket_mode", "vectors"),
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

    `spec` and `chunks` say how to make it where it is missing, as after a reboot of the host;
    without `spec` it has to be there. `vectors`: eventfds of each machine.
    """

    name: str
    path: str
    socket: str
    vectors: int = 1
    socket_access: Access = Access()
    spec: RegionSpec | None = None
    chunks: tuple[ChunkSpec, ...] = ()
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
    except ValueError as error:
        raise InputError(f"Cannot read the configuration {path}: {error}.") from error
    try:
        return parse_config(raw)
    except InputError as error:
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
    return Config(regions, str(raw.get("control", CONTROL)), str(raw.get("metrics") or ""))


def _parse_serving(raw: Any) -> Serving:
    _check_keys(raw, _REGION, "regions")
    spec = RegionSpec.parse({**raw, "lock_timeout": LOCK_SECONDS})
    at = f"region {spec.name}"
    where = {"region": spec.name, "path": spec.path, "lock_timeout": LOCK_SECONDS}
    chunks = []
    for chunk in _items(raw, "chunks"):
        _check_keys(chunk, {"owner", "size", "ring_size"}, f"{at}: chunks")
        chunks.append(ChunkSpec.parse({**chunk, **where}))
    vectors = raw.get("vectors", 1)
    if not isinstance(vectors, int) or not 1 <= vectors <= VECTORS_MAX:
        raise InputError(f"{at}: vectors {vectors!r} must be from 1 to {VECTORS_MAX}")
    socket = str(raw.get("socket") or f"{RUN_FOLDER}/{spec.name}.sock")
    if not socket.startswith("/") or len(socket.encode()) > 107:
        raise InputError(f"{at}: socket {socket!r} must be absolute and have at most 107 bytes")
    return Serving(
        spec.name,
        spec.path,
        socket,
        vectors,
        _access(raw, "socket_", at),
        spec,
        tuple(chunks),
        _access(raw, "", at),
    )


def _access(raw: Mapping[str, Any], prefix: str, at: str) -> Access:
    """Permissions from `mode`, `owner` and `group`, each with the prefix."""
    mode = str(raw.get(f"{prefix}mode") or "0600")
    try:
        bits = int(mode, 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o777:
        raise InputError(f"{at}: {prefix}mode {mode!r} must be octal, such as 0660")
    owner, group = raw.get(f"{prefix}owner"), raw.get(f"{prefix}group")
    try:
        uid = pwd.getpwnam(str(owner)).pw_uid if owner else -1
        gid = grp.getgrnam(str(group)).gr_gid if group else -1
    except KeyError as error:
        raise InputError(f"{at}: {error.args[0]}; create it first, or name another") from None
    return Access(bits, uid, gid)


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
