# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting: descriptors, timers and listening sockets."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable

from ._model.errors import ForeignError, TcpSmError
from .config import Access
from .server import Watcher

log = logging.getLogger("tcp_sm_agent")

BACKLOG = 64
# Out of descriptors: leave the listener alone for so long.
PAUSE_SECONDS = 1.0
IDLE_SECONDS = 60.0
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class Loop(Watcher):
    """A selector with callbacks and one-shot timers."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def watch(self, fd: int, call: Callable[[], None], write: bool = False) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)
        self.selector.register(fd, events, call)

    def forget(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self.selector.unregister(fd)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call once, in `seconds`."""
        self.timers.append((time.monotonic() + seconds, call))

    def step(self) -> None:
        """Wait for the next thing to happen, and do it."""
        now = time.monotonic()
        due = min((when for when, _call in self.timers), default=now + IDLE_SECONDS)
        for key, _events in self.selector.select(max(0.0, due - now)):
            # An earlier callback of this round may have closed it, and the number may mean
            # another descriptor by now.
            current = self.selector.get_map().get(key.fd)
            if current is not None and current.data is key.data:
                _call(key.data)
        self._run_timers(time.monotonic())

    def _run_timers(self, now: float) -> None:
        due = [call for when, call in self.timers if when <= now]
        self.timers = [one for one in self.timers if one[0] > now]
        for call in due:
            _call(call)

    def close(self) -> None:
        """Close the selector."""
        self.selector.close()


def _call(call: Callable[[], None]) -> None:
    """One region's trouble is not the end of the others'."""
    try:
        call()
    except (TcpSmError, OSError) as error:
        log.error("%s", error)
    except Exception:
        log.exception("a defect of the agent, which goes on; please report it")


class Listener:
    """A listening socket; each new connection goes to `welcome`."""

    def __init__(
        self,
        path: str,
        access: Access,
        loop: Loop,
        welcome: Callable[[socket.socket], None],
        farewell: bytes = b"",
    ) -> None:
        """`farewell`: what those hear who wait when it closes. Raises TcpSmError."""
        self.path, self.loop, self.welcome, self.farewell = path, loop, welcome, farewell
        self.sock = listen(path, access)
        self.inode = os.stat(path).st_ino
        loop.watch(self.sock.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _address = self.sock.accept()
        except OSError as error:
            if error.errno in SHORT_OF:
                log.error("cannot accept on %s: %s; trying again", self.path, error.strerror)
                self.loop.forget(self.sock.fileno())
                self.loop.after(PAUSE_SECONDS, self._resume)
            return
        self.welcome(sock)

    def _resume(self) -> None:
        if self.sock.fileno() >= 0:
            self.loop.watch(self.sock.fileno(), self._accept)

    def is_current(self) -> bool:
        """Does the path still name this socket?"""
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False

    def close(self) -> None:
        """Stop listening and delete the socket."""
        self.loop.forget(self.sock.fileno())
        if self.is_current():
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        with contextlib.suppress(OSError):
            while True:
                waiting, _address = self.sock.accept()
                with waiting:
                    waiting.send(self.farewell, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        self.sock.close()


def listen(path: str, access: Access) -> socket.socket:
    """A listening socket at `path`, in the place of one that nobody listens on any more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        if _is_live(path):
            raise ForeignError(
                f"Cannot listen on {path}: another process does. Stop it, or name another socket."
            )
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        # Nobody may connect before the permissions are set.
        before = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        os.chown(path, access.uid, access.gid)
        os.chmod(path, access.mode)
        sock.listen(BACKLOG)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise TcpSmError(f"Cannot listen on {path}: {reason}. Run as root.") from error
        raise
    return sock


def _is_live(path: str) -> bool:
    """Does somebody listen there?"""
    if not os.path.lexists(path):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


class Reply:
    """Sends a text to whoever connected, however slowly it reads, and closes."""

    PATIENCE_SECONDS = 5.0

    def __init__(self, sock: socket.socket, data: bytes, loop: Loop) -> None:
        self.sock, self.data, self.loop = sock, data, loop
        sock.setblocking(False)
        loop.watch(sock.fileno(), self._send, write=True)
        loop.after(self.PATIENCE_SECONDS, self._close)

    def _send(self) -> None:
        try:
            self.data = self.data[self.sock.send(self.data, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return
        except OSError:
            self.data = b""
        if not self.data:
            self._close()

    def _close(self) -> None:
        if self.sock.fileno() >= 0:
            self.loop.forget(self.sock.fileno())
            self.sock.close()
