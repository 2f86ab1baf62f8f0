# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One scenario, played by plain TCP and through the ring, and what was seen compared.

A scenario is a function of a `Scene`. It makes connections between the two guests with
`scene.pair()`, does what applications would do, and notes what they would see. The ways:

    tcp     a port that is excluded, so plain TCP
    ring    through the ring, moved by the BPF programs
    leave   through the ring, moved by the module's C code, and where the scenario says
            `scene.middle()` both directions leave for TCP
"""

from __future__ import annotations

import copy
import errno
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import abi, records
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.abi import Reason
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.records import Record

from .guest import channel, lib
from .lab import Guest, Lab
from .remote import Remote, Worker

__all__ = ["Reason", "Record", "Scene", "Stage"]

TCP, RING, LEAVE = "tcp", "ring", "leave"
PORT = 5000
TCP_PORT = 4000


def exclude_ports(guest: Guest) -> None:
    """The ports of plain TCP; to be said again when the programs were loaded anew."""
    for port in range(TCP_PORT, TCP_PORT + 10):
        guest.run(channel.port_rule, port, 2)


def kept(guest: Guest) -> dict[int, Record]:
    """What the channel's iterator says of the sockets of a guest, by cookie."""
    data = guest.run(channel.records)
    return {record.cookie: record for record in records.parse_records(data)}


IN_RING = (abi.Channel.RING, Reason.NONE)


def stats(guest: Guest) -> dict[str, Any]:
    """The channel's counters in a guest."""
    return records.sum_stats(guest.run(channel.stats, abi.struct_size("tcp_sm_stats")))


@dataclass
class Outcome:
    """What a scenario noted, and the channel's records of its sockets."""

    notes: list[tuple[str, Any]] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)


class Scene:
    """The stage of one run. `one` is the client's guest's worker, `two` the server's."""

    def __init__(self, way: str, lab: Lab) -> None:
        self.way, self.lab = way, lab
        self.here, self.there = lab.guests
        self.one, self.two = self.here.worker(), self.there.worker()
        self.outcome = Outcome()
        self._watched: dict[str, tuple[Guest, int]] = {}
        self._ports = itertools.count(TCP_PORT if way == TCP else PORT)

    def turned(self) -> Scene:
        """The same guests and workers, with the client in the second."""
        other = copy.copy(self)
        other.here, other.there = self.there, self.here
        other.one, other.two = self.two, self.one
        return other

    def end(self) -> None:
        """Kill both workers with all they have."""
        for guest in (self.here, self.there):
            guest.end_worker()

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
        """Here the third way takes all connections back to TCP."""
        if self.way == LEAVE:
            self.here.run(channel.drain, True)

    def watch(self, **sockets: tuple[Worker, Remote]) -> None:
        """Keep the records of these sockets, as they are when the scene ends."""
        for name, (worker, sock) in sockets.items():
            self._watched[name] = (worker.guest, worker.run(lib.cookie, sock))

    def look(self) -> None:
        """Take the records of the watched sockets now."""
        found = {guest.name: kept(guest) for guest in (self.here, self.there)}
        for name, (guest, cookie) in self._watched.items():
            if cookie in found[guest.name]:
                self.outcome.records[name] = found[guest.name][cookie]

    def door(self, address: str = "", options: Any = (), backlog: int = 128) -> tuple[Remote, int]:
        """A listener in the second guest, and its port."""
        port = next(self._ports)
        return self.two.run(lib.listener, address, port, options, backlog), port

    def pair(
        self,
        address: str = "",
        blocking: bool = False,
        client: Any = (),
        server: Any = (),
        bind: str = "",
        first: bytes = b"",
    ) -> tuple[Remote, Remote]:
        """(client, server), connected; client, server: socket options set before."""
        door, port = self.door(bind or ("::" if ":" in address else ""), server)
        ends = self.meet(door, port, address, blocking, client, first)
        door.close()
        return ends

    def meet(
        self,
        door: Remote,
        port: int,
        address: str = "",
        blocking: bool = False,
        client: Any = (),
        first: bytes = b"",
    ) -> tuple[Remote, Remote]:
        """A connection to a listener; first: what the client sends before it is accepted."""
        made = self.one.run(lib.connect, address or self.there.address, port, blocking, client)
        if first:
            self.send(made, first)
        accepted = self.two.run(lib.accept, door, blocking)
        assert self.receive(accepted, len(first)) == first
        self.watch(client=(self.one, made), server=(self.two, accepted))
        self.look()
        return made, accepted

    def exchange(self, client: Remote, server: Remote, size: int = 20_000) -> None:
        """Different bytes both ways at the same time, compared. size: below what a ring holds."""
        question, answer = os.urandom(size), os.urandom(size)
        self.send(client, question)
        self.send(server, answer)
        assert self.receive(server, size) == question, "the server got other bytes"
        assert self.receive(client, size) == answer, "the client got other bytes"

    def place(self, name: str) -> tuple[abi.Channel, Reason] | None:
        """Where a watched socket was when last looked at; None: nobody asked about it."""
        record = self.outcome.records.get(name)
        return (record.channel, record.reason) if record else None

    # Helpers that know in which guest a socket is.

    def at(self, sock: Remote) -> Worker:
        """The worker that has this socket."""
        return self.one if sock._port is self.one.port else self.two

    def send(self, sock: Remote, data: bytes) -> None:
        self.at(sock).run(lib.send, sock, data)

    def receive(self, sock: Remote, size: int, seconds: float = lib.PATIENCE) -> bytes:
        return bytes(self.at(sock).run(lib.receive, sock, size, seconds))

    def wait(self, sock: Remote, events: int, seconds: float = lib.PATIENCE) -> int:
        return int(self.at(sock).run(lib.wait, sock, events, seconds))

    def arrived(self, sock: Remote, size: int) -> None:
        """Wait until so many bytes can be read."""
        self.at(sock).run(lib.arrived, sock, size)


