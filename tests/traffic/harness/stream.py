# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many streams of known bytes at once: the load of the tests, which notices a wrong byte.

The content of a stream follows from its number and direction, so a receiver checks
every piece when it arrives and keeps a sha256 for the comparison with the sender's.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import process, scene

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


def content(number: int, direction: str) -> bytes:
    """Return one period of a stream's bytes, twice, so that any piece is one slice."""
    return random.Random(f"{number} {direction}").randbytes(_PERIOD) * 2


@dataclass
class Chunks:
    """Sizes of the pieces that are written and read. seed 0: always `high`."""

    low: int = 1
    high: int = 65536
    seed: int = 1
    _random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._random.seed(self.seed)

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

    def __init__(self, sock: socket.socket, chunks: Chunks, plan: Plan | None = None) -> None:
        self.sock = sock
        self.tally = Tally()
        self.stopping = False
        self.done = False
        self._chunks = chunks
        self._out = self._in = b""
        self._size = 0
        self._head = b""
        self._unsent = memoryview(b"")
        self._sent_sha, self._received_sha = hashlib.sha256(), hashlib.sha256()
        self._shut = self._in_ended = False
        if plan:
            self._begin(plan, "up", "down", plan.up)
            self._unsent = memoryview(_HEAD.pack(plan.number, plan.up & _MASK, plan.down & _MASK))

    def _begin(self, plan: Plan, out: str, into: str, size: int) -> None:
        self.tally.number = plan.number
        self._out, self._in = content(plan.number, out), content(plan.number, into)
        self._size = size

    @property
    def events(self) -> int:
        """The poll events this end wants now."""
        sending = self.tally.number >= 0 and not self._shut
        return (0 if self._in_ended else select.EPOLLIN) | (select.EPOLLOUT if sending else 0)

    def step(self, ready: int) -> None:
        """Do some reading and writing; failures end this end and stay in its tally."""
        try:
            if ready & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._read()
            if ready & select.EPOLLOUT and not self.done:
                self._write()
        except OSError as error:
            self._finish(f"{type(error).__name__} {error.errno}")

    def _read(self) -> None:
        for _ in range(4):
            try:
                data = self.sock.recv(min(_READ, self._chunks.next() * 4))
            except BlockingIOError:
                return
            if not data:
                self._eof()
                return
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
        self._begin(plan, "down", "up", plan.down)
        return self._head[_HEAD.size :]

    def _check(self, data: bytes) -> None:
        if not data:
            return
        at = self.tally.received % _PERIOD
        wanted = self._in[at : at + len(data)] if len(data) <= _PERIOD else b""
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
            # The other side stopped; so does this one, after what it began.
            self.stopping = True
            self._in_ended = True
            self._shutdown_if_done()

    def _write(self) -> None:
        for _ in range(4):
            if not self._unsent:
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

    def _next_piece(self) -> bytes:
        if self._shutdown_if_done():
            return b""
        size = self._chunks.next()
        if self._size >= 0:
            size = min(size, self._size - self.tally.sent)
        at = self.tally.sent % _PERIOD
        piece = self._out[at : at + min(size, _PERIOD)]
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


def serve(
    said: process.Said, count: int, chunks: Chunks, address: str = "127.0.0.1", port: int = 0,
    seconds: float = 30, before: Callable[[socket.socket], None] | None = None, quiet: float = 5,
) -> list[Tally]:  # fmt: skip
    """Say the port, serve `count` connections, and return their tallies."""
    extra: dict[str, Any] = {"before": before} if before else {}
    door = scene.listener(address, port, backlog=4096, **extra)
    said.say(door.getsockname()[1])
    loop = Loop()
    loop.watch(door.fileno())
    deadline = time.monotonic() + seconds
    accepted = 0
    while (accepted < count or loop.ends) and time.monotonic() < deadline:
        if door.fileno() in loop.turn():
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock = door.accept()[0]
                    sock.setblocking(False)
                    accepted += 1
                    loop.add(End(sock, Chunks(chunks.low, chunks.high, chunks.seed and accepted)))
    door.close()
    return loop.abandon()


def load(
    said: process.Said, plans: list[Plan], chunks: Chunks, port: int, address: str = "127.0.0.1",
    at_once: int = 64, seconds: float = 30,
) -> list[Tally]:  # fmt: skip
    """Make one connection for each plan, `at_once` at a time, and return their tallies.

    Anything the parent tells ends streams of endless plans.
    """
    loop = Loop()
    loop.watch(said.fileno())
    deadline = time.monotonic() + seconds
    waiting = list(reversed(plans))
    announced = False
    while (waiting or loop.ends) and time.monotonic() < deadline:
        while waiting and len(loop.ends) < at_once:
            plan = waiting.pop()
            sock = scene.connect(address, port)
            loop.add(
                End(sock, Chunks(chunks.low, chunks.high, chunks.seed and plan.number + 1), plan)
            )
        if not waiting and not announced:
            announced = True
            said.say("all connected")
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
    start: Callable[..., process.Child], plans: list[Plan], place: process.Place,
    chunks: Chunks | None = None, server_place: process.Place | None = None,
    address: str = "127.0.0.1", bind: str | None = None, at_once: int = 64, seconds: float = 30,
    before: Callable[[socket.socket], None] | None = None, port: int = 0,
    connect_port: int | None = None,
) -> Load:  # fmt: skip
    """Start a server and a client; returns when every connection was at least started."""
    chunks = chunks or Chunks()
    server = start(
        serve, len(plans), chunks, bind or address, port, seconds, before,
        place=server_place or place, seconds=seconds + 5,
    )  # fmt: skip
    real = server.take()
    client = start(
        load, plans, chunks, connect_port or real, address, at_once, seconds,
        place=place, seconds=seconds + 5,
    )  # fmt: skip
    client.take()
    return Load(server, client, plans)
