# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Types from raw BTF, and plain data from bytes and back."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.btf import Btf
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import InputError

INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, VOLATILE, CONST = 1, 2, 3, 4, 5, 6, 8, 9, 10
VAR, DATASEC, FLOAT, ENUM64 = 14, 15, 16, 19
KIND_FLAG = 1 << 31


class Builder:
    """Writes a .BTF section, type by type; each method returns the new type's id."""

    def __init__(self, order: str = "<") -> None:
        self.order, self.types, self.strings, self.count = order, b"", b"\0", 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text.encode()) - 1

    def add(self, kind: int, name: str, ref: int, *extra: int, vlen: int = 0, flag: int = 0) -> int:
        info = kind << 24 | vlen | flag
        words = (self.name(name), info, ref, *extra)
        self.types += struct.pack(f"{self.order}{len(words)}I", *(w & 0xFFFFFFFF for w in words))
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        return self.add(INT, name, size, encoding << 24 | size * 8)

    def struct(self, name: str, size: int, *members: tuple[Any, ...], kind: int = STRUCT) -> int:
        """Members: (name, type id, bit offset[, bit size])."""
        flag = KIND_FLAG if any(len(member) > 3 for member in members) else 0
        extra: list[int] = []
        for member, type_id, offset, *bits in members:
            extra += [self.name(member), type_id, offset | (bits[0] << 24 if bits else 0)]
        return self.add(kind, name, size, *extra, vlen=len(members), flag=flag)

    def raw(self) -> bytes:
        header = struct.pack(
            f"{self.order}HBB5I",
            *(0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)),
        )
        return header + self.types + self.strings

    def build(self) -> Btf:
        return Btf(self.raw())


@pytest.fixture
def types() -> tuple[Btf, dict[str, int]]:
    """One of everything."""
    make, ids = Builder(), {}
    ids["u8"] = make.integer("unsigned char", 1)
    ids["char"] = make.integer("char", 1, 1)
    ids["u16"] = make.integer("unsigned short", 2)
    ids["s16"] = make.integer("short", 2, 1)
    ids["u32"] = make.integer("unsigned int", 4)
    ids["s64"] = make.integer("long long", 8, 1)
    ids["bool"] = make.integer("_Bool", 1, 4)
    ids["__u32"] = make.add(TYPEDEF, "__u32", ids["u32"])
    ids["const"] = make.add(CONST, "", make.add(VOLATILE, "", ids["__u32"]))
    ids["addr"] = make.add(ARRAY, "", 0, ids["u8"], ids["u32"], 16)
    ids["text"] = make.add(ARRAY, "", 0, ids["char"], ids["u32"], 8)
    ids["numbers"] = make.add(ARRAY, "", 0, ids["s16"], ids["u32"], 3)
    ids["enum"] = make.add(ENUM, "rule", 4, make.name("NONE"), 0, make.name("DROP"), 2, vlen=2)
    ids["senum"] = make.add(
        ENUM, "sign", 4, make.name("MINUS"), -1, make.name("PLUS"), 1, vlen=2, flag=KIND_FLAG
    )
    ids["enum64"] = make.add(ENUM64, "wide", 8, make.name("FAR"), 1, 2, vlen=1)
    ids["pointer"] = make.add(PTR, "", ids["u32"])
    ids["union"] = make.struct("", 4, ("whole", ids["u32"], 0), ("low", ids["u16"], 0), kind=UNION)
    ids["inner"] = make.struct("inner", 4, ("a", ids["u16"], 0), ("b", ids["s16"], 16))
    ids["outer"] = make.struct(
        "outer", 28, ("mode", ids["const"], 0), ("local_addr", ids["addr"], 32),
        ("in", ids["inner"], 160), ("", ids["union"], 192),
    )  # fmt: skip
    ids["bits"] = make.struct("bits", 4, ("small", ids["u32"], 0, 4), ("rest", ids["u32"], 4, 28))
    return make.build(), ids


@pytest.mark.parametrize(
    ("kind", "value", "raw"),
    [
        ("u8", 255, "ff"),
        ("s16", -2, "feff"),
        ("u32", 1, "01000000"),
        ("s64", -1, "ff" * 8),
        ("bool", True, "01"),
        ("const", 7, "07000000"),
        ("numbers", [1, -1, 0], "0100ffff0000"),
        ("text", "abc", "6162630000000000"),
        ("enum", "DROP", "02000000"),
        ("enum", 9, "09000000"),
        ("senum", "MINUS", "ffffffff"),
        ("enum64", "FAR", "0100000002000000"),
        ("inner", {"a": 1, "b": -1}, "0100ffff"),
        ("bits", {"small": 15, "rest": 1}, "1f000000"),
    ],
)
def test_do_values_survive_the_way_to_bytes_and_back(
    types: tuple[Btf, dict[str, int]], kind: str, value: Any, raw: str
) -> None:
    btf, ids = types
    assert btf.encode(ids[kind], value).hex() == raw
    assert btf.decode(ids[kind], bytes.fromhex(raw)) == value


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        ("10.0.0.1", "00" * 10 + "ffff0a000001"),
        ("2001:db8::1", "20010db8" + "00" * 11 + "01"),
        ("0x" + "ab" * 16, "ab" * 16),
        ([1] * 16, "01" * 16),
    ],
)
def test_are_addresses_taken_in_every_form(
    types: tuple[Btf, dict[str, int]], value: Any, raw: str
) -> None:
    btf, ids = types
    assert btf.encode(ids["addr"], value).hex() == raw


