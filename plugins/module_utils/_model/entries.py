# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From wanted entries of a map to the bytes that must be written and deleted: pure."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .btf import ARRAY, STRUCT, Btf, in_range, pack_address, parse_bytes
from .errors import InputError

WRITABLE = ("hash", "array", "lru_hash", "lpm_trie")
PER_CPU = ("percpu_array", "percpu_hash", "lru_percpu_hash")
PREFIX_SIZE = 4


@dataclass(frozen=True)
class Codec:
    """Keys and values of one map between bytes and plain data. Without BTF (`btf` is None),
    1, 2, 4 and 8 bytes are a number and anything else is hexadecimal digits."""

    type: str
    key_size: int
    value_size: int
    btf: Btf | None = None
    key_type: int = 0
    value_type: int = 0

    def key(self, value: Any, at: str) -> bytes:
        """Bytes of a key; those of an LPM trie without host bits, which the kernel ignores."""
        if self.btf is None or not self.key_type:
            raw = _plain_bytes(value, self.key_size, at)
        else:
            if self.type == "lpm_trie" and isinstance(value, str):
                value = self._network(self.btf, value, at)
            raw = self.btf.encode(self.key_type, value, at=at)
        return self.normal_key(raw, at)

    def _network(self, btf: Btf, text: str, at: str) -> dict[str, Any]:
        """A network such as 10.0.0.0/8 as the fields of an LPM key."""
        members = btf.resolve(self.key_type).members
        width = self.key_size - PREFIX_SIZE
        try:
            network = ipaddress.ip_network(text)
            address = pack_address(str(network.network_address), width)
        except ValueError as error:
            raise InputError(f"{at}: {text!r} is not a network of this map: {error}") from None
        if (
            btf.resolve(self.key_type).kind != STRUCT
            or len(members) != 2
            or btf.resolve(members[1].type_id).kind != ARRAY
        ):
            raise InputError(f"{at}: give the fields of {btf.display(self.key_type)}")
        prefix = network.prefixlen + (width - len(network.network_address.packed)) * 8
        return {members[0].name: prefix, members[1].name: list(address)}

    def normal_key(self, raw: bytes, at: str = "key") -> bytes:
        """The one spelling of a key: clears an LPM key's host bits; InputError for a prefix
        that is too long."""
        if self.type != "lpm_trie":
            return raw
        prefix = int.from_bytes(raw[:PREFIX_SIZE], sys.byteorder)
        bits = (len(raw) - PREFIX_SIZE) * 8
        if prefix > bits:
            raise InputError(f"{at}: prefix length {prefix} is more than {bits}")
        data = int.from_bytes(raw[PREFIX_SIZE:], "big") >> (bits - prefix) << (bits - prefix)
        return raw[:PREFIX_SIZE] + data.to_bytes(bits // 8, "big")

    def value(self, value: Any, base: bytes | None, at: str) -> bytes:
        """Bytes of a value; fields that are not named keep those of `base`, or are zero."""
        if self.btf is None or not self.value_type:
            return _plain_bytes(value, self.value_size, at)
        return self.btf.encode(self.value_type, value, base, at)

    def show_key(self, raw: bytes) -> Any:
        """Plain data for a key."""
        if self.btf is None or not self.key_type:
            return _plain_data(raw)
        return self.btf.decode(self.key_type, raw, "key")

    def show_value(self, raw: bytes) -> Any:
        """Plain data for a value."""
        if self.btf is None or not self.value_type:
            return _plain_data(raw)
        return self.btf.decode(self.value_type, raw, "value")


@dataclass
class Changes:
    """What to write and delete; both only hold real differences."""

    writes: dict[bytes, bytes] = field(default_factory=dict)
    deletes: list[bytes] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.writes or self.deletes)

    def keys(self) -> list[bytes]:
        """All keys touched."""
        return [*self.writes, *self.deletes]


