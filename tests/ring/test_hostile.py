# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What does a machine lose when somebody writes over the region? Its connections to it, no more.

Whoever writes has the rights of a peer: all of the region. Seeds are fixed and printed with each
failure. The kernels are Debian's, whose KFENCE is all the memory debugging that they have.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ringlab.guest import channel, scribble
from ringlab.guest.lib import errno_name, wait_for
from ringlab.guest.scribble import (
    ATTENTION,
    AWAKE,
    CLOSED,
    HEAD,
    LEFT,
    SUMMARY,
    TAIL,
    Memory,
    Shape,
    call_storm,
    longest_pause,
    scribble_from_here,
    serve_storm,
)
from ringlab.lab import RING, Lab
from ringlab.scene import IN_RING, Scene

SECONDS = 3.0
# Rings of these slots hold canaries; the lowest free slot is taken first.
PLANTED, COUNT = 500, 64


def shapes(lab: Lab) -> list[Shape]:
    chunks = [lab.chunk(guest) for guest in lab.guests]
    return [Shape(chunk.offset, chunk.slots, chunk.ring_size) for chunk in chunks]


@pytest.fixture
def memory(lab: Lab) -> Memory:
    """The region, from the hypervisor. Free slots are empty: scribbles look like connections."""
    lab.quiet()
    made = Memory(str(lab.region), shapes(lab))
    for chunk in range(len(made.shapes)):
        for slot in range(PLANTED):
            made.put(made.slot(chunk, slot), 0)
    return made


@contextmanager
def restored(memory: Memory) -> Iterator[None]:
    """Superblock and table are the hypervisor's: nobody else mends them."""
    kept = memory.keep()
    try:
        yield
    finally:
        memory.restore(kept)


def fresh(scene: Scene) -> Any:
    """A new connection works; where it was."""
    client, server = scene.pair()
    scene.exchange(client, server, 1000)
    scene.look()
    place = scene.place("client")
    client.close()
    server.close()
    return place


def both_offer(scene: Scene, seconds: float = 15.0) -> None:
    """New connections from either guest are in the ring again."""
    for way in (scene, scene.turned()):

        def offered(way: Scene = way) -> bool:
            return bool(fresh(way) == IN_RING)

        wait_for("the ring", offered, seconds)


# Storms.


def storms(scene: Scene, seed: int, seconds: float) -> list[Any]:
    """Connections from either guest to the other; calls whose results are reports."""
    calls = []
    for way in (scene, scene.turned()):
        door, port = way.door()
        calls.append(way.two.later(serve_storm, door, seed, seconds))
        calls.append(way.one.later(call_storm, way.there.address, port, seed + 1, seconds))
    return calls


def judge(seed: int, reports: list[dict[str, Any]]) -> None:
    """Nothing foreign was read, nothing hangs, and something happened at all."""
    for report in reports:
        assert not report["foreign"], f"seed {seed}: {report}"
        assert not report["hang"], f"seed {seed}: {report}"
    assert sum(report["made"] for report in reports) > 10, f"seed {seed}: {reports}"
    assert sum(report["received"] for report in reports) > 1000, f"seed {seed}: {reports}"


def weather(memory: Memory, scene: Scene, seed: int, targets: list[str], seconds: float) -> None:
    """A storm under scribbling from the hypervisor; then everything is as it was."""
    memory.plant(PLANTED, COUNT)
    with restored(memory):
        calls = storms(scene, seed, seconds)
        scribble.scribble(memory, seed, seconds, targets)
    reports = [call.result(40) for call in calls]
    print(f"seed {seed}: {reports}")
    judge(seed, reports)
    aborted = [guest.run(channel.status)["aborted"] for guest in scene.lab.guests]
    print(f"seed {seed}: aborted {aborted}")
    both_offer(scene)


@pytest.mark.parametrize("target", [*scribble.TARGETS, "all"])
def test_scribbling(memory: Memory, played: Scene, target: str) -> None:
    names = list(scribble.TARGETS)
    chosen = names if target == "all" else [target]
    weather(memory, played, 1000 + len(chosen) * 100 + names.index(chosen[-1]), chosen, SECONDS)


@pytest.mark.parametrize("which", [0, 1])
def test_scribbling_guest(memory: Memory, played: Scene, which: int) -> None:
    """From inside a guest, as root there could."""
    seed, lab = 2000 + which, played.lab
    device = lab.device(lab.guests[which], "plain")
    path = f"/sys/bus/pci/devices/{device}/resource2"
    worker = (played.one, played.two)[which]
    memory.plant(PLANTED, COUNT)
    with restored(memory):
        calls = storms(played, seed, SECONDS)
        shaped = [tuple(shape) for shape in memory.shapes]
        targets = list(scribble.TARGETS)
        written = worker.later(scribble_from_here, path, shaped, seed, SECONDS, targets)
        assert written.result(20) > 100
    reports = [call.result(40) for call in calls]
    judge(seed, reports)
    both_offer(played)


