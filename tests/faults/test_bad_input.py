# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) 2026, the colocated.tcp_sm authors
"""Does bad input end in a clear error, with nothing changed?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from installation import ROOT, Installation

OBJECT = ROOT / "roles" / "host" / "files" / "bpf" / "sockmap.bpf.o"

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "port zero": (
        {"container_ports_exclude": [0]},
        r"container_ports_exclude: 0 is not valid: .*from 1 to 65535",
    ),
    "port too high": (
        {"container_ports_include": [6379, 65536]},
        r"container_ports_include: 65536 is not valid",
    ),
    "port by name": (
        {"container_ports_include": ["redis"]},
        r"container_ports_include.*unable to convert to int",
    ),
    "port on both lists": (
        {"container_ports_include": [80], "container_ports_exclude": [80]},
        r"container_ports_exclude: 80 .*container_ports_include has this port too",
    ),
    "prefix too long": (
        {"container_cidrs_exclude": ["10.0.0.0/33"]},
        r"container_cidrs_exclude: '10.0.0.0/33' is not valid",
    ),
    "host bits set": (
        {"container_cidrs_include": ["10.0.0.1/8"]},
        r"container_cidrs_include: '10.0.0.1/8' .*beyond its length; write 10.0.0.0/8",
    ),
    "no network": (
        {"container_cidrs_include": ["example"]},
        r"container_cidrs_include: 'example' is not valid: a network is ADDRESS/LENGTH",
    ),
    "limit too low": (
        {"container_max_unread_bytes": 1},
        r"container_max_unread_bytes: 1 is not valid: .*from 4096 to",
    ),
    "limit negative": (
        {"container_max_unread_msgs": -1},
        r"container_max_unread_msgs: -1 is not valid",
    ),
    "limit no number": (
        {"container_max_burst": "big"},
        r"container_max_burst.*unable to convert to int",
    ),
    "unknown mode": (
        {"container_mode": "off"},
        r"container_mode: 'off' is not valid: use 'on' .* or 'pass'",
    ),
    "no cgroup": ({"container_cgroups": []}, r"container_cgroups is empty.*Name at least one"),
    "missing cgroup": (
        {"container_cgroups": ["/no/such/cgroup"]},
        r"container_cgroups names /no/such/cgroup, which does not exist below .*relative to",
    ),
    "cgroup outside": (
        {"container_cgroups": ["/../unified"]},
        r"container_cgroups names /../unified.*leave out",
    ),
    "nested cgroups": (
        {"container_cgroups": ["/", "/somewhere"]},
        r"names / and, below it, /somewhere.*name either",
    ),
    "malformed checksum": (
        {"host_object_sha256": "abc"},
        r"host_object_sha256 must be empty or 64",
    ),
    "other checksum": (
        {"host_object_sha256": "0" * 64},
        r"has the SHA-256 [0-9a-f]{64}, but host_object_sha256 wants 0{64}",
    ),
    "name with a slash": ({"host_name": "../other"}, r"host_name \(../other\) takes letters"),
    "missing object": (
        {"host_object_src": "bpf/none.bpf.o"},
        r"none.bpf.o is not on the controller.*make build",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_is_bad_input_refused(applied: Installation, case: str) -> None:
    variables, message = BAD[case]
    before = applied.snapshot()
    done = applied.play("site", **variables)
    assert done.returncode != 0, done.stdout
    assert re.search(message, done.stdout), done.stdout
    assert applied.snapshot() == before


def truncated(path: Path) -> None:
    path.write_bytes(OBJECT.read_bytes()[: OBJECT.stat().st_size // 2])


def foreign(path: Path) -> None:
    path.write_bytes(Path("/bin/true").read_bytes())


def text(path: Path) -> None:
    path.write_text("no object at all\n", encoding="ascii")


@pytest.mark.parametrize("spoil", [truncated, foreign, text])
def test_is_a_broken_object_refused(applied: Installation, tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "sockmap.bpf.o"
    spoil(path)
    before = applied.snapshot()
    done = applied.play("site", host_object_src=str(path))
    assert done.returncode != 0, done.stdout
    assert re.search(r"sockmap\.bpf\.o.*(ELF|BPF|object)", done.stdout), done.stdout
    assert applied.snapshot() == before
