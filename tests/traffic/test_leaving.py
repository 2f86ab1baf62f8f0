# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can connections leave the sockhash while two CPUs send, without losing a byte?

The attack: client and server run on different CPUs and write to each other without a
pause. At a random byte one of them sets an option that the channel excludes, so that
the connection must leave while messages of both directions are under way.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from harness import stream
from harness.channel import DRAIN, PASS, Channel, Config, Reason, wait_for
from harness.scene import PRODUCTION, Scene, Stage, cookie, receive, same_notes, send
from harness.stream import Chunks, Load, Plan, Setup

SO_PEEK_OFF, TCP_INQ = 42, 36
SECONDS = float(os.environ.get("TCP_SM_SOAK_SECONDS", "60"))


def exclude(sock: socket.socket, number: int) -> None:
    """Set one of the options whose meaning a sockmap socket does not keep."""
    if number % 2:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_INQ, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)


def attack(stage: Stage, start: Callable[..., Any], number: int, seconds: float) -> int:
    """One round: conversations and streams, each of which leaves somewhere; return how many."""
    channel = stage.channel
    plans = [Plan(stream_number, -1, -1) for stream_number in range(30)]
    setup = Setup(
        Chunks(4, 3000, seed=number + 1),
        dialogue=number % 3 != 0,
        burst=1 + number % 4,
        pinned=True,
        disturb=exclude,
        disturb_below=40_000,
        seconds=60,
    )
    with stage.place() as place:
        before = channel.stats()["left"]
        load = stream.begin(start, plans, place, setup)
        # On a busy machine fewer leave; the round must not last for ever.
        with contextlib.suppress(TimeoutError):
            wait_for("all have left", lambda: channel.stats()["left"] - before >= 30, seconds)
        load.stop()
        return channel.stats()["left"] - before