@pytest.mark.soak
@pytest.mark.limit(180)
@pytest.mark.parametrize("seed", range(5000, 5010))
def test_scribbling_long(memory: Memory, played: Scene, seed: int) -> None:
    chosen = random.Random(seed).sample(list(scribble.TARGETS), 4)
    weather(memory, played, seed, chosen, 30.0)


def test_canaries_are_found(memory: Memory, played: Scene) -> None:
    """The test's own eyes: bytes that a peer puts into the ring are seen."""
    client, server = played.pair()
    slot = memory.joined(0)[0]
    at = memory.ring(0, slot, 0)
    memory.map[at : at + 8] = scribble.CANARY
    memory.put(memory.lane(0, slot, 0) + HEAD, 8)
    assert played.receive(server, 8) == scribble.CANARY
    played.one.run("reset", client)


# One rule broken at a time.


def told(sock: socket.socket, *names: str) -> list[str]:
    """What these calls of recv and send give: an errno's name or the number of bytes."""
    found = []
    for name in names:
        try:
            value = sock.send(b"x") if name == "send" else len(sock.recv(10))
            found.append(str(value))
        except OSError as error:
            found.append(errno_name(error))
    return found


INDICES = {
    "more than the ring holds": (HEAD, RING + 1),
    "far more": (HEAD, 1 << 31),
    "backwards": (HEAD, -1),
}


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("by_programs", [True, False])
def test_impossible_head(memory: Memory, played: Scene, name: str, by_programs: bool) -> None:
    """A producer that says it wrote what cannot be: its reader is reset, and nobody else."""
    try:
        for guest in played.lab.guests:
            guest.run(channel.use_programs, by_programs)
        other = played.pair()
        client, server = played.pair()
        played.exchange(client, server, 1000)
        slot = memory.joined(0)[-1]
        field, by = INDICES[name]
        lane = memory.lane(0, slot, 0) + field
        memory.put(lane, memory.get(lane) + by)
        # As TCP tells of a reset: once.
        assert played.two.run(told, server, "recv", "recv", "send") == ["ECONNRESET", "0", "EPIPE"]
        played.exchange(*other)
        assert fresh(played) == IN_RING
    finally:
        for guest in played.lab.guests:
            guest.run(channel.use_programs, True)


@pytest.mark.parametrize("by", [1, -RING - 1, 1 << 31])
def test_impossible_tail(memory: Memory, played: Scene, by: int) -> None:
    """A consumer that says it read what was not written: the writer is told, once."""
    client, server = played.pair()
    played.exchange(client, server, 1000)
    tail = memory.lane(0, memory.joined(0)[-1], 0) + TAIL
    memory.put(tail, memory.get(tail) + by)
    assert played.one.run(told, client, "send", "send") == ["ECONNRESET", "EPIPE"]
    assert fresh(played) == IN_RING


@pytest.mark.parametrize("waits", ["reader", "writer"])
def test_a_sleeper_is_told(memory: Memory, played: Scene, waits: str) -> None:
    """Who sleeps when the ring breaks learns of it by the next bell."""
    _client, server = played.pair(blocking=True)
    slot = memory.joined(0)[-1]
    if waits == "reader":
        call, sleeper, lane, field = server.later("recv", 1), 1, 0, HEAD
    else:
        played.two.run("fill", server)
        call, sleeper, lane, field = server.later("sendall", b"x" * 100_000), 1, 1, TAIL
    assert not call.done(0.2)
    at = memory.lane(0, slot, lane) + field
    memory.put(at, memory.get(at) + (1 << 30))
    row = memory.row(sleeper, 0) + slot // 32 * 4
    memory.put(row, memory.get(row) | 1 << slot % 32)
    with pytest.raises(ConnectionResetError):
        call.result(3)


@pytest.mark.parametrize("nonce", [False, True])
def test_another_word(memory: Memory, played: Scene, nonce: bool) -> None:
    """Neither end can leave the slot by that word: both are reset, and the slot is free again."""
    client, server = played.pair(blocking=True)
    calls = [sock.later("recv", 1) for sock in (client, server)]
    word = memory.slot(0, memory.joined(0)[-1])
    if nonce:
        memory.put(word + 4, ~memory.get(word + 4))
    else:
        memory.put(word, 0xDEADBEEF)
    for call in calls:
        with pytest.raises(ConnectionResetError):
            call.result(3)
    assert fresh(played) == IN_RING


