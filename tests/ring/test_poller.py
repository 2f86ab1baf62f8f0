# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waking without a bell in a CPU's spare time: does it save bells, and is nobody left asleep?

A bit whose bell was wrongly left out is found by the next half-second look, so a wait of that
length is a lost wake-up.
"""

from __future__ import annotations

import os
import random
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ringlab.lab import LONG_SPIN, Lab
from ringlab.scene import Scene

ROUNDS = 300
LOST = 0.3
HOG_SECONDS = 60


def answer_events(sock: socket.socket) -> int:
    """An echo by epoll, until the end; how many bytes."""
    sock.setblocking(False)
    poll, got = select.epoll(), 0
    poll.register(sock, select.EPOLLIN)
    while True:
        poll.poll(20)
        data = sock.recv(4096)
        if not data:
            return got
        got += len(data)
        sock.sendall(data)


def ask_events(sock: socket.socket, rounds: int, pauses: list[float]) -> list[float]:
    """Seconds that each question's answer took, by epoll. Pauses: before the questions, in turn."""
    sock.setblocking(False)
    poll, took = select.epoll(), []
    poll.register(sock, select.EPOLLIN)
    for number in range(rounds):
        if pauses:
            time.sleep(pauses[number % len(pauses)])
        question, answer = number.to_bytes(64, "little"), b""
        begin = time.monotonic()
        sock.sendall(question)
        while len(answer) < len(question):
            assert poll.poll(20), f"no answer to question {number}"
            answer += sock.recv(64)
        took.append(time.monotonic() - begin)
        assert answer == question
    return took


def converse(scene: Scene, rounds: int, pauses: list[float]) -> list[float]:
    """A ping-pong between two programs that wait by epoll; seconds by round."""
    client, server = scene.pair()
    call = scene.two.later(answer_events, server)
    took: list[float] = scene.one.long(60, ask_events, client, rounds, pauses)
    client.close()
    assert call.result() == 64 * rounds
    return took


def rung(scene: Scene) -> int:
    """Bells of a ping-pong, of both guests."""
    before = scene.lab.bells()
    converse(scene, ROUNDS, [])
    return scene.lab.bells() - before


def test_spare_time_saves_bells(played: Scene, spin: Callable[[int], None]) -> None:
    """Nearly two a round without it; with it few."""
    spin(0)
    asleep = rung(played)
    spin(LONG_SPIN)
    # On a busy host, whom we wait for may not run in time.
    awake = min(rung(played) for _ in range(3))
    assert asleep > ROUNDS, "who waits was woken by something else than bells"
    assert awake < asleep / 4


def burn(seconds: float) -> None:
    """Keep every CPU with a process of its own, in the background."""
    for _ in range(os.cpu_count() or 1):
        if os.fork():
            continue
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        os._exit(0)


def set_preemption(model: str) -> str:
    """Of kernels that can change it while they run; the model before."""
    if not os.path.ismount("/sys/kernel/debug"):
        subprocess.run(["mount", "-t", "debugfs", "none", "/sys/kernel/debug"], check=True)
    path = Path("/sys/kernel/debug/sched/preempt")
    before = re.findall(r"\((\w+)\)", path.read_text())
    path.write_text(model)
    return str(before[0])


@pytest.fixture(params=["as it is", "full"])
def preemption(lab: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    """How eagerly tasks take the CPU from each other inside of the kernel."""
    if request.param != "full":
        yield
        return
    before = [guest.run(set_preemption, request.param) for guest in lab.guests]
    yield
    for guest, model in zip(lab.guests, before, strict=True):
        guest.run(set_preemption, model)


@pytest.mark.parametrize("whose", ["client", "server", "both"])
def test_no_spare_time(
    played: Scene, spin: Callable[[int], None], preemption: None, whose: str
) -> None:
    """Beside other work, nobody relies on looks that do not happen."""
    spin(LONG_SPIN)
    converse(played, ROUNDS, [])  # the pollers are awake
    for worker, name in ((played.one, "client"), (played.two, "server")):
        if whose in (name, "both"):
            worker.run(burn, HOG_SECONDS)  # until the scene ends
    took = converse(played, ROUNDS, [])
    assert max(took) < LOST


@pytest.mark.parametrize("limit", [30, 100, 300])
def test_the_last_look(
    played: Scene, spin: Callable[[int], None], preemption: None, limit: int
) -> None:
    """Messages that come just when the peer stops looking are found, or rung for."""
    spin(limit)
    chance = random.Random(limit)
    pauses = [chance.uniform(0, 3 * limit) / 1e6 for _ in range(1000)]
    assert max(converse(played, 3000, pauses)) < LOST
