# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many streams of known bytes at once: the load of the tests, which notices a wrong byte.

The content of a stream follows from its number and direction, so a receiver checks
every piece when it arrives and keeps a sha256 for the comparison with the sender's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import SLOWNESS, process, scene

_PERIOD = 262_147  # prime, so that no chunk size or page size divides it
_HEAD = struct.Struct("!IQQ")
_READ = 1 << 17


@dataclass(frozen=True)
class Plan:
    """What one connection carries. up, down: bytes to and from the server; -1: until told."""

    number: int
    up: int
    down: int


@dataclass
class Tally:
    """What one end of one connection counted."""

    number: int = -1
    sent: int = 0
    received: int = 0
    sent_sha: str = ""
    received_sha: str = ""
    error: str = ""


@functools.cache
def _bytes() -> bytes:
    return random.Random("streams").randbytes(_PERIOD) * 2


def content(number: int, direction: str, at: int, size: int) -> bytes:
    """Return bytes `at`... of a stream; size: at most _PERIOD. No two streams are in step."""
    start = (at + number * 7919 + (101_021 if direction == "up" else 0)) % _PERIOD
    return _bytes()[start : start + size]


@dataclass
class Chunks:
    """Sizes of the pieces that are written and read. seed 0: always `high`."""

    low: int = 1
    high: int = 65536
    seed: int = 1
    _random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._random.seed(self.seed)

    def count(self, most: int) -> int:
        """Return a number from 1 to `most`."""
        return self._random.randint(1, most)

    def next(self) -> int:
        if not self.seed:
            return self.high
        # Uniform in the exponent: as many tiny pieces as large ones.
        low, high = self.low.bit_length(), self.high.bit_length()
        return min(
            self.high, max(self.low, self._random.getrandbits(self._random.randint(low, high)))
        )


class End:
    """One end of one connection: sends its stream, checks the other's, shuts down, ends at EOF."""

    def __init__(
        self, sock: socket.socket, chunks: Chunks, plan: Plan | None = None, dialogue: bool = False
    ) -> None:
        # Without it a conversation of small messages waits for delayed ACKs on TCP.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.tally = Tally()
        self.stopping = False
        self.done = False
        self.disturb: Callable[[socket.socket, int], None] | None = None
        self.disturb_at = 0
        self._chunks = chunks
        self._dialogue = dialogue
        self.burst = 1
        self.slow = False
        self._left = 1
        self._out = self._in = ""
        self._size = self._in_size = 0
        self._head = b""
        self._unsent = memoryview(b"")
        self._sent_sha, self._received_sha = hashlib.sha256(), hashlib.sha256()
        self._shut = self._in_ended = False
        if plan:
            self._begin(plan, "up", "down")
            self._unsent = memoryview(_HEAD.pack(plan.number, plan.up & _MASK, plan.down & _MASK))

    def _begin(self, plan: Plan, out: str, into: str) -> None:
        self.tally.number = plan.number
        self._out, self._in = out, into
        self._size, self._in_size = (plan.up, plan.down)[:: 1 if out == "up" else -1]

    @property
    def events(self) -> int:
        """The poll events this end wants now."""
        wanted = self._unsent or self._may_write()
        sending = wanted and self.tally.number >= 0 and not self._shut
        return (0 if self._in_ended else select.EPOLLIN) | (select.EPOLLOUT if sending else 0)

    def step(self, ready: int) -> None:
        """Do some reading and writing; failures end this end and stay in its tally."""
        try:
            if ready & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._read()
            if ready & select.EPOLLOUT and not self.done:
                self._write()
            if self.disturb and not self.done and self.tally.received > self.disturb_at:
                self.disturb(self.sock, self.tally.number)
                self.disturb = None
        except OSError as error:
            self._finish(f"{type(error).__name__} {error.errno}")

    def _read(self) -> None:
        slow = self.slow and not self.stopping
        for _ in range(1 if slow else 4):
            size = 1000 if slow else min(_READ, self._chunks.next() * 4)
            try:
                data = self.sock.recv(size)
            except BlockingIOError:
                return
            if not data:
                self._eof()
                return
            self._left = self._chunks.count(self.burst)
            if self.tally.number < 0:
                data = self._greet(data)
            self._check(data)
            if self.done:
                return

    def _greet(self, data: bytes) -> bytes:
        self._head += data
        if len(self._head) < _HEAD.size:
            return b""
        number, up, down = _HEAD.unpack_from(self._head)
        plan = Plan(number, _signed(up), _signed(down))
        self._begin(plan, "down", "up")
        return self._head[_HEAD.size :]

    def _check(self, data: bytes) -> None:
        if not data:
            return
        wanted = content(self.tally.number, self._in, self.tally.received, len(data))
        if data != wanted:
            pairs = enumerate(zip(data, wanted, strict=False))
            first = next((i for i, (a, b) in pairs if a != b), len(wanted))
            self._finish(f"wrong byte at {self.tally.received + first}")
        self._received_sha.update(data)
        self.tally.received += len(data)

    def _eof(self) -> None:
        if self._shut or self.tally.number < 0:
            self._finish("")
        else:
            # The end of an endless stream says stop; this end does, after what it began.
            self.stopping = self.stopping or self._in_size < 0
            self._in_ended = True
            self._shutdown_if_done()

    def _write(self) -> None:
        for _ in range(4):
            if not self._unsent:
                if not self._may_write():
                    break
                self._left -= 1
                piece = self._next_piece()
                if not piece:
                    return
                self._unsent = memoryview(piece)
            try:
                count = self.sock.send(self._unsent)
            except BlockingIOError:
                return
            self._unsent = self._unsent[count:]
        self._shutdown_if_done()

    def _may_write(self) -> bool:
        return not self._dialogue or self._left > 0 or self._in_ended

    def _next_piece(self) -> bytes:
        if self._shutdown_if_done():
            return b""
        size = self._chunks.next()
        if self._size >= 0:
            size = min(size, self._size - self.tally.sent)
        piece = content(self.tally.number, self._out, self.tally.sent, min(size, _PERIOD))
        self.tally.sent += len(piece)
        self._sent_sha.update(piece)
        return piece

    def _shutdown_if_done(self) -> bool:
        complete = self._size >= 0 and self.tally.sent >= self._size
        stopped = self._size < 0 and self.stopping
        if self._unsent or self._shut or not (complete or stopped):
            return self._shut
        self.sock.shutdown(socket.SHUT_WR)
        self._shut = True
        if self._in_ended:
            self._finish("")
        return True

    def _finish(self, error: str) -> None:
        self.done = True
        self.tally.error = error
        self.tally.sent_sha = self._sent_sha.hexdigest()
        self.tally.received_sha = self._received_sha.hexdigest()
        self.sock.close()


