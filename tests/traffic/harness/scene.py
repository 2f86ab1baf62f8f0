# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One scenario run three ways, and its outcome compared with plain TCP.

A scenario is a function of a `Scene`. It makes connections with `scene.pair()`, does
what an application would do, and notes what an application would see. `compare` runs
it on plain TCP, accelerated, and with the mode switched to `pass` where the scenario
says `scene.middle()`; the three notebooks must be equal.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import SLOWNESS, process
from .channel import PASS, SO_COOKIE, Channel, Config, Reason, Record

WAYS = ("off", "on", "switch")
PATIENCE = 5.0 * SLOWNESS
TCP_CLOSE = 7
_SERIAL = itertools.count()


def cookie(sock: socket.socket) -> int:
    """Return the kernel's cookie of a socket."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def wait(sock: socket.socket, events: int, seconds: float = PATIENCE) -> int:
    """Wait for poll events and return those that came (0: none in time)."""
    poller = select.poll()
    poller.register(sock, events)
    ready = poller.poll(int(seconds * 1000))
    return ready[0][1] if ready else 0


def receive(sock: socket.socket, size: int, seconds: float = PATIENCE) -> bytes:
    """Read up to `size` bytes of a non-blocking socket, waiting; short only at EOF."""
    parts: list[bytes] = []
    left = size
    deadline = time.monotonic() + seconds
    while left:
        try:
            part = sock.recv(left)
        except BlockingIOError:
            if not wait(sock, select.POLLIN, deadline - time.monotonic()):
                got = size - left
                raise TimeoutError(f"{got} of {size} bytes after {seconds} s") from None
            continue
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def send(sock: socket.socket, data: bytes, seconds: float = PATIENCE) -> None:
    """Write everything to a non-blocking socket, waiting where it is full."""
    view = memoryview(data)
    deadline = time.monotonic() + seconds
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            if not wait(sock, select.POLLOUT, deadline - time.monotonic()):
                raise TimeoutError(f"{len(view)} bytes not taken in {seconds} s") from None


def listener(address: str = "127.0.0.1", port: int = 0, **options: Any) -> socket.socket:
    """Return a non-blocking listener. options: family, backlog, before (called unbound)."""
    family = options.get("family", socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if "before" in options:
        options["before"](sock)
    sock.bind((address, port))
    sock.listen(options.get("backlog", 128))
    sock.setblocking(False)
    return sock


def accept(sock: socket.socket, blocking: bool = False) -> socket.socket:
    """Accept one connection of a non-blocking listener, waiting for it."""
    wait(sock, select.POLLIN)
    made = sock.accept()[0]
    made.setblocking(blocking)
    return made


def connect(
    address: str, port: int, family: int | None = None, bind: Any = None, seconds: float = PATIENCE
) -> socket.socket:
    """Return a connected non-blocking socket, or raise what connect reports."""
    sock = socket.socket(family or (socket.AF_INET6 if ":" in address else socket.AF_INET))
    sock.setblocking(False)
    if bind:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(bind)
    code = sock.connect_ex((address, port))
    if code == errno.EINPROGRESS:
        wait(sock, select.POLLOUT, seconds)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        sock.close()
        raise OSError(code, f"connect to {address} port {port}: {os.strerror(code)}")
    return sock


@dataclass
class Outcome:
    """What a scenario noted, and what the channel said of its sockets at the end."""

    notes: list[tuple[str, Any]] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)


class Scene:
    """The stage of one run.

    way: one of WAYS; channel: None where nothing is attached; port: the server's, 0 for any;
    lesson: this run only teaches the channel what kind of program listens on the port.
    """

    def __init__(
        self, way: str, channel: Channel | None, config: Config, port: int = 0, lesson: bool = False
    ) -> None:
        self.way = way
        self.channel = channel
        self.config = config
        self.port = port
        self.lesson = lesson
        self.outcome = Outcome()
        self._watched: dict[str, socket.socket] = {}

    @property
    def accelerated(self) -> bool:
        """True where connections are expected to enter the channel."""
        return self.way != "off" and not self.lesson

    def note(self, name: str, value: Any) -> None:
        """Write down something an application can see."""
        self.outcome.notes.append((name, value))

    def attempt(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call, note the value or the errno's name, and return the value (None on errors)."""
        try:
            value = function(*args)
        except OSError as error:
            self.note(name, errno.errorcode.get(error.errno or 0, str(error)))
            return None
        self.note(name, value)
        return value

    def middle(self) -> None:
        """Here the third way switches the mode to `pass`."""
        if self.way == "switch" and self.channel and not self.lesson:
            self.channel.configure(replace(self.config, mode=PASS))

    def record(self, sock: socket.socket) -> Record | None:
        """Return the channel's record of a socket, None on plain TCP or when there is none."""
        return self.channel.records().get(cookie(sock)) if self.channel else None

    def watch(self, **sockets: socket.socket) -> None:
        """Keep the records of these sockets for the test, as they are when the scene ends."""
        self._watched.update(sockets)

    def look(self) -> None:
        """Take the records of the watched sockets now."""
        if not self.channel:
            return
        found = self.channel.records()
        for name, sock in self._watched.items():
            record = found.get(cookie(sock)) if sock.fileno() >= 0 else None
            # A closed connection's flows are gone: keep what was there before.
            if record and record.tcp_state != TCP_CLOSE:
                self.outcome.records[name] = record

    def pair(
        self, address: str = "127.0.0.1", warm: bool = True, **options: Any
    ) -> tuple[socket.socket, socket.socket]:
        """Return (client, server), non-blocking, and used so far that both ways redirect."""
        with listener(address, self.port, **options) as door:
            client = connect(address, door.getsockname()[1])
            server = accept(door)
        self.watch(client=client, server=server)
        if warm:
            self.warm(client, server)
        return client, server

    def warm(self, client: socket.socket, server: socket.socket) -> None:
        """Exchange messages until both directions are redirected (on TCP: a few)."""
        for _ in range(16):
            for a, b in ((client, server), (server, client)):
                send(a, b"warm")
                receive(b, 4)
            ours, theirs = self.record(client), self.record(server)
            if ours and theirs and ours.tx.msgs and theirs.tx.msgs:
                self.look()
                return
        if self.accelerated:
            raise AssertionError(f"not accelerated: client {ours}, server {theirs}")


