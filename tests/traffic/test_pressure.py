# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a fast sender meet back pressure, and does memory stay bounded, as on TCP?"""

from __future__ import annotations

import hashlib
import random
import select
import socket
from pathlib import Path

import pytest
from harness.channel import Config
from harness.scene import WAYS, Scene, Stage, wait

MEGABYTE = 1 << 20


def push(sock: socket.socket, piece: bytes, most: int) -> int:
    """Write pieces until EAGAIN or `most` bytes; return the bytes taken."""
    total = 0
    while total < most:
        try:
            total += sock.send(piece)
        except BlockingIOError:
            break
    return total


def unreclaimable() -> int:
    """Return the kernel's unreclaimable slab memory in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("SUnreclaim:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no SUnreclaim in /proc/meminfo")


def until_full(scene: Scene) -> None:
    """Nobody reads: how much is taken before EAGAIN, and does all of it arrive?"""
    client, server = scene.pair()
    taken = push(client, b"p" * 65536, 512 * MEGABYTE)
    scene.outcome.notes.append(("taken", taken))
    scene.attempt("full", client.send, b"one more")
    scene.middle()
    got = 0
    while got < taken:
        wait(server, select.POLLIN)
        got += len(server.recv(MEGABYTE))
    scene.note("writable again", bool(wait(client, select.POLLOUT) & select.POLLOUT))
    scene.attempt("nothing more", server.recv, 1)


@pytest.mark.parametrize("limit", [MEGABYTE, 4 * MEGABYTE])
def test_reader_that_does_not_read(stage: Stage, limit: int) -> None:
    config = Config(max_unread_bytes=limit)
    taken = {}
    for way in WAYS:
        outcome = stage.play(until_full, way, config)
        (_, taken[way]), *others = outcome.notes
        assert others == [
            ("full", "EAGAIN"),
            ("writable again", True),
            ("nothing more", "EAGAIN"),
        ], way
    # TCP's own buffers are there in addition to the limit of the channel.
    assert taken["on"] <= limit + 2 * taken["off"], taken


def tiny(scene: Scene) -> None:
    """400,000 messages of five bytes that nobody reads."""
    client, server = scene.pair()
    before = unreclaimable()
    taken = push(client, b"tiny!", 2_000_000)
    grown = unreclaimable() - before
    scene.middle()
    got = bytearray()
    while len(got) < taken:
        wait(server, select.POLLIN)
        got += server.recv(MEGABYTE)
    scene.note("grown too much", grown > 100 * MEGABYTE)
    scene.note("right", bytes(got) == b"tiny!" * (taken // 5))


def test_tiny_messages_without_a_reader(stage: Stage) -> None:
    """Each redirected message costs about a kilobyte of slab that nobody accounts."""
    stage.compare(tiny)


def slow_reader(scene: Scene) -> None:
    """The reader takes a little at a time; what is under way stays bounded."""
    client, server = scene.pair()
    data = random.Random(11).randbytes(MEGABYTE)
    sent, got, full, most = 0, 0, 0, 0
    received = hashlib.sha256()
    total = 32 * MEGABYTE
    while got < total:
        for _ in range(64):
            if sent == total:
                break
            at = sent % MEGABYTE
            try:
                sent += client.send(data[at : at + 50_000])
            except BlockingIOError:
                full += 1
                break
        most = max(most, sent - got)
        wait(server, select.POLLIN)
        part = server.recv(300_000)
        received.update(part)
        got += len(part)
        if got > total // 2:
            scene.middle()
    scene.note("sha256", received.hexdigest() == hashlib.sha256(data * 32).hexdigest())
    scene.note("back pressure", full > 0)
    scene.note("bounded", most < 24 * MEGABYTE)


def test_fast_sender_and_slow_reader(stage: Stage) -> None:
    stage.compare(slow_reader)


def many_full(scene: Scene) -> None:
    """Forty connections that nobody reads together hold forty times the limit at most."""
    pairs = [scene.pair() for _ in range(40)]
    taken = sum(push(client, b"m" * 16384, 64 * MEGABYTE) for client, _ in pairs)
    scene.outcome.notes.append(("taken", taken))
    scene.middle()
    got = 0
    while got < taken:
        for _, server in pairs:
            try:
                got += len(server.recv(MEGABYTE))
            except BlockingIOError:
                continue
    scene.note("all of it", taken == got)


def test_many_readers_that_do_not_read(stage: Stage) -> None:
    limit = 256 * 1024
    taken = {}
    for way in WAYS:
        outcome = stage.play(many_full, way, Config(max_unread_bytes=limit))
        (_, taken[way]), *others = outcome.notes
        assert others == [("all of it", True)], way
    assert taken["on"] <= 40 * limit + 2 * taken["off"], taken
