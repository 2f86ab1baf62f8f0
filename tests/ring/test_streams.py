# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does every byte arrive, once and in order, whatever the sizes, the address family, the way?"""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import Any

import pytest
from ringlab import scene as scenes
from ringlab.guest import channel
from ringlab.guest.lib import both_ways, pump_in, pump_out
from ringlab.lab import RING, Lab
from ringlab.scene import Reason, Record, Scene, Stage


def cross(scene: Scene, client: Any, server: Any, total: int, largest: int) -> None:
    """Both ends send and receive at once."""
    there = scene.two.later(both_ways, server, 10, total, largest)
    here = scene.one.later(both_ways, client, 11, total, largest)
    scene.middle()
    sent, got = here.result(60)
    theirs, mine = there.result(60)
    scene.note("there", got == theirs)
    scene.note("here", sent == mine)


def seeds(scene: Scene, client: Any, server: Any, total: int, largest: int) -> None:
    """One direction and the other, each with its own sizes of writes and reads."""
    for sender, receiver in ((client, server), (server, client)):
        call = scene.at(receiver).later(pump_in, receiver, 3, total, largest)
        sent = scene.at(sender).run(pump_out, sender, 4, total, largest)
        scene.note("same", call.result(60) == sent)


@pytest.mark.parametrize("largest", [100, 5000, RING, 3 * RING])
def test_random_sizes_both_ways_at_once(stage: Stage, largest: int) -> None:
    def scenario(scene: Scene) -> None:
        client, server = scene.pair(blocking=True)
        cross(scene, client, server, 400 * min(largest, 5000), largest)

    scenario.__qualname__ = f"cross{largest}"
    outcome = stage.compare(scenario)
    if stage.way == scenes.RING:
        assert moved(outcome.records["client"]) == 2 * 400 * min(largest, 5000)


def moved(record: Record) -> int:
    """Bytes through the ring, both directions."""
    return record.tx.bytes + record.rx.bytes


@pytest.mark.parametrize("address", ["fd00:9::2", "::ffff:10.9.0.2"], ids=["ipv6", "v4mapped"])
def test_other_families(stage: Stage, address: str) -> None:
    def scenario(scene: Scene) -> None:
        client, server = scene.pair(address, blocking=True, bind="::")
        seeds(scene, client, server, 100_000, 5000)
        scene.note("peer", server.getpeername()[0])
        cross(scene, client, server, 100_000, 5000)
        client.close()
        scene.attempt("end", server.recv, 1)

    scenario.__qualname__ = f"family{address}"
    stage.compare(scenario)


def test_an_ipv6_listener_takes_ipv4(stage: Stage) -> None:
    def scenario(scene: Scene) -> None:
        client, server = scene.pair(blocking=True, bind="::")
        seeds(scene, client, server, 50_000, 5000)

    stage.compare(scenario)


def test_from_the_second_guest_to_the_first(stage: Stage) -> None:
    """The other guest's chunk: it is the client that owns the slot."""

    def scenario(scene: Scene) -> None:
        scene.here, scene.there = scene.there, scene.here
        scene.one, scene.two = scene.two, scene.one
        client, server = scene.pair(blocking=True)
        cross(scene, client, server, 200_000, 9000)

    stage.compare(scenario)


