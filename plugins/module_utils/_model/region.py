# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A region of the ring channel: its layout in shared memory, and the planning of its chunks.

Private to this collection; shared by the modules and the hypervisor's agent. Mirrors
``bpf/tcp_sm_region.h``, against which the unit tests hold every constant, size and offset.
Nothing here touches the machine: a region is bytes, and a plan is another region.
"""

from __future__ import annotations

import bisect
import enum
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import InputError, TcpSmError

REGION_MAGIC = 0x4E474552534D5354
CHUNK_MAGIC = 0x4B4E4843534D5354
REGION_VERSION = 1

CHUNKS_MAX = 256
SLOTS_MAX = 4096
RING_MIN = 4096
RING_MAX = 4 << 20

TABLE_OFFSET = 4096
CHUNKS_OFFSET = 65536
INBOX_OFFSET = 4096
INBOX_ROW = SLOTS_MAX // 8
SLOTS_OFFSET = INBOX_OFFSET + CHUNKS_MAX * INBOX_ROW
SLOT_SIZE = 512

OPTION_KIND = 254
OPTION_EXID_0 = 0xC0
OPTION_EXID_1 = 0x7C
OPTION_LEN = 20

SLOT_CLIENT_LEFT = 0x10
SLOT_SERVER_LEFT = 0x20
SLOT_FLAGS = 0xFF

PAGE = 4096
RING_DEFAULT = 128 << 10
# The smallest power of two that holds one chunk with one slot, and a limit against slips.
REGION_MIN = 256 << 10
REGION_MAX = 1 << 40
U32 = 1 << 32

# Ours, in the first byte of an entry's `reserved`: the agent gives this chunk to any machine
# that has none of its own.
AUTOMATIC = 1


class ChunkState(enum.IntEnum):
    """``enum tcp_sm_chunk_state``."""

    FREE = 0
    ASSIGNED = 1
    DEAD = 2


class SlotState(enum.IntEnum):
    """``enum tcp_sm_slot_state``."""

    FREE = 0
    OFFERED = 1
    ACTIVE = 2
    JOINED = 3
    REJECTED = 4


class OptionType(enum.IntEnum):
    """``enum tcp_sm_option_type``."""

    OFFER = 1
    ACCEPT = 2


# Member -> struct code, in the order of the header. The header pads explicitly, so the codes one
# after another are the layout.
LAYOUTS: dict[str, dict[str, str]] = {
    "tcp_sm_superblock": {
        "magic": "Q",
        "version": "I",
        "chunks": "I",
        "size": "Q",
        "id": "16s",
        "name": "64s",
        "host": "64s",
    },
    "tcp_sm_chunk_entry": {
        "state": "I",
        "epoch": "I",
        "offset": "Q",
        "size": "Q",
        "ring_size": "I",
        "slots": "I",
        "owner": "64s",
        "reserved": "32s",
    },
    "tcp_sm_chunk_header": {
        "magic": "Q",
        "index": "I",
        "epoch": "I",
        "beat": "I",
        "awake": "I",
        "pad": "40s",
        "summary": "32s",
        "attention": "I",
        "pad1": "28s",
        "seen": "1024s",
    },
    "tcp_sm_lane": {
        "head": "I",
        "left": "I",
        "want_space": "I",
        "pad0": "52s",
        "tail": "I",
        "want_data": "I",
        "closed": "I",
        "pad1": "52s",
    },
    "tcp_sm_slot": {"word": "Q", "pad": "56s", "lane": "256s", "pad1": "192s"},
    "tcp_sm_option": {
        "kind": "B",
        "len": "B",
        "exid": "2s",
        "type": "B",
        "chunk": "B",
        "slot": "2s",
        "nonce": "4s",
        "tag": "8s",
    },
}
_STRUCTS = {name: struct.Struct("<" + "".join(codes.values())) for name, codes in LAYOUTS.items()}
NAME_MAX = 63  # bytes; one more is the NUL
OWNER_MAX = 63
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class RegionError(TcpSmError):
    """A region cannot be read, or is in a state in which this cannot be done."""


def struct_size(name: str) -> int:
    """The size of a C struct in bytes."""
    return _STRUCTS[name].size


def member_offset(name: str, member: str) -> int:
    """The offset of a member of a C struct in bytes."""
    codes = list(LAYOUTS[name].items())
    position = [key for key, _code in codes].index(member)
    return struct.calcsize("<" + "".join(code for _key, code in codes[:position]))


def _unpack(name: str, data: bytes) -> dict[str, Any]:
    return dict(zip(LAYOUTS[name], _STRUCTS[name].unpack(data), strict=True))


ENTRY_SIZE = struct_size("tcp_sm_chunk_entry")
HEADER_SIZE = struct_size("tcp_sm_chunk_header")
# All that this file parses: superblock and table.
HEAD_SIZE = TABLE_OFFSET + CHUNKS_MAX * ENTRY_SIZE


@dataclass(frozen=True)
class Chunk:
    """An entry of the chunk table. One without a size is unused; only its epoch means something.

    `offset` and `size` are bytes in the region, `ring_size` bytes of one direction.
    """

    index: int
    state: ChunkState = ChunkState.FREE
    epoch: int = 0
    offset: int = 0
    size: int = 0
    ring_size: int = 0
    slots: int = 0
    owner: str = ""
    automatic: bool = False

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.size

    @property
    def geometry(self) -> tuple[int, int, int]:
        """What a user declares, and the slots that follow from it."""
        return self.size, self.ring_size, self.slots

    @property
    def memory(self) -> tuple[int, int, str]:
        """What memory it is, and whose."""
        return self.offset, self.size, self.owner

    def describe(self) -> dict[str, Any]:
        """For RETURN, diff and status; without what changes by itself."""
        return {
            "index": self.index,
            "owner": self.owner,
            "automatic": self.automatic,
            "offset": self.offset,
            "size": self.size,
            "ring_size": self.ring_size,
            "slots": self.slots,
        }


@dataclass(frozen=True)
class Declared:
    """A chunk that is wanted; without an owner, for any machine. `size` 0: the chunk that is there
    keeps its size, and a new one gets a share."""

    owner: str
    size: int
    ring_size: int

    def __str__(self) -> str:
        return f"a chunk for {self.owner}" if self.owner else "an automatic chunk"

    def is_met(self, chunk: Chunk, keep: bool) -> bool:
        """Is `chunk` as declared? Without `keep`, no chunk is that keeps a size it was given."""
        size = self.size or (chunk.size if keep else 0)
        return chunk.geometry == (size, self.ring_size, slots_for(size, self.ring_size))


@dataclass(frozen=True)
class Region:
    """Superblock and table. `chunks` has an item for each of the CHUNKS_MAX entries."""

    name: str
    size: int
    id: bytes
    host: str = ""
    chunks: tuple[Chunk, ...] = tuple(Chunk(index) for index in range(CHUNKS_MAX))

    @property
    def used(self) -> tuple[Chunk, ...]:
        """The chunks that are declared, by index."""
        return tuple(chunk for chunk in self.chunks if chunk.size)

    def owned_by(self, owner: str) -> Chunk | None:
        """The chunk of that machine."""
        return next((chunk for chunk in self.used if owner and chunk.owner == owner), None)

    def with_chunk(self, chunk: Chunk) -> Region:
        """The same region with another entry in the place of `chunk.index`."""
        chunks = (*self.chunks[: chunk.index], chunk, *self.chunks[chunk.index + 1 :])
        return replace(self, chunks=chunks)


@dataclass(frozen=True)
class Header:
    """What a chunk's owner says about itself. `started`: its module took the chunk."""

    started: bool
    index: int
    epoch: int
    seen: tuple[int, ...]


