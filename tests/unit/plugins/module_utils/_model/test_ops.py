# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When are two struct_ops maps the same?"""

from __future__ import annotations

import struct

from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.ops import ops_digest


def value(*pointers: int, name: bytes = b"ring") -> bytes:
    return struct.pack(f"={len(pointers)}Q", *pointers) + name


def test_do_pointers_count_as_the_names_they_stand_for() -> None:
    one = ops_digest(value(0x1000, 0x2000), {0x1000: "send", 0x2000: "receive"})
    assert one == ops_digest(value(0x7000, 0x8000), {0x7000: "send", 0x8000: "receive"})
    assert len(one) == 16


def test_does_everything_else_count_as_it_is() -> None:
    names = {0x1000: "send", 0x2000: "receive"}
    values = (
        value(0x1000, 0x2000),
        value(0x2000, 0x1000),
        value(0x1000, 0),
        value(0x1000, 0x2000, name=b"gong"),
        value(0x1000, 0x2000, name=b""),
    )
    assert len({ops_digest(one, names) for one in values}) == len(values)


def test_is_what_the_library_does_not_tell_empty() -> None:
    assert ops_digest(b"", {1: "send"}) == ""
