# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are the kernel's types found among a hundred thousand others, as bpftool finds them?"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import vmlinux
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.vmlinux import (
    FUNC,
    STRUCT,
    TYPEDEF,
)

NAMES = ["int", "sk_psock", "eval", "msg_tot_len", "trace", "psock"]


def btf(order: str) -> bytes:
    """INT int; STRUCT sk_psock {int eval; int msg_tot_len}; ENUM; TYPEDEF trace; FUNC psock."""
    strings, offsets = b"\0", {}
    for name in NAMES:
        offsets[name] = len(strings)
        strings += name.encode() + b"\0"

    def header(name: str, kind: int, count: int, ref: int) -> bytes:
        return struct.pack(f"{order}III", offsets.get(name, 0), kind << 24 | count, ref)

    types = (
        header("int", 1, 0, 4)
        + struct.pack(f"{order}I", 32)
        + header("sk_psock", STRUCT, 2, 8)
        + struct.pack(f"{order}6I", offsets["eval"], 1, 0, offsets["msg_tot_len"], 1, 32)
        + header("", 6, 3, 4)
        + struct.pack(f"{order}6I", *range(6))
        + header("trace", TYPEDEF, 0, 1)
        + header("", 13, 1, 0)
        + struct.pack(f"{order}2I", 0, 1)
        + header("psock", FUNC, 0, 5)
    )
    head = struct.pack(
        f"{order}HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)
    )
    return head + types + strings


@pytest.mark.parametrize("order", ["<", ">"])
def test_types_are_found_by_kind_and_whole_name(order: str) -> None:
    wanted = [(STRUCT, "sk_psock"), (TYPEDEF, "trace"), (FUNC, "psock"), (FUNC, "sk_psock")]
    assert vmlinux.find_types(btf(order), [*wanted, (STRUCT, "absent")]) == {
        (STRUCT, "sk_psock"): vmlinux.Found(2, frozenset({"eval", "msg_tot_len"})),
        (TYPEDEF, "trace"): vmlinux.Found(4),
        (FUNC, "psock"): vmlinux.Found(6),
    }


@pytest.mark.parametrize("raw", [b"", b"\x7fELF" + bytes(60), b"\0" * 24])
def test_other_files_are_refused(raw: bytes) -> None:
    with pytest.raises(vmlinux.BtfError, match="does not begin with the magic number"):
        vmlinux.find_types(raw, [(FUNC, "psock")])


def test_a_torn_header_or_type_is_refused() -> None:
    whole = btf("<")
    with pytest.raises(vmlinux.BtfError, match="in the middle"):
        vmlinux.find_types(whole[:20], [(FUNC, "psock")])
    # The type section ends 6 bytes early, in the middle of the function.
    torn = bytearray(whole)
    struct.pack_into("<I", torn, 12, struct.unpack_from("<I", torn, 12)[0] - 6)
    with pytest.raises(vmlinux.BtfError, match="in the middle"):
        vmlinux.find_types(bytes(torn), [(FUNC, "psock"), (FUNC, "trace")])


def test_the_running_kernel_agrees_with_bpftool() -> None:
    source = Path("/sys/kernel/btf/vmlinux")
    bpftool = shutil.which("bpftool", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if not source.exists() or bpftool is None:
        pytest.skip("SKIPPED: needs bpftool and a kernel with BTF")
    wanted = [(STRUCT, "tcp_sock"), (FUNC, "tcp_sendmsg"), (TYPEDEF, "u32")]
    found = vmlinux.find_types(source.read_bytes(), wanted)
    dump = subprocess.run(
        [bpftool, "-j", "btf", "dump", "file", str(source)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    types = {one["id"]: one for one in json.loads(dump.stdout)["types"]}
    kinds = {STRUCT: "STRUCT", FUNC: "FUNC", TYPEDEF: "TYPEDEF"}
    assert set(found) == set(wanted)
    for (kind, name), one in found.items():
        shown = types[one.type_id]
        assert (shown["kind"], shown["name"]) == (kinds[kind], name)
    shown = types[found[STRUCT, "tcp_sock"].type_id]
    members = {member["name"] for member in shown["members"]}
    assert members - {"(anon)"} == found[STRUCT, "tcp_sock"].members - {""}
