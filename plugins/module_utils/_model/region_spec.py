# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user wants of a region or a chunk, validated; shared by the modules and the agent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .region import (
    RING_DEFAULT,
    Region,
    check_host,
    check_name,
    check_owner,
    check_ring_size,
    check_size,
    equal_share,
    parse_size,
)
from .spec import parse_timeout

FOLDER = "/dev/shm"
STATES = ("present", "absent")


def default_path(name: str) -> str:
    """Where a region lies unless the user says otherwise."""
    return f"{FOLDER}/{name}"


@dataclass(frozen=True)
class Automatic:
    """Chunks for any machine. `size` 0: equal parts of the region."""

    count: int
    size: int = 0
    ring_size: int = RING_DEFAULT

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Automatic:
        """From the suboptions; InputError says which is wrong."""
        _refuse_unknown(raw, {"count", "size", "ring_size"}, "automatic")
        try:
            count = int(raw.get("count") or 0)
        except (TypeError, ValueError):
            raise InputError(f"automatic: count {raw['count']!r} is not a number") from None
        return cls(count, _size(raw, "size", 0), check_ring_size(_ring_size(raw)))

    def size_in(self, region: Region) -> int:
        """Bytes of each."""
        return self.size or equal_share(region.size, max(1, self.count))


@dataclass(frozen=True)
class RegionSpec:
    """A wanted region; see the options of module ivshmem_region.

    `host` and `automatic` None: as they are.
    """

    name: str
    path: str
    size: int = 0
    host: str | None = None
    automatic: Automatic | None = None
    state: str = "present"
    force: bool = False
    allocate: bool = True
    lock_timeout: int = 30

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> RegionSpec:
        """From module parameters or the agent's configuration; InputError names the option."""
        name = check_name(str(raw.get("name") or ""))
        state = _state(raw)
        if state == "present" and raw.get("size") is None:
            raise InputError(f"size: region {name} needs one; use a power of two, such as 256M")
        host, automatic = raw.get("host"), raw.get("automatic")
        return cls(
            name,
            _path(raw, name),
            check_size(_size(raw, "size", 0)) if raw.get("size") is not None else 0,
            None if host is None else check_host(str(host)),
            None if automatic is None else Automatic.parse(automatic),
            state,
            bool(raw.get("force")),
            raw.get("allocate") is not False,
            parse_timeout(raw.get("lock_timeout")),
        )


@dataclass(frozen=True)
class ChunkSpec:
    """A wanted chunk; see the options of module ivshmem_chunk."""

    region: str
    path: str
    owner: str
    size: int = 0
    ring_size: int = RING_DEFAULT
    state: str = "present"
    lock_timeout: int = 30

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> ChunkSpec:
        """From module parameters or the agent's configuration; InputError names the option."""
        name = str(raw.get("region") or "")
        try:
            check_name(name)
        except InputError as error:
            raise InputError(str(error).replace("name:", "region:", 1)) from None
        owner, state = check_owner(str(raw.get("owner") or "")), _state(raw)
        if state == "present" and raw.get("size") is None:
            raise InputError(f"size: the chunk of {owner} needs one, such as 64M")
        return cls(
            name,
            _path(raw, name),
            owner,
            _size(raw, "size", 0),
            check_ring_size(_ring_size(raw)),
            state,
            parse_timeout(raw.get("lock_timeout")),
        )


def _state(raw: Mapping[str, Any]) -> str:
    state = str(raw.get("state") or "present")
    if state not in STATES:
        raise InputError(f"state: {state!r} must be one of {', '.join(STATES)}")
    return state


def _path(raw: Mapping[str, Any], name: str) -> str:
    path = str(raw.get("path") or default_path(name))
    if not path.startswith("/") or path.endswith("/"):
        raise InputError(f"path: {path!r} must be the absolute path of a file")
    return os.path.normpath(path)


def _size(raw: Mapping[str, Any], option: str, default: int) -> int:
    value = raw.get(option)
    return default if value is None else parse_size(value, option)


def _ring_size(raw: Mapping[str, Any]) -> int:
    return _size(raw, "ring_size", RING_DEFAULT)


def _refuse_unknown(raw: Mapping[str, Any], known: set[str], what: str) -> None:
    extra = sorted(set(raw) - known)
    if extra:
        raise InputError(f"{what}: unknown {', '.join(extra)}; it has {', '.join(sorted(known))}")
