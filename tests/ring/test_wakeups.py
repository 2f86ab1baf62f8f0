# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who rings a bell, and is everybody woken who waits, with and without spinning?"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from ringlab.guest.lib import Edges, wait, wait_for
from ringlab.lab import LONG_SPIN
from ringlab.scene import Scenario, Scene, Stage

ROUNDS = 50
NUMBERS = 4000


@pytest.fixture(params=[0, LONG_SPIN], ids=["sleep", "spin"])
def patience(request: pytest.FixtureRequest, spin: Callable[[int], None]) -> None:
    """Both ways of waiting."""
    spin(request.param)


def test_an_awake_reader_costs_no_bell(played: Scene, patience: None) -> None:
    """Only a receive that sleeps asks for one, and each such wish is one bell at most."""
    client, server = played.pair(blocking=True)
    asleep = server.later("recv", 1)
    asleep.done(0.2)
    played.send(client, b"x")
    assert asleep.result() == b"x"
    before = played.there.bells()
    for _ in range(20):
        played.send(client, b"y")
    played.arrived(server, 20)
    assert played.there.bells() == before
    assert server.recv(20) == b"y" * 20


def answer_all(sock: socket.socket, rounds: int) -> None:
    for _ in range(rounds):
        sock.sendall(sock.recv(64))


def ask_all(sock: socket.socket, rounds: int) -> int:
    """Answers that were the question's."""
    right = 0
    for number in range(rounds):
        question = number.to_bytes(64, "little")
        sock.sendall(question)
        right += sock.recv(64, socket.MSG_WAITALL) == question
    return right


def count_bells(scene: Scene) -> int:
    """Of a ping-pong between blocking ends."""
    client, server = scene.pair(blocking=True)
    call = scene.two.later(answer_all, server, ROUNDS)
    before = scene.lab.bells()
    assert scene.one.run(ask_all, client, ROUNDS) == ROUNDS
    call.result()
    return scene.lab.bells() - before


def test_spinning_readers_ring_less(played: Scene, spin: Callable[[int], None]) -> None:
    """Each sleeping receive costs a bell, few spinning ones do."""
    spin(0)
    asleep = count_bells(played)
    spin(LONG_SPIN)
    # On a busy host, whom we wait for may not run in time.
    awake = min(count_bells(played) for _ in range(3))
    assert asleep > ROUNDS / 2, "sleeping readers were woken by something else than bells"
    assert awake < asleep / 2


def spent(sock: socket.socket, waits: int) -> float:
    """CPU seconds of this thread in so many receives for which nothing comes."""
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 15_000))
    begin = time.thread_time()
    for _ in range(waits):
        with contextlib.suppress(BlockingIOError):
            sock.recv(1)
    return time.thread_time() - begin


def test_spinning_in_vain_ends(played: Scene, spin: Callable[[int], None]) -> None:
    """Of 60 waits only a few look at the ring: the 2nd, the 4th, the 8th..."""
    spin(LONG_SPIN)
    client, server = played.pair(blocking=True)
    assert played.two.run(spent, server, 60) < 60 * LONG_SPIN / 1e6 / 3
    played.exchange(client, server)


def edges_beside_a_reader(scene: Scene) -> None:
    """Who waits for edges of a socket is told of what a blocking reader beside it leaves."""
    client, server = scene.pair(blocking=True)
    epoll = scene.two.run(Edges, server, select.EPOLLIN | select.EPOLLET)
    for _ in range(5):
        reader = server.later("recv", 4)
        reader.done(0.02)
        scene.send(client, b"partrest")
        scene.note("part", reader.result())
        scene.note("edge", epoll.next(2))
        scene.note("rest", scene.receive(server, 4))


def poll_beside_a_reader(scene: Scene) -> None:
    """What a reader leaves wakes a poll that began while it read."""
    client, server = scene.pair(blocking=True)
    reader = server.later("recv", 3)
    reader.done(0.02)
    poll = scene.two.later(wait, server, select.POLLIN)
    poll.done(0.02)
    scene.send(client, b"abcdef")
    scene.note("part", reader.result())
    scene.note("poll", poll.result())
    scene.note("rest", scene.receive(server, 3))


