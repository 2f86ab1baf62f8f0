# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One region: who gets which chunk, who died, who is woken."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ._io.process import Process, maps_file, processes, read_process
from ._io.region import RegionFile
from ._model.errors import TcpSmError
from ._model.ivshmem import REFUSED, View, encode
from ._model.region import Chunk, ChunkState, Refusal, Region, check_owner, choose_chunk
from .client import Caller, Machine, identify, is_dead, open_pidfd
from .doorbells import Doorbells

# How long to wait for a module that changes the table.
LOCK_SECONDS = 2.0
LOCK_SECONDS_AT_DEATH = 0.2
EXIT_MILLISECONDS = 20
REFUSALS_KEPT = 8


@dataclass
class Counters:
    """Since the agent's start."""

    joined: int = 0
    left: int = 0
    died: int = 0
    adopted: int = 0
    refused: int = 0
    doorbells: int = 0
    doorbells_missing: int = 0


class Watcher:
    """What the server asks of the event loop."""

    def watch(self, fd: int, call: Callable[[], None], write: bool = False) -> None:
        """Call when `fd` can be read, or with `write` also when it can be written."""
        raise NotImplementedError

    def forget(self, fd: int) -> None:
        """Watch `fd` no more; before it is closed."""
        raise NotImplementedError


class RegionServer:
    """Serves one region over one socket."""

    def __init__(self, file: RegionFile, vectors: int, watcher: Watcher, note: str = "") -> None:
        """`note`: where the doorbells' numbers are kept; see doorbells.py."""
        self.file = file
        file.claim()
        self.memory = file.reopened()
        self.watcher = watcher
        self.machines: dict[int, Machine] = {}
        self.counters = Counters()
        self.refusals: list[dict[str, Any]] = []
        self.replaced = False
        region = file.read()
        self.name = region.name
        self.doorbells = Doorbells(vectors, region.id, note)
        self.log = logging.getLogger(f"tcp_sm_agent.{self.name}")

    # Joining.

    def join(self, sock: socket.socket) -> None:
        """Somebody connected: give them their chunk, or close the connection and say why."""
        caller = identify(sock)
        if caller is None:
            self._refuse(sock, "?", "its process is gone, or in a pid namespace we cannot see")
            return
        process = read_process(caller.pid)
        try:
            if process is None or is_dead(caller.pidfd):
                raise TcpSmError("it ended while it connected")
            self._admit(sock, caller, process)
        except (TcpSmError, OSError) as error:
            os.close(caller.pidfd)
            names = process.identity.names if process else ()
            self._refuse(sock, names[0] if names else f"pid {caller.pid}", str(error))

    def _refuse(self, sock: socket.socket, who: str, reason: str) -> None:
        self.counters.refused += 1
        self._remember(who, reason)
        self.log.warning("refused %s: %s", who, reason)
        with contextlib.suppress(OSError):
            sock.sendmsg([encode(REFUSED)], (), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        sock.close()

    def _remember(self, who: str, reason: str) -> None:
        """For `status`: the last few, for a caller in a loop must not fill our memory."""
        same = [one for one in self.refusals if (one["who"], one["reason"]) == (who, reason)]
        count = same[0]["count"] + 1 if same else 1
        others = [one for one in self.refusals if one not in same]
        last = {"who": who, "reason": reason, "count": count, "last": round(time.time(), 3)}
        self.refusals = [*others, last][-REFUSALS_KEPT:]

    def _admit(self, sock: socket.socket, caller: Caller, process: Process) -> None:
        """Give the machine its chunk. Raises TcpSmError with the reason not to."""
        names = process.identity.names
        if not names:
            raise TcpSmError(
                f"its command line ({process}) names no machine; a QEMU needs -name or -uuid"
            )
        self._end_ended(process)
        with self.file.locked(LOCK_SECONDS):
            region = self.file.read()
            index = choose_chunk(region, names, set(self.machines), self._settled(region))
            if isinstance(index, Refusal):
                raise TcpSmError(index.reason)
            chunk = region.chunks[index]
            owner = check_owner(chunk.owner if chunk.owner in names else names[0])
            sock.setblocking(False)
            self.doorbells.provide(one.index for one in region.used)
            self.doorbells.hush(index)
            self.file.begin_life(chunk, owner)
        machine = Machine(
            replace(chunk, owner=owner), process, caller.pidfd, sock, View(index), doorbell=True
        )
        self.counters.joined += 1
        self._add(machine, "joined")
        self.watcher.watch(sock.fileno(), lambda: self._ready(machine))
        self._tell_all()

    def _end_ended(self, caller: Process) -> None:
        """Who joins may follow so closely on an end that this was not looked at yet."""
        for machine in list(self.machines.values()):
            if is_dead(machine.pidfd):
                self._end(machine, "its process ended")
            elif machine.has_hung_up():
                self._end(machine, "its device was taken out")
            elif machine.process.pid == caller.pid and machine.sock is None:
                self._end(machine, "it connects anew")

    def _add(self, machine: Machine, how: str) -> None:
        self.machines[machine.index] = machine
        self.watcher.watch(machine.pidfd, lambda: self._end(machine, "its process ended"))
        epoch = self.file.epoch(machine.index)
        self.log.info("%s %s: chunk %d, epoch %d", machine.process, how, machine.index, epoch)

    def _settled(self, region: Region) -> set[int]:
        """Dead chunks of which no living machine uses anything any more."""
        return {
            chunk.index
            for chunk in region.used
            if chunk.state == ChunkState.DEAD
            and self.file.is_settled(region, chunk.index, self.machines)
        }

    # Telling.

    def _tell_all(self) -> None:
        """Bring every machine's knowledge of the others up to date."""
        for machine in list(self.machines.values()):
            if machine.index in self.machines:
                self._tell(machine)

    def _tell(self, machine: Machine) -> None:
        if machine.sock is None:
            return
        was_blocked = machine.blocked
        try:
            machine.tell(self.memory, self.doorbells.fds)
        except OSError as error:
            self._end(machine, f"its connection broke: {error}")
            return
        if machine.blocked != was_blocked:
            self.watcher.forget(machine.sock.fileno())
            self.watcher.watch(
                machine.sock.fileno(), lambda: self._ready(machine), write=machine.blocked
            )

    def _ready(self, machine: Machine) -> None:
        """Its socket can be written again, or was closed; a client has nothing to say."""
        assert machine.sock is not None
        try:
            data = machine.sock.recv(64)
        except BlockingIOError:
            self._tell(machine)
            return
        except OSError:
            data = b""
        if data:
            self._end(machine, "it sent data, which the protocol does not know")
        else:
            self._end(machine, "its device was taken out")

    # Leaving.

    def _end(self, machine: Machine, reason: str) -> None:
        """The life is over: say so in the table, and wake the others."""
        if self.machines.get(machine.index) is not machine:
            return
        del self.machines[machine.index]
        # First, for what fails below must not be called for ever.
        self.watcher.forget(machine.pidfd)
        if machine.sock is not None:
            self.watcher.forget(machine.sock.fileno())
        self._end_in_table(machine)
        self._ring_all()
        # A process that ends closes its sockets a moment before it is gone.
        if is_dead(machine.pidfd, EXIT_MILLISECONDS):
            self.counters.died += 1
            reason = "its process ended"
        self.counters.left += 1
        epoch = self.file.epoch(machine.index)
        self.log.info(
            "%s left: %s; chunk %d, epoch %d", machine.process, reason, machine.index, epoch
        )
        machine.close()

    def _end_in_table(self, machine: Machine) -> None:
        try:
            with self.file.locked(LOCK_SECONDS_AT_DEATH):
                chunk = self.file.read().chunks[machine.index]
                if chunk.owner != machine.owner or chunk.state != ChunkState.ASSIGNED:
                    return
                self._mark_dead(machine.index)
        except TcpSmError as error:
            # Peers that go on using a dead chunk are worse than two writers of one entry.
            self.log.warning("%s ends all the same: %s", machine.process, error)
            self._mark_dead(machine.index)

    def _mark_dead(self, index: int) -> None:
        self.file.end_life(index, [machine.chunk for machine in self.machines.values()])

    def _ring_all(self) -> None:
        for index, machine in self.machines.items():
            if machine.doorbell and self.doorbells.ring(index):
                self.counters.doorbells += 1
            else:
                self.counters.doorbells_missing += 1

    # Machines that are there without a connection.

    def adopt(self, running: Callable[[], Iterable[Process]] = processes) -> None:
        """Find the machines that use the region and are not connected, and note the dead ones.

        After a restart these are the ones that the former agent served; at any time, those with a
        device without a doorbell. `running` gives the processes of the host.
        """
        region = self.file.read()
        for machine in [one for one in self.machines.values() if one.sock is None]:
            if not maps_file(machine.process.pid, *self.file.identity()):
                self._end(machine, "its device was taken out")
        lost = [c for c in region.used if c.owner and c.index not in self.machines]
        if lost:
            self._look_for(lost, running())

    def _look_for(self, lost: list[Chunk], running: Iterable[Process]) -> None:
        owners = {chunk.owner for chunk in lost}
        called = [one for one in running if owners & set(one.identity.names)]
        users = [one for one in called if maps_file(one.pid, *self.file.identity())]
        self.doorbells.recover(users)
        for chunk in lost:
            process = next((one for one in users if chunk.owner in one.identity.names), None)
            if process is not None:
                self._adopt(chunk, process)
        # After all living ones are known: these are told.
        for chunk in lost:
            if chunk.index not in self.machines and self._had_life(chunk):
                self._bury(chunk)

    def _had_life(self, chunk: Chunk) -> bool:
        """Did the owner's module ever take it? A chunk only declared has no peers to tell."""
        header = self.file.header(chunk)
        alive = chunk.state == ChunkState.ASSIGNED
        return alive and header.started and header.epoch == chunk.epoch

    def _adopt(self, chunk: Chunk, process: Process) -> None:
        pidfd = open_pidfd(process.pid)
        if pidfd is None:
            return
        try:
            if chunk.state != ChunkState.ASSIGNED:
                with self.file.locked(LOCK_SECONDS):
                    self.file.begin_life(chunk, chunk.owner)
        except TcpSmError:
            os.close(pidfd)
            raise
        self.counters.adopted += 1
        doorbell = self.doorbells.held_by(process)
        self._add(
            Machine(chunk, process, pidfd, doorbell=doorbell),
            "found running without a connection, "
            + ("with its doorbells" if doorbell else "and it has no doorbells"),
        )

    def _bury(self, chunk: Chunk) -> None:
        with self.file.locked(LOCK_SECONDS):
            self._mark_dead(chunk.index)
        self.counters.died += 1
        self.log.info("%s is gone: chunk %d waits for its next life", chunk.owner, chunk.index)
        self._ring_all()

    def note_replaced(self) -> None:
        """The region's file is another one now; machines still use the old."""
        if not self.replaced:
            self.log.warning(
                "%s was deleted or made anew while machines use it; they go on among themselves, "
                "and the new one is served when the last of them has ended",
                self.file.path,
            )
        self.replaced = True

    def close(self) -> None:
        """Give everything back. Machines keep their memory and the doorbells that they have."""
        for machine in self.machines.values():
            self.watcher.forget(machine.pidfd)
            if machine.sock is not None:
                self.watcher.forget(machine.sock.fileno())
            machine.close()
        if not self.machines:
            self.doorbells.forget_note()
        self.machines.clear()
        self.doorbells.close()
        os.close(self.memory)
        self.file.close()
