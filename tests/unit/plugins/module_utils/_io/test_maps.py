# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of real maps, typed by the maps' own BTF; what was written is read by bpftool."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import engine, maps
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.libbpf import Bpf
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.maps import MapResult
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import (
    InputError,
    KernelError,
    MissingError,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import (
    MapSpec,
    ObjectSpec,
)

pytestmark = pytest.mark.root

Set = Callable[..., MapResult]


@pytest.fixture
def folder(objects: dict[str, str], bpffs: str, tmp_path: Path) -> str:
    """Where the maps of a loaded object are pinned."""
    spec = ObjectSpec("unit", objects["one"], state="loaded", bpffs=bpffs)
    engine.apply(spec, lock_path=str(tmp_path / "lock"))
    return f"{bpffs}/unit/maps"


@pytest.fixture
def put(folder: str, tmp_path: Path) -> Set:
    """apply_map with entries as (key, value) pairs."""

    def run(name: str, *pairs: Any, state: str = "present", check: bool = False) -> MapResult:
        entries = tuple({"key": key, "value": value} for key, value in pairs)
        spec = MapSpec(f"{folder}/{name}", entries, state)
        return maps.apply_map(spec, check, lock_path=str(tmp_path / "lock"))

    return run


def dump(folder: str, name: str) -> list[dict[str, Any]]:
    """The entries as bpftool shows them."""
    command = ["bpftool", "-j", "map", "dump", "pinned", f"{folder}/{name}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [item["formatted"] for item in json.loads(done.stdout)]


def test_do_named_fields_change_and_others_stay(put: Set, folder: str) -> None:
    assert put(
        "limits_map", (0, {"mode": 1, "addr": "10.0.0.1", "offset": -3, "large": 4095})
    ).changed
    result = put("limits_map", (0, {"bytes": "0x10", "small": 5}))
    expected = {"mode": 1, "bytes": 16, "addr": "10.0.0.1", "offset": -3, "small": 5, "large": 4095}
    assert result.entries == [{"key": 0, "value": expected}]
    assert result.before == {"0": {**expected, "bytes": 0, "small": 0}}
    assert result.after == {"0": expected}
    (shown,) = dump(folder, "limits_map")
    # bpftool writes bit fields in hexadecimal.
    assert {**shown["value"], "addr": "10.0.0.1", "small": 5, "large": 4095} == expected
    assert (shown["value"]["small"], shown["value"]["large"]) == ("0x5", "0xfff")
    assert shown["value"]["addr"][10:] == [255, 255, 10, 0, 0, 1]
    assert not put("limits_map", (0, {"bytes": 16, "mode": 1})).changed


def test_does_exact_set_fields_that_are_left_out_to_zero(put: Set) -> None:
    put("limits_map", (0, {"mode": 1, "bytes": 2}))
    result = put("limits_map", (0, {"mode": 1}), state="exact")
    assert result.entries[0]["value"]["bytes"] == 0


def test_are_other_entries_deleted_only_by_exact(put: Set, folder: str) -> None:
    put("ports", (80, 1), (443, 2))
    assert not put("ports", (80, 1)).changed
    exact = put("ports", ("22", 3), (80, 1), state="exact")
    assert (exact.before, exact.after) == ({"443": 2}, {"22": 3})
    assert sorted(entry["key"] for entry in dump(folder, "ports")) == [22, 80]
    assert not put("ports", (22, 3), (80, 1), state="exact").changed
    gone = put("ports", (22, None), (9, None), state="absent")
    assert gone.entries == [{"key": 80, "value": 1}]
    assert not put("ports", (22, None), state="absent").changed
    assert put("ports", state="exact").entries == []


def test_does_check_mode_say_what_then_happens(put: Set, folder: str) -> None:
    put("ports", (80, 1))
    predicted = put("ports", (22, 3), state="exact", check=True)
    assert dump(folder, "ports") == [{"key": 80, "value": 1}]
    assert predicted == put("ports", (22, 3), state="exact")


def test_are_networks_found_again_in_any_spelling(put: Set, folder: str) -> None:
    put("networks", ("10.0.0.0/8", 2), ("2001:db8::/32", 1), ("::/0", 3))
    assert len(dump(folder, "networks")) == 3
    assert not put(
        "networks",
        ({"prefixlen": 104, "addr": "10.1.2.3"}, 2),
        ({"prefixlen": 32, "addr": "2001:db8::"}, 1),
        ("::/0", 3),
        state="exact",
    ).changed
    assert put("networks", ("10.0.0.0/8", None), state="absent").changed
    assert {entry["key"]["prefixlen"] for entry in dump(folder, "networks")} == {0, 32}


def test_are_per_cpu_values_added_up(put: Set, folder: str) -> None:
    cpus = Bpf().possible_cpus()
    values = b"".join((cpu + 1).to_bytes(8, "little") + bytes(8) for cpu in range(cpus))
    fd = Bpf().obj_get(f"{folder}/counts_map")
    Bpf().update(fd, bytes(4), values)
    os.close(fd)
    (entry,) = put("counts_map").entries
    assert entry["value"] == {"events": cpus * (cpus + 1) // 2, "receives": 0}
    assert [one["events"] for one in entry["per_cpu"]] == list(range(1, cpus + 1))


@pytest.mark.parametrize(
    ("name", "pair", "state", "message"),
    [
        ("limits_map", (0, {"nope": 1}), "present", "unknown field 'nope'; struct limits has mode"),
        ("limits_map", (0, {"mode": 1 << 32}), "present", "out of range for __u32"),
        ("limits_map", (1, {"mode": 1}), "present", "the array has 1 entries, 0 to 0"),
        ("limits_map", (0, None), "absent", "cannot be deleted: write zeros"),
        ("counts_map", (0, {"events": 1}), "present", "its values are per CPU"),
        ("sockets", (0, 1), "present", "is of type sockhash, which has no entries to manage"),
        ("storage", (0, 1), "present", "is of type sk_storage, which has no entries"),
        ("networks", ("10.0.0.1/8", 1), "present", "has host bits set"),
    ],
)
def test_is_bad_input_refused_with_nothing_changed(
    put: Set, name: str, pair: Any, state: str, message: str
) -> None:
    put("ports", (80, 1))
    with pytest.raises(InputError) as error:
        put(name, pair, state=state)
    assert message in str(error.value)
    assert put("ports").entries == [{"key": 80, "value": 1}]


def test_is_one_bad_entry_among_good_ones_enough_to_refuse_all(put: Set, folder: str) -> None:
    with pytest.raises(InputError, match=r"value of key 81: -1 is out of range.*Nothing was"):
        put("ports", (80, 1), (81, -1))
    assert dump(folder, "ports") == []
    with pytest.raises(InputError, match="would have 65 entries and holds at most 64"):
        put("ports", *((port, 1) for port in range(65)))
    assert dump(folder, "ports") == []


def test_is_everything_put_back_when_the_kernel_refuses_one(
    put: Set, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("ports", (1, 1), (2, 2), (3, 3))
    update = Bpf.update

    def refuse(self: Bpf, fd: int, key: bytes, value: bytes) -> None:
        if int.from_bytes(key, "little") == 5:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        update(self, fd, key, value)

    monkeypatch.setattr(Bpf, "update", refuse)
    with pytest.raises(KernelError) as error:
        put("ports", (2, 9), (4, 4), (5, 5), state="exact")
    assert f"Cannot change entry 5 of map {folder}/ports: Cannot allocate" in str(error.value)
    assert {e["key"]: e["value"] for e in dump(folder, "ports")} == {1: 1, 2: 2, 3: 3}


def test_is_a_frozen_map_left_alone(put: Set, folder: str) -> None:
    command = ["bpftool", "map", "freeze", "pinned", f"{folder}/ports"]
    subprocess.run(command, check=True)
    with pytest.raises(KernelError, match="The map is frozen or read-only"):
        put("ports", (80, 1))
    assert put("ports").entries == []


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("{}/none", MissingError, "nothing is pinned there. Load the object first"),
        ("{}/../progs/count_events", InputError, "as a map: a prog is pinned there"),
        ("/etc/passwd", InputError, "it is not a pin of a BPF object"),
        ("/etc/passwd/x", InputError, "it is not a pin of a BPF object"),
    ],
)
def test_is_a_path_without_a_map_refused(
    folder: str, tmp_path: Path, path: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        maps.apply_map(MapSpec(path.format(folder)), lock_path=str(tmp_path / "lock"))
    assert message in str(error.value)


def test_is_a_map_that_is_not_pinned_yet_a_warning_in_check_mode(put: Set) -> None:
    predicted = put("none", (80, 1), check=True)
    assert predicted.changed
    assert predicted.after == {"80": 1}
    assert "nothing is pinned there" in predicted.warnings[0]
