# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages between the tests and a guest: length, then a pickle.

What cannot be copied, such as a socket, stays where it is and travels as a number: the
guest keeps the object, the tests hold a `Remote` with that number.
"""

from __future__ import annotations

import io
import os
import pickle
import select
import struct
import time
from collections.abc import Callable
from typing import Any

HEAD = struct.Struct("<I")
COPIED = (type(None), bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset)


def hello(serial: int) -> bytes:
    """A worker's first bytes; what a killed one left unfinished ends before them."""
    return b"\xfetcp_sm worker\xfe" + struct.pack("<I", serial)


class Ended(Exception):
    """The other side is gone."""


def pack(message: Any, name: Callable[[Any], Any]) -> bytes:
    """Encode; `name` gives the persistent id of an object that stays here, else None."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=4)
    pickler.persistent_id = name  # type: ignore[method-assign]
    pickler.dump(message)
    return HEAD.pack(len(buffer.getvalue())) + buffer.getvalue()


def unpack(data: bytes, find: Callable[[Any], Any]) -> Any:
    """Decode; `find` turns a persistent id into what stands for the object here."""
    unpickler = pickle.Unpickler(io.BytesIO(data))
    unpickler.persistent_load = find  # type: ignore[method-assign]
    return unpickler.load()


def read_exactly(fd: int, size: int, deadline: float) -> bytes:
    """`size` bytes of a non-blocking descriptor. Ended, or TimeoutError after the deadline."""
    parts = []
    while size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no message in time")
        if not select.select([fd], [], [], left)[0]:
            continue
        try:
            part = os.read(fd, min(size, 1 << 20))
        except BlockingIOError:
            continue
        if not part:
            raise Ended
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_message(fd: int, deadline: float) -> bytes:
    """The next message's pickle."""
    size = HEAD.unpack(read_exactly(fd, HEAD.size, deadline))[0]
    return read_exactly(fd, size, max(deadline, time.monotonic() + 10))


def write_message(fd: int, data: bytes) -> None:
    """Write all of it to a non-blocking descriptor."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [], 10)