# Bytes and back.


def pack_superblock(region: Region) -> bytes:
    """``struct tcp_sm_superblock``."""
    chunks = max((chunk.index + 1 for chunk in region.used), default=0)
    return _STRUCTS["tcp_sm_superblock"].pack(
        REGION_MAGIC,
        REGION_VERSION,
        chunks,
        region.size,
        region.id,
        region.name.encode(),
        region.host.encode(),
    )


def pack_entry(chunk: Chunk) -> bytes:
    """``struct tcp_sm_chunk_entry``."""
    return _STRUCTS["tcp_sm_chunk_entry"].pack(
        chunk.state,
        chunk.epoch,
        chunk.offset,
        chunk.size,
        chunk.ring_size,
        chunk.slots,
        chunk.owner.encode(),
        bytes([AUTOMATIC if chunk.automatic else 0]),
    )


def entry_offset(index: int) -> int:
    """Where entry `index` lies in the region."""
    return TABLE_OFFSET + index * ENTRY_SIZE


def pack_region(region: Region) -> dict[int, bytes]:
    """Offset -> bytes of a new region's superblock and declared entries."""
    entries = {entry_offset(chunk.index): pack_entry(chunk) for chunk in region.used}
    return {0: pack_superblock(region), **entries}


def parse_region(data: bytes, where: str) -> Region:
    """A region from its first HEAD_SIZE bytes; `where` names it in messages.

    Raises RegionError when it is none, of another version, or contradicts itself.
    """
    if len(data) < HEAD_SIZE:
        raise RegionError(
            f"Cannot read region {where}: it has {len(data)} bytes, and the smallest region "
            f"{REGION_MIN}. It is not a region; name another path."
        )
    raw = _unpack("tcp_sm_superblock", data[: struct_size("tcp_sm_superblock")])
    if raw["magic"] != REGION_MAGIC:
        raise RegionError(
            f"Cannot read region {where}: it does not begin with a region's magic number, so it "
            "belongs to something else. Name another path, or delete the file if it is not needed."
        )
    if raw["version"] != REGION_VERSION:
        raise RegionError(
            f"Cannot read region {where}: it has version {raw['version']} and this collection "
            f"knows {REGION_VERSION}. Use the collection that made it, or make the region anew."
        )
    chunks = tuple(_parse_entry(data, index, where) for index in range(CHUNKS_MAX))
    region = Region(_text(raw["name"]), raw["size"], raw["id"], _text(raw["host"]), chunks)
    if problem := next(problems(region), None):
        raise RegionError(
            f"Cannot use region {where}: {problem}. It is damaged; stop its machines and make it "
            "anew (state absent, then present)."
        )
    return region


