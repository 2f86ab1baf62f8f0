# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files pass for a BPF object?"""

from __future__ import annotations

import struct

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.elf import (
    check_bpf_elf,
    section_names,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import InputError


def elf(
    machine: int = 247, kind: int = 1, word: int = 2, order: int = 1, sections: int = 2
) -> bytes:
    """Header, 16 bytes of content, then section headers: one null, one for the content."""
    sign = "<" if order == 1 else ">"
    ident = b"\x7fELF" + bytes([word, order, 1]) + bytes(9)
    head = ident + struct.pack(
        sign + "HHIQQQIHHHHHH", kind, machine, 1, 0, 0, 80, 0, 64, 0, 0, 64 if sections else 0,
        sections, 0,
    )  # fmt: skip
    content = struct.pack(sign + "IIQQQQIIQQ", 0, 1, 0, 0, 64, 16, 0, 0, 0, 0)
    nobits = struct.pack(sign + "IIQQQQIIQQ", 0, 8, 0, 0, 64, 1 << 40, 0, 0, 0, 0)
    return head + bytes(16) + bytes(64) + content + nobits


@pytest.mark.parametrize("order", [1, 2])
def test_does_a_whole_object_pass(order: int) -> None:
    check_bpf_elf(elf(order=order, sections=3), "x.o")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x.o is empty. Copy the BPF object again."),
        (b"#!/bin/sh\n", "x.o is not an ELF file (it starts with 23212f62)"),
        (elf()[:20], "x.o is truncated: it needs at least 64 bytes and has 20"),
        (elf(word=1), "x.o is a 32-bit ELF file"),
        (elf(order=7), "x.o is an ELF file of unknown byte order 7"),
        (elf(machine=62), "x.o is an ELF file for machine x86-64, not for BPF"),
        (elf(machine=999), "x.o is an ELF file for machine number 999"),
        (elf(kind=2), "x.o is a BPF ELF file of type 2, not an object file"),
        (elf(sections=0), "x.o is a BPF ELF file without sections"),
        (elf()[:100], "x.o is truncated: it needs at least 208 bytes and has 100"),
        (elf(sections=9), "x.o is truncated: it needs at least 656 bytes and has 272"),
    ],
)
def test_is_anything_else_named(data: bytes, message: str) -> None:
    with pytest.raises(InputError) as error:
        check_bpf_elf(data, "x.o")
    assert message in str(error.value)


def test_is_a_section_beyond_the_end_noticed() -> None:
    data = bytearray(elf())
    struct.pack_into("<Q", data, 80 + 64 + 32, 1 << 20)
    with pytest.raises(InputError, match="needs at least 1048640 bytes and has 272"):
        check_bpf_elf(bytes(data), "x.o")


def named_sections(order: int, names: int = 1) -> bytes:
    """The object above with `.x\\0.y\\0` as its content, which is also the table of names; `names`
    is the section that has it."""
    data = bytearray(elf(order=order, sections=3))
    sign = "<" if order == 1 else ">"
    data[64:71] = b"\0.x\0.y\0"
    struct.pack_into(sign + "H", data, 62, names)
    struct.pack_into(sign + "I", data, 80 + 64, 1)
    struct.pack_into(sign + "I", data, 80 + 128, 4)
    return bytes(data)


@pytest.mark.parametrize("order", [1, 2])
def test_are_sections_named(order: int) -> None:
    assert section_names(named_sections(order)) == ["", ".x", ".y"]


def test_are_names_outside_of_the_file_none() -> None:
    assert section_names(named_sections(1, names=9)) == []
    data = bytearray(named_sections(1))
    struct.pack_into("<Q", data, 80 + 64 + 24, 1 << 40)
    assert section_names(bytes(data)) == []
