# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes there are, who they say they are, and what they have mapped."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass

from .._model.ivshmem import Identity, parse_identity

# The same number on every architecture; Linux 5.6.
PIDFD_GETFD = 438


@dataclass(frozen=True)
class Process:
    """A process that lives; `arguments` is its command line."""

    pid: int
    arguments: tuple[str, ...]

    @property
    def identity(self) -> Identity:
        """Which virtual machine it is, if it is QEMU."""
        return parse_identity(self.arguments)

    def __str__(self) -> str:
        name = self.identity.names
        return f"{name[0]} (pid {self.pid})" if name else f"pid {self.pid} ({self._command})"

    @property
    def _command(self) -> str:
        return " ".join(self.arguments)[:80]


def read_process(pid: int) -> Process | None:
    """The process, or None when it is gone, a zombie, or a thread of the kernel."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            raw = file.read()
    except OSError:
        return None
    arguments = raw.decode("utf-8", "replace").rstrip("\0").split("\0")
    return Process(pid, tuple(arguments)) if arguments[0] else None


def processes() -> Iterator[Process]:
    """All of them but this one."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            process = read_process(int(name))
            if process:
                yield process


def maps_file(pid: int, device: int, inode: int) -> bool:
    """Has the process this file mapped? False also where it may not be asked."""
    wanted = (b"%02x:%02x" % (os.major(device), os.minor(device)), b"%d" % inode)
    # As bytes: paths of other people's files need not be text.
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            # address permissions offset device inode path
            fields = line.split(None, 5)
            if (fields[3], fields[4]) == wanted:
                return True
    return False


def users_of(path: str) -> list[Process]:
    """Every other process that has the file at `path` mapped; none where there is no file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return []
    return [one for one in processes() if maps_file(one.pid, found.st_dev, found.st_ino)]


def eventfds_of(pid: int) -> dict[int, int]:
    """The kernel's number of each eventfd of the process -> its descriptor there.

    Empty where the process may not be looked at, or the kernel does not tell (before Linux 5.2).
    """
    found: dict[int, int] = {}
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError, ValueError):
                if os.readlink(f"{folder}/{name}") == "anon_inode:[eventfd]":
                    found[_eventfd_number(pid, name)] = int(name)
    return found


def _eventfd_number(pid: int, fd: str) -> int:
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
        lines = [line.split() for line in file]
    return int(next((line[1] for line in lines if line[0] == "eventfd-id:"), ""))


def take_descriptor(pid: int, fd: int) -> int:
    """A duplicate of another process's descriptor, by pidfd_getfd(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        taken = libc.syscall(PIDFD_GETFD, pidfd, fd, 0)
    finally:
        os.close(pidfd)
    if taken < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(taken)