Scenario = Callable[[Scene], None]

# Nothing is accelerated before its port is known, as in production.
LEARNING = Config(eager=0)
# What the container role writes unless it is told otherwise.
PRODUCTION = Config(eager=0, max_burst=262144)


@dataclass
class Stage:
    """Where scenes run. top: the cgroup the channel is attached to; outside: one beside it."""

    channel: Channel
    top: Path
    outside: Path

    @contextlib.contextmanager
    def place(self, way: str = "on", netns: str | None = None) -> Iterator[process.Place]:
        """Make a cgroup of its own, so that no profile of another test applies in it."""
        parent = self.outside if way == "off" else self.top
        group = parent / f"scene-{next(_SERIAL)}"
        group.mkdir()
        try:
            yield process.Place(group, netns)
        finally:
            _remove_cgroup(group)

    @contextlib.contextmanager
    def configured(self, config: Config) -> Iterator[None]:
        """Set a configuration; afterwards the default of the tests is back."""
        self.channel.configure(config)
        try:
            yield
        finally:
            self.channel.configure(Config())

    def play(
        self,
        scenario: Scenario,
        way: str,
        config: Config | None = None,
        seconds: float = 30,
    ) -> Outcome:
        """Run a scenario one way in a child process.

        Unless the configuration is eager, it runs twice on one port; the first run is
        what the channel learns from.
        """
        config = config or Config()
        with self.configured(config), self.place(way) as place:
            return process.run(
                _perform, scenario, way, self.channel, config, place=place, seconds=seconds
            )

    def differs(
        self, scenario: Scenario, tcp: list[tuple[str, Any]], ours: list[tuple[str, Any]]
    ) -> None:
        """Assert a known difference: what TCP does, and what an accelerated connection does."""
        plain, accelerated = self.play(scenario, "off"), self.play(scenario, "on")
        assert plain.notes == tcp, "plain TCP does something else"
        assert accelerated.notes == ours, "the documented difference is another one now"
        assert any(record.tx.msgs for record in accelerated.records.values())

    def compare(
        self,
        scenario: Scenario,
        reason: Reason = Reason.NONE,
        config: Config | None = None,
        seconds: float = 30,
    ) -> dict[str, Outcome]:
        """Run all ways; outcomes must equal TCP's, and the sockets be where they should.

        reason: NONE when the connection must have been accelerated, else why it must
        have stayed on TCP.
        """
        outcomes = {way: self.play(scenario, way, config, seconds) for way in WAYS}
        for way in WAYS[1:]:
            same_notes(outcomes["off"], outcomes[way], way)
        placed = outcomes["on"].records
        if reason is Reason.NONE:
            moved = [record.tx.msgs for record in placed.values()]
            assert any(moved), f"nothing was redirected: {placed}"
        else:
            reasons = {record.reason for record in placed.values()}
            assert reason in reasons, f"reasons {reasons} without {reason!r}: {placed}"
        return outcomes


def same_notes(plain: Outcome, other: Outcome, way: str = "on") -> None:
    """Assert that an application saw the same as on plain TCP."""
    assert plain.notes, "the scenario noted nothing"
    both = itertools.zip_longest(other.notes, plain.notes)
    differs = [(seen, tcp) for seen, tcp in both if seen != tcp]
    assert not differs, f"{way} differs from plain TCP in (seen, TCP's): {differs[:5]}"


def _perform(
    _said: process.Said, scenario: Scenario, way: str, channel: Channel, config: Config
) -> Outcome:
    used = None if way == "off" else channel
    port = 0
    if not config.eager:
        with listener() as door:
            port = door.getsockname()[1]
        scenario(Scene(way, used, config, port, lesson=True))
    scene = Scene(way, used, config, port)
    scenario(scene)
    scene.look()
    return scene.outcome


def _remove_cgroup(group: Path) -> None:
    """Remove a test's own cgroup, and end what a failed test left running in it."""
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    deadline = time.monotonic() + 5
    while True:
        try:
            group.rmdir()
            return
        except OSError:
            # A process that ended leaves its cgroup a moment after it was reaped.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
