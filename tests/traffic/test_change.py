# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can the channel be switched, detached, reattached and removed under load, losing nothing?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from harness import kernel, stream
from harness.channel import PASS, Channel, Config, wait_for
from harness.process import Place
from harness.scene import Scene, Stage, receive, same_notes, send
from harness.stream import Chunks, Load, Plan, Setup

Start = Callable[..., Any]


def loads(start: Start, place: Place) -> list[Load]:
    """Endless dialogues, most of whose messages are redirected, beside endless streams."""
    dialogues = [Plan(number, -1, -1) for number in range(12)]
    streams = [Plan(number, -1, -1) for number in range(100, 102)]
    return [
        stream.begin(start, dialogues, place, Setup(Chunks(4, 4000), dialogue=True, seconds=45)),
        stream.begin(start, streams, place, Setup(Chunks(4, 30_000, seed=9), seconds=45)),
    ]


def fresh(start: Start, place: Place) -> None:
    """Make some new connections, use them and verify their bytes."""
    plans = [Plan(number, 10_000, 10_000) for number in range(200, 210)]
    stream.begin(start, plans, place, Setup(Chunks(4, 3000), dialogue=True)).finish()


def more(channel: Channel, count: int) -> None:
    """Wait for more redirected messages: the load really ran through the present state."""
    before = channel.redirected()
    wait_for(f"{count} more messages", lambda: channel.redirected() > before + count)


def finish(running: list[Load]) -> None:
    """Every connection is alive and every byte right, and there were many."""
    for load in running:
        load.client.tell("stop")
    assert min(load.finish() for load in running) > 20_000


def test_mode_switches(own: Stage, start: Start) -> None:
    """Connections of every age live through each switch, to TCP and back."""
    running: list[Load] = []
    with own.place() as place:
        for _ in range(4):
            running += loads(start, place)
            more(own.channel, 300)
            own.channel.configure(Config(mode=PASS))
            fresh(start, place)
            own.channel.configure(Config())
        finish(running)


def test_changing_limits(own: Stage, start: Start) -> None:
    running: list[Load] = []
    with own.place() as place:
        for size in (10_000, 1_000_000, 5000, 100):
            running += loads(start, place)
            more(own.channel, 100)
            own.channel.configure(Config(max_unread_bytes=size, max_unread_msgs=size // 50))
            fresh(start, place)
        finish(running)


@pytest.mark.parametrize("link", ["tcp_sm_sockops", "tcp_sm_verdict", "tcp_sm_recv"])
def test_one_program_is_detached_and_attached_again(own: Stage, start: Start, link: str) -> None:
    again = {
        "tcp_sm_sockops": own.channel.attach_sockops,
        "tcp_sm_verdict": own.channel.attach_verdict,
        "tcp_sm_recv": own.channel.attach_recv,
    }[link]
    with own.place() as place:
        running = []
        for _ in range(3):
            running += loads(start, place)
            more(own.channel, 300)
            own.channel.detach(link)
            fresh(start, place)
            again()
        finish(running)


def test_everything_is_detached_and_attached_again(own: Stage, start: Start) -> None:
    with own.place() as place:
        running = []
        for _ in range(3):
            running += loads(start, place)
            more(own.channel, 300)
            own.channel.detach()
            fresh(start, place)
            own.channel.attach()
        finish(running)


def test_removal(own: Stage, start: Start) -> None:
    """Every pin and link goes; live connections end well; then nothing is left in the kernel."""
    names = ("tcp_sm_sockhash", "tcp_sm_conns", "tcp_sm_socks", "tcp_sm_config")
    with own.place() as place:
        running = loads(start, place)
        more(own.channel, 500)
        ids = {name: kernel.map_id(own.channel.map(name)) for name in names}
        own.channel.remove()
        fresh(start, place)
        finish(running)
    for name, number in ids.items():
        wait_for(f"map {name} is freed", lambda n=number: not kernel.map_exists(n))


def test_removal_after_the_mode_pass(own: Stage, start: Start) -> None:
    """The operator's order: pass, detach, remove."""
    with own.place() as place:
        running = loads(start, place)
        more(own.channel, 500)
        own.channel.configure(Config(mode=PASS))
        fresh(start, place)
        number = kernel.map_id(own.channel.map("tcp_sm_sockhash"))
        own.channel.remove()
        finish(running)
    wait_for("the sockhash is freed", lambda: not kernel.map_exists(number))


def test_removal_and_a_new_load(own: Stage, start: Start) -> None:
    """A second instance takes over while connections of the first live on."""
    with own.place() as place:
        running = loads(start, place)
        more(own.channel, 500)
        own.channel.remove()
        own.channel.load()
        own.channel.configure(Config())
        own.channel.attach()
        later = loads(start, place)
        more(own.channel, 500)
        finish(running + later)


def test_unread_bytes_survive_removal(own: Stage) -> None:
    """Redirected bytes wait unread while everything is removed; then they are read."""

    def scenario(scene: Scene) -> None:
        pairs = [scene.pair() for _ in range(20)]
        for number, (client, _) in enumerate(pairs):
            client.send(b"%08d" % number * 1000)
        if scene.channel:
            scene.channel.remove()
            scene.channel = None
        for number, (client, server) in enumerate(pairs):
            client.send(b"after it")
            scene.note("right", receive(server, 8008) == b"%08d" % number * 1000 + b"after it")
            send(server, b"answer")
            scene.note("back", receive(client, 6))
            client.close()
            scene.note("EOF", receive(server, 1))

    plain, ours = own.play(scenario, "off"), own.play(scenario, "on")
    same_notes(plain, ours)
