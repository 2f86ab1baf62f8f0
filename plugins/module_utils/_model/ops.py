# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""By what two struct_ops maps are the same: which program serves which function, and the data."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

POINTER = struct.Struct("=Q")
DIGITS = 16


def ops_digest(value: bytes, programs: Mapping[int, str]) -> str:
    """Sixteen hexadecimal digits over the struct that an object declares.

    `value` has pointers where it names functions, and `programs` are their names. Empty for an
    empty `value`: the library did not tell.
    """
    if not value:
        return ""
    parts = []
    for start in range(0, len(value), POINTER.size):
        word = value[start : start + POINTER.size]
        number = POINTER.unpack(word)[0] if len(word) == POINTER.size else 0
        parts.append(programs.get(number, word.hex()))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:DIGITS]
