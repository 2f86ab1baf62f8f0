# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does io_uring receive, send, poll and accept as on TCP?

The program is the one of tests/traffic, compiled in the guests.
"""

from __future__ import annotations

import socket
import subprocess
from typing import Any

import pytest
from ringlab.build import ROOT
from ringlab.guest import lib, programs
from ringlab.guest.programs import HELPERS
from ringlab.lab import Lab
from ringlab.scene import Scene, Stage

SOURCE = ROOT / "tests" / "traffic" / "harness" / "uring.c"
TURNS = 24


@pytest.fixture(scope="session")
def uring(guests: Lab) -> None:
    """/tmp/uring in the second guest."""
    guest = guests.guests[1]
    guest.run(programs.write_text, "/tmp/uring.c", SOURCE.read_text())
    compiler = ("gcc", "-O1", "-Wall", "-Werror", "-o", "/tmp/uring", "/tmp/uring.c")
    guest.run(programs.tool, *compiler)
    guest.run(programs.tool, "/tmp/uring", "probe")


def start_helper(sock: socket.socket, mode: str, least: int) -> None:
    """The program, with this socket."""
    HELPERS[mode] = subprocess.Popen(
        ["/tmp/uring", mode, str(sock.fileno()), str(least)],
        pass_fds=[sock.fileno()], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def helper_ended(mode: str) -> tuple[int, str]:
    """Its exit code and what it printed."""
    helper = HELPERS.pop(mode)
    printed, _ = helper.communicate(timeout=10)
    return helper.returncode, printed.strip()


def talk(scene: Scene, client: Any, size: int) -> None:
    """Messages that are echoed; in the middle of them `scene.middle()`."""
    for turn in range(TURNS):
        if turn == TURNS // 2:
            scene.middle()
        text = b"message %02d " % turn + b"u" * (turn * size)
        scene.send(client, text)
        scene.note("echo", scene.receive(client, len(text)) == text)


def end(scene: Scene, client: Any, mode: str) -> None:
    scene.look()
    client.shutdown(socket.SHUT_WR)
    scene.note("EOF", scene.receive(client, 1))
    scene.note("helper", scene.two.run(helper_ended, mode))


@pytest.mark.usefixtures("uring")
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "nonblocking"])
@pytest.mark.parametrize("mode", ["echo", "multishot", "poll"])
def test_io_uring(stage: Stage, mode: str, blocking: bool) -> None:
    """Requests that are there before the bytes come; many results of one request."""

    def scenario(scene: Scene) -> None:
        client, server = scene.pair(blocking=blocking)
        scene.two.run(start_helper, server, mode, TURNS)
        talk(scene, client, 300)
        server.close()
        end(scene, client, mode)

    scenario.__qualname__ = f"uring_{mode}_{blocking}"
    stage.compare(scenario)


@pytest.mark.usefixtures("uring")
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "nonblocking"])
def test_accept(stage: Stage, blocking: bool) -> None:
    """A connection that io_uring took from the listener."""

    def scenario(scene: Scene) -> None:
        door, port = scene.door()
        door.setblocking(blocking)
        scene.two.run(start_helper, door, "accept", TURNS)
        client = scene.one.run(lib.connect, scene.there.address, port, False)
        scene.watch(client=(scene.one, client))
        talk(scene, client, 300)
        door.close()
        end(scene, client, "accept")

    scenario.__qualname__ = f"uring_accept_{blocking}"
    stage.compare(scenario)


@pytest.mark.usefixtures("uring")
@pytest.mark.parametrize("mode", ["echo", "multishot", "poll"])
def test_reset(stage: Stage, mode: str) -> None:
    """A request that waits when the peer resets the connection ends with its error."""

    def scenario(scene: Scene) -> None:
        client, server = scene.pair(blocking=True)
        scene.two.run(start_helper, server, mode, 1)
        talk(scene, client, 10)
        server.close()
        scene.look()
        scene.one.run(lib.reset, client)
        scene.note("helper", scene.two.run(helper_ended, mode))

    scenario.__qualname__ = f"uring_reset_{mode}"
    stage.compare(scenario)
