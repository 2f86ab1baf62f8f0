# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One connected machine: its process, and what it is sent."""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ._io.process import Process
from ._model.ivshmem import MESSAGE_SIZE, Message, View, encode
from ._model.region import Chunk

# Not in Python's socket module yet; Linux 6.5. (include/uapi/asm-generic/socket.h)
SO_PEERPIDFD = 77


@dataclass(frozen=True)
class Caller:
    """Who connected: its process number, and a descriptor that cannot mean another process."""

    pid: int
    pidfd: int


def identify(sock: socket.socket) -> Caller | None:
    """The process at the other end; None when it is gone or of a foreign pid namespace."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, _uid, _gid = struct.unpack("iII", raw)
    if pid == 0:
        return None
    pidfd = _peer_pidfd(sock, pid)
    if pidfd is None:
        return None
    if is_dead(pidfd):
        os.close(pidfd)
        return None
    return Caller(pid, pidfd)


def _peer_pidfd(sock: socket.socket, pid: int) -> int | None:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        return int(struct.unpack("i", raw)[0])
    except OSError:
        pass  # an older kernel, or the process is gone already
    return open_pidfd(pid)


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None when it has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def is_dead(pidfd: int, milliseconds: int = 0) -> bool:
    """Has the process ended, or does it within so many milliseconds?"""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(milliseconds))


@dataclass
class Machine:
    """A virtual machine that has `chunk`, in which only index, owner and geometry are up to date.

    One that was found after the agent's restart, or has a device without a doorbell, has no socket;
    its end is noticed all the same. `doorbell`: it holds the eventfds that the agent holds.
    """

    chunk: Chunk
    process: Process
    pidfd: int
    sock: socket.socket | None = None
    view: View = field(default_factory=lambda: View(0))
    # The socket is full; go on when it can be written again.
    blocked: bool = False
    doorbell: bool = False

    @property
    def index(self) -> int:
        """Number of its chunk, and its peer id."""
        return self.chunk.index

    @property
    def owner(self) -> str:
        """What the table calls it."""
        return self.chunk.owner

    def close(self) -> None:
        """Give back every descriptor."""
        os.close(self.pidfd)
        if self.sock is not None:
            self.sock.close()

    def has_hung_up(self) -> bool:
        """Did it close its connection?"""
        if self.sock is None:
            return False
        try:
            return not self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def tell(self, memory: int, doorbells: Mapping[int, Sequence[int]]) -> None:
        """Send what the machine does not know yet: eventfds by chunk. Raises OSError when the
        connection broke."""
        if self.sock is None:
            return
        peers = {index: len(fds) for index, fds in doorbells.items()}
        self.blocked = False
        while message := self.view.next(peers):
            try:
                self._send(self.sock, message, memory, doorbells)
            except BlockingIOError:
                self.blocked = True
                return
            self.view.sent(message)

    @staticmethod
    def _send(
        sock: socket.socket, message: Message, memory: int, doorbells: Mapping[int, Sequence[int]]
    ) -> None:
        """Eight bytes go whole or not at all."""
        fds = []
        if message.memory:
            fds = [memory]
        elif message.vector is not None:
            fds = [doorbells[message.value][message.vector]]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = sock.sendmsg([encode(message.value)], rights, socket.MSG_NOSIGNAL)
        if sent != MESSAGE_SIZE:
            raise OSError(f"only {sent} of {MESSAGE_SIZE} bytes were taken")
