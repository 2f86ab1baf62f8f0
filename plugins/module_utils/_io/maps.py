# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the entries of a pinned map to a wanted state: what module bpf_map and the boot-time
runtime call."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .._model.btf import parse_btf
from .._model.entries import PER_CPU, WRITABLE, Changes, Codec, add_up, plan_entries
from .._model.errors import InputError, KernelError, MissingError
from .._model.rules import in_words
from .._model.spec import MapSpec
from .libbpf import Bpf, MapInfo
from .lock import LOCK_PATH, locked


@dataclass
class MapResult:
    """Outcome. `entries` are all entries afterwards as dicts of key and value; `before` and
    `after` show only what differs, to be read by people."""

    changed: bool
    entries: list[dict[str, Any]]
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def apply_map(spec: MapSpec, check: bool = False, lock_path: str = LOCK_PATH) -> MapResult:
    """Bring the map's entries to `spec`; with `check`, only say what would happen.

    Raises TcpSmError with every entry as before.
    """
    try:
        with locked(spec.lock_timeout, lock_path):
            bpf = Bpf()
            with _opened(bpf, spec.path) as fd:
                return _run(PinnedMap(bpf, fd, spec.path), spec, check)
    except MissingError as error:
        if not check:
            raise
        wanted = [dict(entry) for entry in spec.entries if spec.state != "absent"]
        return MapResult(
            bool(wanted),
            wanted,
            {},
            _in_words(spec.path, wanted),
            [f"Check mode cannot predict the rest: {error}"],
        )


@contextlib.contextmanager
def _opened(bpf: Bpf, path: str) -> Iterator[int]:
    """A descriptor of the pinned map."""
    try:
        fd = bpf.obj_get(path)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise MissingError(
                f"Cannot open map {path}: nothing is pinned there. Load the "
                "object first (bpf_object), or correct path."
            ) from error
        if error.errno in (errno.EINVAL, errno.EACCES, errno.ENOTDIR):
            raise InputError(
                f"Cannot open map {path}: it is not a pin of a BPF object ({error.strerror})."
            ) from error
        raise KernelError(f"Cannot open map {path}: {error.strerror}. Run as root.") from error
    try:
        if bpf.kind(fd) != "map":
            raise InputError(f"Cannot use {path} as a map: a {bpf.kind(fd)} is pinned there.")
        yield fd
    finally:
        os.close(fd)


class PinnedMap:
    """An open map with the codec of its own BTF."""

    def __init__(self, bpf: Bpf, fd: int, path: str) -> None:
        self.bpf, self.fd, self.path = bpf, fd, path
        self.info: MapInfo = bpf.map_info(fd)
        btf = parse_btf(bpf.btf_of(self.info.btf_id)) if self.info.btf_id else None
        self.codec = Codec(
            self.info.type,
            self.info.key_size,
            self.info.value_size,
            btf,
            self.info.key_type_id,
            self.info.value_type_id,
        )
        if self.info.type not in (*WRITABLE, *PER_CPU):
            raise InputError(
                f"Map {path} is of type {self.info.type}, which has no entries to "
                f"manage. Supported are {', '.join((*WRITABLE, *PER_CPU))}."
            )

    @property
    def per_cpu(self) -> bool:
        """Has every entry one value for each CPU?"""
        return self.info.type in PER_CPU

    def read(self) -> dict[bytes, bytes]:
        """All entries; a per-CPU value is the concatenation of all CPUs' values."""
        stride = (self.info.value_size + 7) // 8 * 8
        size = stride * self.bpf.possible_cpus() if self.per_cpu else self.info.value_size
        found: dict[bytes, bytes] = {}
        key = self.bpf.next_key(self.fd, None, self.info.key_size)
        # Somebody else may change the map meanwhile, which can send the walk back to the start.
        for _step in range(2 * self.info.max_entries + 1):
            if key is None:
                break
            value = self.bpf.lookup(self.fd, key, size)
            if value is not None:
                found[self.codec.normal_key(key)] = value
            key = self.bpf.next_key(self.fd, key, self.info.key_size)
        return dict(sorted(found.items()))

    def show(self, key: bytes, value: bytes) -> dict[str, Any]:
        """One entry as plain data; per-CPU values are added up and listed."""
        if not self.per_cpu:
            return {"key": self.codec.show_key(key), "value": self.codec.show_value(value)}
        stride = (self.info.value_size + 7) // 8 * 8
        values = [
            self.codec.show_value(value[start : start + self.info.value_size])
            for start in range(0, len(value), stride)
        ]
        return {"key": self.codec.show_key(key), "value": add_up(values), "per_cpu": values}

    def write(self, changes: Changes, live: Mapping[bytes, bytes]) -> None:
        """Deletes first, to make room; everything is put back if one of them fails."""
        done: list[bytes] = []
        try:
            for key in changes.deletes:
                self.bpf.delete(self.fd, key)
                done.append(key)
            for key, value in changes.writes.items():
                self.bpf.update(self.fd, key, value)
                done.append(key)
        except OSError as error:
            self._put_back(done, live)
            hint = {
                errno.EPERM: "The map is frozen or read-only.",
                errno.E2BIG: "The map is full.",
                errno.ENOSPC: "The map is full.",
            }
            raise KernelError(
                f"Cannot change entry {self.codec.show_key(key)} of map {self.path}: "
                f"{error.strerror}. {hint.get(error.errno or 0, '')} Every entry was put back."
            ) from error

    def _put_back(self, done: list[bytes], live: Mapping[bytes, bytes]) -> None:
        for key in reversed(done):
            with contextlib.suppress(OSError):
                if key in live:
                    self.bpf.update(self.fd, key, live[key])
                else:
                    self.bpf.delete(self.fd, key)


def _run(target: PinnedMap, spec: MapSpec, check: bool) -> MapResult:
    live = target.read()
    try:
        changes = plan_entries(
            target.codec, live, spec.entries, spec.state, target.info.max_entries
        )
    except InputError as error:
        raise InputError(
            f"Cannot set entries of map {spec.path}: {error}. Nothing was changed.".replace(
                "..", "."
            )
        ) from error
    after = {key: value for key, value in live.items() if key not in changes.deletes}
    after = dict(sorted({**after, **changes.writes}.items()))
    if changes and not check:
        target.write(changes, live)
        after = target.read()
    return MapResult(
        bool(changes),
        [target.show(*item) for item in after.items()],
        _side(target, live, changes),
        _side(target, after, changes),
    )


def _side(target: PinnedMap, entries: Mapping[bytes, bytes], changes: Changes) -> dict[str, Any]:
    """One side of the diff: the touched entries only, since maps can be large."""
    touched = [target.show(key, entries[key]) for key in sorted(changes.keys()) if key in entries]
    return _in_words(target.path, touched)


def _in_words(path: str, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Entries by key, with words for the numbers of this collection's own maps."""
    name = os.path.basename(path)
    return dict(in_words(name, entry["key"], entry["value"]) for entry in entries)