def plan_entries(
    codec: Codec,
    live: Mapping[bytes, bytes],
    entries: Sequence[Mapping[str, Any]],
    state: str,
    max_entries: int,
) -> Changes:
    """Compare wanted entries with `live` (bytes by key). InputError for whatever cannot be
    done, before anything is written."""
    if entries and codec.type not in WRITABLE:
        why = "its values are per CPU" if codec.type in PER_CPU else "it has no plain entries"
        raise InputError(
            f"Entries of a {codec.type} map cannot be set: {why}. Writable are "
            f"{', '.join(WRITABLE)}."
        )
    wanted = _by_key(codec, entries)
    if codec.type == "array":
        _check_array(codec, live, wanted, state, max_entries)
    changes = Changes()
    for key, entry in wanted.items():
        if state == "absent":
            changes.deletes += [key] if key in live else []
            continue
        base = live.get(key) if state == "present" else None
        raw = codec.value(entry["value"], base, f"value of key {codec.show_key(key)}")
        if live.get(key) != raw:
            changes.writes[key] = raw
    if state == "exact" and codec.type != "array":
        changes.deletes += [key for key in live if key not in wanted]
    _check_room(codec, live, changes, max_entries)
    return changes


def _by_key(codec: Codec, entries: Sequence[Mapping[str, Any]]) -> dict[bytes, Mapping[str, Any]]:
    wanted: dict[bytes, Mapping[str, Any]] = {}
    for index, entry in enumerate(entries):
        key = codec.key(entry["key"], f"entries[{index}].key")
        if key in wanted:
            raise InputError(f"entries[{index}]: key {codec.show_key(key)} is given twice")
        wanted[key] = entry
    return wanted


def _check_array(
    codec: Codec,
    live: Mapping[bytes, bytes],
    wanted: Mapping[bytes, Any],
    state: str,
    max_entries: int,
) -> None:
    if state == "absent" and wanted:
        raise InputError(
            "Entries of an array map cannot be deleted: write zeros with state=present."
        )
    for key in wanted:
        if key not in live:
            raise InputError(
                f"key {codec.show_key(key)} is out of range: the array has "
                f"{max_entries} entries, 0 to {max_entries - 1}"
            )
    if state == "exact" and len(wanted) != max_entries:
        raise InputError(
            f"state=exact of an array map needs all of its {max_entries} entries, "
            f"{len(wanted)} were given: none of them can be deleted."
        )


def _check_room(
    codec: Codec,
    live: Mapping[bytes, bytes],
    changes: Changes,
    max_entries: int,
) -> None:
    """An LRU map makes room by itself."""
    if codec.type in ("lru_hash", "array"):
        return
    count = len(live) + sum(key not in live for key in changes.writes) - len(changes.deletes)
    if count > max_entries and changes.writes:
        raise InputError(
            f"The map would have {count} entries and holds at most {max_entries}. "
            "Load the object with a higher max_entries."
        )


def add_up(values: Sequence[Any]) -> Any:
    """One value from those of all CPUs: numbers are added, field by field; whatever cannot be
    added (texts) is that of the first CPU."""
    first = values[0]
    if isinstance(first, dict):
        return {name: add_up([value[name] for value in values]) for name in first}
    if isinstance(first, list):
        return [add_up(items) for items in zip(*values, strict=True)]
    if isinstance(first, int) and not isinstance(first, bool):
        return sum(values)
    return first


def _plain_bytes(value: Any, size: int, at: str) -> bytes:
    if size in (1, 2, 4, 8) and not isinstance(value, list):
        return in_range(value, size * 8, False, f"{size * 8}-bit number", at).to_bytes(
            size, sys.byteorder
        )
    if isinstance(value, str):
        return parse_bytes(value, size, False, at)
    wrong = InputError(f"{at}: {value!r} is not hex digits or a list of {size} bytes")
    if not isinstance(value, list):
        raise wrong  # bytes(12) would be twelve zeroes
    try:
        raw = bytes(value)
    except (TypeError, ValueError):
        raise wrong from None
    if len(raw) != size:
        raise InputError(f"{at}: {len(raw)} bytes were given, {size} are needed")
    return raw


def _plain_data(raw: bytes) -> Any:
    return int.from_bytes(raw, sys.byteorder) if len(raw) in (1, 2, 4, 8) else raw.hex()