_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


@dataclass
class Loop:
    """An epoll loop of ends. `parent`: stops endless streams when it says anything."""

    parent: process.Said | None = None
    ends: dict[int, End] = field(default_factory=dict)
    tallies: list[Tally] = field(default_factory=list)
    stopping: bool = False
    _poll: select.epoll = field(default_factory=select.epoll)
    _events: dict[int, int] = field(default_factory=dict)

    def add(self, end: End) -> None:
        end.stopping = self.stopping
        fd = end.sock.fileno()
        self.ends[fd] = end
        self._events[fd] = end.events
        self._poll.register(fd, end.events)

    def watch(self, fd: int) -> None:
        self._poll.register(fd, select.EPOLLIN)

    def turn(self, seconds: float = 0.2) -> list[int]:
        """Serve what is ready; return the descriptors that are no ends."""
        others = []
        for fd, ready in self._poll.poll(seconds):
            end = self.ends.get(fd)
            if end is None:
                others.append(fd)
                continue
            end.step(ready)
            if end.done:
                self._drop(fd, end)
            else:
                self._retune(fd, end)
        return others

    def _retune(self, fd: int, end: End) -> None:
        if end.events != self._events[fd]:
            self._events[fd] = end.events
            self._poll.modify(fd, end.events)

    def _drop(self, fd: int, end: End) -> None:
        del self.ends[fd], self._events[fd]
        self.tallies.append(end.tally)

    def stop(self) -> None:
        """Have the endless streams end after the piece they are sending."""
        self.stopping = True
        for fd, end in self.ends.items():
            end.stopping = True
            self._retune(fd, end)

    def abandon(self) -> list[Tally]:
        """Return all tallies, those of unfinished ends with an error."""
        for end in list(self.ends.values()):
            end._finish("unfinished")
            self.tallies.append(end.tally)
        self.ends.clear()
        return self.tallies