def _parse_entry(data: bytes, index: int, where: str) -> Chunk:
    offset = entry_offset(index)
    raw = _unpack("tcp_sm_chunk_entry", data[offset : offset + ENTRY_SIZE])
    try:
        state = ChunkState(raw["state"])
    except ValueError:
        raise RegionError(
            f"Cannot use region {where}: chunk {index} has the unknown state {raw['state']}. It is "
            "damaged; stop its machines and make it anew (state absent, then present)."
        ) from None
    return Chunk(
        index,
        state,
        raw["epoch"],
        raw["offset"],
        raw["size"],
        raw["ring_size"],
        raw["slots"],
        _text(raw["owner"]),
        bool(raw["reserved"][0] & AUTOMATIC),
    )


def parse_header(data: bytes) -> Header:
    """``struct tcp_sm_chunk_header``; a guest writes it, so any value is possible."""
    raw = _unpack("tcp_sm_chunk_header", data)
    seen = struct.unpack(f"<{CHUNKS_MAX}I", raw["seen"])
    return Header(raw["magic"] == CHUNK_MAGIC, raw["index"], raw["epoch"], seen)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def problems(region: Region) -> Iterator[str]:
    """What contradicts itself, one sentence part each."""
    if not is_power_of_two(region.size) or not REGION_MIN <= region.size <= REGION_MAX:
        yield f"its superblock says {region.size} bytes"
        return
    if not any(region.id):
        yield "it has no identity"
    if not NAME.fullmatch(region.name):
        yield f"its superblock has the name {region.name!r}"
    owners: dict[str, int] = {}
    last: Chunk | None = None
    for chunk in sorted(region.used, key=lambda one: one.offset):
        yield from _chunk_problems(chunk, region.size)
        if last and chunk.offset < last.end:
            yield f"chunks {last.index} and {chunk.index} overlap"
        if chunk.owner and chunk.owner in owners:
            yield f"chunks {owners[chunk.owner]} and {chunk.index} both belong to {chunk.owner}"
        owners[chunk.owner] = chunk.index
        last = chunk


