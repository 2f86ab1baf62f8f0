# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is the list of regions that a hypervisor is given checked as a whole, and made explicit?"""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import region
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import InputError
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.hypervisor import (
    gone,
    normal_regions,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.region_spec import parse_mode

MIB = 1 << 20


def normal(*regions: Any) -> list[dict[str, Any]]:
    return normal_regions(list(regions), "/run/tcp_sm")


def test_everything_that_is_left_out_is_spelled_out() -> None:
    assert normal({"name": "x", "size": "16M", "vms": ["a"]}) == [
        {
            "name": "x",
            "path": "/dev/shm/x",
            "size": 16 * MIB,
            "parts": 2,
            "socket": "/run/tcp_sm/x.sock",
            "chunks": [{"owner": "a", "ring_size": region.RING_DEFAULT}],
        }
    ]


def test_what_was_spelled_out_stays_the_same() -> None:
    given = {
        "name": "x",
        "path": "/dev/hugepages/x",
        "size": 16 * MIB,
        "host": "here",
        "mode": "0640",
        "allocate": False,
        "socket": "/run/x",
        "socket_group": "kvm",
        "vectors": 2,
        "parts": 3,
    }
    assert normal(given) == [{**given, "chunks": []}]


def test_sizes_come_from_the_machine_or_the_region() -> None:
    (one,) = normal(
        {
            "name": "x",
            "size": "64M",
            "chunk_size": "8M",
            "ring_size": "64K",
            "vms": ["a", {"name": "b", "chunk_size": "16M"}, {"name": "c", "ring_size": 4096}],
            "automatic": {"count": 1},
        }
    )
    assert [(chunk["size"], chunk["ring_size"]) for chunk in one["chunks"]] == [
        (8 * MIB, 65536),
        (16 * MIB, 65536),
        (8 * MIB, 4096),
    ]
    assert one["automatic"] == {"count": 1, "size": 8 * MIB, "ring_size": region.RING_DEFAULT}


@pytest.mark.parametrize(("options", "parts"), [({}, 3), ({"parts": 8}, 8), ({"parts": "5"}, 5)])
def test_equal_parts_are_for_machines_and_automatic_chunks(
    options: dict[str, Any], parts: int
) -> None:
    (one,) = normal(
        {"name": "x", "size": "64M", "vms": ["a"], "automatic": {"count": 2}, **options}
    )
    assert one["parts"] == parts
    # No size: whoever has a chunk keeps it, however many there are.
    assert one["chunks"] == [{"owner": "a", "ring_size": region.RING_DEFAULT}]
    assert one["automatic"] == {"count": 2, "ring_size": region.RING_DEFAULT}


def test_what_is_left_beside_a_declared_size_is_enough() -> None:
    (one,) = normal({"name": "x", "size": "64M", "vms": [{"name": "a", "chunk_size": "48M"}, "b"]})
    assert [chunk.get("size") for chunk in one["chunks"]] == [48 * MIB, None]


@pytest.mark.parametrize(("mode", "bits"), [("0640", 0o640), ("600", 0o600)])
def test_modes_of_three_or_four_octal_digits_are_taken(mode: str, bits: int) -> None:
    (one,) = normal({"name": "x", "size": "16M", "mode": mode, "vectors": "8"})
    assert (one["mode"], one["vectors"]) == (mode, 8)
    assert parse_mode(mode) == bits


def test_a_number_is_a_name_too() -> None:
    (one,) = normal({"name": "x", "size": "16M", "vms": [101]})
    assert one["chunks"][0]["owner"] == "101"


BAD: dict[str, tuple[list[Any], str]] = {
    "no list": ([{"name": "x", "size": "16M", "vms": "a"}], r"\[0\] \(x\): vms: needs a list"),
    "no dictionary": (["x"], r"\[0\]: needs a dictionary with name and size, not 'x'"),
    "no name": ([{"size": "16M"}], r"\[0\]: name: '' must be"),
    "no size": ([{"name": "x"}], r"\[0\] \(x\): size: region x needs one"),
    "unknown": ([{"name": "x", "size": "16M", "sise": 1}], "unknown sise; a region has allocate"),
    "second": ([{"name": "x", "size": "16M"}, {"name": "y", "size": "3M"}], r"\[1\] \(y\): size"),
    "unknown of a machine": (
        [{"name": "x", "size": "16M", "vms": [{"name": "a", "size": 1}]}],
        "unknown size; a machine has chunk_size, name, ring_size",
    ),
    "machine without a name": ([{"name": "x", "size": "16M", "vms": [{}]}], "owner: '' must be"),
    "null machine": ([{"name": "x", "size": "16M", "vms": [None]}], "owner: '' must be"),
    "does not fit": (
        [{"name": "x", "size": "16M", "chunk_size": "6M", "vms": ["a", "b", "c"]}],
        "the largest gap is",
    ),
    "automatic does not fit": (
        [{"name": "x", "size": "16M", "automatic": {"count": 3, "size": "6M"}}],
        "the largest gap is",
    ),
    "ring": ([{"name": "x", "size": "16M", "ring_size": "5K"}], "ring_size: 5K must be"),
    "parts": ([{"name": "x", "size": "16M", "parts": "some"}], "parts: 'some' must be a number"),
    "endless parts": (
        [{"name": "x", "size": "16M", "parts": float("inf")}],
        "parts: inf must be a number",
    ),
    "many parts": ([{"name": "x", "size": "16M", "parts": 257}], "parts: 257 must be at most 256"),
    "NUL": ([{"name": "x", "size": "16M", "path": "/a\0"}], "path: .* must be the absolute path"),
    "NUL in a socket": ([{"name": "x", "size": "16M", "socket": "/a\0"}], "socket: .* absolute"),
    "no parts": ([{"name": "x", "size": "16M", "parts": 0}], "at least 1"),
    "machine twice": ([{"name": "x", "size": "16M", "vms": ["a", "a"]}], "vms: a is there twice"),
    "too many": (
        [{"name": "x", "size": "1M", "vms": ["a", "b", "c", "d"]}],
        r"size: a chunk for a gets one of the equal parts of region x \(1M\), 240K, .* needs 392K",
    ),
    "automatic no dictionary": (
        [{"name": "x", "size": "16M", "automatic": 3}],
        "automatic: needs a dictionary with count",
    ),
    # What the agent would refuse.
    "unquoted mode": ([{"name": "x", "size": "16M", "mode": 0o640}], "mode: 416 must be .*'0640'"),
    "unquoted mode of the socket": (
        [{"name": "x", "size": "16M", "socket_mode": 0o660}],
        "socket_mode: 432 must be",
    ),
    "mode zero": ([{"name": "x", "size": "16M", "mode": 0}], "mode: 0 must be"),
    "symbolic mode": ([{"name": "x", "size": "16M", "mode": "u=rw"}], "mode: 'u=rw' must be"),
    "mode with sticky bit": ([{"name": "x", "size": "16M", "mode": "1777"}], "mode: '1777' must"),
    "vectors": ([{"name": "x", "size": "16M", "vectors": 16}], "vectors: 16 must be from 1 to 8"),
    "no vectors": ([{"name": "x", "size": "16M", "vectors": "two"}], "vectors: 'two' must be"),
    "relative socket": (
        [{"name": "x", "size": "16M", "socket": "x.sock"}],
        "socket: 'x.sock' must be absolute",
    ),
    "long socket": (
        [{"name": "x", "size": "16M", "socket": "/" + "s" * 107}],
        "have at most 107 bytes",
    ),
    "same path": (
        [{"name": "x", "size": "16M"}, {"name": "y", "size": "16M", "path": "/dev/shm/x"}],
        "two regions have the path /dev/shm/x",
    ),
    "same socket": (
        [
            {"name": "x", "size": "16M", "socket": "/s"},
            {"name": "y", "size": "16M", "socket": "/s"},
        ],
        "two regions have the socket /s",
    ),
    "two homes": (
        [
            {"name": "x", "size": "16M", "vms": ["a"]},
            {"name": "y", "size": "16M", "vms": [{"name": "a"}]},
        ],
        "a is in x and in y",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_are_named_with_their_place(kind: str) -> None:
    regions, message = BAD[kind]
    with pytest.raises(InputError, match=rf"^hypervisor_regions.*{message}"):
        normal(*regions)


def test_what_is_no_list_is_named() -> None:
    with pytest.raises(InputError, match="hypervisor_regions: needs a list of regions, not"):
        normal_regions({"name": "x"}, "/run")


def test_nothing_is_gone_where_nothing_changed() -> None:
    same = normal({"name": "x", "size": "16M", "vms": ["a"]})
    assert gone(same, same) == {"domains": [], "regions": []}
    assert gone([], same) == {"domains": [], "regions": []}


def test_a_machine_that_moves_loses_the_old_device() -> None:
    both = [{"name": "x", "size": "16M"}, {"name": "y", "size": "16M"}]
    before = normal({**both[0], "vms": ["a", "b"]}, both[1])
    after = normal({**both[0], "vms": ["b"]}, {**both[1], "vms": ["a"]})
    assert gone(before, after) == {
        "domains": [{"region": "x", "owner": "a"}],
        "regions": [],
    }


def test_a_region_goes_with_all_that_it_has() -> None:
    before = normal({"name": "x", "size": "16M", "vms": ["a"]})
    assert gone(before, []) == {
        "domains": [{"region": "x", "owner": "a"}],
        "regions": before,
    }


def test_a_region_at_another_place_is_another_region() -> None:
    before = normal({"name": "x", "size": "16M", "vms": ["a"]})
    after = normal({"name": "x", "size": "16M", "vms": ["a"], "path": "/dev/hugepages/x"})
    # The device stays: it names the region's socket, and not its file.
    assert gone(before, after) == {"domains": [], "regions": before}


def test_a_socket_that_names_no_owner_gets_the_one_that_is_given() -> None:
    regions = [
        {"name": "x", "size": "16M"},
        {"name": "y", "size": "16M", "socket_owner": "tenant"},
    ]
    owned = normal_regions(regions, "/run", socket_owner="libvirt-qemu")
    assert [one["socket_owner"] for one in owned] == ["libvirt-qemu", "tenant"]