@dataclass(frozen=True)
class Setup:
    """How a load is made.

    address: the clients connect to it; bind: the server's, the same unless given; port: the
    server's, 0 for any; seen_port: what clients connect to, where it is translated; at_once:
    concurrent connections; seconds: time limit; before: prepares the listener; dialogue: an
    end writes only after it read something; burst: then at most so many messages; slow_each:
    one end in so many reads 1000 bytes at a time; pinned: the server on the first CPU, the client
    on the last; disturb: called once by each end with its socket and its stream's number,
    after a random number of bytes below disturb_below.
    """

    chunks: Chunks = field(default_factory=Chunks)
    address: str = "127.0.0.1"
    bind: str = ""
    port: int = 0
    seen_port: int = 0
    at_once: int = 64
    seconds: float = 30
    before: Callable[[socket.socket], None] | None = None
    dialogue: bool = False
    burst: int = 1
    slow_each: int = 0
    pinned: bool = False
    disturb: Callable[[socket.socket, int], None] | None = None
    disturb_below: int = 0

    def pin(self, index: int) -> None:
        """Keep the calling process on one CPU: 0 for the first, -1 for the last."""
        if self.pinned:
            os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[index]})

    def end(self, sock: socket.socket, number: int, plan: Plan | None = None) -> End:
        """Return one end of a connection."""
        made = End(sock, self.sizes(number), plan, self.dialogue)
        made.burst = self.burst
        made.slow = bool(self.slow_each) and number % self.slow_each == 0
        if self.disturb:
            made.disturb = self.disturb
            made.disturb_at = random.Random(f"{self.chunks.seed} {number}").randrange(
                self.disturb_below
            )
        return made

    def sizes(self, number: int) -> Chunks:
        """Return the chunk sizes of one end of one connection."""
        chunks = self.chunks
        return Chunks(chunks.low, chunks.high, chunks.seed and chunks.seed * 1000 + number + 1)


def serve(said: process.Said, count: int, setup: Setup) -> list[Tally]:
    """Say the port, serve `count` connections, and return their tallies."""
    setup.pin(0)
    extra: dict[str, Any] = {"before": setup.before} if setup.before else {}
    door = scene.listener(setup.bind or setup.address, setup.port, backlog=4096, **extra)
    said.say(door.getsockname()[1])
    loop = Loop()
    loop.watch(door.fileno())
    deadline = time.monotonic() + setup.seconds * SLOWNESS
    accepted = 0
    while (accepted < count or loop.ends) and time.monotonic() < deadline:
        if door.fileno() in loop.turn():
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock = door.accept()[0]
                    sock.setblocking(False)
                    accepted += 1
                    loop.add(setup.end(sock, accepted))
    door.close()
    return loop.abandon()


def load(said: process.Said, plans: list[Plan], port: int, setup: Setup) -> list[Tally]:
    """Make one connection for each plan and return their tallies.

    Says so when as many as may be at once are connected; anything the parent tells
    afterwards ends the streams of endless plans.
    """
    setup.pin(-1)
    loop = Loop()
    loop.watch(said.fileno())
    deadline = time.monotonic() + setup.seconds * SLOWNESS
    waiting = list(reversed(plans))
    announced = False
    while (waiting or loop.ends) and time.monotonic() < deadline:
        while waiting and len(loop.ends) < setup.at_once:
            plan = waiting.pop()
            sock = scene.connect(setup.address, port)
            loop.add(setup.end(sock, plan.number + 1_000_000, plan))
        if not announced:
            announced = True
            said.say("under way")
        if said.fileno() in loop.turn() and not loop.stopping:
            said.heard()
            loop.stop()
    return loop.abandon()


def verify(clients: list[Tally], servers: list[Tally], plans: list[Plan]) -> int:
    """Assert that each end received exactly what the other sent; return the bytes checked."""
    by_number = {tally.number: tally for tally in servers}
    wrong = []
    for tally in clients:
        other = by_number.get(tally.number, Tally(error="never arrived"))
        same = (tally.sent_sha, tally.received_sha) == (other.received_sha, other.sent_sha)
        if tally.error or other.error or not same:
            wrong.append((tally, other))
    shown = "\n".join(f"client {a}\nserver {b}" for a, b in wrong[:5])
    assert not wrong, f"{len(wrong)} of {len(plans)} streams are wrong:\n{shown}"
    assert sorted(tally.number for tally in clients) == sorted(plan.number for plan in plans)
    return sum(tally.received for tally in clients + servers)


@dataclass
class Load:
    """A server and a client process with their streams under way."""

    server: process.Child
    client: process.Child
    plans: list[Plan]

    def stop(self) -> int:
        """End endless streams, verify every byte, return how many there were."""
        self.client.tell("stop")
        return self.finish()

    def finish(self) -> int:
        """Wait for the end, verify every byte, return how many there were."""
        clients = self.client.result()
        return verify(clients, self.server.result(), self.plans)


def begin(
    start: Callable[..., process.Child],
    plans: list[Plan],
    place: process.Place,
    setup: Setup | None = None,
    server_place: process.Place | None = None,
) -> Load:
    """Start a server and a client; returns when the first connections are under way."""
    setup = setup or Setup()
    limit = setup.seconds + 5
    server = start(serve, len(plans), setup, place=server_place or place, seconds=limit)
    port = server.take()
    port = setup.seen_port or port
    client = start(load, plans, port, setup, place=place, seconds=limit)
    client.take()
    return Load(server, client, plans)
