# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The doorbells of a region: eventfds by chunk, which all machines hold, and the agent too.

They belong to the chunk, not to its owner's life (see _model/ivshmem.py). When an agent was killed,
the machines go on ringing each other; its successor takes the same eventfds out of a machine that
still has them, so that machines that start later are heard by the older ones, and the other way
round. A file tells it which ones: the kernel's numbers of the eventfds. Without it, or without a
machine, there is nothing to restore and new ones are made.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Collection, Iterable

from ._io.process import Process, eventfds_of, take_descriptor

# So many are always given: chunks that are declared later need not be announced to machines whose
# connection an agent's restart cut. QEMU has room for as many from the start.
ANNOUNCED_MIN = 16

log = logging.getLogger("tcp_sm_agent")


class Doorbells:
    """Eventfds by chunk, `vectors` of each."""

    def __init__(self, vectors: int, region_id: bytes, note: str) -> None:
        """`note`: path of the file with their numbers; empty for none."""
        self.vectors = vectors
        self.region_id = region_id.hex()
        self.note = note
        self.fds: dict[int, tuple[int, ...]] = {}
        # The kernel's numbers of them; empty where it does not tell.
        self.numbers: dict[int, list[int]] = {}

    def provide(self, indices: Iterable[int]) -> None:
        """Have doorbells for these chunks, and for the first ones in any case."""
        missing = {*indices, *range(ANNOUNCED_MIN)} - set(self.fds)
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        for index in sorted(missing):
            self.fds[index] = tuple(os.eventfd(0, flags) for _vector in range(self.vectors))
        if missing:
            self._note_numbers()

    def ring(self, index: int) -> bool:
        """Interrupt the owner of the chunk; False when it cannot be."""
        for fd in self.fds.get(index, ()):
            # One that would block was rung 2^64 - 2 times and not answered: it is rung.
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(fd, 1)
        return index in self.fds

    def hush(self, index: int) -> None:
        """A new owner need not hear what its predecessor did not."""
        for fd in self.fds.get(index, ()):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)

    def held_by(self, process: Process) -> bool:
        """Does the machine have the same doorbells?"""
        held = set(eventfds_of(process.pid))
        return sum(set(ids) <= held for ids in self.numbers.values()) >= ANNOUNCED_MIN

    def recover(self, holders: Iterable[Process]) -> None:
        """Take the doorbells of a former agent out of the machines that have them."""
        if self.fds or not (noted := self._read_note()):
            return
        for process in holders:
            count = self._recover_from(process, noted)
            if count:
                log.info("took the doorbells of %d chunks from %s", count, process)
        if self.fds:
            self._note_numbers()

    def _recover_from(self, process: Process, noted: dict[int, list[int]]) -> int:
        """How many were taken."""
        held = eventfds_of(process.pid)
        found = {index: ids for index, ids in noted.items() if set(ids) <= set(held)}
        # Numbers are used again once an eventfd is gone; so many at once are no coincidence.
        if len(found) < ANNOUNCED_MIN:
            return 0
        missing = {index: ids for index, ids in found.items() if index not in self.fds}
        for index, ids in missing.items():
            if len(ids) == self.vectors:
                self._take(process, index, [held[number] for number in ids])
        return len(missing)

    def _take(self, process: Process, index: int, remote: Collection[int]) -> None:
        taken: list[int] = []
        try:
            for fd in remote:
                taken.append(take_descriptor(process.pid, fd))
        except OSError as error:
            log.warning(
                "cannot take a doorbell from %s: %s; machines that start from now on are not heard "
                "by it. Give the agent CAP_SYS_PTRACE.",
                process,
                error.strerror,
            )
            for fd in taken:
                os.close(fd)
            return
        self.fds[index] = tuple(taken)

    def _note_numbers(self) -> None:
        own = {fd: number for number, fd in eventfds_of(os.getpid()).items()}
        self.numbers = {
            index: [own[fd] for fd in fds]
            for index, fds in self.fds.items()
            if all(fd in own for fd in fds)
        }
        if self.note:
            self._write_note()

    def _write_note(self) -> None:
        temporary = f"{self.note}.new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            json.dump({"region": self.region_id, "doorbells": self.numbers}, file)
        os.replace(temporary, self.note)

    def _read_note(self) -> dict[int, list[int]]:
        try:
            with open(self.note, encoding="ascii") as file:
                raw = json.load(file)
            if raw["region"] != self.region_id:
                return {}
            return {int(index): list(ids) for index, ids in raw["doorbells"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def forget_note(self) -> None:
        """Nobody is left who has them."""
        with contextlib.suppress(OSError):
            os.unlink(self.note)

    def close(self) -> None:
        """Give back every descriptor; machines keep theirs."""
        for fds in self.fds.values():
            for fd in fds:
                os.close(fd)
        self.fds.clear()
