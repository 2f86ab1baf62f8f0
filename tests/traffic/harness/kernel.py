# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The few bpf(2) commands that the tests need, without libbpf.

Independent of the collection's own adapter on purpose: what the loader wrote is
read back by another tool.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

_NUMBER = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_LIBC = ctypes.CDLL(None, use_errno=True)

MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY = 1, 2, 3, 4
OBJ_PIN, OBJ_GET, MAP_BY_ID, LINK_CREATE = 6, 7, 14, 28

CGROUP_SOCK_OPS, SK_MSG_VERDICT, TRACE_RAW_TP, TRACE_ITER = 3, 7, 23, 28

CLONE_NEWNET = 0x40000000


class BpfError(OSError):
    """A bpf(2) command failed; the message names command and object."""


def _bpf(command: int, attr: bytes, what: str) -> int:
    buffer = ctypes.create_string_buffer(attr, max(len(attr), 64))
    result = int(_LIBC.syscall(_NUMBER, command, buffer, len(buffer)))
    if result < 0:
        error = ctypes.get_errno()
        raise BpfError(error, f"bpf({command}) on {what}: {os.strerror(error)}")
    return result


def open_pin(path: Path) -> int:
    """Return a descriptor of the pinned program, map or link at `path`."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(OBJ_GET, struct.pack("QII", ctypes.addressof(name), 0, 0), str(path))


def pin(fd: int, path: Path) -> None:
    """Pin `fd` at `path`, whose directory lies in a bpffs."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(OBJ_PIN, struct.pack("QII", ctypes.addressof(name), fd, 0), str(path))


def link(program: int, attach_type: int, target: int = 0, iter_map: int | None = None) -> int:
    """Attach a program by a link and return the link's descriptor.

    target: cgroup or map descriptor; iter_map: the map an iterator walks.
    """
    attr = struct.pack("IIII", program, target, attach_type, 0)
    info = ctypes.create_string_buffer(struct.pack("IIII", iter_map or 0, 0, 0, 0))
    if iter_map is not None:
        attr += struct.pack("QI", ctypes.addressof(info), 16)
    return _bpf(LINK_CREATE, attr, f"program fd {program}")


def _element(command: int, fd: int, key: bytes, value: ctypes.Array[ctypes.c_char]) -> None:
    stored = ctypes.create_string_buffer(key, max(len(key), 1))
    attr = struct.pack("IIQQQ", fd, 0, ctypes.addressof(stored), ctypes.addressof(value), 0)
    _bpf(command, attr, f"map fd {fd}, key {key.hex()}")


def lookup(fd: int, key: bytes, size: int) -> bytes:
    """Return the value (size bytes) of `key`; BpfError with ENOENT when there is none."""
    value = ctypes.create_string_buffer(size)
    _element(MAP_LOOKUP, fd, key, value)
    return value.raw[:size]


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set `key` to `value`, whatever was there."""
    _element(MAP_UPDATE, fd, key, ctypes.create_string_buffer(value, len(value)))


def delete(fd: int, key: bytes) -> None:
    """Remove `key`; BpfError with ENOENT when it is not there."""
    stored = ctypes.create_string_buffer(key, max(len(key), 1))
    attr = struct.pack("IIQ", fd, 0, ctypes.addressof(stored))
    _bpf(MAP_DELETE, attr, f"map fd {fd}, key {key.hex()}")


def keys(fd: int, size: int) -> list[bytes]:
    """Return all keys (size bytes each) of a small map."""
    found: list[bytes] = []
    following = ctypes.create_string_buffer(size)
    while True:
        last = ctypes.create_string_buffer(found[-1], size) if found else None
        start = ctypes.addressof(last) if last is not None else 0
        attr = struct.pack("IIQQQ", fd, 0, start, ctypes.addressof(following), 0)
        try:
            _bpf(MAP_NEXT_KEY, attr, f"map fd {fd}")
        except BpfError:
            return found
        found.append(following.raw[:size])


def enter_netns(path: str) -> None:
    """Move the calling thread into the network namespace at `path`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.setns(fd, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns to {path} failed")
    finally:
        os.close(fd)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    _LIBC.prctl(1, 9, 0, 0, 0)


def possible_cpus() -> int:
    """Return how many values a per-CPU map element has."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.split(",")[-1].split("-")[-1]) + 1


def map_id(fd: int) -> int:
    """Return the kernel's id of a map."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("map_id:"):
            return int(line.split()[1])
    raise ValueError(f"descriptor {fd} is no map")


def map_exists(number: int) -> bool:
    """True while the kernel has a map of this id."""
    try:
        os.close(_bpf(MAP_BY_ID, struct.pack("III", number, 0, 0), f"map id {number}"))
    except BpfError:
        return False
    return True
