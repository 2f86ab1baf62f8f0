# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) 2026, the colocated.tcp_sm authors
"""Does bad input end in a clear error, with nothing changed?"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from installation import ROOT, FirstRuns, Installation, ansible, bpftool, wait

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
        r"container_mode: 'off' is not valid: use 'on' .*'pass'",
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
    "long cgroup": (
        {"container_cgroups": ["/a.b" * 50 + "/c"]},
        r"container_cgroups names /a\.b.*/c, which is too long .*name a cgroup above it",
    ),
    "nested cgroups": (
        {"container_cgroups": ["/", "/somewhere"]},
        r"names /somewhere and also what lies above.*name either",
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


BROKEN: dict[str, bytes] = {
    "truncated object": OBJECT.read_bytes()[: OBJECT.stat().st_size // 2],
    "object of another machine": Path("/bin/true").read_bytes(),
    "no object at all": b"no object at all\n",
}

STRANGE_PINS: dict[str, str] = {
    "pins of another version": r"tcp_sm_config: its value size is 16, the object needs 40.*"
    r"Nothing was changed.*replace_maps",
    "pins of somebody else": r"theirs was not pinned by this collection.*Choose another name",
}


@dataclass(frozen=True)
class Batch:
    """One run of site.yml with a host for each case, all of them this machine."""

    output: dict[str, str]
    recap: dict[str, str]
    before: Any
    after: Any


@pytest.fixture(scope="module")
def batch(
    installation: Installation, first: FirstRuns, tmp_path_factory: pytest.TempPathFactory
) -> Batch:
    """Every case is tried on the same installation; none may change it."""
    folder = tmp_path_factory.mktemp("batch")
    cases = {name: variables for name, (variables, _) in BAD.items()}
    for name, content in BROKEN.items():
        path = folder / f"{alias(name)}.bpf.o"
        path.write_bytes(content)
        cases[name] = {"host_object_src": str(path)}
    cases["file in place of bpffs"] = {"host_bpffs": str(folder / "hosts.json")}
    for name in STRANGE_PINS:
        cases[name] = {"host_name": alias(name)}
        make_strange_pins(installation.bpffs / alias(name), name)
    inventory = folder / "hosts.json"
    inventory.write_text(json.dumps(inventory_of(installation, cases)), encoding="utf-8")
    assert first.applied[2], "nothing is attached to the cgroup"
    before = installation.snapshot()
    command = ["ansible-playbook", "colocated.tcp_sm.site", "--forks=2"]
    done = wait(ansible(command, inventory=str(inventory)))
    output = dict.fromkeys(map(alias, cases), "")
    recap: dict[str, str] = {}
    for line in done.stdout.splitlines():
        if found := re.match(r"(?:fatal|failed): \[([a-z_]+)", line):
            output[found[1]] += line
        elif found := re.match(r"([a-z_]+) +: (ok=.*)", line):
            recap[found[1]] = found[2]
    after = installation.snapshot()
    for name in STRANGE_PINS:
        shutil.rmtree(installation.bpffs / alias(name))
    return Batch(output, recap, before, after)


def make_strange_pins(folder: Path, kind: str) -> None:
    """What somebody else, or an older version, may have left below the name of an object."""
    folder.mkdir()
    pin = folder / "theirs"
    if kind == "pins of another version":
        (folder / "maps").mkdir()
        pin = folder / "maps" / "tcp_sm_config"
    bpftool(*f"map create {pin} type array key 4 value 16 entries 1 name {pin.name}".split())


def alias(case: str) -> str:
    """A case's name as a host name."""
    return case.replace(" ", "_")


def inventory_of(installation: Installation, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """An inventory whose hosts are all this machine, with one bad variable each."""
    local = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        **installation.variables(),
    }
    return {"all": {"vars": local, "hosts": {alias(name): cases[name] for name in cases}}}


MESSAGES: dict[str, str] = {
    **{name: message for name, (_, message) in BAD.items()},
    **dict.fromkeys(BROKEN, r"sockmap\.bpf\.o.*(ELF|truncated|BPF object)"),
    **STRANGE_PINS,
    "file in place of bpffs": r"hosts\.json.*(not a folder|not a directory)",
}


@pytest.mark.parametrize("case", MESSAGES)
def test_is_bad_input_refused(batch: Batch, case: str) -> None:
    shown = batch.output[alias(case)]
    assert re.search(MESSAGES[case], shown), shown
    assert "failed=1 " in batch.recap[alias(case)]
    assert batch.after == batch.before