def one_byte_turns(sock: socket.socket, turns: int, first: bool) -> int:
    """Ping-pong of single bytes; how many."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    count = 0
    for turn in range(turns):
        if first:
            sock.send(bytes([turn % 256]))
        count += sock.recv(1) == bytes([turn % 256])
        if not first:
            sock.send(bytes([turn % 256]))
    return count


def test_turns(stage: Stage) -> None:
    """No wake-up is lost in many short turns."""

    def scenario(scene: Scene) -> None:
        client, server = scene.pair(blocking=True)
        call = scene.two.later(one_byte_turns, server, 300, False)
        begun = scene.one.later(one_byte_turns, client, 300, True)
        scene.middle()
        scene.note("turns", (begun.result(), call.result()))

    stage.compare(scenario)


def slow_reader(sock: socket.socket, total: int) -> int:
    """Reads little by little, with pauses, so that the writer waits for room again and again."""
    got = 0
    while got < total:
        part = sock.recv(total // 40)
        assert part, "EOF"
        got += len(part)
        time.sleep(0.005)
    return got


def test_back_pressure(stage: Stage) -> None:
    """A writer that is quicker than its reader waits, by blocking and by poll."""

    def scenario(scene: Scene) -> None:
        client, server = scene.pair(blocking=True)
        call = scene.two.later(slow_reader, server, 600_000)
        client.sendall(bytes(600_000))
        scene.note("by blocking", call.result())
        call = scene.two.later(slow_reader, server, 600_000)
        scene.send(client, bytes(600_000))
        scene.note("by poll", call.result())

    stage.compare(scenario)


def crowd(port: int, address: str, count: int, size: int) -> int:
    """Connections at once, one thread each, that send and receive; how many are right."""
    right: list[int] = []

    def one(seed: int) -> None:
        with socket.create_connection((address, port), timeout=30) as sock:
            sock.sendall(struct.pack("I", seed))
            sent, got = both_ways(sock, seed, size, 3000)
            sock.sendall(sent.encode())
            theirs = sock.recv(64, socket.MSG_WAITALL).decode()
            right.append(theirs == got)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    return sum(right)


def serve_crowd(door: socket.socket, count: int, size: int) -> int:
    """The other half of `crowd`."""
    right: list[int] = []

    def one(sock: socket.socket) -> None:
        with sock:
            seed = struct.unpack("I", sock.recv(4, socket.MSG_WAITALL))[0]
            sent, got = both_ways(sock, seed + 1000, size, 3000)
            theirs = sock.recv(64, socket.MSG_WAITALL).decode()
            right.append(theirs == got)
            sock.sendall(sent.encode())

    threads = []
    for _ in range(count):
        sock = door.accept()[0]
        sock.settimeout(30)
        threads.append(threading.Thread(target=one, args=(sock,)))
        threads[-1].start()
    for thread in threads:
        thread.join(50)
    return sum(right)


def test_many_at_once(stage: Stage) -> None:
    def scenario(scene: Scene) -> None:
        door, port = scene.door()
        call = scene.two.later(serve_crowd, door, 20, 30_000)
        begun = scene.one.later(crowd, port, scene.there.address, 20, 30_000)
        scene.middle()
        scene.note("right", (begun.result(60), call.result(60)))
        client, server = scene.pair()
        scene.send(client, b"x")
        scene.receive(server, 1)

    stage.compare(scenario, Reason.STARTING if stage.way == scenes.LEAVE else Reason.NONE)


def test_half_in_c_and_half_by_programs(lab: Lab) -> None:
    """Either end may move the ring by either code."""
    here, there = lab.guests
    try:
        for by_programs in ((True, False), (False, True)):
            for guest, wanted in zip(lab.guests, by_programs, strict=True):
                guest.run(channel.use_programs, wanted)
            outcome = Stage(lab).play(both_directions, scenes.RING)
            assert outcome.notes == [("there", True), ("here", True)]
            scenes.in_ring(outcome, Reason.NONE)
    finally:
        for guest in (here, there):
            guest.run(channel.use_programs, True)


def both_directions(scene: Scene) -> None:
    client, server = scene.pair(blocking=True)
    cross(scene, client, server, 200_000, 7000)


def test_programs_come_and_go_under_load(lab: Lab) -> None:
    """Detaching the data path's object while bytes move loses none."""
    scene = Scene(scenes.RING, lab)
    client, server = scene.pair(blocking=True)
    there = scene.two.later(both_ways, server, 1, 1_500_000, 20_000)
    here = scene.one.later(both_ways, client, 2, 1_500_000, 20_000)
    turns = 0
    try:
        while not (here.done() and there.done()) and turns < 20:
            for guest in lab.guests:
                guest.run(channel.use_programs, turns % 2 == 1)
            turns += 1
    finally:
        for guest in lab.guests:
            guest.run(channel.use_programs, True)
    sent, got = here.result(40)
    assert there.result(40) == (got, sent)
    assert turns > 1, "the transfer was over before anything changed"
    scene.look()
    assert moved(scene.outcome.records["client"]) == 3_000_000