class Load:
    """A connection whose ends send and receive at once, until `check`."""

    def __init__(self, scene: Scene, seed: int = 1, address: str = "") -> None:
        self.client, self.server = scene.pair(address, blocking=True, bind="::")
        self.ends = [
            scene.at(sock).run(lib.Stream, sock, seed + number)
            for number, sock in enumerate((self.client, self.server))
        ]

    def goes_on(self, size: int = 50_000) -> None:
        """Both ends receive so many bytes more."""
        for end in self.ends:
            end.progress(size)

    def check(self) -> None:
        """Every byte arrived, in order, and nothing failed."""
        for end in self.ends:
            end.finish()
        (sent, got, errors), (answered, heard, others) = (end.result() for end in self.ends)
        assert (errors, others) == ([], [])
        assert (got, heard) == (answered, sent)


Scenario = Callable[[Scene], None]


@dataclass
class Stage:
    """Plays scenarios, and remembers what plain TCP did."""

    lab: Lab
    way: str = RING
    plain: dict[str, Outcome] = field(default_factory=dict)

    def play(self, scenario: Scenario, way: str) -> Outcome:
        """Run a scenario one way."""
        scene = Scene(way, self.lab)
        try:
            scenario(scene)
            scene.look()
        finally:
            scene.end()
            if way == LEAVE:
                scene.here.run(channel.drain, False)
        return scene.outcome

    def compare(self, scenario: Scenario, reason: Reason = Reason.NONE) -> Outcome:
        """What was seen must equal TCP's. reason: why the connection stays on TCP."""
        name = f"{scenario.__module__}.{scenario.__qualname__}"
        if name not in self.plain:
            self.plain[name] = self.play(scenario, TCP)
        plain, ours = self.plain[name], self.play(scenario, self.way)
        same_notes(plain, ours)
        in_ring(ours, reason)
        return ours

    def differs(self, scenario: Scenario, tcp: list[Any], ring: list[Any]) -> None:
        """A known difference: what TCP does, and what the ring does."""
        plain, ours = self.play(scenario, TCP), self.play(scenario, RING)
        assert plain.notes == tcp, "plain TCP does something else"
        assert ours.notes == ring, "the documented difference is another one now"
        in_ring(ours, Reason.NONE)


def same_notes(plain: Outcome, ours: Outcome) -> None:
    """Assert that an application saw the same as on plain TCP."""
    assert plain.notes, "the scenario noted nothing"
    both = itertools.zip_longest(ours.notes, plain.notes)
    differing = [(seen, tcp) for seen, tcp in both if seen != tcp]
    assert not differing, f"differs from plain TCP in (seen, TCP's): {differing[:5]}"


def in_ring(outcome: Outcome, reason: Reason) -> None:
    """Assert that the watched sockets were where they should be."""
    placed = {name: (record.channel, record.reason) for name, record in outcome.records.items()}
    if reason is Reason.NONE:
        expected = {(abi.Channel.RING, Reason.NONE), (abi.Channel.TCP, Reason.PEER_LEFT)}
        assert placed, "no socket was watched"
        assert set(placed.values()) <= expected, placed
    else:
        assert reason in {why for _, why in placed.values()}, placed