@pytest.mark.parametrize("field", [LEFT, CLOSED])
def test_an_end_that_somebody_else_declared(memory: Memory, played: Scene, field: int) -> None:
    """ "I left", "I read no more": the connection goes on by TCP, with what is in the ring."""
    client, server = played.pair()
    played.exchange(client, server, 1000)
    memory.put(memory.lane(0, memory.joined(0)[-1], 0) + field, 1)
    played.exchange(client, server, 1000)
    assert fresh(played) == IN_RING


def flood(memory: Memory, owner: int, stop: threading.Event) -> None:
    """All bits of an inbox, all the time."""
    rows = memory.row(owner, 0)
    ones = b"\xff" * (256 * 512)
    while not stop.wait(0.001):
        memory.map[rows : rows + len(ones)] = ones
        for word in range(8):
            memory.put(memory.header(owner) + SUMMARY + 4 * word, 0xFFFFFFFF)
        memory.put(memory.header(owner) + ATTENTION, 1)


def test_a_flooded_inbox(memory: Memory, played: Scene) -> None:
    """A machine whose inbox is filled all the time goes on, and so do its connections."""
    client, server = played.pair()
    stop = threading.Event()
    writer = threading.Thread(target=flood, args=(memory, 1, stop))
    writer.start()
    try:
        pause = played.two.later(longest_pause, 2.0)
        while not pause.done():
            played.exchange(client, server, 1000)
    finally:
        stop.set()
        writer.join()
    assert pause.result() < 0.5
    assert fresh(played) == IN_RING


def test_a_bit_that_nobody_told_of(memory: Memory, played: Scene) -> None:
    """It keeps the bell of later connections silent only until the next look."""
    for owner in (0, 1):
        for chunk in (0, 1):
            memory.put(memory.row(owner, chunk), 0xFFFFFFFF)
    client, server = played.pair(blocking=True)
    call = server.later("recv", 5)
    assert not call.done(0.05)
    played.send(client, b"hello")
    assert call.result(3) == b"hello"


def test_a_false_awake(memory: Memory, played: Scene) -> None:
    """Who writes that a machine looks, though it does not, delays its wake-ups for a moment."""
    client, server = played.pair(blocking=True)
    call = server.later("recv", 5)
    assert not call.done(0.05)
    memory.put(memory.header(1) + AWAKE, 1)
    played.send(client, b"hello")
    assert call.result(3) == b"hello"
    assert memory.get(memory.header(1) + AWAKE) == 0


def test_another_superblock(memory: Memory, played: Scene) -> None:
    """It is read when a region is opened, and never again."""
    client, server = played.pair()
    with restored(memory):
        memory.map[:168] = bytes(168)
        played.exchange(client, server)
        assert fresh(played) == IN_RING
    played.exchange(client, server)


@pytest.mark.parametrize("which", [0, 1])
def test_another_epoch(memory: Memory, played: Scene, which: int) -> None:
    """Who writes another epoch into the table ends that machine's connections, not the machine."""
    client, server = played.pair(blocking=True)
    calls = [sock.later("recv", 1) for sock in (client, server)]
    entry = memory.entry(which)
    with restored(memory):
        memory.put(entry + 4, memory.get(entry + 4) + 7)
        with pytest.raises(ConnectionResetError):
            calls[1 - which].result(3)
        assert fresh(played) != IN_RING
    with pytest.raises(ConnectionResetError):
        calls[which].result(3)
    both_offer(played)


GEOMETRY = {
    "offset": (8, 0x12345000),
    "not aligned": (8, 65537),
    "size": (16, 0xFFFFF000),
    "ring size": (24, 0x80000000),
    "not a power of two": (24, 65537),
    "slots": (28, 0xFFFFFFFF),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_impossible_geometry(memory: Memory, played: Scene, name: str) -> None:
    """A connection keeps what it began with; new ones do not follow an impossible entry."""
    client, server = played.pair()
    offset, value = GEOMETRY[name]
    with restored(memory):
        memory.put(memory.entry(0) + offset, value)
        played.exchange(client, server)
        assert fresh(played) != IN_RING
    played.exchange(client, server)
    assert fresh(played) == IN_RING


def test_another_header(memory: Memory, played: Scene) -> None:
    """The machine whose header it is writes it again."""
    client, server = played.pair()
    for chunk in (0, 1):
        header = memory.header(chunk)
        memory.map[header : header + 64] = bytes(64)
    played.exchange(client, server)
    both_offer(played, 3.0)
