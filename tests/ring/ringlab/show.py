# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unmodified programs between the two guests, and an account of where their bytes went.

The account has three witnesses: the counters of the guests' network interfaces, the
handshake's counters of connections, and the channel's records, looked at while the
programs run (a record ends with its connection, so what looks see is a sample).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import abi

from . import scene
from .guest import programs
from .lab import Guest, Lab
from .remote import Pending, Worker
from .scene import Record

ESTABLISHED = 1
FIRST_PORT = 6000
_PORTS = itertools.count(FIRST_PORT)
SHARE = 0.1  # of a payload at most, that may be seen on the network
SPARE = 2000  # bytes on the network of each connection's handshake and end


class Account:
    """Where bytes went from when it was opened until `close`."""

    def __init__(self, guests: tuple[Guest, Guest]) -> None:
        self.guests = guests
        self.best: dict[tuple[str, int], Record] = {}
        self.before = [scene.stats(guest) for guest in guests]
        self.network = self._network()

    def _network(self) -> int:
        return max(int(guest.run(programs.on_network)) for guest in self.guests)

    def look(self) -> None:
        """Remember the records of the connections between the guests, as they are now."""
        addresses = {guest.address for guest in self.guests}
        for guest in self.guests:
            for cookie, record in scene.kept(guest).items():
                between = {record.local_addr, record.remote_addr} == addresses
                if between and record.tcp_state == ESTABLISHED:
                    self.best[guest.name, cookie] = record

    def opened(self, guest: int) -> dict[str, int]:
        """Connections opened since, by channel or by the reason why they are on TCP."""
        before, now = self.before[guest], scene.stats(self.guests[guest])
        counts = {"ring": now["opened"]["ring"] - before["opened"]["ring"]}
        for name, count in now["reasons"].items():
            counts[name] = count - before["reasons"].get(name, 0)
        return {name: count for name, count in counts.items() if count}

    def close(self, payload: int, least: int = 1, others: frozenset[str] = frozenset()) -> None:
        """Assert that the payload went through rings.

        payload: bytes that the programs exchanged; least: how many connections there were;
        others: reasons of connections that were meant to stay on TCP, inside a guest.
        """
        opened = [self.opened(number) for number in (0, 1)]
        for counts in opened:
            assert counts.get("ring", 0) >= least, counts
            assert set(counts) <= {"ring"} | others, counts
        crossed = self._network() - self.network
        connections = max(counts["ring"] for counts in opened)
        assert crossed < payload * SHARE + SPARE * connections, f"{crossed} bytes of {payload}"
        assert crossed < payload / 2, f"{crossed} bytes of {payload}: too little to tell"
        # A look may miss a short connection, or see it before its first byte.
        on_tcp = [record for record in self.best.values() if record.channel is not abi.Channel.RING]
        assert not on_tcp, on_tcp


class Show:
    """Servers in the second guest, clients in the first."""

    def __init__(self, lab: Lab) -> None:
        self.here, self.there = lab.guests
        self.one, self.two = self.here.worker(), self.there.worker()
        self.host = self.there.address
        self.accounts: list[Account] = []

    @contextlib.contextmanager
    def account(self, payload: int, least: int = 1, **named: Any) -> Iterator[Account]:
        """What runs inside must go through rings."""
        made = Account((self.here, self.there))
        self.accounts.append(made)
        try:
            yield made
        finally:
            self.accounts.remove(made)
        made.close(payload, least, **named)

    def port(self) -> int:
        return next(_PORTS)

    def serve(self, *command: str, port: int = 0) -> int:
        """Start a server; {port} in the command stands for the port, which is returned."""
        port = port or self.port()
        self.two.run(programs.start, port, *(word.format(port=port) for word in command))
        return port

    def wait(self, call: Pending, seconds: float = 50) -> Any:
        """Look at the records until a call is done; its value."""
        for account in self.accounts:
            account.look()
        while not call.done(0.01):
            for account in self.accounts:
                account.look()
        return call.result(seconds)

    def later(self, worker: Worker, *command: str, **named: Any) -> Pending:
        """Start a client."""
        return worker.later(programs.tool, *command, **named)

    def run(self, *command: str, **named: Any) -> str:
        """Run a client in the first guest to its end; what it printed."""
        return str(self.wait(self.later(self.one, *command, **named)))

    def file(self, worker: Worker, path: str, size: int) -> str:
        """Make a file in a guest; its SHA-256."""
        return str(worker.run(programs.make_file, path, size, size))

    def sum(self, worker: Worker, path: str, *part: int) -> str:
        """SHA-256 of a file in a guest, or of a part of it."""
        return str(worker.run(programs.sum_of, path, *part))
