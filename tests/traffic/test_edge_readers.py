# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is an edge-triggered reader that trusts a short read, or FIONREAD, never left waiting?

epoll(7) promises that a read shorter than asked for has emptied a stream socket, and
nginx, Netty and tokio rely on it: they wait for the next edge then. nginx also asks
FIONREAD after a full read. A redirected message followed by one that goes by TCP, both
there before the reader looks, must therefore be read to the end.
"""

from __future__ import annotations

import http.client
import random
import select
import socket

import pytest
from harness import SLOWNESS, process
from harness.process import Said
from harness.scene import PRODUCTION, Scene, Stage, receive, send, wait
from test_programs import nginx
from test_receive import unread


class EdgeReader:
    """Reads as nginx does: until a short read, then waits for an edge."""

    def __init__(self, sock: socket.socket, size: int, trusts_fionread: bool) -> None:
        self.got = bytearray()
        self._sock, self._size, self._trusts = sock, size, trusts_fionread
        self._poll = select.epoll()
        self._poll.register(sock, select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP)

    def turn(self, seconds: float) -> bool:
        """Wait for one edge and read; False when none came."""
        if not self._poll.poll(seconds):
            return False
        while True:
            try:
                part = self._sock.recv(self._size)
            except BlockingIOError:
                return True
            self.got += part
            if len(part) < self._size or (self._trusts and not unread(self._sock)):
                return True


PAIRS = {
    "tiny-tail": (1000, 1),
    "equal": (1000, 1000),
    "large-tail": (1000, 600_000),
    "large-head": (200_000, 2),
}


@pytest.mark.parametrize("sizes", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("trusts", [False, True], ids=["short-read", "fionread"])
def test_two_messages_before_the_reader_looks(
    stage: Stage, sizes: tuple[int, int], trusts: bool
) -> None:
    def scenario(scene: Scene) -> None:
        client, server = scene.pair()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for turn in range(10):
            if turn == 5:
                scene.middle()
            reader = EdgeReader(server, 65536, trusts)
            data = random.Random(turn).randbytes(sum(sizes))
            send(client, data[: sizes[0]])
            send(client, data[sizes[0] :])
            wait(server, select.POLLIN)
            while len(reader.got) < len(data) and reader.turn(1):
                pass
            scene.note("all read", bytes(reader.got) == data)

    stage.compare(scenario)


@pytest.mark.parametrize("size", [100, 4096, 65536])
def test_first_bytes_larger_than_the_buffer(stage: Stage, size: int) -> None:
    """The first bytes go by TCP; the reader takes them in small pieces."""

    def scenario(scene: Scene) -> None:
        client, server = scene.pair(warm=False)
        reader = EdgeReader(server, size, True)
        data = random.Random(size).randbytes(size * 3 + 7)
        send(client, data)
        while len(reader.got) < len(data) and reader.turn(1):
            pass
        scene.note("all read", bytes(reader.got) == data)
        for _ in range(8):
            send(server, b"answer")
            receive(client, 6)
            send(client, b"question")
            receive(server, 8)
        scene.look()

    stage.compare(scenario)


def test_switch_while_bytes_are_unread(stage: Stage) -> None:
    """The mode changes between two messages that the reader finds together."""

    def scenario(scene: Scene) -> None:
        client, server = scene.pair()
        reader = EdgeReader(server, 65536, False)
        send(client, b"redirected" * 10)
        scene.middle()
        send(client, b"after the switch" * 10)
        wait(server, select.POLLIN)
        while len(reader.got) < 260 and reader.turn(1):
            pass
        scene.note("read", len(reader.got))

    stage.compare(scenario)


def upload(_said: Said, port: int, sizes: list[int]) -> list[tuple[int, int]]:
    """Send requests with large headers and bodies; return (size, status)."""
    answers = []
    for size in sizes:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=5 * SLOWNESS)
        for _ in range(3):
            client.request("GET", "/1", headers={"X-Long": "h" * min(size, 6000)}, body=b"b" * size)
            answer = client.getresponse()
            answer.read()
            answers.append((size, answer.status))
        client.close()
    return answers


@pytest.mark.parametrize("way", ["off", "on"])
def test_nginx_reads_large_requests(stage: Stage, way: str) -> None:
    """nginx is edge-triggered and trusts both short reads and FIONREAD."""
    sizes = [10, 900, 1100, 3000, 20_000, 100_000, 900_000]
    before = stage.channel.stats()["opened"]["sockmap"]
    with stage.configured(PRODUCTION), stage.place(way) as place, nginx(place, "on") as server:
        for _ in range(3):
            answers = process.run(upload, server.port, sizes, place=place, seconds=55)
            assert all(status == 200 for _, status in answers), answers
    assert (stage.channel.stats()["opened"]["sockmap"] > before) == (way == "on")
