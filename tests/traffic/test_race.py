# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can a connection leave the sockhash while two CPUs send, without losing a byte?

The attack: client and server run on different CPUs and write to each other without a
pause. At a random byte one of them sets an option that the channel excludes, so that
the connection must leave while messages of both directions are under way.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from harness import stream
from harness.channel import PASS, Channel, Config
from harness.process import Place
from harness.scene import Stage
from harness.stream import Chunks, Plan, Setup

SO_PEEK_OFF, TCP_INQ = 42, 36
SECONDS = float(os.environ.get("TCP_SM_SOAK_SECONDS", "60"))


def exclude(sock: socket.socket, number: int) -> None:
    """Set one of the options whose meaning a sockmap socket does not keep."""
    if number % 2:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_INQ, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)


def attack(
    stage: Stage, start: Callable[..., Any], place: Place, round_: int, dialogue: bool
) -> None:
    """One round: 40 connections, each of which leaves somewhere in its stream."""
    chance = random.Random(round_)
    plans = [Plan(number, chance.randrange(20_000, 120_000), 100_000) for number in range(40)]
    setup = Setup(
        Chunks(4, 3000, seed=round_ + 1), at_once=20, dialogue=dialogue, pinned=True,
        disturb=exclude, disturb_below=60_000,
    )  # fmt: skip
    stream.begin(start, plans, place, setup).finish()


def rounds(stage: Stage, start: Callable[..., Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    before = stage.channel.stats()
    for number in itertools.count():
        with stage.place() as place:
            attack(stage, start, place, number, dialogue=bool(number % 3))
        if time.monotonic() > deadline:
            break
    after = stage.channel.stats()
    assert after["msgs"] - before["msgs"] > 1000
    assert after["left"] - before["left"] > 10, "no connection left the sockhash alive"


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
        rounds(stage, start, 5)


@pytest.mark.soak
@pytest.mark.limit(int(SECONDS) + 60)
def test_leaving_for_a_long_time(stage: Stage, start: Callable[..., Any]) -> None:
    with switched(stage, True):
        rounds(stage, start, SECONDS / 2)