def interrupted(sock: socket.socket) -> str:
    """A blocking receive that a signal ends."""

    def stop(*_: Any) -> None:
        raise InterruptedError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        return str(sock.recv(10))
    except InterruptedError:
        return "signal"


def poll_after_a_signal(scene: Scene) -> None:
    """A receive that gave up leaves nobody behind who is not told."""
    client, server = scene.pair(blocking=True)
    scene.note("receive", scene.two.run(interrupted, server))
    poll = scene.two.later(wait, server, select.POLLIN)
    poll.done(0.05)
    scene.send(client, b"x")
    scene.note("poll", poll.result())


def asked_late(sock: socket.socket) -> str:
    """O_ASYNC after a blocking receive; then who waits for the signal does nothing else."""
    seen: list[str] = []
    sock.recv(1)
    signal.signal(signal.SIGIO, lambda *_: seen.append("signal"))
    fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | os.O_ASYNC)
    sock.send(b"go")
    wait_for("a signal", lambda: seen)
    return seen[0]


def signal_after_a_receive(scene: Scene) -> None:
    client, server = scene.pair(blocking=True)
    reader = server.later("recv", 2)
    scene.send(client, b"x")
    answer = scene.one.later(answer_to, client, b"go", b"signal")
    scene.note("first", reader.result())
    scene.send(client, b"y")
    scene.note("signal", scene.two.run(asked_late, server))
    answer.result()
    scene.note("rest", scene.receive(server, 6))


def answer_to(sock: socket.socket, question: bytes, answer: bytes) -> None:
    assert sock.recv(len(question), socket.MSG_WAITALL) == question
    sock.sendall(answer)


def read_numbers(sock: socket.socket) -> list[int]:
    """Numbers of eight bytes until the end, one call each."""
    found = []
    while word := sock.recv(8):
        found.append(int.from_bytes(word, "little"))
    return found


def send_numbers(sock: socket.socket, count: int) -> None:
    """In pieces of random length, now and then with a pause in which readers go to sleep."""
    chance = random.Random(count)
    at = 0
    while at < count:
        size = min(chance.choice((1, 2, 3, 500)), count - at)
        sock.sendall(b"".join(number.to_bytes(8, "little") for number in range(at, at + size)))
        at += size
        time.sleep(chance.choice((0, 0, 0.001)))
    sock.shutdown(socket.SHUT_WR)


def watch_levels(sock: socket.socket) -> int:
    """Polls a socket that others read until it ends; how often it was readable."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLRDHUP)
    seen = 0
    while True:
        for _, events in poll.poll(5000) or [(0, select.POLLRDHUP)]:
            seen += 1
            if events & select.POLLRDHUP:
                return seen
        time.sleep(0.001)


def many_readers(scene: Scene) -> None:
    """Three threads read one socket, a fourth watches it: nothing is lost, all come to an end."""
    client, server = scene.pair(blocking=True)
    readers = [scene.two.later(read_numbers, server) for _ in range(3)]
    watcher = scene.two.later(watch_levels, server)
    sender = scene.one.later(send_numbers, client, NUMBERS)
    found = [number for reader in readers for number in reader.result(40)]
    scene.note("all of them once", sorted(found) == list(range(NUMBERS)))
    scene.note("watched", watcher.result() > 0)
    sender.result()


TABLE: list[Any] = [
    edges_beside_a_reader,
    poll_beside_a_reader,
    poll_after_a_signal,
    signal_after_a_receive,
    many_readers,
]


@pytest.mark.parametrize("scenario", TABLE, ids=lambda scenario: scenario.__name__)
def test_scenario(stage: Stage, patience: None, scenario: Scenario) -> None:
    stage.compare(scenario)