def _chunk_problems(chunk: Chunk, size: int) -> Iterator[str]:
    if chunk.offset % PAGE or chunk.size % PAGE or chunk.offset < CHUNKS_OFFSET:
        yield f"chunk {chunk.index} lies at {chunk.offset} with {chunk.size} bytes"
    if chunk.end > size:
        yield f"chunk {chunk.index} reaches beyond the region's end"
    if not (is_power_of_two(chunk.ring_size) and RING_MIN <= chunk.ring_size <= RING_MAX):
        yield f"chunk {chunk.index} has rings of {chunk.ring_size} bytes"
    elif not 0 < chunk.slots <= SLOTS_MAX or chunk_needs(chunk.slots, chunk.ring_size) > chunk.size:
        yield f"chunk {chunk.index} is too small for {chunk.slots} slots"


# Sizes.

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: object, what: str = "size") -> int:
    """Bytes from a number or from text such as 256M or 128K (powers of 1024)."""
    found = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)(?:i?B)?\s*", str(text), re.IGNORECASE)
    if not found:
        raise InputError(f"{what}: {text!r} is not a size; write bytes, or such as 128K, 256M, 1G")
    return int(found[1]) * _UNITS[found[2].upper()]


def size_text(size: int) -> str:
    """Bytes for people, in the largest unit that leaves no rest."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def is_power_of_two(number: int) -> bool:
    """1, 2, 4, …"""
    return number > 0 and number & (number - 1) == 0


def align(number: int, step: int = PAGE) -> int:
    """The next multiple of `step`."""
    return -(-number // step) * step


def chunk_needs(slots: int, ring_size: int) -> int:
    """Bytes that a chunk of this geometry takes."""
    return align(SLOTS_OFFSET + slots * SLOT_SIZE) + slots * 2 * ring_size


def slots_for(size: int, ring_size: int) -> int:
    """How many connections a chunk of `size` bytes has room for; 0: it is too small."""
    slots = min(SLOTS_MAX, max(0, size - SLOTS_OFFSET) // (SLOT_SIZE + 2 * ring_size))
    while slots and chunk_needs(slots, ring_size) > size:
        slots -= 1
    return slots


def equal_share(size: int, parts: int) -> int:
    """Bytes of each of `parts` equal chunks of a region of `size` bytes."""
    return (size - CHUNKS_OFFSET) // parts // PAGE * PAGE


# Plans: each function returns another region or raises, with nothing changed.


def check_name(name: str) -> str:
    """A region's name: it becomes part of file and socket names."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"name: {name!r} must be 1 to {NAME_MAX} letters, digits, '_', '-' or '.', and begin "
            "with a letter or digit"
        )
    return name


def check_owner(owner: str) -> str:
    """A machine's name or UUID as the owner of a chunk."""
    if not owner or len(owner.encode()) > OWNER_MAX or not owner.isprintable():
        raise InputError(
            f"owner: {owner!r} must be the name or UUID of a virtual machine, at most {OWNER_MAX} "
            "bytes of printable text"
        )
    return owner


def check_size(size: int) -> int:
    """A region's size in bytes."""
    if not is_power_of_two(size):
        below = 1 << (size.bit_length() - 1) if size > 0 else REGION_MIN
        raise InputError(
            f"size: {size_text(size)} is not a power of two, which the device needs; use "
            f"{size_text(max(below, REGION_MIN))} or {size_text(max(below * 2, REGION_MIN))}"
        )
    if not REGION_MIN <= size <= REGION_MAX:
        raise InputError(
            f"size: {size_text(size)} must be from {size_text(REGION_MIN)} to "
            f"{size_text(REGION_MAX)}"
        )
    return size


