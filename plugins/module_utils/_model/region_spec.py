# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user wants of a region or a chunk, validated; shared by the modules, the role's filters
and the agent."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .region import (
    RING_DEFAULT,
    Declared,
    Region,
    arrange,
    check_count,
    check_host,
    check_name,
    check_owner,
    check_parts,
    check_ring_size,
    check_size,
    equal_share,
    parse_size,
)
from .spec import parse_timeout

FOLDER = "/dev/shm"
STATES = ("present", "absent")
VECTORS_MAX = 8
SOCKET_MAX = 107  # bytes; sun_path has one more for the NUL
MODE = re.compile(r"0?[0-7]{3}")


def default_path(name: str) -> str:
    """Where a region lies unless the user says otherwise."""
    return f"{FOLDER}/{name}"


def parse_mode(raw: Any, option: str = "mode") -> int:
    """Permissions from text such as 0640. A number is refused: YAML makes 416 of 0640."""
    if isinstance(raw, str) and MODE.fullmatch(raw):
        return int(raw, 8)
    raise InputError(
        f"{option}: {raw!r} must be three octal digits as text, so quote them: '0640'. Without "
        "quotes, YAML makes another number of it"
    )


def parse_vectors(raw: Any) -> int:
    """Interrupts of each machine."""
    if str(raw).isdecimal() and 1 <= int(raw) <= VECTORS_MAX:
        return int(raw)
    raise InputError(f"vectors: {raw!r} must be from 1 to {VECTORS_MAX}, which the agent serves")


def check_socket(path: str) -> str:
    """The path of a region's socket."""
    if not path.startswith("/") or "\0" in path or len(path.encode()) > SOCKET_MAX:
        raise InputError(
            f"socket: {path!r} must be absolute and have at most {SOCKET_MAX} bytes, which is "
            "what Linux takes; name a shorter one"
        )
    return path


@dataclass(frozen=True)
class Automatic:
    """Chunks for any machine. `size` 0: as with a declared chunk."""

    count: int
    size: int = 0
    ring_size: int = RING_DEFAULT

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Automatic:
        """From the suboptions; InputError says which is wrong."""
        _refuse_unknown(raw, {"count", "size", "ring_size"}, "automatic")
        count = check_count(_number(raw, "count", "automatic: count"))
        return cls(count, _size(raw, "size", 0), check_ring_size(_ring_size(raw)))

    @property
    def chunks(self) -> list[Declared]:
        """One for each."""
        return [Declared("", self.size, self.ring_size)] * self.count


@dataclass(frozen=True)
class RegionSpec:
    """A wanted region; see the options of module ivshmem_region.

    `host`, `chunks` and `automatic` None: as they are. `owner`: whom the file may belong to,
    besides root. `parts` 0: as many as there are chunks.
    """

    name: str
    path: str
    size: int = 0
    host: str | None = None
    owner: str = ""
    chunks: tuple[Declared, ...] | None = None
    automatic: Automatic | None = None
    parts: int = 0
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
        spec = cls(
            name,
            _path(raw, name),
            check_size(_size(raw, "size", 0)) if raw.get("size") is not None else 0,
            None if host is None else check_host(str(host)),
            _account(raw, "owner"),
            _chunks(raw),
            None if automatic is None else Automatic.parse(automatic),
            0 if raw.get("parts") is None else _number(raw, "parts", "parts"),
            state,
            bool(raw.get("force")),
            raw.get("allocate") is not False,
            parse_timeout(raw.get("lock_timeout")),
        )
        if raw.get("parts") is not None:
            check_parts(spec.parts, spec.count)
        return spec

    @property
    def count(self) -> int:
        """How many chunks are declared, automatic ones too."""
        return len(self.chunks or ()) + (self.automatic.count if self.automatic else 0)

    def arrange(
        self, region: Region, in_use: Mapping[int, str] | None = None, keep: bool = True
    ) -> Region:
        """The region with the wanted chunks; see region.arrange. Others stay. Raises TcpSmError."""
        share = equal_share(region.size, self.parts or max(1, self.count))
        automatic = None if self.automatic is None else self.automatic.chunks
        return arrange(region, self.chunks or (), automatic, share, in_use, keep)


@dataclass(frozen=True)
class ChunkSpec:
    """A wanted chunk; see the options of module ivshmem_chunk."""

    region: str
    path: str
    owner: str
    size: int = 0
    ring_size: int = RING_DEFAULT
    file_owner: str = ""
    state: str = "present"
    lock_timeout: int = 30

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> ChunkSpec:
        """From module parameters; InputError names the option."""
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
            _account(raw, "file_owner"),
            state,
            parse_timeout(raw.get("lock_timeout")),
        )


def _chunks(raw: Mapping[str, Any]) -> tuple[Declared, ...] | None:
    items = raw.get("chunks")
    if items is None:
        return None
    if not isinstance(items, list):
        raise InputError(f"chunks: needs a list, not {items!r}")
    chunks = tuple(parse_chunk(one) for one in items)
    owners = [one.owner for one in chunks]
    if twice := [owner for owner in owners if owners.count(owner) > 1]:
        raise InputError(f"chunks: {twice[0]} is there twice")
    return chunks


def parse_chunk(raw: Any) -> Declared:
    """One of the chunks of a region; without a size, it gets a share."""
    _refuse_unknown(raw, {"owner", "size", "ring_size"}, "chunks")
    owner = check_owner(str(raw.get("owner") or ""))
    return Declared(owner, _size(raw, "size", 0), check_ring_size(_ring_size(raw)))


def _state(raw: Mapping[str, Any]) -> str:
    state = str(raw.get("state") or "present")
    if state not in STATES:
        raise InputError(f"state: {state!r} must be one of {', '.join(STATES)}")
    return state


def _path(raw: Mapping[str, Any], name: str) -> str:
    path = str(raw.get("path") or default_path(name))
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise InputError(f"path: {path!r} must be the absolute path of a file")
    return os.path.normpath(path)


def _account(raw: Mapping[str, Any], option: str) -> str:
    value = raw.get(option)
    return "" if value is None else str(value)


def _number(raw: Mapping[str, Any], option: str, what: str) -> int:
    try:
        return int(raw.get(option) or 0)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{what}: {raw[option]!r} must be a number") from None


def _size(raw: Mapping[str, Any], option: str, default: int) -> int:
    value = raw.get(option)
    if value is None:
        return default
    size = parse_size(value, option)
    if not size:
        raise InputError(f"{option}: 0 is too small; leave it out, or give one such as 64M")
    return size


def _ring_size(raw: Mapping[str, Any]) -> int:
    return _size(raw, "ring_size", RING_DEFAULT)


def _refuse_unknown(raw: Any, known: set[str], what: str) -> None:
    if not isinstance(raw, Mapping):
        raise InputError(f"{what}: needs a dictionary with {', '.join(sorted(known))}, not {raw!r}")
    extra = sorted(set(raw) - known)
    if extra:
        raise InputError(f"{what}: unknown {', '.join(extra)}; it has {', '.join(sorted(known))}")
