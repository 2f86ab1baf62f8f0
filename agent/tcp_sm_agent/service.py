# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as a whole: opens and closes regions as configured, reacts to signals, reports."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._io.process import Process, processes
from ._io.region import Making, RegionFile
from ._io.region_state import make_region
from ._model.errors import TcpSmError
from ._model.ivshmem import REFUSED, encode
from .config import Access, Config, Serving
from .loop import Listener, Loop, Reply
from .server import RegionServer
from .status import describe_server, metrics, write_metrics

log = logging.getLogger("tcp_sm_agent")

# How often machines without a connection are looked for, and metrics are written.
SWEEP_SECONDS = 5.0
STOPS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Served:
    """A region of the configuration; `error` says why it is not served now."""

    serving: Serving
    server: RegionServer | None = None
    listener: Listener | None = None
    error: str = ""

    def close(self) -> None:
        """Serve it no more; its machines keep what they have."""
        if self.listener is not None:
            self.listener.close()
        if self.server is not None:
            self.server.close()
        self.listener = self.server = None


class Service:
    """Serves all regions of a configuration until it is told to stop."""

    def __init__(
        self,
        config: Config,
        reread: Callable[[], Config] | None = None,
        ready: Callable[[], None] = lambda: None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """`reread` gives the configuration at SIGHUP. `ready` is called once the sockets listen,
        `alive` now and then."""
        self.config, self.reread, self.ready, self.alive = config, reread, ready, alive
        self.loop = Loop()
        self.served: dict[str, Served] = {}
        self.control: Listener | None = None
        self.started, self.program = time.time(), program()
        self.stopping = False
        self.processes: list[Process] | None = None

    def run(self, strict: bool = False) -> None:
        """Serve; returns after SIGTERM or SIGINT.

        Raises TcpSmError when another agent is in the way; with `strict` also when a region cannot
        be served, which otherwise is tried again and again.
        """
        with self._signals():
            try:
                self._configure()
                problems = [one.error for one in self.served.values() if one.error]
                if strict and problems:
                    raise TcpSmError(problems[0])
                self.loop.after(SWEEP_SECONDS, self._sweep)
                self._report()
                self.ready()
                while not self.stopping:
                    self.loop.step()
                log.info("stopping")
            finally:
                self._close()

    # Regions.

    def _configure(self) -> None:
        """Serve what the configuration says, without disturbing what stays."""
        self._listen_for_status()
        wanted = {serving.name: serving for serving in self.config.regions}
        for name in set(self.served) - set(wanted):
            log.info("region %s is not in the configuration any more", name)
            self.served.pop(name).close()
        self.processes = None
        for name, serving in wanted.items():
            one = self.served.setdefault(name, Served(serving))
            if one.serving != serving and not _same_service(one.serving, serving):
                one.close()
            one.serving = serving
            self._open(one)
        running = sum(not one.error for one in self.served.values())
        log.info("serving %d of %d regions", running, len(self.served))

    def _listen_for_status(self) -> None:
        path = self.control.path if self.control else ""
        if path == self.config.control and (not self.control or self.control.is_current()):
            return
        if self.control:
            self.control.close()
            self.control = None
        if self.config.control:
            self.control = Listener(self.config.control, Access(), self.loop, self._tell_status)

    def _open(self, one: Served) -> None:
        """Serve the region, unless it is served; note why it cannot be."""
        try:
            self._open_server(one)
            if one.listener is None or not one.listener.is_current():
                self._open_listener(one)
        except Exception as error:  # one region's trouble is not the end of the others'
            reason = str(error) or repr(error)
            if reason != one.error:
                trace = not isinstance(error, (TcpSmError, OSError))
                log.error("region %s: %s", one.serving.name, reason, exc_info=trace)
            one.error = reason
            if one.listener is None:
                one.close()
        else:
            one.error = ""

    def _open_server(self, one: Served) -> None:
        if one.server is not None and not one.server.file.is_current():
            self._region_replaced(one)
        if one.server is None:
            _make(one.serving)
            file = RegionFile(one.serving.path, owners=[one.serving.access.uid])
            try:
                one.server = RegionServer(file, one.serving.vectors, self.loop, one.serving.note)
            except BaseException:
                file.close()
                raise
        # Those that are there come first, so that none is taken for dead by whoever joins.
        one.server.adopt(self._processes)

    def _processes(self) -> list[Process]:
        """Those of the host; looked for once in a sweep, for all regions."""
        if self.processes is None:
            self.processes = list(processes())
        return self.processes

    def _region_replaced(self, one: Served) -> None:
        """Its file was deleted, or made anew: serve that one once nobody uses the old."""
        assert one.server is not None
        if one.server.machines:
            one.server.note_replaced()
        else:
            log.info("region %s was replaced; serving the new one", one.serving.name)
            one.close()

    def _open_listener(self, one: Served) -> None:
        assert one.server is not None
        if one.listener is not None:
            one.listener.close()
        serving = one.serving
        one.listener = Listener(
            serving.socket,
            serving.socket_access,
            self.loop,
            one.server.join,
            farewell=encode(REFUSED),
        )

    def _sweep(self) -> None:
        """Now and then: what no descriptor tells of."""
        self.loop.after(SWEEP_SECONDS, self._sweep)
        self.processes = None
        for one in self.served.values():
            self._open(one)
        self.processes = None
        self._report()
        self.alive()

    # Reports.

    def status(self) -> dict[str, Any]:
        """Everything, as plain data."""
        since = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.started))
        return {
            "agent": {
                "pid": os.getpid(),
                "since": since,
                "started": round(self.started, 3),
                "program": self.program,
            },
            "regions": [self._region_status(one) for one in self.served.values()],
        }

    def _region_status(self, one: Served) -> dict[str, Any]:
        head = {"name": one.serving.name, "path": one.serving.path, "socket": one.serving.socket}
        if one.server is None:
            return {**head, "error": one.error or "it is not served yet"}
        try:
            return {**describe_server(one.server), **head, "error": one.error or None}
        except TcpSmError as error:
            return {**head, "error": str(error)}

    def _tell_status(self, sock: socket.socket) -> None:
        Reply(sock, json.dumps(self.status()).encode() + b"\n", self.loop)

    def _report(self) -> None:
        if not self.config.metrics:
            return
        try:
            write_metrics(self.config.metrics, metrics(self.status()))
        except OSError as error:
            log.error("cannot write metrics to %s: %s", self.config.metrics, error.strerror)

    # Signals.

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals become readable bytes, so that none falls between two waits."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        handlers = {
            number: signal.signal(number, lambda _number, _frame: None)
            for number in (*STOPS, signal.SIGHUP)
        }
        self.loop.watch(read, lambda: self._signalled(read))
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.loop.forget(read)
            self.loop.close()
            os.close(read)
            os.close(write)

    def _signalled(self, read: int) -> None:
        numbers = set(os.read(read, 512))
        if numbers & set(STOPS):
            self.stopping = True
        elif signal.SIGHUP in numbers and self.reread is not None:
            try:
                self.config = self.reread()
            except TcpSmError as error:
                log.error("going on as before: %s", error)
                return
            log.info("configuration read again")
            self._configure()
            self._report()

    def _close(self) -> None:
        for one in self.served.values():
            one.close()
        if self.control is not None:
            self.control.close()
        if self.config.metrics:
            with contextlib.suppress(OSError):
                os.unlink(self.config.metrics)


def program() -> str:
    """SHA-1 of the archive that this runs from, by which role hypervisor knows another version;
    empty where it runs from source."""
    archive = Path(__file__).parents[1]
    if not archive.is_file():
        return ""
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def _same_service(old: Serving, new: Serving) -> bool:
    """Can machines stay connected?"""
    return (old.path, old.socket, old.socket_access, old.vectors) == (
        new.path,
        new.socket,
        new.socket_access,
        new.vectors,
    )


def _make(serving: Serving) -> None:
    """Make the region where it is missing, as after a reboot. Raises TcpSmError."""
    if serving.spec is None or os.path.lexists(serving.path):
        return
    access = serving.access
    making = Making(access.mode, access.uid, access.gid, serving.spec.allocate)
    make_region(serving.spec, making)
    log.info("made region %s at %s", serving.name, serving.path)