def check_ring_size(ring_size: int) -> int:
    """Bytes of one direction of a connection."""
    if not is_power_of_two(ring_size) or not RING_MIN <= ring_size <= RING_MAX:
        raise InputError(
            f"ring_size: {size_text(ring_size)} must be a power of two from "
            f"{size_text(RING_MIN)} to {size_text(RING_MAX)}"
        )
    return ring_size


def check_count(count: int) -> int:
    """How many automatic chunks."""
    if not 0 <= count <= CHUNKS_MAX:
        raise InputError(f"automatic: {count} must be from 0 to {CHUNKS_MAX} chunks")
    return count


def check_parts(parts: int, chunks: int) -> int:
    """Into how many equal parts a region with so many declared chunks is divided."""
    if parts < max(1, chunks):
        raise InputError(
            f"parts: {parts} must be a number of at least {max(1, chunks)}, for that many chunks "
            "are declared"
        )
    if parts > CHUNKS_MAX:
        raise InputError(f"parts: {parts} must be at most {CHUNKS_MAX}, for a region has no more")
    return parts


def check_host(host: str) -> str:
    """The hypervisor's name or address."""
    if len(host.encode()) > NAME_MAX or not host.isprintable():
        raise InputError(f"host: {host!r} must be at most {NAME_MAX} bytes of printable text")
    return host


def new_region(name: str, size: int, identity: bytes, host: str = "") -> Region:
    """A region without chunks. `identity`: 16 random bytes."""
    if len(identity) != 16 or not any(identity):
        raise InputError("a region's identity must be 16 random bytes")
    return Region(check_name(name), check_size(size), identity, check_host(host))


def resize(region: Region, size: int) -> Region:
    """The region with another size; refuses to cut off a chunk. Whether it is in use is the
    caller's to ask."""
    check_size(size)
    last = max(region.used, key=lambda chunk: chunk.end, default=None)
    if last and last.end > size:
        raise RegionError(
            f"Cannot shrink region {region.name} from {size_text(region.size)} to "
            f"{size_text(size)}: {_whose(last)} reaches to {size_text(last.end)}. Remove that "
            "chunk first, or keep the size."
        )
    return replace(region, size=size)


def put_chunk(
    region: Region, owner: str, size: int, ring_size: int, in_use: Mapping[int, str] | None = None
) -> Region:
    """The region with a chunk of this geometry for `owner`.

    `in_use`: index -> who uses that chunk now, for the refusal to move it.
    """
    return arrange(region, [Declared(owner, size, ring_size)], None, size, in_use)


def keep_owners(
    region: Region, owners: Collection[str], in_use: Mapping[int, str] | None = None
) -> Region:
    """The region without the chunks that are declared for others."""
    for chunk in region.used:
        if chunk.owner and not chunk.automatic and chunk.owner not in owners:
            region = remove_chunk(region, chunk.owner, in_use)
    return region


def arrange(
    region: Region,
    machines: Iterable[Declared],
    automatic: Sequence[Declared] | None,
    share: int,
    in_use: Mapping[int, str] | None = None,
    keep: bool = True,
) -> Region:
    """The region with the chunks of `machines`, and with exactly the `automatic` ones, which are
    all alike; None: as they are.

    What is there as declared stays where it is, so that nobody is moved when others come and go.
    New chunks without a size get `share` bytes, or, where these do not fit, equal parts of what is
    free. Without `keep`, all chunks without a size are new.
    """
    missing: list[tuple[int | None, Declared]] = []
    for one in machines:
        old = region.owned_by(check_owner(one.owner))
        if old is None:
            missing.append((None, one))
        elif one.is_met(old, keep):
            region = region.with_chunk(replace(old, automatic=False))
        else:
            _refuse_in_use(region, old, in_use, "change")
            region = drop_chunk(region, old.index)
            size = one.size or (old.size if keep else 0)
            missing.append((old.index, replace(one, size=size)))
    if automatic is not None:
        region, more = _keep_automatic(region, automatic, in_use, keep)
        missing += [(None, one) for one in more]
    return _insert_all(region, missing, share)