def rounds(stage: Stage, start: Callable[..., Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    before = stage.channel.redirected()
    left = 0
    for number in itertools.count():
        left += attack(stage, start, number, 2)
        if time.monotonic() > deadline:
            break
    assert stage.channel.redirected() - before > 100
    assert left > 10, "hardly a connection left the sockhash alive: nothing was attacked"


def flicker(channel: Channel, stop: threading.Event) -> None:
    """Switch the mode back and forth, faster than a connection lives."""
    while not stop.wait(0.003):
        channel.configure(replace(Config(), mode=PASS))
        channel.configure(Config())


@contextlib.contextmanager
def switched(stage: Stage, active: bool) -> Iterator[None]:
    """Have the mode flicker while inside."""
    stop = threading.Event()
    thread = threading.Thread(target=flicker, args=(stage.channel, stop))
    if active:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if active:
            thread.join()


@pytest.mark.parametrize("switching", [False, True], ids=["steady", "mode-flickers"])
def test_leaving_while_both_ends_send(
    stage: Stage, start: Callable[..., Any], switching: bool
) -> None:
    with switched(stage, switching):
        rounds(stage, start, 4)


@pytest.mark.soak
@pytest.mark.limit(int(SECONDS) + 60)
def test_leaving_for_a_long_time(stage: Stage, start: Callable[..., Any]) -> None:
    with switched(stage, True):
        rounds(stage, start, SECONDS / 2)


# Drain: everybody leaves


# Not in longer bursts: an end whose queue is never seen empty is waited for, since TCP bytes
# behind redirected ones could escape an edge-triggered reader.
@pytest.mark.parametrize("burst", [1, 2])
def test_draining_under_load(own: Stage, start: Callable[..., Any], burst: int) -> None:
    """Conversations go on while all of them are taken out, again and again."""
    drain(own, start, burst, 3)


@pytest.mark.soak
@pytest.mark.limit(int(SECONDS) + 60)
def test_draining_for_a_long_time(own: Stage, start: Callable[..., Any]) -> None:
    drain(own, start, 2, max(3, int(SECONDS / 3)))


def drain(own: Stage, start: Callable[..., Any], burst: int, times: int) -> None:
    channel = own.channel
    running: list[Load] = []
    with own.place() as place:
        for turn in range(times):
            plans = [Plan(number, -1, -1) for number in range(24)]
            setup = Setup(
                Chunks(4, 4000, seed=turn + 1), dialogue=True, burst=burst, slow_each=3,
                pinned=True,
            )  # fmt: skip
            running.append(stream.begin(start, plans, place, setup))
            before = channel.redirected()
            wait_for("redirected messages", lambda b=before: channel.redirected() > b + 500)
            channel.configure(Config(mode=DRAIN))
            wait_for("everybody has left", channel.drained)
            assert channel.entries("tcp_sm_sockhash") == 0
            before = channel.redirected()
            time.sleep(0.2)  # they go on
            assert channel.redirected() == before, "redirected after the drain"
            channel.configure(Config())
            if turn:
                # Those that left long ago go on by TCP to a good end.
                finish([running.pop(0)])
        finish(running)
    assert channel.stats()["left"] >= 24 * times
    wait_for("the connections are forgotten", lambda: channel.entries("tcp_sm_conns") == 0)
    assert channel.entries("tcp_sm_sockhash") == 0


def finish(running: list[Load]) -> None:
    """Every byte is right, and there were many."""
    for load in running:
        load.client.tell("stop")
    assert min(load.finish() for load in running) > 20_000


def idle_and_unread(scene: Scene) -> None:
    """Idle connections leave at once, those with unread bytes when these were read."""
    idle, full = [scene.pair() for _ in range(5)], [scene.pair() for _ in range(5)]
    for client, server in full:
        send(client, b"unread from the client")
        send(server, b"unread from the server")
    if scene.channel:
        scene.channel.configure(Config(mode=DRAIN))
        left = {record.cookie for record in scene.channel.evict()}
        assert left == {cookie(end) for pair in full for end in pair}
        assert scene.channel.entries("tcp_sm_sockhash") == 10
    for client, server in full:
        scene.note("unread", receive(server, 22))
        send(client, b" and more")
        scene.note("more", receive(server, 9))
        scene.note("unread", receive(client, 22))
    if scene.channel:
        assert scene.channel.drained()
        assert scene.channel.entries("tcp_sm_sockhash") == 0
        before = scene.channel.redirected()
    for client, server in idle + full:
        send(client, b"by TCP")
        scene.note("there", receive(server, 6))
        send(server, b"by TCP as well")
        scene.note("back", receive(client, 14))
        client.shutdown(socket.SHUT_WR)
        scene.note("EOF", receive(server, 1))
    if scene.channel:
        assert scene.channel.redirected() == before
        scene.channel.configure(Config())


def test_draining_idle_connections_and_unread_bytes(own: Stage) -> None:
    same_notes(own.play(idle_and_unread, "off"), own.play(idle_and_unread, "on"))


def test_blocking_reader_after_a_drain(own: Stage) -> None:
    """A connection that left is plain TCP: a blocking recv ends at a half-close."""

    def scenario(scene: Scene) -> None:
        client, server = scene.pair()
        if scene.channel:
            scene.channel.configure(Config(mode=DRAIN))
            assert scene.channel.drained()
        server.setblocking(True)
        timer = threading.Timer(0.1, client.shutdown, (socket.SHUT_WR,))
        timer.start()
        scene.note("EOF", server.recv(10))
        timer.join()

    same_notes(own.play(scenario, "off"), own.play(scenario, "on"))


def test_one_way_streams_leave_by_themselves(own: Stage, start: Callable[..., Any]) -> None:
    """The channel does not pay for them: they go to TCP while they run, at their own pace."""
    channel = own.channel
    config = replace(PRODUCTION, eager=1)
    plans = [Plan(number, -1, 0) for number in range(6)]
    with own.configured(config), own.place() as place:
        load = stream.begin(start, plans, place, Setup(Chunks(30_000, 60_000), pinned=True))
        wait_for("the streams leave", lambda: channel.stats()["left"] >= 6, 20)
        reasons = {record.reason for record in channel.records().values()}
        assert reasons == {Reason.STREAM}, reasons
        finish([load])
    assert channel.entries("tcp_sm_sockhash") == 0
