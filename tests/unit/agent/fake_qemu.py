# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine as the agent sees one: a process that speaks QEMU's side of the IVSHMEM protocol, and
writes into its chunk what the guest's module would.

Usage: fake_qemu.py -name guest=NAME SOCKET        (a doorbell device)
       fake_qemu.py -name guest=NAME --map FILE    (a plain device)
Commands come as lines on standard input, each answered with a line of JSON.
"""

from __future__ import annotations

import array
import contextlib
import json
import mmap
import os
import select
import socket
import struct
import sys
import time
from typing import Any

TABLE, ENTRY = 4096, 128
CHUNK_MAGIC = 0x4B4E4843534D5354
SEEN, ATTENTION = 128, 96
PATIENCE = 5.0


class Machine:
    """Connection, doorbells and memory."""

    def __init__(self, sock: socket.socket | None, memory: int | None = None) -> None:
        self.sock = sock
        self.messages: list[tuple[int, bool]] = []
        self.doorbells: dict[int, list[int]] = {}
        self.memory: mmap.mmap | None = None
        if memory is not None:
            self.memory = mmap.mmap(memory, 0)

    @property
    def id(self) -> int:
        return self.messages[1][0]

    def receive(self, wait: float) -> bool:
        """One message, if one comes within `wait` seconds."""
        assert self.sock is not None
        if not select.select([self.sock], [], [], wait)[0]:
            return False
        size = struct.calcsize("i")
        data, ancillary, _flags, _address = self.sock.recvmsg(8, socket.CMSG_SPACE(size))
        if not data:
            return False
        (value,) = struct.unpack("<q", data)
        fds = array.array("i")
        for _level, _type, raw in ancillary:
            fds.frombytes(raw[:size])
        self.messages.append((value, bool(fds)))
        if value == -1 and fds:
            self.memory = mmap.mmap(fds[0], 0)
            os.close(fds[0])
        elif fds:
            self.doorbells.setdefault(value, []).append(fds[0])
        return True

    # Commands.

    def greet(self, count: str = "19") -> Any:
        """The first `count` messages: version, id, memory, and doorbells of 16 chunks."""
        while len(self.messages) < int(count) and self.receive(PATIENCE):
            pass
        return self.messages

    def more(self) -> Any:
        """Everything, until nothing more comes."""
        while self.receive(0.2):
            pass
        return self.messages

    def ring(self, peer: str) -> Any:
        os.eventfd_write(self.doorbells[int(peer)][0], 1)

    def heard(self, wait: str = "0") -> Any:
        """How often the own doorbell was rung, within `wait` seconds; 0: not."""
        own = self.doorbells[self.id][0]
        if not select.select([own], [], [], float(wait))[0]:
            return 0
        return os.eventfd_read(own)

    def numbers(self) -> Any:
        """The kernel's numbers of the doorbells: the same number is the same doorbell."""
        found = {}
        for peer, fds in self.doorbells.items():
            with open(f"/proc/self/fdinfo/{fds[0]}", encoding="ascii") as file:
                found[peer] = next(line for line in file if line.startswith("eventfd-id"))
        return found

    def entry(self, index: str) -> Any:
        """(state, epoch, offset) of an entry of the table."""
        assert self.memory is not None
        return struct.unpack_from("<IIQ", self.memory, TABLE + int(index) * ENTRY)

    def take(self, index: str) -> Any:
        """What the module does first: another epoch, an empty header."""
        assert self.memory is not None
        _state, epoch, offset = self.entry(index)
        struct.pack_into("<I", self.memory, TABLE + int(index) * ENTRY + 4, epoch + 1)
        self.memory[offset : offset + 4096] = bytes(4096)
        struct.pack_into("<QII", self.memory, offset, CHUNK_MAGIC, int(index), epoch + 1)
        return epoch + 1

    def see(self, index: str, peer: str, epoch: str) -> Any:
        """The module of chunk `index` let go of all of `peer` before this epoch."""
        assert self.memory is not None
        offset = self.entry(index)[2] + SEEN + 4 * int(peer)
        struct.pack_into("<I", self.memory, offset, int(epoch))

    def attention(self, index: str) -> Any:
        assert self.memory is not None
        return struct.unpack_from("<I", self.memory, self.entry(index)[2] + ATTENTION)[0]

    def scribble(self, offset: str, size: str) -> Any:
        assert self.memory is not None
        self.memory[int(offset) : int(offset) + int(size)] = os.urandom(int(size))

    def say(self, text: str) -> Any:
        assert self.sock is not None
        self.sock.sendall(text.encode())

    def hangup(self) -> Any:
        """The device is taken out; the machine goes on."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    def eof(self, wait: str) -> Any:
        """Did the other side close?"""
        assert self.sock is not None
        while select.select([self.sock], [], [], float(wait))[0]:
            if not self.sock.recv(8):
                return True
        return False

    def fork(self) -> Any:
        """A child that holds everything open, for a while."""
        child = os.fork()
        if child:
            return child
        os.close(0)
        os.close(1)
        time.sleep(30)
        os._exit(0)


def connect(path: str) -> Machine:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            sock.connect(path)
            return Machine(sock)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def main() -> None:
    target = sys.argv[-1]
    if sys.argv[-2] == "--map":
        fd = os.open(target, os.O_RDWR)
        machine = Machine(None, fd)
        os.close(fd)
    else:
        machine = connect(target)
    for line in sys.stdin:
        command, *arguments = line.split()
        answer: Any = None
        if command == "connect":
            machine = connect(arguments[0])
        else:
            with contextlib.suppress(BrokenPipeError):
                answer = getattr(machine, command)(*arguments)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