def _keep_automatic(
    region: Region,
    automatic: Sequence[Declared],
    in_use: Mapping[int, str] | None,
    keep: bool,
) -> tuple[Region, Sequence[Declared]]:
    """The region with no other automatic chunks than these, and which of these it lacks."""
    present = [chunk for chunk in region.used if chunk.automatic]
    # Those in use stay, if they can; the rest goes by the order of the table.
    fits = [chunk for chunk in present if automatic and automatic[0].is_met(chunk, keep)]
    fits.sort(key=lambda chunk: (chunk.index not in (in_use or {}), chunk.index))
    stay = {chunk.index for chunk in fits[: len(automatic)]}
    for chunk in present:
        if chunk.index not in stay:
            _refuse_in_use(region, chunk, in_use, "remove")
            region = drop_chunk(region, chunk.index)
    return region, automatic[len(stay) :]


def remove_chunk(region: Region, owner: str, in_use: Mapping[int, str] | None = None) -> Region:
    """The region without the chunk of `owner`."""
    old = region.owned_by(owner)
    if old is None:
        return region
    _refuse_in_use(region, old, in_use, "remove")
    return drop_chunk(region, old.index)


def drop_chunk(region: Region, index: int) -> Region:
    """The entry empty, with another epoch, by which peers know that its old life is over."""
    return region.with_chunk(Chunk(index, epoch=next_epoch(region.chunks[index].epoch)))


def _check_geometry(region: Region, one: Declared) -> int:
    """The slots of such a chunk; refuses what cannot be."""
    size = one.size
    check_ring_size(one.ring_size)
    if size <= 0 or size % PAGE:
        raise InputError(f"size: {size} of {one} must be a multiple of {PAGE} bytes")
    room = region.size - CHUNKS_OFFSET
    if size > room:
        raise InputError(
            f"size: {one} of {size_text(size)} is larger than region {region.name}, which has "
            f"room for {size_text(room)} ({size_text(region.size)} less 64K for its tables)"
        )
    slots = slots_for(size, one.ring_size)
    if not slots:
        raise InputError(
            f"size: {one} of {size_text(size)} has no room for a connection with rings of "
            f"{size_text(one.ring_size)}; it needs {size_text(chunk_needs(1, one.ring_size))} or "
            "more"
        )
    return slots


def _insert_all(region: Region, missing: list[tuple[int | None, Declared]], share: int) -> Region:
    """The region with these new chunks, those that had a number under the same one."""
    had = {index for index, _one in missing}
    numbers = (c.index for c in region.chunks if not c.size and c.index not in had)
    numbered = [(next(numbers, None) if at is None else at, one) for at, one in missing]
    for index, one in numbered:
        if one.size:
            region = _insert(region, index, one)
    rest = [(index, one) for index, one in numbered if not one.size]
    part = _part(region, len(rest), share)
    for index, one in rest:
        if not slots_for(part, one.ring_size):
            raise _no_share(region, one, part, share)
        region = _insert(region, index, replace(one, size=part))
    return region


def _no_share(region: Region, one: Declared, part: int, share: int) -> TcpSmError:
    """Why a chunk without a size gets none."""
    if part < share:
        return RegionError(
            f"Cannot declare {one} in region {region.name}: chunks that are there keep their "
            f"size, and of what is free a new one would get {size_text(part)}, which has no "
            "room for a connection. Make the region larger, remove a chunk, or give chunks "
            "that are there smaller sizes while their machines are shut down."
        )
    return InputError(
        f"size: {one} gets one of the equal parts of region {region.name} "
        f"({size_text(region.size)}), {size_text(share)}, which has no room for a connection with "
        f"rings of {size_text(one.ring_size)}; it needs "
        f"{size_text(chunk_needs(1, one.ring_size))} or more. "
        "Make the region larger, or declare fewer parts and chunks, or smaller rings"
    )


