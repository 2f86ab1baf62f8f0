# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look up a few types by name in the kernel's own BTF.

Private to this collection. The kernel has more than a hundred thousand types;
decoding them all, as :mod:`btf` does for an object, takes seconds. This walks
the type headers once and compares numbers. Source of the format:
Documentation/bpf/btf.rst of Linux.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable

MAGIC = 0xEB9F
STRUCT, TYPEDEF, FUNC = 4, 8, 12

# Bytes after the 12 of the header, by kind: (fixed, for each of vlen members).
_TRAILERS = {
    1: (4, 0),  # INT
    3: (12, 0),  # ARRAY
    STRUCT: (0, 12),
    5: (0, 12),  # UNION
    6: (0, 8),  # ENUM
    13: (0, 8),  # FUNC_PROTO
    14: (4, 0),  # VAR
    15: (0, 12),  # DATASEC
    17: (4, 0),  # DECL_TAG
    19: (0, 12),  # ENUM64
}
_LAST_KIND = 19


class BtfError(ValueError):
    """The bytes are no BTF that this code can read."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A type: its id and, of a struct, the names of its members."""

    type_id: int
    members: frozenset[str] = frozenset()


def find_types(raw: bytes, wanted: Iterable[tuple[int, str]]) -> dict[tuple[int, str], Found]:
    """Those of the ``wanted`` (kind, name) that exist; raises :class:`BtfError`."""
    try:
        return _Walk(raw).find(wanted)
    except (struct.error, IndexError) as error:
        raise BtfError(f"the BTF ends in the middle of a type: {error}") from error


class _Walk:
    def __init__(self, raw: bytes) -> None:
        self.order = {b"\x9f\xeb": "<", b"\xeb\x9f": ">"}.get(raw[:2], "")
        if not self.order:
            raise BtfError("it does not begin with the magic number of BTF")
        header = struct.unpack_from(f"{self.order}HBBIIIII", raw)
        base = header[3]
        self.types = raw[base + header[4] : base + header[4] + header[5]]
        self.strings = raw[base + header[6] : base + header[6] + header[7]]

    def find(self, wanted: Iterable[tuple[int, str]]) -> dict[tuple[int, str], Found]:
        keys = {}
        for kind, name in wanted:
            offset = self.strings.find(b"\0" + name.encode() + b"\0") + 1
            if offset:
                keys[kind, offset] = (kind, name)
        found: dict[tuple[int, str], Found] = {}
        header, types, trailers = struct.Struct(f"{self.order}II"), self.types, self._trailers()
        position, type_id, end = 0, 0, len(types)
        while position < end and len(found) < len(keys):
            type_id += 1
            name, info = header.unpack_from(types, position)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            if (kind, name) in keys:
                found[keys[kind, name]] = Found(type_id, self._members(kind, count, position))
            fixed, each = trailers[kind]
            position += 12 + fixed + each * count
        return found

    @staticmethod
    def _trailers() -> list[tuple[int, int]]:
        return [_TRAILERS.get(kind, (0, 0)) for kind in range(_LAST_KIND + 1)]

    def _members(self, kind: int, count: int, position: int) -> frozenset[str]:
        if kind != STRUCT:
            return frozenset()
        offsets = (
            struct.unpack_from(f"{self.order}I", self.types, position + 12 + 12 * index)[0]
            for index in range(count)
        )
        return frozenset(self._string(offset) for offset in offsets)

    def _string(self, offset: int) -> str:
        return self.strings[offset : self.strings.index(b"\0", offset)].decode()
