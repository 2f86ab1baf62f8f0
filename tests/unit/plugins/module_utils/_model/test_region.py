# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the Python side say what bpf/tcp_sm_region.h says, and are plans of chunks sound?"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import region as model
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import (
    InputError,
    TcpSmError,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.region import (
    ChunkState,
    Declared,
    Refusal,
    Region,
    RegionError,
)

ROOT = Path(__file__).resolve().parents[5]
HEADER = ROOT / "bpf" / "tcp_sm_region.h"
KIB, MIB = 1 << 10, 1 << 20
IDENTITY = bytes(range(16))

# Prefix of the enum's members in the header, and the Python side.
ENUMS = {
    "tcp_sm_chunk_state": ("TCP_SM_CHUNK_", model.ChunkState),
    "tcp_sm_slot_state": ("TCP_SM_SLOT_", model.SlotState),
    "tcp_sm_option_type": ("TCP_SM_OPTION_", model.OptionType),
}
# Macros with arguments, and the guard.
NO_CONSTANTS = {"TCP_SM_REGION_H", "TCP_SM_SLOT_WORD", "TCP_SM_ASSERT"}


def header_text() -> str:
    if not HEADER.exists():
        pytest.skip("SKIPPED: bpf/tcp_sm_region.h is not part of an installed collection")
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def header_body(declaration: str) -> str:
    match = re.search(rf"{declaration} \{{(.*?)\n\}};", header_text(), re.DOTALL)
    assert match, f"bpf/tcp_sm_region.h has no {declaration}"
    return match.group(1)


@pytest.fixture(scope="module", name="compiled")
def values_of_the_compiler(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Expression -> value, as the C compiler sees the header."""
    text = header_text()
    if not shutil.which("gcc"):
        pytest.skip("SKIPPED: gcc is missing; `make setup` installs it")
    constants = set(re.findall(r"^#define (TCP_SM_\w+)", text, re.MULTILINE)) - NO_CONSTANTS
    members = [item for name in ENUMS for item in enum_members(name)]
    layouts = [
        expression
        for name, codes in model.LAYOUTS.items()
        for expression in (
            f"sizeof(struct {name})",
            *(f"offsetof(struct {name}, {member})" for member in codes),
        )
    ]
    folder = tmp_path_factory.mktemp("region")
    lines = (
        f'printf("%s=%llu\\n", "{one}", (unsigned long long)({one}));'
        for one in (*sorted(constants), *members, *layouts)
    )
    (folder / "show.c").write_text(
        "#include <linux/types.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "{HEADER}"\nint main(void) {{ {" ".join(lines)} return 0; }}\n'
    )
    command = ["gcc", "-Wall", "-Werror", "-o", str(folder / "show"), str(folder / "show.c")]
    subprocess.run(command, check=True, timeout=60)
    shown = subprocess.run([folder / "show"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split("=") for line in shown.splitlines())}


def enum_members(name: str) -> list[str]:
    return re.findall(r"TCP_SM_\w+", header_body(f"enum {name}"))


def test_every_constant_agrees_with_the_header(compiled: dict[str, int]) -> None:
    names = set(re.findall(r"^#define (TCP_SM_\w+)", header_text(), re.MULTILINE)) - NO_CONSTANTS
    assert len(names) > 15
    python = {name: getattr(model, name.removeprefix("TCP_SM_")) for name in names}
    assert python == {name: compiled[name] for name in names}


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_agrees_with_the_header(compiled: dict[str, int], name: str) -> None:
    prefix, python = ENUMS[name]
    assert {one.removeprefix(prefix): compiled[one] for one in enum_members(name)} == {
        member.name: member.value for member in python
    }


def test_every_enum_and_struct_of_the_header_is_mirrored() -> None:
    assert set(re.findall(r"^enum (\w+) \{", header_text(), re.MULTILINE)) == set(ENUMS)
    structs = set(re.findall(r"^struct (\w+) \{", header_text(), re.MULTILINE))
    assert structs == set(model.LAYOUTS)


@pytest.mark.parametrize("name", model.LAYOUTS)
def test_a_struct_agrees_with_the_compiler(compiled: dict[str, int], name: str) -> None:
    assert compiled[f"sizeof(struct {name})"] == model.struct_size(name)
    for member in model.LAYOUTS[name]:
        expected = compiled[f"offsetof(struct {name}, {member})"]
        assert model.member_offset(name, member) == expected, member


@pytest.mark.parametrize("name", model.LAYOUTS)
def test_a_struct_has_the_members_of_the_header(name: str) -> None:
    lines = [part.strip() for part in header_body(f"struct {name}").split(";")]
    members = [re.sub(r"\[.*", "", line).split()[-1] for line in lines if line]
    assert members == list(model.LAYOUTS[name])


def test_our_flag_of_an_entry_lies_where_nobody_else_looks(compiled: dict[str, int]) -> None:
    offset = compiled["offsetof(struct tcp_sm_chunk_entry, reserved)"]
    chunk = model.Chunk(0, size=4096, automatic=True)
    assert model.pack_entry(chunk)[offset] == model.AUTOMATIC


# Bytes and back.


def region(size: int = 16 * MIB) -> Region:
    return model.new_region("lab", size, IDENTITY, "host.example")


def image(one: Region) -> bytearray:
    data = bytearray(model.HEAD_SIZE)
    for offset, piece in model.pack_region(one).items():
        data[offset : offset + len(piece)] = piece
    return data


def test_a_region_survives_its_bytes() -> None:
    before = model.put_chunk(region(), "a", 4 * MIB, 128 * KIB)
    before = put_automatic(before, 2, 2 * MIB, 64 * KIB)
    after = model.parse_region(bytes(image(before)), "/x")
    assert after == before
    assert [chunk.owner for chunk in after.used] == ["a", "", ""]
    assert [chunk.automatic for chunk in after.used] == [False, True, True]
    assert after.chunks[3].size == 0


def test_the_superblock_counts_up_to_the_last_entry_in_use() -> None:
    two = model.put_chunk(model.put_chunk(region(), "a", MIB, 4096), "b", MIB, 4096)
    offset = model.member_offset("tcp_sm_superblock", "chunks")
    assert model.pack_superblock(two)[offset : offset + 4] == b"\2\0\0\0"
    assert model.pack_superblock(model.remove_chunk(two, "a"))[offset] == 2
    assert model.pack_superblock(model.remove_chunk(two, "b"))[offset] == 1


def put(data: bytearray, name: str, member: str, value: bytes, base: int = 0) -> None:
    at = base + model.member_offset(name, member)
    data[at : at + len(value)] = value


ENTRY = model.TABLE_OFFSET
DAMAGE: dict[str, tuple[tuple[Any, ...], str]] = {
    "magic": (("tcp_sm_superblock", "magic", b"nonsense"), "magic number"),
    "version": (("tcp_sm_superblock", "version", b"\7\0\0\0"), "has version 7"),
    "size": (("tcp_sm_superblock", "size", b"\1" + bytes(7)), "says 1 bytes"),
    "identity": (("tcp_sm_superblock", "id", bytes(16)), "no identity"),
    "name": (("tcp_sm_superblock", "name", b"\xff\xfe"), "has the name '��b'"),
    "no name": (("tcp_sm_superblock", "name", bytes(64)), "has the name ''"),
    "state": (("tcp_sm_chunk_entry", "state", b"\x09\0\0\0", ENTRY), "unknown state 9"),
    "offset low": (("tcp_sm_chunk_entry", "offset", bytes(8), ENTRY), "lies at 0"),
    "offset odd": (("tcp_sm_chunk_entry", "offset", b"\1\0\1\0\0\0\0\0", ENTRY), "lies at 65537"),
    "offset high": (
        ("tcp_sm_chunk_entry", "offset", b"\0\0\0\xff" + bytes(4), ENTRY),
        "beyond the region",
    ),
    "size huge": (("tcp_sm_chunk_entry", "size", b"\0" * 7 + b"\xff", ENTRY), "beyond the region"),
    "ring": (("tcp_sm_chunk_entry", "ring_size", b"\3\0\0\0", ENTRY), "rings of 3 bytes"),
    "slots": (("tcp_sm_chunk_entry", "slots", b"\0\x10\0\0", ENTRY), "too small for 4096 slots"),
    "no slots": (("tcp_sm_chunk_entry", "slots", bytes(4), ENTRY), "too small for 0 slots"),
    "owner twice": (("tcp_sm_chunk_entry", "owner", b"b\0", ENTRY), "both belong to b"),
    "overlap": (
        ("tcp_sm_chunk_entry", "offset", b"\0\0\2" + bytes(5), ENTRY + model.ENTRY_SIZE),
        "chunks 0 and 1 overlap",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str) -> None:
    change, message = DAMAGE[kind]
    two = model.put_chunk(model.put_chunk(region(), "a", MIB, 4096), "b", MIB, 4096)
    data = image(two)
    put(data, *change)
    with pytest.raises(RegionError, match=rf"^Cannot \w+ region /x: .*{message}"):
        model.parse_region(bytes(data), "/x")


def test_what_is_too_short_is_no_region() -> None:
    with pytest.raises(RegionError, match="Cannot read region /x: it has 9 bytes"):
        model.parse_region(bytes(9), "/x")


def test_any_header_of_a_guest_can_be_parsed() -> None:
    generator = random.Random(7)
    for _round in range(50):
        header = model.parse_header(generator.randbytes(model.HEADER_SIZE))
        assert not header.started
        assert len(header.seen) == model.CHUNKS_MAX


# Sizes.


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        (4096, 4096),
        ("128K", 128 * KIB),
        ("128k", 128 * KIB),
        ("256M", 256 * MIB),
        ("1GiB", 1024 * MIB),
        (" 2 MB ", 2 * MIB),
    ],
)
def test_a_size_may_have_a_unit(text: object, size: int) -> None:
    assert model.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "1X", "0x10", "1 2", "ten", None])
def test_what_is_no_size_is_named(text: object) -> None:
    with pytest.raises(InputError, match=r"ring_size: .* is not a size"):
        model.parse_size(text, "ring_size")


def test_a_size_is_shown_in_the_largest_unit_without_rest() -> None:
    sizes = [0, 4095, 4096, 96 * MIB, 1 << 30, (1 << 30) + 4096]
    assert [model.size_text(size) for size in sizes] == [
        "0",
        "4095",
        "4K",
        "96M",
        "1G",
        "1048580K",
    ]


@pytest.mark.parametrize("ring_size", [4096, 128 * KIB, 4 * MIB])
@pytest.mark.parametrize("size", [256 * KIB, MIB, 33 * MIB + 4096, 3 << 30])
def test_the_slots_fill_a_chunk_and_no_more(size: int, ring_size: int) -> None:
    slots = model.slots_for(size, ring_size)
    assert slots == 0 or model.chunk_needs(slots, ring_size) <= size
    if slots < model.SLOTS_MAX:
        assert model.chunk_needs(slots + 1, ring_size) > size


def test_equal_shares_fit_together() -> None:
    for parts in (1, 2, 3, 7, 100):
        share = model.equal_share(64 * MIB, parts)
        assert share % 4096 == 0
        assert model.CHUNKS_OFFSET + parts * share <= 64 * MIB
        assert model.CHUNKS_OFFSET + parts * (share + 4096) > 64 * MIB


# Plans.


def put_automatic(one: Region, count: int, size: int, ring_size: int, in_use: Any = None) -> Region:
    """As many automatic chunks of that geometry, and nothing else changed."""
    return model.arrange(one, [], [Declared("", size, ring_size)] * count, 0, in_use)


def arrange(one: Region, *machines: Any, automatic: int = 0, **options: Any) -> Region:
    """Chunks of no declared size for these machines, others removed; 4 KiB rings and a share of
    4 MiB where nothing else is said."""
    declared = [m if isinstance(m, Declared) else Declared(m, 0, 4096) for m in machines]
    one = model.keep_owners(one, [m.owner for m in declared], options.get("in_use"))
    options.setdefault("share", 4 * MIB)
    return model.arrange(one, declared, [Declared("", 0, 4096)] * automatic, **options)


def sizes(one: Region) -> dict[str, int]:
    return {chunk.owner: chunk.size for chunk in one.used}


def test_chunks_are_aligned_and_apart_whatever_is_declared_and_removed() -> None:
    generator = random.Random(3)
    one = region(64 * MIB)
    for step in range(300):
        owner = f"vm{generator.randrange(12)}"
        size = generator.randrange(64, 2048) * 4096
        ring_size = 4096 << generator.randrange(4)
        try:
            if step % 3 == 2:
                one = model.remove_chunk(one, owner)
            else:
                one = model.put_chunk(one, owner, size, ring_size)
        except RegionError as error:
            assert "the largest gap" in str(error)  # noqa: PT017
        assert list(model.problems(one)) == []
    assert model.parse_region(bytes(image(one)), "/x").used == one.used


def test_declaring_the_same_again_changes_nothing() -> None:
    once = model.put_chunk(region(), "a", MIB, 4096)
    assert model.put_chunk(once, "a", MIB, 4096) == once
    assert put_automatic(once, 0, MIB, 4096) == once
    some = put_automatic(once, 3, MIB, 4096)
    assert put_automatic(some, 3, MIB, 4096) == some


def test_a_declared_chunk_is_assigned_and_an_automatic_one_free() -> None:
    one = put_automatic(model.put_chunk(region(), "a", MIB, 4096), 1, MIB, 4096)
    assert [(chunk.state, chunk.epoch) for chunk in one.used] == [
        (ChunkState.ASSIGNED, 1),
        (ChunkState.FREE, 1),
    ]


def test_an_index_keeps_counting_epochs_through_removal() -> None:
    one = model.put_chunk(region(), "a", MIB, 4096)
    one = one.with_chunk(replace(one.chunks[0], epoch=41))
    gone = model.remove_chunk(one, "a")
    assert gone.used == ()
    assert gone.chunks[0].epoch == 42
    assert model.put_chunk(gone, "b", MIB, 4096).chunks[0].epoch == 43


def test_another_geometry_moves_the_chunk_and_begins_another_epoch() -> None:
    one = model.put_chunk(model.put_chunk(region(), "a", MIB, 4096), "b", MIB, 4096)
    moved = model.put_chunk(one, "a", 2 * MIB, 4096)
    assert moved.chunks[1] == one.chunks[1]
    assert moved.chunks[0].size == 2 * MIB
    assert moved.chunks[0].offset == one.chunks[1].end
    assert moved.chunks[0].epoch > one.chunks[0].epoch
    # The gap that it left is used again.
    assert model.put_chunk(moved, "c", MIB, 4096).chunks[2].offset == model.CHUNKS_OFFSET


def test_who_declares_an_automatic_chunk_of_a_machine_takes_it_over() -> None:
    one = put_automatic(region(), 1, MIB, 4096)
    one = one.with_chunk(replace(one.chunks[0], owner="a", state=ChunkState.ASSIGNED))
    declared = model.put_chunk(one, "a", MIB, 4096, {0: "a (pid 1)"})
    assert declared.chunks[0] == replace(one.chunks[0], automatic=False)


def test_who_comes_and_who_goes_moves_nobody() -> None:
    thirds = model.equal_share(16 * MIB, 3)
    three = arrange(region(), "a", "b", "c", share=thirds)
    assert sizes(three) == {"a": thirds, "b": thirds, "c": thirds}
    # One goes: the others' share would be larger now.
    two = arrange(three, "a", "b", share=model.equal_share(16 * MIB, 2), in_use={0: "a", 1: "b"})
    assert (two.used, two.chunks[2].epoch) == (three.used[:2], 2)
    # Two come: their share does not fit into what is free, so they get equal parts of it.
    four = arrange(two, "d", "a", "e", "b", share=8 * MIB, in_use={0: "a", 1: "b"})
    assert four.used[:2] == three.used[:2]
    assert four.chunks[2].owner == "d"
    assert (
        sizes(four)["d"] == sizes(four)["e"] == (16 * MIB - three.used[1].end) // 2 // 4096 * 4096
    )
    assert arrange(four, "a", "b", "d", "e", share=model.equal_share(16 * MIB, 4)) == four


def test_a_share_that_fits_is_given() -> None:
    one = arrange(region(), "a", share=4 * MIB)
    assert sizes(arrange(one, "a", "b", share=2 * MIB)) == {"a": 4 * MIB, "b": 2 * MIB}


def test_what_is_free_in_several_places_is_divided_too() -> None:
    one = arrange(region(), "a", "b", "c", "d", share=model.equal_share(16 * MIB, 4))
    gap = one.used[0].size
    three = arrange(arrange(one, "b", "d"), "b", "d", "x", "y", "z", share=16 * MIB)
    # Two gaps of the same size: one for one of them, one for two.
    assert sizes(three)["x"] == sizes(three)["y"] == sizes(three)["z"] == gap // 2 // 4096 * 4096
    assert list(model.problems(three)) == []


def test_where_nothing_is_left_for_another_one_it_says_what_to_do() -> None:
    full = arrange(region(), "a", "b", share=model.equal_share(16 * MIB, 2))
    with pytest.raises(RegionError) as refused:
        arrange(full, "a", "b", "c", share=4 * MIB)
    message = str(refused.value)
    assert "Cannot declare a chunk for c in region lab" in message
    assert "a new one would get 0" in message
    assert "Make the region larger, remove a chunk, or give chunks that are there" in message


def test_a_declared_size_is_no_share() -> None:
    one = arrange(region(), "a", share=4 * MIB)
    other = arrange(one, Declared("a", 2 * MIB, 4096))
    assert sizes(other) == {"a": 2 * MIB}
    with pytest.raises(RegionError, match=r"Cannot change chunk 0 of a .*: a \(pid 7\) uses it"):
        arrange(one, Declared("a", 2 * MIB, 4096), in_use={0: "a (pid 7)"})


def test_other_rings_keep_number_and_size() -> None:
    one = arrange(region(), "a", "b", share=4 * MIB)
    other = arrange(one, Declared("a", 0, 8192), "b", share=MIB)
    assert other.chunks[0].geometry[:2] == (4 * MIB, 8192)
    assert other.chunks[1] == one.chunks[1]


def test_what_shrinks_makes_room_for_what_grows() -> None:
    one = arrange(region(), Declared("a", 6 * MIB, 4096), Declared("b", 8 * MIB, 4096))
    other = arrange(one, Declared("a", 10 * MIB, 4096), Declared("b", 4 * MIB, 4096))
    assert [(c.index, c.owner, c.size) for c in other.used] == [
        (0, "a", 10 * MIB),
        (1, "b", 4 * MIB),
    ]


def test_a_region_of_another_size_is_divided_anew() -> None:
    one = arrange(region(), "a", Declared("b", MIB, 4096), "c", automatic=1, share=2 * MIB)
    grown = arrange(
        model.resize(one, 32 * MIB),
        *("c", Declared("b", MIB, 4096), "a"),
        automatic=1,
        share=8 * MIB,
        keep=False,
    )
    assert [(c.index, c.owner) for c in grown.used] == [(0, "a"), (1, "b"), (2, "c"), (3, "")]
    assert [c.size // MIB for c in grown.used] == [8, 1, 8, 8]
    assert grown.chunks[1] == one.chunks[1]


def test_automatic_chunks_keep_their_size_too() -> None:
    one = arrange(region(), "a", automatic=2, share=4 * MIB)
    assert arrange(one, "a", automatic=2, share=MIB) == one
    more = arrange(one, "a", automatic=3, share=MIB)
    assert [c.size // MIB for c in more.used] == [4, 4, 4, 1]
    assert arrange(more, "a", automatic=2, share=MIB) == one.with_chunk(more.chunks[3]).with_chunk(
        replace(model.Chunk(3), epoch=2)
    )


def test_a_machine_that_is_declared_later_leaves_its_place_among_the_automatic_ones() -> None:
    one = arrange(region(), automatic=2, share=4 * MIB)
    one = one.with_chunk(replace(one.chunks[1], owner="a", state=ChunkState.ASSIGNED))
    declared = arrange(one, "a", automatic=2, share=4 * MIB, in_use={1: "a (pid 7)"})
    assert declared.chunks[1] == replace(one.chunks[1], automatic=False)
    assert [c.index for c in declared.used if c.automatic] == [0, 2]
    assert arrange(declared, "a", automatic=2, share=4 * MIB) == declared


def test_chunks_of_any_plan_are_aligned_apart_and_planned_once() -> None:
    generator = random.Random(5)
    one = region(64 * MIB)
    for _step in range(100):
        machines = [f"vm{n}" for n in range(10) if generator.randrange(2)]
        options = {
            "automatic": generator.randrange(3),
            "share": 4096 * generator.randrange(60, 4000),
        }
        try:
            one = arrange(one, *machines, **options)
        except RegionError as error:
            assert "chunks that are there keep" in str(error)  # noqa: PT017
            continue
        assert list(model.problems(one)) == []
        assert arrange(one, *machines, **options) == one


BAD: dict[str, tuple[Any, str]] = {
    "no power of two": (lambda: region(100 * MIB), "100M is not a power of two.* 64M or 128M"),
    "zero": (lambda: region(0), "not a power of two"),
    "too small": (lambda: region(128 * KIB), "must be from 256K to"),
    "too large": (lambda: region(1 << 41), "must be from 256K to 1T"),
    "name empty": (lambda: model.new_region("", MIB, IDENTITY), "name: '' must be"),
    "name a path": (lambda: model.new_region("a/b", MIB, IDENTITY), "name: 'a/b' must be"),
    "name long": (lambda: model.new_region("x" * 64, MIB, IDENTITY), "1 to 63 letters"),
    "host long": (lambda: model.new_region("x", MIB, IDENTITY, "é" * 32), "host: .*63 bytes"),
    "no identity": (lambda: model.new_region("x", MIB, bytes(16)), "16 random bytes"),
    "owner empty": (lambda: model.put_chunk(region(), "", MIB, 4096), "owner: '' must be"),
    "owner long": (lambda: model.put_chunk(region(), "x" * 64, MIB, 4096), "at most 63"),
    "owner odd": (lambda: model.put_chunk(region(), "a\n", MIB, 4096), "printable"),
    "chunk larger than the region": (
        lambda: model.put_chunk(region(), "a", 16 * MIB, 4096),
        "a chunk for a of 16M is larger than region lab.*room for 16320K",
    ),
    "chunk negative": (lambda: model.put_chunk(region(), "a", -4096, 4096), "must be a multiple"),
    "chunk unaligned": (lambda: model.put_chunk(region(), "a", 5000, 4096), "multiple of 4096"),
    "chunk without a slot": (
        lambda: model.put_chunk(region(), "a", 256 * KIB, 128 * KIB),
        "no room for a connection.*it needs 392K or more",
    ),
    "ring no power of two": (lambda: model.put_chunk(region(), "a", MIB, 5000), "ring_size: 5000"),
    "ring small": (lambda: model.put_chunk(region(), "a", MIB, 2048), "ring_size: 2K must be"),
    "ring large": (lambda: model.put_chunk(region(), "a", MIB, 8 * MIB), "from 4K to 4M"),
    "no gap": (
        lambda: model.put_chunk(model.put_chunk(region(), "a", 8 * MIB, 4096), "b", 8 * MIB, 4096),
        "Cannot declare a chunk of 8M for b in region lab: the largest gap is 8128K",
    ),
    "automatic many": (lambda: put_automatic(region(), 16, MIB, 4096), "the largest gap"),
    "shrink": (
        lambda: model.resize(model.put_chunk(region(), "a", 9 * MIB, 4096), 8 * MIB),
        "Cannot shrink region lab from 16M to 8M: chunk 0 of a reaches to 9280K",
    ),
    "resize odd": (lambda: model.resize(region(), 3 * MIB), "not a power of two"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused_with_the_reason(kind: str) -> None:
    call, message = BAD[kind]
    with pytest.raises(TcpSmError, match=message):
        call()


def test_257_chunks_are_too_many() -> None:
    one = region(64 * MIB)
    for index in range(256):
        one = model.put_chunk(one, f"vm{index}", 160 * KIB, 4096)
    with pytest.raises(RegionError, match="all 256 are taken"):
        model.put_chunk(one, "more", 160 * KIB, 4096)


def in_use_plans() -> Iterator[tuple[str, Any]]:
    yield "change", lambda one, used: model.put_chunk(one, "a", 2 * MIB, 4096, used)
    yield "change", lambda one, used: model.put_chunk(one, "a", MIB, 8192, used)
    yield "remove", lambda one, used: model.remove_chunk(one, "a", used)


@pytest.mark.parametrize(("verb", "plan"), list(in_use_plans()))
def test_what_is_in_use_is_left_alone(verb: str, plan: Any) -> None:
    one = model.put_chunk(region(), "a", MIB, 4096)
    with pytest.raises(RegionError, match=rf"Cannot {verb} chunk 0 of a .* a \(pid 7\) uses it"):
        plan(one, {0: "a (pid 7)"})
    assert plan(one, {1: "b (pid 8)"}) != one


def test_of_automatic_chunks_those_in_use_stay() -> None:
    one = put_automatic(region(), 3, MIB, 4096)
    fewer = put_automatic(one, 1, MIB, 4096, {2: "c (pid 9)"})
    assert [chunk.index for chunk in fewer.used] == [2]
    with pytest.raises(RegionError, match=r"Cannot remove chunk 2 .*: c \(pid 9\) uses it"):
        put_automatic(one, 0, 0, 4096, {2: "c (pid 9)"})


def test_growing_keeps_every_chunk() -> None:
    one = model.put_chunk(region(), "a", MIB, 4096)
    grown = model.resize(one, 32 * MIB)
    assert (grown.size, grown.chunks, grown.id) == (32 * MIB, one.chunks, one.id)
    assert model.resize(grown, 2 * MIB).size == 2 * MIB


# Lives.


def test_an_epoch_never_becomes_zero() -> None:
    assert [model.next_epoch(epoch) for epoch in (0, 1, (1 << 32) - 2, (1 << 32) - 1)] == [
        1,
        2,
        (1 << 32) - 1,
        1,
    ]


def choose(one: Region, *names: str, busy: Any = (), settled: Any = ()) -> int | str:
    chosen = model.choose_chunk(one, names, busy, settled)
    return chosen.reason if isinstance(chosen, Refusal) else chosen


def test_a_machine_gets_its_own_chunk_by_name_or_uuid() -> None:
    one = model.put_chunk(model.put_chunk(region(), "a", MIB, 4096), "some-uuid", MIB, 4096)
    assert choose(one, "a", "other-uuid") == 0
    assert choose(one, "b", "some-uuid") == 1
    assert "no chunk of region lab is declared for b" in str(choose(one, "b"))
    assert "in use by that machine already" in str(choose(one, "a", busy={0}))


def test_a_machine_without_a_chunk_gets_an_automatic_one() -> None:
    one = put_automatic(model.put_chunk(region(), "a", MIB, 4096), 2, MIB, 4096)
    assert choose(one, "b") == 1
    one = one.with_chunk(replace(one.chunks[1], owner="b", state=ChunkState.DEAD))
    assert choose(one, "b") == 1
    assert choose(one, "c") == 2
    one = one.with_chunk(replace(one.chunks[2], owner="c", state=ChunkState.ASSIGNED))
    # b is dead, but its chunk is given to another machine only when its peers have let go.
    assert "all its automatic ones are taken" in str(choose(one, "d", busy={2}))
    assert choose(one, "d", busy={2}, settled={1}) == 1
    assert "are taken" in str(choose(one, "d", busy={1, 2}, settled={1}))