def test_are_bytes_an_address_only_where_the_field_says_so(
    types: tuple[Btf, dict[str, int]],
) -> None:
    btf, ids = types
    mapped = bytes(10) + b"\xff\xff\x7f\x00\x00\x01"
    assert btf.decode(ids["addr"], mapped, "local_addr") == "127.0.0.1"
    assert btf.decode(ids["addr"], mapped, "digest") == mapped.hex()


def test_do_fields_that_are_left_out_keep_their_old_bytes(
    types: tuple[Btf, dict[str, int]],
) -> None:
    btf, ids = types
    base = bytes(range(28))
    raw = btf.encode(ids["outer"], {"in": {"b": 5}, "low": 9}, base)
    assert raw == base[:22] + b"\x05\x00\x09\x00" + base[26:]
    assert btf.encode(ids["outer"], {}) == bytes(28)


def test_are_fields_of_a_nameless_member_those_of_its_parent(
    types: tuple[Btf, dict[str, int]],
) -> None:
    btf, ids = types
    assert btf.fields(ids["outer"]) == ["mode", "local_addr", "in", "whole", "low"]
    shown = btf.decode(ids["outer"], bytes(24) + b"\x01\x00\x02\x00")
    assert (shown["whole"], shown["low"]) == (0x20001, 1)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("__u32", 1 << 32, "4294967296 is out of range for __u32 (0 to 4294967295)"),
        ("__u32", -1, "-1 is out of range for __u32"),
        ("__u32", "many", "'many' is not a number (__u32)"),
        ("__u32", 1.5, "1.5 is not a number"),
        ("s16", 40000, "40000 is out of range for short (-32768 to 32767)"),
        ("bool", 2, "2 is out of range for _Bool (0 to 1)"),
        ("enum", "ALLOW", "'ALLOW' is not a value of enum rule (NONE, DROP)"),
        ("numbers", [1], "short[3] has 3 values, 1 were given"),
        ("numbers", 1, "short[3] needs a list of 3 values, not 1"),
        ("numbers", [0, 0, 99999], "value[2]: 99999 is out of range"),
        ("text", "abcdefgh", "'abcdefgh' has 8 bytes, at most 7 fit"),
        ("addr", "10.0.0", "'10.0.0' is not an IP address, hex digits or a list of 16 bytes"),
        ("addr", "abcd", "'abcd' has 2 bytes, 16 are needed"),
        ("inner", {"a": 1, "c": 2}, "unknown field 'c'; struct inner has a, b"),
        ("inner", [1, 2], "struct inner needs a dictionary of fields (a, b)"),
        ("outer", {"in": {"b": 99999}}, "value.in.b: 99999 is out of range"),
        ("outer", {"whole": 1, "low": 1}, "give one field of union, not whole, low"),
        ("bits", {"small": 16}, "value.small: 16 is out of range for 4-bit field (0 to 15)"),
        ("pointer", 1, "cannot be set"),
    ],
)
def test_is_bad_input_refused_in_plain_words(
    types: tuple[Btf, dict[str, int]], kind: str, value: Any, message: str
) -> None:
    btf, ids = types
    with pytest.raises(InputError) as error:
        btf.encode(ids[kind], value)
    assert message in str(error.value)


def test_are_layouts_equal_only_where_data_can_be_shared() -> None:
    def layout(members: list[tuple[str, int, int]], name: str = "s") -> object:
        make = Builder()
        make.integer("unsigned int", 4)
        make.integer("int", 4, 1)
        make.add(TYPEDEF, "__u32", 1)
        type_id = make.struct(name, 8, *members)
        return make.build().layout(type_id)

    same = layout([("a", 1, 0), ("b", 1, 32)])
    assert same == layout([("a", 3, 0), ("b", 1, 32)], name="renamed")
    assert same != layout([("a", 2, 0), ("b", 1, 32)])
    assert same != layout([("b", 1, 0), ("a", 1, 32)])
    assert same != layout([("a", 1, 0)])


def test_do_sections_of_data_compare_by_their_variables() -> None:
    def layout(name: str, offset: int) -> object:
        make = Builder()
        make.integer("unsigned int", 4)
        make.add(VAR, name, 1, 1)
        make.add(DATASEC, ".bss", 8, 2, offset, 4, vlen=1)
        return make.build().layout(3)

    assert layout("count", 0) == layout("count", 0)
    assert layout("count", 0) != layout("count", 4)
    assert layout("count", 0) != layout("other", 0)


def test_is_big_endian_read_as_such() -> None:
    make = Builder(">")
    make.integer("unsigned int", 4)
    btf = make.build()
    assert btf.encode(1, 258) == b"\0\0\1\2"
    assert btf.decode(1, b"\0\0\1\2") == 258


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: b"\0\0" + raw[2:],
        lambda raw: raw[:30],
        lambda raw: raw[:24] + b"\xff" * (len(raw) - 24),
        lambda raw: raw[: len(raw) - 1],
    ],
)
def test_is_damaged_btf_refused(damage: Any) -> None:
    make = Builder()
    make.integer("unsigned int", 4)
    make.struct("s", 4, ("a", 1, 0))
    with pytest.raises(InputError, match="malformed"):
        Btf(damage(make.raw()))


def test_is_a_type_that_refers_to_itself_refused() -> None:
    make = Builder()
    make.add(TYPEDEF, "loop", 1)
    with pytest.raises(InputError, match="refers to itself"):
        make.build().resolve(1)
