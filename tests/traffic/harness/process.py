# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Child processes inside a chosen cgroup and network namespace.

A socket belongs to the cgroup of the process that makes it, so a child moves before
it runs anything. Every child has a time limit and dies with its parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from . import SLOWNESS, kernel


class ChildFailed(AssertionError):
    """A child raised, died or was too slow; the message has its traceback."""


@dataclass
class Place:
    """Where a child runs. cgroup: directory; netns: path of a namespace; None: the parent's."""

    cgroup: Path | None = None
    netns: str | None = None

    def enter(self) -> None:
        """Move the calling process there."""
        if self.cgroup is not None:
            (self.cgroup / "cgroup.procs").write_text("0")
        if self.netns is not None:
            kernel.enter_netns(self.netns)


@dataclass
class Child:
    """A running child. `conn` is its duplex message pipe."""

    pid: int
    conn: Connection
    seconds: float
    name: str
    _ended: bool = field(default=False)

    def take(self, seconds: float | None = None) -> Any:
        """Return the child's next message; raises ChildFailed when it failed instead."""
        limit = self.seconds if seconds is None else seconds * SLOWNESS
        if not self.conn.poll(limit):
            self.kill()
            raise ChildFailed(f"{self.name} (pid {self.pid}) said nothing for {limit} s")
        try:
            kind, value = self.conn.recv()
        except EOFError:
            raise ChildFailed(f"{self.name} (pid {self.pid}) died: {self._reap()}") from None
        if kind == "error":
            self._reap()
            raise ChildFailed(f"{self.name} failed:\n{value}")
        return value

    def tell(self, value: Any) -> None:
        """Send a message to the child."""
        self.conn.send(value)

    def result(self) -> Any:
        """Wait for the returned value and for the end of the process."""
        value = self.take()
        self._reap()
        return value

    def kill(self) -> None:
        """Kill the child and whatever it started in its process group."""
        if not self._ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._reap()

    def _reap(self) -> str:
        if self._ended:
            return "ended before"
        self._ended = True
        status = os.waitpid(self.pid, 0)[1]
        self.conn.close()
        return f"exit code {os.waitstatus_to_exitcode(status)}"


class Said:
    """The child's end: `say` sends a message, `heard` waits for one from the parent."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def say(self, value: Any) -> None:
        self._conn.send(("said", value))

    def heard(self) -> Any:
        return self._conn.recv()

    def fileno(self) -> int:
        return self._conn.fileno()

    def pending(self) -> bool:
        return self._conn.poll(0)


def start(
    function: Callable[..., Any], *args: Any, place: Place | None = None, seconds: float = 30
) -> Child:
    """Fork; the child enters `place` and runs function(said, *args); its value is the result."""
    seconds *= SLOWNESS
    ours, theirs = Pipe(duplex=True)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _run(function, args, place or Place(), theirs, seconds)
    theirs.close()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(pid, pid)
    return Child(pid, ours, seconds, getattr(function, "__name__", "child"))


def _run(
    function: Callable[..., Any], args: tuple[Any, ...], place: Place, conn: Connection,
    seconds: float,
) -> None:  # fmt: skip
    code = 1
    try:
        os.setpgid(0, 0)
        kernel.die_with_parent()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.alarm(int(seconds) + 1)
        place.enter()
        conn.send(("result", function(Said(conn), *args)))
        code = 0
    except BaseException:
        with contextlib.suppress(OSError):
            conn.send(("error", traceback.format_exc()))
    finally:
        os._exit(code)


@contextlib.contextmanager
def children() -> Any:
    """Yield a `start` whose children are killed at the end, whatever happens."""
    started: list[Child] = []

    def begin(*args: Any, **kwargs: Any) -> Child:
        started.append(start(*args, **kwargs))
        return started[-1]

    try:
        yield begin
    finally:
        for child in started:
            child.kill()


def run(
    function: Callable[..., Any], *args: Any, place: Place | None = None, seconds: float = 30
) -> Any:
    """Run a function in a child and return its value."""
    with children() as begin:
        return begin(function, *args, place=place, seconds=seconds).result()
