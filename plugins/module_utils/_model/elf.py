# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is this file a whole BPF object? Answered before the kernel or libbpf sees it.

libbpf reports a foreign file as a bare number (4003 and the like); this says it in words.
Layout: ELF-64 header and section headers, see elf(5).
"""

from __future__ import annotations

import struct

from .errors import InputError

HEADER_SIZE = 64
SECTION_HEADER_SIZE = 64
TYPE_RELOCATABLE = 1
MACHINE_BPF = 247
SECTION_NOBITS = 8
MACHINES = {
    3: "x86",
    8: "mips",
    20: "powerpc",
    21: "powerpc64",
    22: "s390",
    40: "arm",
    62: "x86-64",
    183: "aarch64",
    243: "riscv",
    258: "loongarch",
}
REBUILD = "Build it with: clang -O2 -g -target bpf -c FILE.bpf.c"


def check_bpf_elf(data: bytes, path: str) -> None:
    """Raise InputError unless `data`, read from `path`, is a complete BPF object file."""
    if not data:
        raise InputError(f"{path} is empty. Copy the BPF object again.")
    if data[:4] != b"\x7fELF":
        raise InputError(f"{path} is not an ELF file (it starts with {data[:4].hex()}). {REBUILD}")
    if len(data) < HEADER_SIZE:
        raise InputError(_truncated(path, HEADER_SIZE, len(data)))
    if data[4] != 2:
        raise InputError(f"{path} is a 32-bit ELF file; BPF objects are 64-bit. {REBUILD}")
    if data[5] not in (1, 2):
        raise InputError(f"{path} is an ELF file of unknown byte order {data[5]}. {REBUILD}")
    order = "<" if data[5] == 1 else ">"
    kind, machine = struct.unpack_from(order + "HH", data, 16)
    if machine != MACHINE_BPF:
        name = MACHINES.get(machine, f"number {machine}")
        raise InputError(f"{path} is an ELF file for machine {name}, not for BPF. {REBUILD}")
    if kind != TYPE_RELOCATABLE:
        raise InputError(f"{path} is a BPF ELF file of type {kind}, not an object file. {REBUILD}")
    _check_sections(data, order, path)


def _check_sections(data: bytes, order: str, path: str) -> None:
    """Every section must lie inside the file: a truncated copy is found here."""
    (offset,) = struct.unpack_from(order + "Q", data, 40)
    entry_size, count = struct.unpack_from(order + "HH", data, 58)
    if entry_size != SECTION_HEADER_SIZE or not count:
        raise InputError(f"{path} is a BPF ELF file without sections. {REBUILD}")
    end = offset + count * entry_size
    if end > len(data):
        raise InputError(_truncated(path, end, len(data)))
    for index in range(count):
        base = offset + index * entry_size
        (kind,) = struct.unpack_from(order + "I", data, base + 4)
        start, size = struct.unpack_from(order + "QQ", data, base + 24)
        if kind != SECTION_NOBITS and start + size > len(data):
            raise InputError(_truncated(path, start + size, len(data)))


def section_names(data: bytes) -> list[str]:
    """The names of the sections of a file that check_bpf_elf let pass; none where they lie
    outside of it."""
    order = "<" if data[5] == 1 else ">"
    (offset,) = struct.unpack_from(order + "Q", data, 40)
    _size, count, strings = struct.unpack_from(order + "HHH", data, 58)
    headers = [offset + index * SECTION_HEADER_SIZE for index in range(count)]
    try:
        (start,) = struct.unpack_from(order + "Q", data, headers[strings] + 24)
        names = [start + struct.unpack_from(order + "I", data, header)[0] for header in headers]
        return [data[name : data.index(b"\0", name)].decode("utf-8", "replace") for name in names]
    except (IndexError, ValueError, struct.error):
        return []


def _truncated(path: str, wanted: int, have: int) -> str:
    return (
        f"{path} is truncated: it needs at least {wanted} bytes and has {have}. "
        "Copy the BPF object again."
    )