def _part(region: Region, count: int, share: int) -> int:
    """Bytes of each of `count` new chunks: the share, or equal parts of what is free."""
    gaps = list(_gaps(region))

    def is_too_much(pages: int) -> bool:
        return sum(gap // (pages * PAGE) for gap in gaps) < count

    return bisect.bisect_left(range(1, share // PAGE + 1), True, key=is_too_much) * PAGE


def _insert(region: Region, index: int | None, one: Declared) -> Region:
    """First fit between the chunks that are there. `index` None: no number is left."""
    slots = _check_geometry(region, one)
    if index is None:
        raise RegionError(
            f"Cannot declare {one} in region {region.name}: all {CHUNKS_MAX} are taken. Remove "
            "one, or use a second region."
        )
    offset = CHUNKS_OFFSET
    for chunk in sorted(region.used, key=lambda chunk: chunk.offset):
        if chunk.offset - offset >= one.size:
            break
        offset = chunk.end
    if offset + one.size > region.size:
        largest = max(_gaps(region))
        raise RegionError(
            f"Cannot declare a chunk of {size_text(one.size)} for {one.owner or 'any machine'} in "
            f"region {region.name}: the largest gap is {size_text(largest)}. Remove chunks, make "
            "them smaller, or make the region larger."
        )
    return region.with_chunk(
        Chunk(
            index,
            # Declared for somebody: a plain device has no server that could assign it later.
            ChunkState.ASSIGNED if one.owner else ChunkState.FREE,
            next_epoch(region.chunks[index].epoch),
            offset,
            one.size,
            one.ring_size,
            slots,
            one.owner,
            automatic=not one.owner,
        )
    )


def _gaps(region: Region) -> Iterator[int]:
    """Sizes of the unused pieces."""
    offset = CHUNKS_OFFSET
    for chunk in sorted(region.used, key=lambda one: one.offset):
        yield chunk.offset - offset
        offset = chunk.end
    yield region.size - offset


def _refuse_in_use(
    region: Region, chunk: Chunk, in_use: Mapping[int, str] | None, verb: str
) -> None:
    if in_use and chunk.index in in_use:
        raise RegionError(
            f"Cannot {verb} {_whose(chunk)} in region {region.name}: {in_use[chunk.index]} uses "
            "it. Shut the machine down, or detach the device from it, and run again."
        )


def _whose(chunk: Chunk) -> str:
    whose = f" of {chunk.owner}" if chunk.owner else ""
    return f"chunk {chunk.index}{whose}"


# Lives of a chunk.


def next_epoch(epoch: int) -> int:
    """Another epoch; never 0, which is what nobody has seen."""
    return epoch % (U32 - 1) + 1


@dataclass(frozen=True)
class Refusal:
    """Why a machine gets no chunk."""

    reason: str


def choose_chunk(
    region: Region, names: Collection[str], busy: Collection[int], settled: Collection[int]
) -> int | Refusal:
    """The index of the chunk for the machine called any of `names`.

    `busy`: indices whose owner lives. `settled`: dead ones of which no peer uses anything.
    """
    for name in names:
        chunk = region.owned_by(name)
        if chunk and chunk.index in busy:
            return Refusal(f"{_whose(chunk)} is in use by that machine already")
        if chunk:
            return chunk.index
    automatic = [chunk for chunk in region.used if chunk.automatic and chunk.index not in busy]
    for chunk in automatic:
        if not chunk.owner:
            return chunk.index
    for chunk in automatic:
        if chunk.state == ChunkState.DEAD and chunk.index in settled:
            return chunk.index
    called = " or ".join(names) or "a machine without a name"
    if not any(chunk.automatic for chunk in region.used):
        return Refusal(
            f"no chunk of region {region.name} is declared for {called}, and it has no automatic "
            "ones; declare one (module ivshmem_chunk)"
        )
    return Refusal(
        f"no chunk of region {region.name} is declared for {called}, and all its automatic ones "
        "are taken; declare more (module ivshmem_region, option automatic)"
    )
