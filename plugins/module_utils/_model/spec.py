# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user wants of a BPF object or a map, validated; shared by modules and boot time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InputError

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
SHA256 = re.compile(r"[0-9a-f]{64}")
ATTACH_TYPES = ("cgroup", "map", "tracing", "iter", "struct_ops")
STATES = ("attached", "loaded", "absent")
ENTRY_STATES = ("present", "absent", "exact")
PIN_NAME_MAX = 255
U32_MAX = (1 << 32) - 1


@dataclass(frozen=True)
class Attach:
    """One attachment. `cgroup` is normalised: absolute below the cgroup2 mount, "/" its root.

    Of type struct_ops, a map that holds several programs is attached and `program` is empty.
    """

    program: str
    type: str
    cgroup: str = ""
    map: str = ""

    @property
    def key(self) -> str:
        """The pin's file name below `links/`.

        bpffs refuses dots in names, and a slash would be a folder, so these are escaped.
        """
        if self.type != "cgroup":
            return self.attached
        return f"{self.program}@{escape(self.cgroup)}"

    @property
    def attached(self) -> str:
        """The program's name; of struct_ops, the map's."""
        return self.map if self.type == "struct_ops" else self.program

    def __str__(self) -> str:
        return f"program {self.program}" if self.program else f"map {self.map}"

    @property
    def target(self) -> str:
        """What it is attached to, for people."""
        if self.type == "cgroup":
            return f"cgroup {self.cgroup}"
        if self.type in ("tracing", "struct_ops"):
            return self.type
        return f"{self.type} {self.map}".strip()


@dataclass(frozen=True)
class ObjectSpec:
    """A wanted BPF object; see the options of module bpf_object."""

    name: str
    path: str = ""
    sha256: str = ""
    state: str = "attached"
    bpffs: str = "/sys/fs/bpf"
    attach: tuple[Attach, ...] = ()
    max_entries: Mapping[str, int] = field(default_factory=dict)
    replace_maps: bool = False
    lock_timeout: int = 30

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> ObjectSpec:
        """From module parameters or a declaration; InputError says which option is wrong."""
        name = str(raw.get("name") or "")
        if not NAME.fullmatch(name):
            raise InputError(f"name: {name!r} must be 1 to 64 letters, digits, '_' or '-'")
        state = str(raw.get("state") or "attached")
        if state not in STATES:
            raise InputError(f"state: {state!r} must be one of {', '.join(STATES)}")
        path = str(raw.get("path") or "")
        if state != "absent" and not path:
            raise InputError(f"path: an object file is needed for state={state}")
        sha256 = str(raw.get("sha256") or "").lower()
        if sha256 and not SHA256.fullmatch(sha256):
            raise InputError(f"sha256: {sha256!r} is not 64 hexadecimal digits")
        return cls(
            name,
            path,
            sha256,
            state,
            str(raw.get("bpffs") or cls.bpffs).rstrip("/") or "/",
            parse_attach(raw.get("attach") or []),
            _parse_sizes(raw.get("max_entries") or {}),
            bool(raw.get("replace_maps")),
            parse_timeout(raw.get("lock_timeout")),
        )


@dataclass(frozen=True)
class MapSpec:
    """Wanted entries of a pinned map; see the options of module bpf_map."""

    path: str
    entries: tuple[Mapping[str, Any], ...] = ()
    state: str = "present"
    lock_timeout: int = 30

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> MapSpec:
        """From module parameters or a declaration; InputError says which option is wrong."""
        path = str(raw.get("path") or "")
        if not path.startswith("/"):
            raise InputError(f"path: {path!r} must be the absolute path of a pinned map")
        state = str(raw.get("state") or "present")
        if state not in ENTRY_STATES:
            raise InputError(f"state: {state!r} must be one of {', '.join(ENTRY_STATES)}")
        entries = tuple(raw.get("entries") or ())
        for index, entry in enumerate(entries):
            _check_entry(entry, state, f"entries[{index}]")
        return cls(path, entries, state, parse_timeout(raw.get("lock_timeout")))


