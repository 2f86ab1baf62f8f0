# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A peer that breaks every rule: it writes over the region while connections run.

Used by the tests on the hypervisor, where the region is a file, and in a guest, where it is the
memory of a PCI device. Offsets are those of bpf/tcp_sm_region.h.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

TABLE, ENTRY = 4096, 128
INBOX, INBOX_ROW = 4096, 512
SLOTS, SLOT, LANES, LANE = 135168, 512, 64, 128
AWAKE, SUMMARY, ATTENTION, SEEN = 20, 64, 96, 128
HEAD, LEFT, WANT_SPACE, TAIL, WANT_DATA, CLOSED = 0, 4, 8, 64, 68, 72
FIELDS = (HEAD, LEFT, WANT_SPACE, TAIL, WANT_DATA, CLOSED)
JOINED = 3
# No byte of it is in what the storms send, which is ASCII.
CANARY = b"\xc5\xa4\xce\xa1\xd2\xd9\xa1\xff"


class Shape(NamedTuple):
    """A chunk's place and geometry; sizes in bytes."""

    offset: int
    slots: int
    ring_size: int


class Memory:
    """A region, written without asking anybody. Addresses are bytes from its start."""

    def __init__(self, path: str, shapes: list[Shape]) -> None:
        file = os.open(path, os.O_RDWR)
        self.map = mmap.mmap(file, os.fstat(file).st_size)
        os.close(file)
        self.words = memoryview(self.map).cast("I")
        self.shapes = shapes

    def get(self, address: int) -> int:
        """One 32-bit word."""
        return self.words[address // 4]

    def put(self, address: int, value: int) -> None:
        self.words[address // 4] = value & 0xFFFFFFFF

    def entry(self, chunk: int) -> int:
        """Where the table's entry of a chunk is."""
        return TABLE + chunk * ENTRY

    def header(self, chunk: int) -> int:
        return self.shapes[chunk].offset

    def slot(self, chunk: int, slot: int) -> int:
        """Where a slot is; its word: the state, then the nonce."""
        return self.header(chunk) + SLOTS + slot * SLOT

    def lane(self, chunk: int, slot: int, lane: int) -> int:
        """lane: 0 client to server, 1 back."""
        return self.slot(chunk, slot) + LANES + lane * LANE

    def ring(self, chunk: int, slot: int, lane: int) -> int:
        shape = self.shapes[chunk]
        rings = -(-(SLOTS + shape.slots * SLOT) // 4096) * 4096
        return shape.offset + rings + (slot * 2 + lane) * shape.ring_size

    def row(self, owner: int, chunk: int) -> int:
        """Where the inbox of `owner` has its bits for the slots of `chunk`."""
        return self.header(owner) + INBOX + chunk * INBOX_ROW

    def joined(self, chunk: int) -> list[int]:
        """Slots in which both ends are."""
        return [n for n in range(64) if self.get(self.slot(chunk, n)) == JOINED]

    def keep(self) -> bytes:
        """Superblock and table, to be put back by `restore`."""
        return self.map[: TABLE + 256 * ENTRY]

    def restore(self, kept: bytes) -> None:
        self.map[: len(kept)] = kept

    def plant(self, first: int, count: int) -> None:
        """Fill the rings of unused slots, and what is unused of all slots, with canaries.

        The rings before them are empty then: what earlier connections sent is no ASCII.
        """
        for chunk, shape in enumerate(self.shapes):
            rings = self.ring(chunk, 0, 0)
            self.map.madvise(mmap.MADV_REMOVE, rings, first * 2 * shape.ring_size)
            for slot in range(first, first + count):
                start = self.ring(chunk, slot, 0)
                size = 2 * shape.ring_size
                self.map[start : start + size] = CANARY * (size // len(CANARY))
            for slot in range(first + count):
                start = self.slot(chunk, slot)
                self.map[start + 8 : start + LANES] = CANARY * ((LANES - 8) // 8)
                self.map[start + 320 : start + SLOT] = CANARY * (192 // 8)


def wrong(chance: random.Random, value: int) -> int:
    """A word that is not what it should be, and often nearly."""
    near = (value + 1, value - 1, value + 65536, value + 65537, value - 65537, value ^ 1)
    edges = (0, 1, 3, 0x13, 0x23, 0x33, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    return chance.choice((*near, *edges, chance.getrandbits(32), value ^ 1 << chance.randrange(32)))


Target = Callable[[Memory, random.Random], None]


def spoil(memory: Memory, chance: random.Random, address: int) -> None:
    memory.put(address, wrong(chance, memory.get(address)))


def spoil_lanes(memory: Memory, chance: random.Random) -> None:
    lane = memory.lane(chance.randrange(2), chance.randrange(12), chance.randrange(2))
    spoil(memory, chance, lane + chance.choice(FIELDS))


def spoil_words(memory: Memory, chance: random.Random) -> None:
    spoil(
        memory,
        chance,
        memory.slot(chance.randrange(2), chance.randrange(12)) + chance.choice((0, 4)),
    )


def spoil_inbox(memory: Memory, chance: random.Random) -> None:
    header = memory.header(chance.randrange(2))
    rows = INBOX + chance.choice((0, 1, chance.randrange(256))) * INBOX_ROW
    memory.put(
        header + rows + 4 * chance.randrange(INBOX_ROW // 4), chance.choice((0xFFFFFFFF, 1, 0))
    )
    memory.put(header + SUMMARY + 4 * chance.randrange(8), chance.choice((0xFFFFFFFF, 3, 0)))
    memory.put(header + ATTENTION, chance.randrange(3))
    memory.put(header + AWAKE, chance.randrange(2))


def spoil_headers(memory: Memory, chance: random.Random) -> None:
    header = memory.header(chance.randrange(2))
    spoil(memory, chance, header + chance.choice((0, 4, 8, 12, SEEN, SEEN + 4)))


def spoil_table(memory: Memory, chance: random.Random) -> None:
    entry = memory.entry(chance.choice((0, 1, chance.randrange(256))))
    spoil(memory, chance, entry + 4 * chance.randrange(8))


def spoil_superblock(memory: Memory, chance: random.Random) -> None:
    spoil(memory, chance, 4 * chance.randrange(42))


def spoil_rings(memory: Memory, chance: random.Random) -> None:
    """Other bytes, but ASCII, so that they are no canary's."""
    ring = memory.ring(chance.randrange(2), chance.randrange(12), chance.randrange(2))
    memory.put(ring + 4 * chance.randrange(16384), chance.getrandbits(32) & 0x7F7F7F7F)


TARGETS: dict[str, Target] = {
    "lanes": spoil_lanes,
    "words": spoil_words,
    "inbox": spoil_inbox,
    "headers": spoil_headers,
    "table": spoil_table,
    "superblock": spoil_superblock,
    "rings": spoil_rings,
}


def scribble(memory: Memory, seed: int, seconds: float, targets: list[str]) -> int:
    """Write over these parts in bursts, with pauses in which something may begin; how often."""
    chance = random.Random(seed)
    chosen = [TARGETS[name] for name in targets]
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        for _ in range(chance.choice((1, 10, 100))):
            chance.choice(chosen)(memory, chance)
            count += 1
        time.sleep(chance.choice((0.0, 0.002, 0.02)))
    return count


def scribble_from_here(
    path: str, shapes: list[Any], seed: int, seconds: float, targets: list[str]
) -> int:
    """The same from a guest, through the memory of a device that no driver has."""
    return scribble(Memory(path, [Shape(*shape) for shape in shapes]), seed, seconds, targets)


# The traffic meanwhile.


class Storm:
    """Short connections that send ASCII and look at what they get; they must all end in time."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.chance, self.end = random.Random(seed), time.monotonic() + seconds
        self.made = self.received = 0
        self.foreign = b""
        self.errors: Counter[str] = Counter()
        self.threads: list[threading.Thread] = []

    def start(self, function: Callable[..., None], *args: Any) -> None:
        self.threads.append(threading.Thread(target=function, args=args, daemon=True))
        self.threads[-1].start()

    def talk(self, sock: socket.socket) -> None:
        """Send and receive pieces until an error, the end or the peer's end."""
        half = struct.pack("ll", 0, 500_000)
        with sock:
            if self.chance.random() < 0.5:
                sock.settimeout(0.5)
            else:
                sock.setblocking(True)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, half)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, half)
            try:
                for _ in range(self.chance.randrange(1, 40)):
                    if time.monotonic() > self.end:
                        break
                    sock.send(b"0123456789abcdef" * self.chance.choice((1, 20, 400, 4000)))
                    part = sock.recv(self.chance.choice((1, 100, 10_000, 100_000)))
                    self.received += len(part)
                    if not part:
                        break
                    if not part.isascii():
                        self.foreign += part[:64]
            except OSError as error:
                self.errors[errno.errorcode.get(error.errno or 0, str(error))] += 1

    def call(self, address: str, port: int) -> None:
        while time.monotonic() < self.end:
            try:
                sock = socket.create_connection((address, port), timeout=1)
            except OSError as error:
                self.errors[f"connect {errno.errorcode.get(error.errno or 0, str(error))}"] += 1
                continue
            self.made += 1
            self.talk(sock)

    def serve(self, door: socket.socket) -> None:
        door.settimeout(0.2)
        while time.monotonic() < self.end:
            try:
                sock = door.accept()[0]
            except TimeoutError:
                continue
            self.start(self.talk, sock)

    def report(self) -> dict[str, Any]:
        """Joins all; `hang`: threads that did not end."""
        limit = max(self.end, time.monotonic()) + 8
        for thread in self.threads:
            thread.join(max(limit - time.monotonic(), 0))
        return {
            "made": self.made,
            "received": self.received,
            "foreign": self.foreign,
            "errors": dict(self.errors),
            "hang": sum(thread.is_alive() for thread in self.threads),
        }


def call_storm(address: str, port: int, seed: int, seconds: float) -> dict[str, Any]:
    """Four clients at once."""
    storm = Storm(seed, seconds)
    for _ in range(4):
        storm.start(storm.call, address, port)
    return storm.report()


def serve_storm(door: socket.socket, seed: int, seconds: float) -> dict[str, Any]:
    """Their server."""
    storm = Storm(seed, seconds)
    storm.serve(door)
    return storm.report()


def longest_pause(seconds: float) -> float:
    """The longest that a thread which sleeps 10 ms at a time was kept from running."""
    end = time.monotonic() + seconds
    worst = 0.0
    while (begin := time.monotonic()) < end:
        time.sleep(0.01)
        worst = max(worst, time.monotonic() - begin)
    return worst
