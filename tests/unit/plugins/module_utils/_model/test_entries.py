# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From wanted entries to the bytes that must be written and deleted."""

from __future__ import annotations

import struct
import sys
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.btf import Btf
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.entries import (
    Codec,
    add_up,
    plan_entries,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import InputError

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="bytes are spelled out")

PLAIN = Codec("hash", 4, 4)


def network_btf() -> Btf:
    """struct key { u32 prefixlen; u8 addr[16]; }: key type 4, value type 1."""
    strings = b"\0u32\0u8\0prefixlen\0addr\0key\0"

    def at(name: bytes) -> int:
        return strings.index(b"\0" + name + b"\0") + 1

    words = [
        *(at(b"u32"), 1 << 24, 4, 32),
        *(at(b"u8"), 1 << 24, 1, 8),
        *(0, 3 << 24, 0, 2, 1, 16),
        *(at(b"key"), 4 << 24 | 2, 20, at(b"prefixlen"), 1, 0, at(b"addr"), 3, 32),
    ]
    types = struct.pack(f"<{len(words)}I", *words)
    header = struct.pack("<HBB5I", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return Btf(header + types + strings)


TRIE = Codec("lpm_trie", 20, 4, network_btf(), 4, 1)


def number(value: int) -> bytes:
    return value.to_bytes(4, "little")


def entries(**pairs: Any) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in pairs.items()]


LIVE = {number(80): number(1), number(443): number(2)}


@pytest.mark.parametrize(
    ("state", "wanted", "writes", "deletes"),
    [
        ("present", {}, {}, []),
        ("present", {"80": 1}, {}, []),
        ("present", {"80": 2}, {80: 2}, []),
        ("present", {"81": "0x3"}, {81: 3}, []),
        ("absent", {"80": None}, {}, [80]),
        ("absent", {"81": None}, {}, []),
        ("exact", {"80": 1, "443": 2}, {}, []),
        ("exact", {"80": 1, "22": 5}, {22: 5}, [443]),
        ("exact", {}, {}, [80, 443]),
    ],
)
def test_are_only_real_differences_written(
    state: str, wanted: dict[str, Any], writes: dict[int, int], deletes: list[int]
) -> None:
    changes = plan_entries(PLAIN, LIVE, entries(**wanted), state, 8)
    assert changes.writes == {number(key): number(value) for key, value in writes.items()}
    assert changes.deletes == [number(key) for key in deletes]
    assert bool(changes) == bool(writes or deletes)


@pytest.mark.parametrize(
    ("kind", "state", "wanted", "message"),
    [
        ("hash", "present", {"80": 1, "0x50": 2}, "entries[1]: key 80 is given twice"),
        ("hash", "present", {"x": 1}, "entries[0].key: 'x' is not a number"),
        ("hash", "present", {"80": 1 << 32}, "value of key 80: 4294967296 is out of range"),
        ("hash", "present", {"1": 1, "2": 1}, "would have 4 entries and holds at most 3"),
        ("array", "absent", {"80": 0}, "cannot be deleted: write zeros"),
        ("array", "present", {"9": 0}, "key 9 is out of range: the array has 3 entries, 0 to 2"),
        ("array", "exact", {"80": 0}, "needs all of its 3 entries, 1 were given"),
        ("percpu_array", "present", {"0": 0}, "cannot be set: its values are per CPU"),
        ("sockhash", "present", {"0": 0}, "cannot be set: it has no plain entries"),
    ],
)
def test_is_everything_checked_before_anything_is_written(
    kind: str, state: str, wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        plan_entries(Codec(kind, 4, 4), LIVE, entries(**wanted), state, 3)
    assert message in str(error.value)


def test_does_an_lru_map_make_room_by_itself() -> None:
    changes = plan_entries(Codec("lru_hash", 4, 4), LIVE, entries(**{"1": 1}), "present", 2)
    assert list(changes.writes) == [number(1)]


@pytest.mark.parametrize(
    ("key", "prefix", "address"),
    [
        ("10.0.0.0/8", 104, "00" * 10 + "ffff0a000000"),
        ("10.1.2.3", 128, "00" * 10 + "ffff0a010203"),
        ("0.0.0.0/0", 96, "00" * 10 + "ffff00000000"),
        ("2001:db8::/32", 32, "20010db8" + "00" * 12),
        ("::/0", 0, "00" * 16),
        # What a struct names may have host bits; the kernel ignores them, so they go.
        ({"prefixlen": 104, "addr": "10.9.9.9"}, 104, "00" * 10 + "ffff0a000000"),
    ],
)
def test_is_a_network_the_key_of_a_trie(key: Any, prefix: int, address: str) -> None:
    assert TRIE.key(key, "key") == number(prefix) + bytes.fromhex(address)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("10.0.0.1/8", "'10.0.0.1/8' is not a network of this map: 10.0.0.1/8 has host bits set"),
        ("10.0.0.0/33", "is not a network of this map"),
        ({"prefixlen": 129, "addr": "::"}, "prefix length 129 is more than 128"),
    ],
)
def test_is_a_bad_network_refused(key: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        TRIE.key(key, "key")
    assert message in str(error.value)


def test_are_two_spellings_of_one_network_one_entry() -> None:
    live = {TRIE.key("10.0.0.0/8", "key"): number(2)}
    wanted = [{"key": {"prefixlen": 104, "addr": "10.0.0.7"}, "value": 2}]
    assert not plan_entries(TRIE, live, wanted, "exact", 8)
    assert TRIE.show_key(next(iter(live))) == {"prefixlen": 104, "addr": "10.0.0.0"}


@pytest.mark.parametrize(
    ("value", "raw"),
    [("abcdef", "abcdef"), ([1, 2, 3], "010203")],
)
def test_are_bytes_without_type_information_hexadecimal(value: Any, raw: str) -> None:
    codec = Codec("hash", 3, 8)
    assert codec.key(value, "key").hex() == raw
    assert codec.show_key(bytes.fromhex(raw)) == raw
    assert codec.show_value(number(5) + number(1)) == (1 << 32) + 5


@pytest.mark.parametrize("value", ["abcd", "zz", [1, 2], [256, 0, 0], 5, 3])
def test_are_bytes_of_another_size_refused(value: Any) -> None:
    with pytest.raises(InputError):
        Codec("hash", 3, 4).key(value, "key")


def test_are_numbers_of_all_cpus_added_up() -> None:
    one = {"n": 1, "list": [1, 2], "inner": {"m": 5}, "flag": True, "name": "x"}
    two = {"n": 2, "list": [3, 4], "inner": {"m": 6}, "flag": True, "name": "x"}
    total = {"n": 3, "list": [4, 6], "inner": {"m": 11}, "flag": True, "name": "x"}
    assert add_up([one, two]) == total