def _check_entry(entry: Any, state: str, at: str) -> None:
    if not isinstance(entry, Mapping) or entry.get("key") is None:
        raise InputError(f"{at}: needs a key")
    if state != "absent" and entry.get("value") is None:
        raise InputError(f"{at}: needs a value for state={state}")
    extra = sorted(set(entry) - {"key", "value"})
    if extra:
        raise InputError(f"{at}: unknown {', '.join(extra)}; an entry has key and value")


def parse_timeout(raw: Any) -> int:
    """Seconds to wait for the lock, 0 or more; 30 where nothing is given."""
    seconds = 30 if raw is None else int(raw)
    if seconds < 0:
        raise InputError(f"lock_timeout: {seconds} must not be negative")
    return seconds


def parse_attach(raw: Any) -> tuple[Attach, ...]:
    """The attach list; InputError for an unknown type, a missing target, a duplicate."""
    found: dict[str, Attach] = {}
    for index, item in enumerate(raw):
        at = f"attach[{index}]"
        if not isinstance(item, Mapping):
            raise InputError(f"{at}: needs a dictionary with program and type")
        one = _parse_one_attach(item, at)
        if one.key in found:
            raise InputError(
                f"{at}: {one} is attached to {one.target} twice"
                if found[one.key] == one
                else f"{at}: {one} already attaches to "
                f"{found[one.key].target}; only cgroups can be several"
            )
        found[one.key] = one
    return tuple(found.values())


def _parse_one_attach(item: Mapping[str, Any], at: str) -> Attach:
    program, kind = str(item.get("program") or ""), str(item.get("type") or "")
    if not program and kind != "struct_ops":
        raise InputError(f"{at}: needs a program")
    if kind not in ATTACH_TYPES:
        raise InputError(f"{at}: type {kind!r} must be one of {', '.join(ATTACH_TYPES)}")
    if program and kind == "struct_ops":
        raise InputError(f"{at}: type struct_ops takes a map, which names its programs itself")
    cgroup, target_map = str(item.get("cgroup") or ""), str(item.get("map") or "")
    if kind == "cgroup":
        one = Attach(program, kind, cgroup=normal_cgroup(cgroup, at))
        if len(one.key.encode()) > PIN_NAME_MAX:
            raise InputError(
                f"{at}: cgroup {cgroup} is too long for a pin name; attach to a parent of it"
            )
        return one
    if kind in ("map", "struct_ops") and not target_map:
        raise InputError(f"{at}: type {kind} needs the name of a map")
    return Attach(program, kind, map="" if kind == "tracing" else target_map)


def normal_cgroup(path: str, at: str) -> str:
    """`path` below the cgroup2 mount, starting with a slash; ".." is refused."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path:
        raise InputError(f"{at}: type cgroup needs a cgroup; use / for the root")
    if ".." in parts:
        raise InputError(f"{at}: cgroup {path!r} must not contain '..'")
    return "/" + "/".join(parts)


def _parse_sizes(raw: Mapping[str, Any]) -> dict[str, int]:
    sizes = {}
    for name, value in raw.items():
        try:
            size = int(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"max_entries: {value!r} of map {name} is not a number") from None
        if not 0 < size <= U32_MAX:
            raise InputError(f"max_entries: {size} of map {name} must be 1 to {U32_MAX}")
        sizes[str(name)] = size
    return sizes


def escape(text: str) -> str:
    """`text` as one bpffs file name: what bpffs refuses becomes %XX of its UTF-8 bytes."""
    safe = b"_-@:+,=~#"
    return "".join(
        chr(byte) if (chr(byte).isalnum() and byte < 128) or byte in safe else f"%{byte:02X}"
        for byte in text.encode("utf-8", "surrogateescape")
    )


def unescape(name: str) -> str:
    """The inverse of escape."""
    raw = re.sub(rb"%([0-9A-F]{2})", lambda found: bytes([int(found[1], 16)]), name.encode())
    return raw.decode("utf-8", "surrogateescape")
