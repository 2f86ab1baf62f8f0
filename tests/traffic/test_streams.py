# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does every byte arrive once and in order, whatever the sizes, options and packet paths?"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from harness import net, stream
from harness.channel import PASS, Channel, Config, wait_for
from harness.process import Place
from harness.scene import WAYS, Stage
from harness.stream import Chunks, Plan, Setup

Start = Callable[..., Any]


def plans(count: int, largest: int, seed: int = 1) -> list[Plan]:
    """Return connections of random length, from empty to `largest` bytes each way."""
    chance = random.Random(seed)
    return [
        Plan(number, chance.choice((0, 1, chance.randrange(largest))), chance.randrange(largest))
        for number in range(count)
    ]


@contextlib.contextmanager
def moved(channel: Channel, way: str) -> Iterator[int]:
    """Assert that the connections inside were redirected, or were not."""
    before = channel.redirected()
    yield before
    count = channel.redirected() - before
    assert (count > 0) == (way != "off"), f"{count} messages were redirected ({way})"


def switch_when_moving(channel: Channel, before: int, config: Config) -> None:
    """Change the configuration once some messages were redirected."""
    wait_for("redirected messages", lambda: channel.redirected() > before)
    channel.configure(config)


def run(
    stage: Stage,
    start: Start,
    way: str,
    wanted: list[Plan],
    setup: Setup,
    *,
    spaces: tuple[str | None, str | None] = (None, None),
) -> None:
    """Run streams one way, client and server in the given namespaces; every byte is verified."""
    with (
        stage.configured(Config()),
        stage.place(way, spaces[0]) as place,
        moved(stage.channel, way) as before,
    ):
        there = Place(place.cgroup, spaces[1])
        under_way = stream.begin(start, wanted, place, setup, there)
        if way == "switch":
            switch_when_moving(stage.channel, before, Config(mode=PASS))
        under_way.finish()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", ["tiny", "mixed", "large"])
def test_random_chunk_sizes(stage: Stage, start: Start, way: str, size: str) -> None:
    chunks, wanted = {
        "tiny": (Chunks(1, 64), plans(16, 20_000)),
        "mixed": (Chunks(1, 65536), plans(24, 2_000_000)),
        "large": (Chunks(131072, 1 << 20), plans(6, 16_000_000)),
    }[size]
    run(stage, start, way, wanted, Setup(chunks))


@pytest.mark.parametrize("way", WAYS)
def test_dialogues(stage: Stage, start: Start, way: str) -> None:
    """Short connections whose ends take turns, so that most messages are redirected."""
    wanted = plans(300, 20_000, seed=2)
    run(stage, start, way, wanted, Setup(Chunks(1, 2000), at_once=50, dialogue=True))


@pytest.mark.parametrize("way", WAYS)
def test_thousands_of_short_connections(stage: Stage, start: Start, way: str) -> None:
    run(stage, start, way, plans(3000, 3000), Setup(at_once=100))


def deferred(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)


@pytest.mark.parametrize("way", WAYS)
def test_tcp_defer_accept(stage: Stage, start: Start, way: str) -> None:
    """The server's socket appears after the client sent: "one", "two" must not turn around."""
    wanted = [Plan(number, 5000 + number, 5000) for number in range(300)]
    setup = Setup(Chunks(16, 600), before=deferred, dialogue=True, burst=3)
    run(stage, start, way, wanted, setup)


@pytest.fixture
def two_hosts() -> Iterator[tuple[net.Namespace, net.Namespace]]:
    """Two namespaces joined by a veth pair whose packets RPS spreads over the CPUs."""
    with net.namespaces(2) as (left, right):
        names = net.join(left, right, "10.77.1.1/24", "10.77.1.2/24")
        net.spread(left, names[0])
        net.spread(right, names[1])
        yield left, right


@pytest.mark.parametrize("way", WAYS)
def test_rps_over_veth(
    stage: Stage, start: Start, way: str, two_hosts: tuple[net.Namespace, net.Namespace]
) -> None:
    """The handshake and the first bytes are on other CPUs than the redirected ones."""
    spaces = (two_hosts[0].path, two_hosts[1].path)
    setup = Setup(Chunks(1, 20_000), address="10.77.1.2")
    run(stage, start, way, plans(200, 200_000, seed=3), setup, spaces=spaces)


@pytest.mark.parametrize("way", WAYS)
def test_lossy_path(
    stage: Stage, start: Start, way: str, two_hosts: tuple[net.Namespace, net.Namespace]
) -> None:
    """One packet in fifty is lost, so that TCP bytes are retransmitted around the switch."""
    for space in two_hosts:
        space.rules(
            """
            table inet lossy {
              chain in {
                type filter hook input priority 0;
                tcp flags & (syn | rst) == 0 numgen random mod 50 == 0 drop
              }
            }
            """
        )
    spaces = (two_hosts[0].path, two_hosts[1].path)
    setup = Setup(Chunks(1, 8000), address="10.77.1.2")
    run(stage, start, way, plans(60, 100_000, seed=5), setup, spaces=spaces)


@pytest.mark.parametrize("way", WAYS)
def test_limits_that_are_hit_all_the_time(stage: Stage, start: Start, way: str) -> None:
    """Tiny limits of unread data make each stream change between the channel and TCP."""
    tight = Config(max_unread_bytes=20_000, max_unread_msgs=4)
    wanted = plans(24, 1_000_000, seed=7)
    with stage.configured(tight), stage.place(way) as place, moved(stage.channel, way) as before:
        under_way = stream.begin(start, wanted, place, Setup(Chunks(1, 9000)))
        if way == "switch":
            switch_when_moving(stage.channel, before, replace(tight, mode=PASS))
        under_way.finish()
